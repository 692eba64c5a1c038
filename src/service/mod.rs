//! The service that `kg serve` runs: one process per project, which makes the backups that the
//! settings of the project ask for.
//!
//! ```text
//! instance_lock  one service per project: a lock, and its holder
//! process        that process, as the kernel identifies it, to end it
//! run_loop       the work of the loop: load the settings, make a backup, record the result
//! copier         copies to the second store, in a process of their own
//! hook_session   the hooks of each run, on a separate thread ─▶ hooks: commands, URLs
//! log            .kg/logs/backup-service.log, with a size limit
//! supervisor     the duties of the first process of a container
//! state          what the loop publishes ─▶ http: health and metrics, on a separate thread
//!
//! run_marker     a running backup ─▶ history: the last runs ─▶ status, health, metrics
//! ```
//!
//! [`serve`] is a loop on one thread. It reads the settings when they have changed and asks the
//! plan ([`crate::schedule`]). Then it makes a backup or sleeps for a moment. It reads files of the
//! project only between backups, never during one (the rule in `docs/internals/architecture.md`).
//! The loop ends after a moment, or after a backup that it cancels and that leaves nothing behind.

mod copier;
pub mod copies;
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

/// The interval at which the loop notices a signal, a changed configuration or a clock change.
const MOMENT: Duration = Duration::from_millis(200);

/// Options that apply only to the service that is being started.
#[derive(Debug, Default)]
pub struct Options {
    /// The path of the metrics file, written after each run.
    pub metrics_file: Option<PathBuf>,
    /// Overrides the address of the settings.
    pub listen: Option<Listen>,
}

/// Runs until `cancel` is set. Returns `KG_SERVICE` if the project is gone.
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
    cancel.enter();
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
        service.step_copy();
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
    service.copier.end();
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

/// Describes a project that is gone. The service writes nothing to it, because a write would create
/// a new project in its place.
fn lost(project: &Project) -> Error {
    Error::new(
        Code::Service,
        format!(
            "{} is no longer the project that this service was started for",
            project.root().display()
        ),
        "The project was moved, removed, unmounted or replaced; start the service again in the \
         directory of the project",
    )
}

/// Returns the path of the service log of a project, for messages.
pub fn log_path(project: &Project) -> PathBuf {
    project.state_dir().join(log::DIR).join(log::FILE)
}
