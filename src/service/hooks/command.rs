//! Runs the command of a hook without a shell in the root of the project. The event is in its
//! standard input and its environment.
//!
//! The command leads its own group of processes, so that everything it started ends with it at its time
//! limit. It inherits only three descriptors and no lock, because all other descriptors close on
//! `exec`. Its output is kept up to a limit.

use std::{
    io::{self, PipeReader, Read, Write},
    path::Path,
    process::{Command, ExitStatus},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use super::event::Event;
use crate::{
    objects::SECRET_VARIABLES,
    util::{
        child::{self, Family},
        operation::CancelToken,
    },
};

/// The number of bytes of the output that are kept, from its start.
const MOST_OUTPUT: u64 = 4096;
const POLL: Duration = Duration::from_millis(20);
/// The wait for output that is still in the pipe when the command has ended. A process that the
/// command left behind may hold the pipe open forever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Returns the output of the command, or why it failed.
pub fn run(
    command: &[String],
    event: &Event,
    dir: &Path,
    limit: Duration,
    cancel: &CancelToken,
) -> Result<String, String> {
    let deadline = Instant::now() + limit;
    let (mut family, said) =
        start(command, event, dir).map_err(|cause| format!("could not be started: {cause}"))?;
    let ended = wait(&mut family, deadline, cancel)
        .map_err(|cause| format!("could not be waited for: {cause}"))?;
    let said = said.recv_timeout(LAST_WORDS).unwrap_or_default();
    let said = said.trim();
    let colon = if said.is_empty() { "" } else { ": " };
    match ended {
        Some(status) if status.success() => Ok(said.to_string()),
        Some(status) => Err(format!("{}{colon}{said}", child::describe(status))),
        None if cancel.is_cancelled() => Err(format!(
            "was killed because this process is ending{colon}{said}"
        )),
        None => Err(format!(
            "was killed after {} s{colon}{said}",
            limit.as_secs()
        )),
    }
}

fn start(command: &[String], event: &Event, dir: &Path) -> io::Result<(Family, Receiver<String>)> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (input, mut to_input) = io::pipe()?;
    let (output, to_output) = io::pipe()?;
    // Threads start before the process. If no thread is available, no unobserved process runs. Each
    // thread ends with its pipe.
    let json = event.json();
    // A command that does not read its input must not block this process, so write errors are
    // ignored.
    thread::Builder::new().spawn(move || drop(to_input.write_all(json.as_bytes())))?;
    let said = collect(output)?;
    // A program path is relative to the root of the project. A plain name is looked up in `PATH`.
    let program = if program.contains('/') {
        dir.join(program)
    } else {
        program.into()
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).stdin(input);
    command.stdout(to_output.try_clone()?).stderr(to_output);
    for name in Event::VARIABLES.iter().chain(&SECRET_VARIABLES) {
        command.env_remove(name);
    }
    command.envs(event.environment());
    let family = Family::spawn(&mut command)?;
    // This closes the ends of the pipes that belong to the child. Otherwise neither side would see
    // an end of file.
    drop(command);
    Ok((family, said))
}

/// Reads the output to its end and keeps the start.
fn collect(mut output: PipeReader) -> io::Result<Receiver<String>> {
    let (send, receive) = channel();
    thread::Builder::new().spawn(move || {
        let mut kept = Vec::new();
        let _ = output.by_ref().take(MOST_OUTPUT).read_to_end(&mut kept);
        let _ = send.send(String::from_utf8_lossy(&kept).into_owned());
        // A full pipe must not stop a command that prints more.
        let _ = io::copy(&mut output, &mut io::sink());
    })?;
    Ok(receive)
}

/// Waits for the command. Returns `None` if it had to be killed.
fn wait(
    family: &mut Family,
    deadline: Instant,
    cancel: &CancelToken,
) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = family.child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline || cancel.is_cancelled() {
            // The child has not been waited for yet, so its process id cannot have been reused.
            family.kill();
            family.child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{project::Project, service::hooks::event::EventKind};

    fn run_in(dir: &Path, script: &str, limit: Duration) -> Result<String, String> {
        std::fs::create_dir_all(dir.join(".kg")).unwrap();
        let project = Project::open(dir).unwrap();
        let command = ["sh", "-c", script].map(String::from);
        run(
            &command,
            &Event::new(EventKind::Test, &project),
            project.root(),
            limit,
            &CancelToken::default(),
        )
    }

    #[test]
    fn a_command_runs_in_the_project_and_gets_the_event_as_input_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"cat > told.json; echo "$KG_BACKUP_EVENT in $PWD""#;
        let said = run_in(dir.path(), script, Duration::from_secs(10)).unwrap();
        let root = dunce::canonicalize(dir.path()).unwrap();
        assert_eq!(said, format!("backup.test in {}", root.display()));
        let told: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root.join("told.json")).unwrap()).unwrap();
        assert_eq!(told["event"], "backup.test");
        assert_eq!(told["id"].as_str().unwrap().len(), 32);
    }

    #[test]
    fn one_that_fails_floods_or_reads_nothing_is_told_with_the_start_of_what_it_printed() {
        let dir = tempfile::tempdir().unwrap();
        let said = run_in(
            dir.path(),
            "echo no disk >&2; exit 7",
            Duration::from_secs(10),
        )
        .unwrap_err();
        assert_eq!(said, "ended with status 7: no disk");
        let flood = "exec 0<&-; head -c 1000000 /dev/zero | tr '\\0' x";
        assert_eq!(
            run_in(dir.path(), flood, Duration::from_secs(10))
                .unwrap()
                .len(),
            MOST_OUTPUT as usize
        );
        assert_eq!(
            run_in(dir.path(), "kill -9 $$", Duration::from_secs(10)).unwrap_err(),
            "was ended by signal 9"
        );
        let dir = dir.path();
        let event = Event::new(EventKind::Test, &Project::open(dir).unwrap());
        let call = |program: &str| {
            run(
                &[program.into()],
                &event,
                dir,
                Duration::from_secs(10),
                &CancelToken::default(),
            )
        };
        let said = call("/no/such").unwrap_err();
        assert!(
            said.starts_with("could not be started: No such file"),
            "{said}"
        );
        std::os::unix::fs::symlink("/bin/pwd", dir.join("here")).unwrap();
        assert_eq!(
            call("./here").unwrap(),
            dunce::canonicalize(dir).unwrap().display().to_string()
        );
    }

    #[test]
    fn what_it_leaves_behind_does_not_hold_anybody_up() {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        run_in(dir.path(), "sleep 3 & exit 0", Duration::from_secs(60)).unwrap();
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}
