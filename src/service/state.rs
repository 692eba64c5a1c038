//! The state that the loop of the service publishes for HTTP requests.
//!
//! The loop examines the project between backups and stores its findings here. A request gets a
//! copy and computes from the stored times what depends on the current time. A scrape therefore
//! never opens a file of the project, which it must not do during a backup (the rule in
//! `docs/internals/architecture.md`). It never waits for such a file either.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{
    error::{Code, Error, Result},
    schedule::plan::GRACE_MS,
    service::{
        metrics::Activity,
        status::{Health, Status},
    },
};

/// The time without progress after which the loop counts as stuck. Reading a large catalog from a
/// slow disk takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct ServiceState {
    /// The root of the project.
    pub project: String,
    seen: Mutex<Seen>,
}

/// A snapshot of the service at one moment.
#[derive(Clone)]
pub struct Seen {
    moved_at: Instant,
    /// The start of the running backup, in milliseconds since the epoch; `None` if no backup runs.
    pub running_since: Option<i64>,
    succeeded: u64,
    failed: u64,
    pub status: Arc<Result<Status>>,
}

impl ServiceState {
    pub fn new(project: String) -> Self {
        let unknown = Error::new(
            Code::Service,
            "The service has only just started",
            "Try again in a moment",
        );
        let seen = Seen {
            moved_at: Instant::now(),
            running_since: None,
            succeeded: 0,
            failed: 0,
            status: Arc::new(Err(unknown)),
        };
        ServiceState {
            project,
            seen: Mutex::new(seen),
        }
    }

    pub fn moved(&self) {
        self.lock().moved_at = Instant::now();
    }

    pub fn began(&self, at: i64) {
        self.lock().running_since = Some(at);
    }

    pub fn counts(&self, is_success: bool) {
        let mut seen = self.lock();
        let count = if is_success {
            &mut seen.succeeded
        } else {
            &mut seen.failed
        };
        *count += 1;
    }

    /// Marks the end of a backup. Called once the new status is published, because until then the
    /// next run is still the one that has ended.
    pub fn ended(&self) {
        let mut seen = self.lock();
        (seen.running_since, seen.moved_at) = (None, Instant::now());
    }

    pub fn publish(&self, status: Arc<Result<Status>>) {
        self.lock().status = status;
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Seen {
    /// Returns whether the service makes progress at all.
    pub fn liveness(&self, now: Instant) -> Health {
        let still = now.saturating_duration_since(self.moved_at);
        let is_stuck = self.running_since.is_none() && still > PATIENCE;
        let message = || {
            format!(
                "the service has made no progress for {} s: its disk may hang; restart it",
                still.as_secs()
            )
        };
        health(is_stuck.then(message).into_iter().collect())
    }

    /// Returns the health of the backups at `now`, in milliseconds since the epoch. A run that has
    /// begun is not late, and neither is one that is due within the grace period.
    pub fn health(&self, now: i64) -> Health {
        match self.status.as_ref() {
            Ok(status) => {
                let is_late = status
                    .next_run
                    .is_some_and(|due| due.saturating_add(GRACE_MS) <= now);
                status.health_when(is_late && self.running_since.is_none())
            }
            Err(error) => health(vec![format!("{} [{}]", error, error.code)]),
        }
    }

    pub fn activity(&self) -> Activity {
        Activity {
            is_running: self.running_since.is_some(),
            succeeded: self.succeeded,
            failed: self.failed,
        }
    }
}

fn health(messages: Vec<String>) -> Health {
    Health {
        ok: messages.is_empty(),
        messages,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{config::Settings, project::Project, service::status::status, store::Store};

    /// Creates a state that has not been updated since.
    const LOOKED_AT: i64 = 1_709_258_400_000;
    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn board(dir: &Path, config: serde_json::Value) -> ServiceState {
        fs::create_dir_all(dir.join(".kg")).unwrap();
        let settings = Settings::of(&json!({ "backup": config }), &mut |message| {
            panic!("{message}")
        });
        let (project, store) = (
            Project::open(dir).unwrap(),
            Store::at(&dir.join("backups")).unwrap(),
        );
        let board = ServiceState::new("/p".into());
        let looked_at = Timestamp::from_millisecond(LOOKED_AT).unwrap();
        let found = status(Some(&project), &store, &settings, looked_at);
        board.publish(Arc::new(found.map(|status| status.of_service(None))));
        board
    }

    #[test]
    fn a_run_is_late_when_its_time_has_passed_since_the_project_was_looked_at_unless_it_has_begun()
    {
        let dir = tempfile::tempdir().unwrap();
        let board = board(
            dir.path(),
            json!({ "enabled": true, "schedule": "0 2 * * *", "timezone": "UTC" }),
        );
        let due = board
            .seen()
            .status
            .as_ref()
            .as_ref()
            .unwrap()
            .next_run
            .unwrap();
        let is_late = |now| {
            board
                .seen()
                .health(now)
                .messages
                .iter()
                .any(|message| message.contains("a run is overdue"))
        };
        assert_eq!(
            [due - 1, due, due + GRACE_MS - 1, due + GRACE_MS, due + DAY].map(is_late),
            [false, false, false, true, true]
        );
        board.began(due);
        assert!(!is_late(due + DAY));
        board.ended();
        assert!(is_late(due + DAY));
    }

    #[test]
    fn a_project_that_makes_no_backups_is_not_ready_and_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let told = |config| {
            board(dir.path(), config)
                .seen()
                .health(LOOKED_AT)
                .messages
                .join("; ")
        };
        assert!(told(json!({})).contains("kg config set backup.enabled true"));
        assert!(told(json!({ "enabled": true })).contains("kg config set backup.schedule"));
    }

    #[test]
    fn a_loop_that_stands_still_does_not_live_unless_it_makes_a_backup() {
        let board = ServiceState::new("/p".into());
        let now = Instant::now();
        assert!(board.seen().liveness(now + PATIENCE / 2).ok);
        let stuck = board.seen().liveness(now + PATIENCE * 2);
        assert!(
            !stuck.ok && stuck.messages[0].contains("made no progress for 1"),
            "{:?}",
            stuck.messages
        );
        board.began(0);
        assert!(board.seen().liveness(now + PATIENCE * 2).ok);
        board.ended();
        assert!(!board.seen().liveness(Instant::now() + PATIENCE * 2).ok);
    }

    #[test]
    fn a_store_that_cannot_be_read_is_told_of() {
        let board = ServiceState::new("/p".into());
        board.publish(Arc::new(Err(Error::new(
            Code::Io,
            "Could not read /backups",
            "Check the disk",
        ))));
        assert_eq!(
            board.seen().health(0).messages,
            ["Could not read /backups. Check the disk. [KG_IO]"]
        );
    }
}
