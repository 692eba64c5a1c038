//! The recent runs of a project's backups by `kg` and its service: `.kg/cache/backup-runs.json`.
//!
//! The history is for people and monitors. The only decision that depends on it is when a service
//! that was down continues its plan. Only `kg` itself writes it, never a host.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::run_marker;
use crate::{
    archive::manifest::BackupType,
    commands::backup::Created,
    error::{Error, Result, Warning, WarningCode},
    project::Project,
    schedule::plan::{State, Trigger},
    system::holders,
    util::{atomic_file, file_lock, operation::OperationContext, regular_file},
};

const FILE: &str = "backup-runs.json";
const LOCK_FILE: &str = "backup-runs.lock";
/// The holder of the lock syncs two files. The timeout must not be longer, because the end of the
/// service waits for it too (`docs/guide/schedule.md`).
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const MOST_RUNS: usize = 50;
/// The maximum size of the history file.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Newest last.
    pub runs: Vec<Run>,
    /// The position of the service in its plan.
    pub state: Option<State>,
    /// Hooks that failed when they last ran.
    pub hook_failures: Vec<HookFailure>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HookFailure {
    /// The settings key of the hook.
    pub hook: String,
    /// In milliseconds since the epoch.
    pub at: i64,
    pub message: String,
}

/// One attempt to make a backup. Times are in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// In milliseconds since the epoch.
    pub started_at: i64,
    pub duration_ms: i64,
    pub trigger: Trigger,
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// The id of the backup, if the attempt succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The size of the archive, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The backup lacks part of its project or may hold half of a change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Warnings about how this run differed from what was requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// The number of old backups that could not be removed after the run.
    #[serde(default)]
    pub retention_failures: u32,
}

/// The start of an operation. The duration comes from a monotonic clock, which setting the system
/// time does not change.
#[derive(Debug, Clone, Copy)]
pub struct Began {
    /// In milliseconds since the epoch.
    pub at: i64,
    instant: Instant,
}

impl Began {
    pub fn now() -> Self {
        Began {
            at: Timestamp::now().as_millisecond(),
            instant: Instant::now(),
        }
    }

    pub fn duration_ms(&self) -> i64 {
        i64::try_from(self.instant.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

impl Run {
    /// Describes an attempt that has just ended. `made` is its result, and `kind` is the requested
    /// type.
    pub fn of(made: &Result<Created>, kind: BackupType, trigger: Trigger, began: Began) -> Self {
        let backup = made.as_ref().ok().map(|created| &created.backup);
        Run {
            started_at: began.at,
            duration_ms: began.duration_ms(),
            trigger,
            kind: backup.map_or(kind, |backup| backup.kind),
            backup: backup.map(|backup| backup.id.clone()),
            size: backup.map(|backup| backup.size),
            error: made.as_ref().err().cloned(),
            incomplete: backup.is_some_and(|backup| backup.incomplete),
            warnings: made.as_ref().map_or_else(|_| Vec::new(), of_run),
            retention_failures: made.as_ref().map_or(0, retention_failures),
        }
    }

    /// Describes a failed attempt of unknown duration.
    pub fn failed(started_at: i64, trigger: Trigger, kind: BackupType, error: Error) -> Self {
        Run {
            started_at,
            duration_ms: 0,
            trigger,
            kind,
            backup: None,
            size: None,
            error: Some(error),
            incomplete: false,
            warnings: Vec::new(),
            retention_failures: 0,
        }
    }

    pub fn ended_at(&self) -> i64 {
        self.started_at.saturating_add(self.duration_ms)
    }
}

/// Returns the warnings that belong to the run and are in no manifest. The backup has another type
/// than requested, or the store was unexpectedly empty.
fn of_run(created: &Created) -> Vec<Warning> {
    let is_of_run =
        |warning: &&Warning| matches!(warning.code, WarningCode::Full | WarningCode::StoreEmptied);
    created
        .backup
        .warnings
        .iter()
        .filter(is_of_run)
        .cloned()
        .collect()
}

fn retention_failures(created: &Created) -> u32 {
    let decisions = created
        .retention
        .iter()
        .flat_map(|retention| &retention.decisions);
    let errors = decisions
        .filter_map(|decision| decision.error.as_ref())
        .chain(&created.retention_error);
    errors.count() as u32
}

impl History {
    pub fn path(project: &Project) -> PathBuf {
        dir(project).join(FILE)
    }

    /// Reads the history and adds runs that were killed. Returns only those if the file is missing
    /// or invalid.
    pub fn read(project: &Project) -> Result<Self> {
        let path = History::path(project);
        let text = match regular_file::read_if_there(&path, MAX_BYTES) {
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => None,
            text => text.map_err(|cause| Error::io("read", &path, cause))?,
        };
        let mut history: History =
            serde_json::from_slice(&text.unwrap_or_default()).unwrap_or_default();
        history.take_up(run_marker::killed(project).into_iter().map(|(_, run)| run));
        Ok(history)
    }

    /// Adds runs that are not in the history yet.
    fn take_up(&mut self, runs: impl Iterator<Item = Run>) {
        for run in runs {
            if self
                .runs
                .iter()
                .all(|known| known.started_at != run.started_at)
            {
                let later = self
                    .runs
                    .iter()
                    .position(|known| known.started_at > run.started_at);
                self.runs.insert(later.unwrap_or(self.runs.len()), run);
            }
        }
    }

    /// Changes the history. A failure does not affect the backup that the change describes. Fails if
    /// another process holds the lock too long: without it, the runs of that process could be lost.
    pub fn update(project: &Project, change: impl FnOnce(&mut History)) -> Result<()> {
        let dir = dir(project);
        atomic_file::create_unversioned_dirs(&dir)
            .map_err(|cause| Error::io("create", &dir, cause))?;
        let path = dir.join(LOCK_FILE);
        let failed = |cause| Error::io("lock", &path, cause);
        let file = atomic_file::open_lock(&path)?;
        if !file_lock::wait(&file, LOCK_TIMEOUT, &OperationContext::default(), failed)? {
            let cause = format!("it is locked by {}", holders::of(&path));
            return Err(failed(io::Error::other(cause)));
        }
        atomic_file::sweep_partials(&dir);
        let killed = run_marker::killed(project);
        let mut history = History::read(project)?;
        history.take_up(killed.iter().map(|(_, run)| run.clone()));
        change(&mut history);
        let surplus = history.runs.len().saturating_sub(MOST_RUNS);
        history.runs.drain(..surplus);
        let text = serde_json::to_vec_pretty(&history).unwrap_or_default();
        atomic_file::write_shared(&History::path(project), &text)?;
        // The history contains these runs from here on, so their markers are no longer needed.
        killed
            .iter()
            .try_for_each(|(record, _)| atomic_file::remove(record))
    }

    pub fn last(&self) -> Option<&Run> {
        self.runs.last()
    }
}

pub(super) fn dir(project: &Project) -> PathBuf {
    project.state_dir().join("cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_another_process_is_writing_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(crate::project::STATE_DIR)).unwrap();
        let project = Project::open(dir.path()).unwrap();
        History::update(&project, |_| {}).unwrap();
        let before = std::fs::read(History::path(&project)).unwrap();
        let writer = atomic_file::open_lock(&super::dir(&project).join(LOCK_FILE)).unwrap();
        writer.lock().unwrap();
        let run = Run::failed(0, Trigger::Schedule, BackupType::Full, Error::aborted());
        let error = History::update(&project, |history| history.runs.push(run)).unwrap_err();
        assert!(error.message.contains("locked by"), "{error}");
        assert_eq!(std::fs::read(History::path(&project)).unwrap(), before);
    }
}
