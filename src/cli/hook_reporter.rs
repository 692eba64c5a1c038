//! Runs the hooks of `kg diag backup`: when the backup begins, and after everything is done and
//! printed. Hooks change neither the result nor the exit status.

use std::{path::Path, time::Duration};

use super::output::Output;
use crate::{
    commands::backup::Created,
    error::{Code, Result, Warning, WarningCode},
    project::Project,
    schedule::plan::Trigger,
    service::hooks::{self, Event, EventKind, HookRunner, Hooks},
    util::operation::CancelToken,
};

/// The time to wait beyond the timeouts of the hooks.
const SLACK: Duration = Duration::from_secs(1);

pub struct HookReporter {
    /// `None` if there is no project, and therefore no hooks.
    known: Option<(Project, Hooks)>,
    worker: HookRunner,
    warnings: Vec<Warning>,
}

impl HookReporter {
    pub fn start(root: &Path) -> Self {
        let mut reporter = HookReporter {
            known: None,
            worker: HookRunner::start(),
            warnings: Vec::new(),
        };
        if let Ok(project) = Project::open(root) {
            let hooks = Hooks::load(&project, &mut reporter.warnings);
            let event = Event {
                trigger: Some(Trigger::Manual),
                ..Event::new(EventKind::Started, &project)
            };
            reporter.known = Some((project, hooks));
            reporter.send(event);
        }
        reporter
    }

    fn send(&mut self, event: Event) {
        let Some((_, hooks)) = &self.known else {
            return;
        };
        if let Err(message) = self.worker.tell(hooks.clone(), event) {
            self.warnings.push(Warning::new(WarningCode::Hook, message));
        }
    }

    /// Runs the hooks for the end of the backup and waits for them, at most for their timeouts. An
    /// interrupted backup runs no hook.
    pub fn end(
        mut self,
        made: &Result<Created>,
        duration_ms: i64,
        cancel: &CancelToken,
        output: &Output,
    ) {
        let is_news = !made
            .as_ref()
            .is_err_and(|error| error.code == Code::Aborted);
        if let Some((project, _)) = self.known.as_ref().filter(|_| is_news) {
            self.send(Event::of_run(project, made, Trigger::Manual, duration_ms));
        }
        let HookReporter {
            known,
            worker,
            mut warnings,
        } = self;
        if let Some((project, hooks)) = known {
            // The start hooks may still be running, and the end hooks run after them. Hence twice
            // the timeout.
            let (outcomes, is_cut_short) = worker.finish(hooks.timeout() * 2 + SLACK, cancel);
            let failures = outcomes.iter().filter_map(hooks::Outcome::failure);
            warnings.extend(failures.map(|message| Warning::new(WarningCode::Hook, message)));
            if is_cut_short {
                warnings.push(Warning::new(
                    WarningCode::Hook,
                    "Hooks that had not finished were stopped",
                ));
            }
            if let Err(error) = hooks::remember(&project, &outcomes) {
                let message = format!(
                    "The results of the hooks could not be recorded: {}",
                    error.message
                );
                warnings.push(Warning::new(WarningCode::Hook, message));
            }
        }
        output.warnings(&warnings);
    }
}
