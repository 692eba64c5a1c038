//! Runs the command of a hook: no shell, in the project's root, the event on its standard input and in its environment.
//!
//! It leads a process group of its own, so that at its time limit everything that it started ends with it. It gets three
//! descriptors of ours, and none of a lock, as all others close on `exec`. What it prints is kept up to a limit.

use std::{
    io::{self, PipeReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::event::Event;
use crate::util::operation::CancelToken;

/// Of what it prints, so many bytes from the start are kept.
const MOST_OUTPUT: u64 = 4096;
const POLL: Duration = Duration::from_millis(20);
/// For what is still in the pipe when the command has ended; a process that it left behind may hold that open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What it printed, or why it failed.
pub fn run(
    command: &[String],
    event: &Event,
    dir: &Path,
    limit: Duration,
    cancel: &CancelToken,
) -> Result<String, String> {
    let deadline = Instant::now() + limit;
    let (mut child, said) =
        start(command, event, dir).map_err(|cause| format!("could not be started: {cause}"))?;
    let ended = wait(&mut child, deadline, cancel)
        .map_err(|cause| format!("could not be waited for: {cause}"))?;
    let said = said.recv_timeout(LAST_WORDS).unwrap_or_default();
    let said = said.trim();
    let colon = if said.is_empty() { "" } else { ": " };
    match ended {
        Some(status) if status.success() => Ok(said.to_string()),
        Some(status) => Err(format!("{}{colon}{said}", describe(status))),
        None if cancel.is_cancelled() => {
            Err(format!("was killed, as this process ends{colon}{said}"))
        }
        None => Err(format!(
            "was killed after {} s{colon}{said}",
            limit.as_secs()
        )),
    }
}

fn start(command: &[String], event: &Event, dir: &Path) -> io::Result<(Child, Receiver<String>)> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (input, mut to_input) = io::pipe()?;
    let (output, to_output) = io::pipe()?;
    // Threads before the process: where there are none to be had, nothing runs that nobody watches. Each ends with its pipe.
    let json = event.json();
    // A command that reads nothing must not hold us up. That it did not is its own business.
    thread::Builder::new().spawn(move || drop(to_input.write_all(json.as_bytes())))?;
    let said = collect(output)?;
    // A path starts at the project's root too; a name is looked for in `PATH`.
    let program = if program.contains('/') {
        dir.join(program)
    } else {
        program.into()
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(dir)
        .process_group(0)
        .stdin(input);
    command.stdout(to_output.try_clone()?).stderr(to_output);
    for name in Event::VARIABLES {
        command.env_remove(name);
    }
    command.envs(event.environment());
    let child = command.spawn()?;
    // Our ends of what is the child's are closed now, or neither side would see an end.
    drop(command);
    Ok((child, said))
}

/// Reads to the end, and keeps the start.
fn collect(mut output: PipeReader) -> io::Result<Receiver<String>> {
    let (send, receive) = channel();
    thread::Builder::new().spawn(move || {
        let mut kept = Vec::new();
        let _ = output.by_ref().take(MOST_OUTPUT).read_to_end(&mut kept);
        let _ = send.send(String::from_utf8_lossy(&kept).into_owned());
        // Whoever prints more is not stopped by a full pipe.
        let _ = io::copy(&mut output, &mut io::sink());
    })?;
    Ok(receive)
}

/// `None` where it had to be killed.
fn wait(
    child: &mut Child,
    deadline: Instant,
    cancel: &CancelToken,
) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline || cancel.is_cancelled() {
            // Not waited for yet, so its number is still its own.
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
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
        let root = dir.path().canonicalize().unwrap();
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
            dir.canonicalize().unwrap().display().to_string()
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
