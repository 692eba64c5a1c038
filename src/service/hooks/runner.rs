//! The thread that runs hooks, so that no hook can fail or delay a backup.
//!
//! ```text
//! backup ─events, at most MOST_WAITING─▶ runner ─one thread per hook─▶ commands, URLs
//!        ◀──────────outcomes────────────
//! ```
//!
//! The thread opens no file of the project. The configuration comes with the event and was read
//! between backups (the rule in `docs/internals/architecture.md`). The hooks of one event run in
//! parallel, so an event takes no longer than the limit of one hook. Events run in their order.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::mpsc::{
        Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel,
    },
    thread,
    time::{Duration, Instant},
};

use super::{Hook, Hooks, Outcome, event::Event};
use crate::util::operation::CancelToken;

const MOST_WAITING: usize = 16;
/// How long killing a command may take.
const END: Duration = Duration::from_millis(500);

pub struct HookRunner {
    queue: SyncSender<(Hooks, Event)>,
    outcomes: Receiver<Outcome>,
    cancel: CancelToken,
}

impl HookRunner {
    pub fn start() -> Self {
        let (queue, waiting) = sync_channel::<(Hooks, Event)>(MOST_WAITING);
        let (send, outcomes) = channel();
        let cancel = CancelToken::default();
        let cancelled = cancel.clone();
        let work = move || {
            for (hooks, event) in waiting {
                if !cancelled.is_cancelled() {
                    run_all(&hooks, &event, &send, &cancelled);
                }
            }
        };
        // If no thread is available, the queue is closed and each event reports it.
        let _ = thread::Builder::new().name("hooks".into()).spawn(work);
        HookRunner {
            queue,
            outcomes,
            cancel,
        }
    }

    /// Queues the hooks of an event. `Err` says why they will not run, for example because older
    /// hooks hang.
    pub fn tell(&self, hooks: Hooks, event: Event) -> Result<(), String> {
        if !hooks.has_any_for(event.event) {
            return Ok(());
        }
        self.queue.try_send((hooks, event)).map_err(|refused| match refused {
            TrySendError::Full((_, event)) => format!(
                "the hooks of {} do not run: the hooks of {MOST_WAITING} earlier events have not \
                 finished",
                event.event.name()
            ),
            TrySendError::Disconnected((_, event)) => format!("the hooks of {} do not run", event.event.name()),
        })
    }

    /// Returns the hooks that have ended since the last call.
    pub fn ended(&self) -> Vec<Outcome> {
        self.outcomes.try_iter().collect()
    }

    /// Waits for queued hooks for at most `patience`, or until `cancel` is set, and then cancels
    /// the rest. Returns `true` if a hook was cancelled.
    pub fn finish(self, patience: Duration, cancel: &CancelToken) -> (Vec<Outcome>, bool) {
        drop(self.queue);
        let mut all = Vec::new();
        let is_done = drain(&self.outcomes, &mut all, patience, cancel);
        if !is_done {
            self.cancel.cancel();
            drain(&self.outcomes, &mut all, END, &CancelToken::default());
        }
        (all, !is_done)
    }
}

/// Collects outcomes until the thread has ended, the time is over or `cancel` is set. Returns
/// whether the thread has ended.
fn drain(
    outcomes: &Receiver<Outcome>,
    all: &mut Vec<Outcome>,
    patience: Duration,
    cancel: &CancelToken,
) -> bool {
    const POLL: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + patience;
    loop {
        match outcomes.recv_timeout(POLL) {
            Ok(outcome) => all.push(outcome),
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout)
                if Instant::now() >= deadline || cancel.is_cancelled() =>
            {
                return false;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn run_all(hooks: &Hooks, event: &Event, outcomes: &Sender<Outcome>, cancel: &CancelToken) {
    thread::scope(|scope| {
        for hook in hooks.of(event.event) {
            let told = outcomes.clone();
            // The receiver may have gone, so a send error is ignored.
            let run = move || drop(told.send(run_one(hooks, hook, event, cancel)));
            if let Err(cause) = thread::Builder::new().spawn_scoped(scope, run) {
                let failed = || Err(format!("could not start a thread for it: {cause}"));
                let _ = outcomes.send(outcome_of(hook, failed));
            }
        }
    });
}

pub fn run_one(hooks: &Hooks, hook: &Hook, event: &Event, cancel: &CancelToken) -> Outcome {
    outcome_of(hook, || hook.run(hooks, event, cancel))
}

/// Runs a hook and builds its outcome. A panic is a failure of this hook, and the thread continues
/// with the next event.
fn outcome_of(hook: &Hook, run: impl FnOnce() -> Result<String, String>) -> Outcome {
    let began = Instant::now();
    let panicked = |_| Err("it panicked; please report this".to_string());
    let result = panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(panicked);
    Outcome {
        hook: hook.key.to_string(),
        at: jiff::Timestamp::now().as_millisecond(),
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        result,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{
        project::Project,
        service::hooks::{ALL, EventKind, What},
    };

    #[test]
    fn hooks_that_hang_hold_up_no_one_and_end_with_the_worker() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".kg")).unwrap();
        let project = Project::open(dir.path()).unwrap();
        let path = super::super::file::path(&project);
        let hooks =
            r#"{"backup":{"hooks":{"onFailure":{"command":["sleep","600"]},"timeout":300}}}"#;
        fs::write(&path, hooks).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mut warnings = Vec::new();
        let hooks = Hooks::load(&project, &mut warnings);
        assert_eq!(warnings, []);

        let began = Instant::now();
        let worker = HookRunner::start();
        worker
            .tell(hooks.clone(), Event::new(EventKind::Succeeded, &project))
            .unwrap();
        // One event may already be running, which leaves room for another.
        let told = (0..MOST_WAITING + 2)
            .map(|_| worker.tell(hooks.clone(), Event::new(EventKind::Failed, &project)));
        let refused = told.filter_map(Result::err).next().unwrap();
        assert_eq!(
            refused,
            "the hooks of backup.failed do not run: the hooks of 16 earlier events have not \
             finished"
        );
        let (outcomes, is_cut_short) =
            worker.finish(Duration::from_millis(200), &CancelToken::default());
        assert!(is_cut_short);
        assert_eq!(outcomes.len(), 1);
        assert_eq!(
            outcomes[0].result,
            Err("was killed because this process is ending".to_string())
        );
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_hook_that_panics_has_failed_and_says_so() {
        let (key, on, _) = ALL[0];
        let hook = Hook {
            key,
            on,
            what: What::Heartbeat("http://localhost/".into()),
        };
        let outcome = outcome_of(&hook, || panic!("as a thread that cannot be had does"));
        assert_eq!(
            (outcome.hook.as_str(), outcome.result),
            (key, Err("it panicked; please report this".to_string()))
        );
    }
}
