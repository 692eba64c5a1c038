//! Markers of running backups: one file per run, `.kg/cache/backup-run-….started`.
//!
//! The process of a run keeps its marker locked as long as it lives. A marker without a lock
//! belongs to a run that was killed by a signal, by a lack of memory, or by a power loss. Locks
//! work across containers, and process ids do not. If locks are not available, no run is reported
//! as killed.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::history::{self, Began, Run};
use crate::{
    archive::manifest::BackupType,
    error::{Code, Error, Result},
    project::Project,
    schedule::plan::Trigger,
    system::{
        file_id::FileId,
        portable::{lock, try_lock_shared},
    },
    util::{atomic_file, regular_file},
};

const PREFIX: &str = "backup-run-";
const SUFFIX: &str = ".started";
const MAX_BYTES: u64 = 4096;

/// The marker of the run of this process that a second interrupt may end at once.
static AT_WORK: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The content of a marker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// In milliseconds since the epoch.
    started_at: i64,
    trigger: Trigger,
    #[serde(rename = "type")]
    kind: BackupType,
}

/// A running backup: the path of its marker and the locked file. `None` if the marker could not be
/// written, which does not stop the run.
#[derive(Debug)]
pub struct RunMarker(Option<(PathBuf, File)>);

impl RunMarker {
    pub fn begin(
        project: Option<&Project>,
        kind: BackupType,
        trigger: Trigger,
        began: Began,
    ) -> Self {
        RunMarker(project.and_then(|project| RunMarker::write(project, kind, trigger, began).ok()))
    }

    fn write(
        project: &Project,
        kind: BackupType,
        trigger: Trigger,
        began: Began,
    ) -> Result<(PathBuf, File)> {
        let dir = history::dir(project);
        atomic_file::create_unversioned_dirs(&dir)
            .map_err(|cause| Error::io("create", &dir, cause))?;
        let path = dir.join(format!(
            "{PREFIX}{}-{}{SUFFIX}",
            began.at,
            std::process::id()
        ));
        let failed = |cause| Error::io("write", &path, cause);
        // The file is locked before it gets its name, so it is never visible without a lock.
        let mut file = atomic_file::TempFile::new(&dir)?;
        lock(file.file()).map_err(failed)?;
        let record = Record {
            started_at: began.at,
            trigger,
            kind,
        };
        file.write_all(&serde_json::to_vec(&record).unwrap_or_default())
            .map_err(failed)?;
        let locked = file.file().try_clone().map_err(failed)?;
        file.persist(&path)?;
        set_at_work(Some(path.clone()));
        Ok((path, locked))
    }

    /// Removes the marker after the run has ended. The result is in the history, or the run does
    /// not count.
    pub fn end(self) {
        set_at_work(None);
        if let Some((path, _)) = &self.0 {
            // If the marker cannot be removed, the history still has the run, so it is not reported
            // as killed.
            let _ = atomic_file::remove(path);
        }
    }
}

/// Removes the marker when the user ends this process, because that is not a failure.
pub fn end_at_work() {
    if let Some(path) = set_at_work(None) {
        let _ = atomic_file::remove(&path);
    }
}

fn set_at_work(path: Option<PathBuf>) -> Option<PathBuf> {
    let mut at_work = AT_WORK
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    std::mem::replace(&mut *at_work, path)
}

/// Returns the killed runs and their marker files, oldest first.
pub fn killed(project: &Project) -> Vec<(PathBuf, Run)> {
    let entries = fs::read_dir(history::dir(project))
        .into_iter()
        .flatten()
        .flatten();
    let is_record = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    let records = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_record))
        .map(|entry| entry.path());
    let mut found: Vec<(PathBuf, Run)> = records
        .filter_map(|path| Some((path.clone(), killed_run(&path)?)))
        .collect();
    found.sort_by_key(|(_, run)| run.started_at);
    found
}

fn killed_run(path: &Path) -> Option<Run> {
    let file = regular_file::open(path).ok()?;
    try_lock_shared(&file).ok()?;
    // A run that has just ended has removed its marker.
    if FileId::of(&file).ok()?.names == 0 {
        return None;
    }
    let text = regular_file::read(&file, MAX_BYTES).ok()?;
    let Record {
        started_at,
        trigger,
        kind,
    } = serde_json::from_slice(&text).ok()?;
    let at = Timestamp::from_millisecond(started_at).ok()?;
    let error = Error::new(
        Code::Killed,
        format!("The backup that began at {at:.0} was killed before it finished"),
        "Make a backup now with `kg diag backup`; the system's log says what ended it (a signal, \
         lack of memory, a power failure)",
    );
    Some(Run::failed(started_at, trigger, kind, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::history::History;

    fn project() -> (tempfile::TempDir, Project) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".kg")).unwrap();
        let project = Project::open(dir.path()).unwrap();
        (dir, project)
    }

    #[test]
    fn a_run_is_killed_when_its_process_has_let_go_of_its_record_and_is_written_down_once() {
        let (_dir, project) = project();
        let began = Began::now();
        let started = RunMarker::begin(Some(&project), BackupType::Full, Trigger::Manual, began);
        assert!(History::read(&project).unwrap().last().is_none());
        // Simulates the end of the process.
        drop(started);
        let told = || {
            History::read(&project)
                .unwrap()
                .runs
                .iter()
                .map(|run| (run.started_at, run.error.clone().unwrap().code))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(), [(began.at, Code::Killed)]);
        for _ in 0..2 {
            History::update(&project, |_| {}).unwrap();
            assert_eq!(told(), [(began.at, Code::Killed)]);
        }
        assert!(killed(&project).is_empty());
    }

    #[test]
    fn a_run_that_ended_or_was_interrupted_is_not_killed() {
        let (_dir, project) = project();
        let begin = || {
            RunMarker::begin(
                Some(&project),
                BackupType::Full,
                Trigger::Manual,
                Began::now(),
            )
        };
        begin().end();
        let interrupted = begin();
        end_at_work();
        drop(interrupted);
        assert!(killed(&project).is_empty() && History::read(&project).unwrap().last().is_none());
    }
}
