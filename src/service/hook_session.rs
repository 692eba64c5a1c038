//! The hooks of the service. They are queued between backups and run on a separate thread. Failures
//! are logged.

use std::time::Duration;

use super::Log;
use crate::{
    project::Project,
    schedule::plan::Trigger,
    service::hooks::{self, Event, EventKind, HookRunner, Hooks, Outcome},
    util::operation::CancelToken,
};

/// How long the end of the service waits for running hooks.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct HookSession<'a> {
    project: &'a Project,
    log: &'a Log,
    worker: HookRunner,
}

impl<'a> HookSession<'a> {
    pub fn start(project: &'a Project, log: &'a Log) -> Self {
        HookSession {
            project,
            log,
            worker: HookRunner::start(),
        }
    }

    /// Queues the hooks of a backup that begins, and returns the hooks for its end.
    pub fn begin(&self, trigger: Trigger) -> Hooks {
        let hooks = self.load();
        self.tell(
            &hooks,
            Event {
                trigger: Some(trigger),
                ..Event::new(EventKind::Started, self.project)
            },
        );
        hooks
    }

    /// Loads the hooks as they are configured now, and logs warnings.
    pub fn load(&self) -> Hooks {
        let mut warnings = Vec::new();
        let hooks = Hooks::load(self.project, &mut warnings);
        for warning in warnings {
            self.log.line(&format!("warning: {}", warning.message));
        }
        hooks
    }

    pub fn tell(&self, hooks: &Hooks, event: Event) {
        if let Err(message) = self.worker.tell(hooks.clone(), event) {
            self.log.line(&format!("warning: {message}"));
        }
    }

    /// Logs hooks that have ended since the last call.
    pub fn note(&self) {
        write_down(self.project, self.log, &self.worker.ended());
    }

    pub fn finish(self) {
        let HookSession {
            project,
            log,
            worker,
        } = self;
        let (outcomes, is_cut_short) = worker.finish(PATIENCE, &CancelToken::default());
        if is_cut_short {
            log.line("warning: hooks that had not finished were ended because the service stopped");
        }
        write_down(project, log, &outcomes);
    }
}

fn write_down(project: &Project, log: &Log, outcomes: &[Outcome]) {
    for outcome in outcomes {
        match &outcome.result {
            Ok(said) => log.line(&format!(
                "the hook `{}` ran in {} ms: {said}",
                outcome.hook, outcome.duration_ms
            )),
            Err(said) => log.line(&format!(
                "warning: the hook `{}` failed: {said}",
                outcome.hook
            )),
        }
    }
    if let Err(error) = hooks::remember(project, outcomes) {
        log.line(&format!(
            "warning: the results of the hooks could not be recorded: {error}"
        ));
    }
}
