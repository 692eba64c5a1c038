//! The service that `kg serve` runs: one process a project, which makes the backups that the project's settings ask for.
//!
//! ```text
//! holder        one service a project: a lock, and who has it
//! process       that process, as the kernel knows it, to end it
//! work          what is done between two moments: take up the settings, make a backup, remember what came of it
//! hook_session  the hooks of each run, on a thread of their own ─▶ hooks: commands, webhooks, heartbeats
//! log           .kg/logs/backup-service.log, with a limit
//! init          what the first process of a container owes the others
//! board         what the loop shows of itself ─▶ http: health and metrics, on a thread of their own
//!
//! started       a run that has begun ─▶ history: the last runs ─▶ status, health, metrics: how the backups of a project stand
//! ```
//!
//! [`serve`] is a loop on one thread: read the settings when they have changed, ask the plan (`crate::schedule`), make a backup or
//! wait for a moment. It reads the project's files between backups only, never beside one (`docs/internals/architecture.md`, the rule).
//! It ends at the end of a moment, or of a backup that it cancels: nothing of that is left.

pub mod health;
pub mod history;
mod hook_session;
pub mod hooks;
mod http;
mod instance_lock;
mod log;
pub mod metrics;
mod process;
mod run_loop;
pub mod run_marker;
mod state;
pub mod status;
pub mod supervisor;

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use self::{
    http::Http,
    run_loop::{Service, mark, now},
    state::ServiceState,
};
pub use self::{
    http::Listening,
    instance_lock::{Holder, InstanceLock},
    log::Log,
};
use crate::{
    config::listen::Listen,
    error::{Code, Error, Result},
    project::{CONFIG_FILE, Project},
    util::operation::CancelToken,
};

/// How soon a signal, a changed configuration or a clock that was set is noticed.
const MOMENT: Duration = Duration::from_millis(200);

/// What whoever starts a service chooses for it alone.
#[derive(Debug, Default)]
pub struct Options {
    /// Written after each run.
    pub metrics_file: Option<PathBuf>,
    /// Instead of what the settings say.
    pub listen: Option<Listen>,
}

/// Runs until `cancel` is set. `KG_SERVICE` if the project is gone.
pub fn serve(
    project: &Project,
    held: &InstanceLock,
    log: &Log,
    options: &Options,
    cancel: &CancelToken,
) -> Result<()> {
    let board = Arc::new(ServiceState::new(project.root().display().to_string()));
    let mut http = Http::new(project, held.holder(), log, Arc::clone(&board));
    let mut service = Service::new(project, log, options, cancel, board);
    log.line(&format!(
        "started as process {} for {}",
        std::process::id(),
        project.root().display()
    ));
    let mut seen = None;
    while !cancel.is_cancelled() && held.is_in(&project.state_dir()) {
        let mark = mark(&project.state_dir().join(CONFIG_FILE));
        if seen.as_ref() != Some(&mark) {
            service.load(seen.is_none());
            seen = Some(mark);
        }
        service.tell_unreadable();
        if service.is_behind() {
            service.look();
        }
        service.board.moved();
        http.follow(options.listen.unwrap_or_else(|| service.settings.listen()));
        service.hooks.note();
        match service.due() {
            Some(trigger) => {
                service.board.began(now());
                service.run(trigger);
                service.board.ended();
            }
            None => thread::sleep(MOMENT),
        }
    }
    let lost = (!cancel.is_cancelled()).then(|| lost(project));
    if lost.is_none() {
        service.hooks.finish();
    }
    drop(http);
    match lost {
        None => log.line("stopped"),
        Some(error) => {
            log.line(&format!("error: stopped: {error} [{}]", error.code));
            return Err(error);
        }
    }
    Ok(())
}

/// Nothing is written to a project that is gone: that would make a new one at its place.
fn lost(project: &Project) -> Error {
    Error::new(
        Code::Service,
        format!(
            "{} is no longer the project that this service was started for",
            project.root().display()
        ),
        "It was moved, removed or unmounted, or another one was put there; start the service again where the project is",
    )
}

/// The log of the service of a project, for messages that name it.
pub fn log_path(project: &Project) -> PathBuf {
    project.state_dir().join(log::DIR).join(log::FILE)
}
