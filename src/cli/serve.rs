//! `kg serve`: the service that makes a project's backups.

use std::{
    fs::File,
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use jiff::tz::TimeZone;
use serde_json::json;

use super::{
    args::{Common, settings, store_at},
    interrupt::cancel_on_interrupt,
    option_flags::translate,
    output::Output,
    status::{ago, date, hook_failure, next_run},
};
use crate::{
    commands::configured,
    config::{Settings, listen::Listen},
    error::{Code, Error, Result},
    project::Project,
    service::{
        Holder, InstanceLock, Listening, Log,
        status::status,
        supervisor, {self},
    },
    system::process,
};

/// A service normally ends within a moment. One that is moving files into place may take longer.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
const START_PATIENCE: Duration = Duration::from_secs(15);
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// The number of bytes to read from the standard error of a service that did not start.
const MOST_SAID_BYTES: u64 = 4096;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg serve --all          make backups on the project's schedule, in the background
  kg serve --status       print whether it runs, its address, and the next backup
  kg serve --stop         stop it
  kg serve --foreground   stay in the foreground, for systemd and containers
  kg serve --foreground --listen 0.0.0.0:9821   also answer other machines

It answers /healthz, /readyz and /metrics over HTTP.")]
pub struct ServeArgs {
    #[command(flatten)]
    pub common: Common,
    /// Start all services of this package: scheduled backups (this is the default)
    #[arg(long, group = "what")]
    all: bool,
    /// Stop the services, and wait until they have ended
    #[arg(long, group = "what")]
    stop: bool,
    /// Print whether the services run; exits with 1 if they do not
    #[arg(long, group = "what")]
    status: bool,
    /// Run in the foreground until a signal arrives, and log to standard output
    #[arg(long, group = "what")]
    foreground: bool,
    /// Write metrics for node_exporter's textfile collector after each backup
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stop", "status"])]
    metrics_file: Option<PathBuf>,
    /// Answer at this address instead of `backup.listen`: a port of this machine, an address and
    /// port, or off
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["stop", "status"])]
    listen: Option<Listen>,
    /// Run as --foreground does, but detached; --all starts this
    #[arg(long, hide = true, group = "what")]
    detached: bool,
}

pub fn run(args: &ServeArgs, output: &Output) -> Result<u8> {
    let project = Project::open(&args.common.root()?)?;
    if args.stop {
        stop(&project, output)
    } else if args.status {
        print_status(&project, output)
    } else if args.foreground || args.detached {
        serve(&project, args, output)
    } else {
        start(&project, args, output)
    }
}

fn start(project: &Project, args: &ServeArgs, output: &Output) -> Result<u8> {
    if let Some(holder) = Holder::find(project)? {
        print_already_running(project, &holder, output);
        return Ok(0);
    }
    let settings = settings(project.root(), output);
    settings.assert_usable()?;
    let plan = configured::plan(&settings, project.root())?;
    if plan.is_none() || !configured::is_enabled(&settings) {
        output.result(
            &json!({ "running": false, "started": false, "service": null, "listen": null }),
        );
        output.line(
            "Nothing to serve: automated backups are not enabled for this project. To enable them:",
        );
        if plan.is_none() {
            output.line("  kg config set backup.schedule \"0 2 * * *\"");
        }
        output.line("  kg config set backup.enabled true");
        output.line("  kg serve --all");
        return Ok(0);
    }
    let holder = launch(project, args)?;
    let listening = settled(project, &holder);
    output.result(&json!({ "running": true, "started": true, "service": holder, "listen": known(&listening) }));
    output.line(format!("The service runs: {}", describe(project, &holder)));
    output.line(format!("  answers   {}", address(&listening)));
    output.line(format!(
        "  log       {}",
        service::log_path(project).display()
    ));
    Ok(0)
}

fn print_already_running(project: &Project, holder: &Holder, output: &Output) {
    let listening = Listening::find(project, holder);
    output.result(&json!({ "running": true, "started": false, "service": holder, "listen": known(&listening) }));
    output.line(format!(
        "The service is already running: {}",
        describe(project, holder)
    ));
    output.line(format!("  answers   {}", address(&listening)));
}

/// Starts this executable again, detached, and waits until the new process holds the instance lock.
fn launch(project: &Project, args: &ServeArgs) -> Result<Holder> {
    let failed = |cause| Error::io("start", Path::new("the service"), cause);
    let executable = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(executable);
    command
        .args(["serve", "--detached", "--project"])
        .arg(project.root());
    if let Some(path) = &args.metrics_file {
        command
            .arg("--metrics-file")
            .arg(std::path::absolute(path).map_err(failed)?);
    }
    if let Some(listen) = args.listen {
        command.arg("--listen").arg(listen.to_string());
    }
    // A file rather than a pipe, because the service outlives this process.
    let said = tempfile::tempfile().map_err(failed)?;
    let stderr = said.try_clone().map_err(failed)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(failed)?;
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let ended = child.try_wait().map_err(failed)?;
        match Holder::find(project)? {
            // Another process may have started the service first. The project has its service in
            // that case too.
            Some(holder) if holder.pid != 0 && (is(&holder, &child) || ended.is_some()) => {
                return Ok(holder);
            }
            _ if ended.is_some() || Instant::now() > deadline => {
                return Err(not_started(project, &said));
            }
            _ => thread::sleep(POLL),
        }
    }
}

/// The address at which a service answers. The outer `None` means that the service has not reported
/// it, the inner `None` that it is turned off.
type Answers = Option<Option<Listening>>;

/// Waits until a service that has just started reports its address.
fn settled(project: &Project, holder: &Holder) -> Answers {
    let deadline = Instant::now() + LISTEN_PATIENCE;
    loop {
        match Listening::find(project, holder) {
            None if Instant::now() < deadline => thread::sleep(POLL),
            found => return found,
        }
    }
}

/// Returns the address for `--json`.
fn known(answers: &Answers) -> Option<&Listening> {
    answers.as_ref()?.as_ref()
}

fn address(answers: &Answers) -> String {
    match answers {
        None => "at an unknown address: see its log".into(),
        Some(None) => "not over HTTP".into(),
        Some(Some(Listening {
            address,
            error: None,
        })) => format!("on http://{address}"),
        Some(Some(Listening {
            address,
            error: Some(error),
        })) => {
            format!(
                "not on {address} yet: {error}. To use another port, run `kg config set \
                 backup.listen PORT`"
            )
        }
    }
}

fn is(holder: &Holder, child: &Child) -> bool {
    u32::try_from(holder.pid).is_ok_and(|pid| pid == child.id())
}

/// Returns the error of a service that did not start. `said` is its standard error.
fn not_started(project: &Project, mut said: &File) -> Error {
    let mut text = String::new();
    let read = said
        .rewind()
        .and_then(|()| said.take(MOST_SAID_BYTES).read_to_string(&mut text));
    let first = text
        .lines()
        .next()
        .filter(|_| read.is_ok())
        .map(|line| line.trim_start_matches("kg: "));
    let why = first.map_or(String::new(), |line| format!(": {line}"));
    let remedy = format!(
        "See {}, or run `kg serve --foreground`",
        service::log_path(project).display()
    );
    Error::new(
        Code::Service,
        format!("The service did not start{why}"),
        remedy,
    )
}

fn stop(project: &Project, output: &Output) -> Result<u8> {
    let Some(holder) = Holder::find(project)? else {
        output.result(&json!({ "running": false, "stopped": false, "service": null }));
        output.line("No service of this project runs");
        return Ok(0);
    };
    let shown = describe(project, &holder);
    let by_force = holder.stop(project, STOP_PATIENCE)?;
    output.result(
        &json!({ "running": false, "stopped": true, "byForce": by_force, "service": holder }),
    );
    let how = if by_force {
        ", by force: it did not end by itself"
    } else {
        ""
    };
    output.line(format!("The service was stopped{how} ({shown})"));
    Ok(0)
}

fn print_status(project: &Project, output: &Output) -> Result<u8> {
    let holder = Holder::find(project)?;
    let listening = holder
        .as_ref()
        .and_then(|holder| Listening::find(project, holder));
    let settings = settings(project.root(), output);
    let store = store_at(None, project.root(), &settings)?;
    let status = status(Some(project), &store, &settings, jiff::Timestamp::now())?;
    output.result(&json!({
        "running": holder.is_some(), "service": holder, "listen": known(&listening),
        "nextRun": status.next_run, "lastRun": status.last_run, "hookFailures": status.hook_failures,
        "hookWarnings": status.hook_warnings, "withoutSchedule": status.without_schedule,
    }));
    match &holder {
        Some(holder) => {
            output.line(format!("The service runs: {}", describe(project, holder)));
            output.line(format!("  answers   {}", address(&listening)));
        }
        None => output.line("No service of this project runs"),
    }
    for why in status.without_schedule.iter().filter(|_| holder.is_some()) {
        output.line(format!("  warning   {why}"));
    }
    if let Some(next) = next_run(&status) {
        output.line(format!("  next      {next}"));
    }
    if let Some(run) = &status.last_run {
        let result = match (&run.backup, &run.error) {
            (Some(backup), _) if run.incomplete => format!("{backup}, incomplete"),
            (Some(backup), _) => backup.clone(),
            (None, Some(error)) => {
                format!("failed: {} [{}]", translate(&error.message), error.code)
            }
            (None, None) => String::new(),
        };
        output.line(format!("  last      {}, {result}", ago(run.started_at)));
    }
    for failure in &status.hook_failures {
        output.line(format!("  hook      {}", hook_failure(failure)));
    }
    for warning in &status.hook_warnings {
        output.line(format!("  hooks     {warning}"));
    }
    Ok(u8::from(holder.is_none()))
}

fn serve(project: &Project, args: &ServeArgs, output: &Output) -> Result<u8> {
    if supervisor::is_first() {
        return supervisor::supervise();
    }
    if args.detached {
        process::leave_terminal();
        std::env::set_current_dir("/")
            .map_err(|cause| Error::io("enter", Path::new("/"), cause))?;
    }
    Settings::read(project.root(), &mut Vec::new()).assert_usable()?;
    let held = match InstanceLock::take(project)? {
        Ok(held) => held,
        Err(holder) => {
            print_already_running(project, &holder, output);
            return Ok(0);
        }
    };
    let log = if args.detached {
        Log::of(project)?
    } else {
        Log::Output
    };
    let options = service::Options {
        metrics_file: args.metrics_file.clone(),
        listen: args.listen,
    };
    service::serve(project, &held, &log, &options, &cancel_on_interrupt())?;
    Ok(0)
}

fn describe(project: &Project, holder: &Holder) -> String {
    format!(
        "{}, since {} UTC",
        holder.shown(project),
        date(holder.since, &TimeZone::UTC)
    )
}
