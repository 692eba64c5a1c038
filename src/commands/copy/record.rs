//! The last copy of a project's backups to a second store, in `.kg/cache/backup-copies.json`.
//!
//! Status and metrics compare it with the backups of the first store, so they send no request to the
//! second one. `kg diag health` reads the second store itself.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    project::Project,
    store::{Backup, full_name},
    util::{atomic_file, regular_file},
};

const FILE: &str = "cache/backup-copies.json";
/// The maximum number of second stores to remember. If it is reached, the others are forgotten.
const MOST_STORES: usize = 20;
/// The size limit of the file.
const MAX_BYTES: u64 = 1024 * 1024;

/// How a copy to a store ended. Times are milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastCopy {
    pub ended_at: i64,
    /// The newest backup that the store had then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<Copied>,
    /// Why the copy failed, or the first backup of it that could not be copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    pub id: String,
    /// When the backup was made.
    pub timestamp: i64,
}

impl Copied {
    /// Returns the newest of the backups, which are sorted newest first.
    pub fn newest(backups: &[Backup]) -> Option<Self> {
        let newest = backups.iter().find(|backup| counts(backup))?;
        Some(Copied {
            id: newest.id.clone(),
            timestamp: newest.timestamp,
        })
    }
}

/// How far a second store is behind the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// The number of backups that are newer than the newest copy.
    pub missing: usize,
    /// When the oldest of them was made, in milliseconds since the epoch.
    pub since: Option<i64>,
}

impl Lag {
    /// Compares the backups of the first store with the newest copy.
    pub fn of(own: &[Backup], newest: Option<&Copied>) -> Self {
        let is_newer = |backup: &&Backup| {
            counts(backup) && newest.is_none_or(|newest| backup.timestamp > newest.timestamp)
        };
        let newer = || own.iter().filter(is_newer);
        Lag {
            missing: newer().count(),
            since: newer().map(|backup| backup.timestamp).min(),
        }
    }
}

/// The real time of a backup that is dated in the future is unknown.
fn counts(backup: &Backup) -> bool {
    !backup.safety_backup && !backup.is_ahead(Timestamp::now())
}

/// Returns the last copy to `target`, or `None` if there was none.
pub fn read(project: &Project, target: &Path) -> Result<Option<LastCopy>> {
    let records = read_all(project).map_err(|cause| Error::io("read", &path(project), cause))?;
    Ok(records.get(&key(target)).cloned())
}

/// Records a copy. Without `newest`, the newest copy that is known stays.
pub fn write(project: &Project, target: &Path, last: LastCopy) -> Result<()> {
    let path = path(project);
    let mut records = match read_all(project) {
        // An invalid file contains nothing worth keeping.
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => BTreeMap::new(),
        records => records.map_err(|cause| Error::io("read", &path, cause))?,
    };
    let key = key(target);
    let known = records.remove(&key).and_then(|known| known.newest);
    if records.len() >= MOST_STORES {
        records.clear();
    }
    let newest = last.newest.or(known);
    records.insert(key, LastCopy { newest, ..last });
    let text = serde_json::to_vec_pretty(&records).unwrap_or_default();
    let dir = path.parent().unwrap_or(&path);
    atomic_file::create_unversioned_dirs(dir).map_err(|cause| Error::io("create", dir, cause))?;
    atomic_file::write_shared(&path, &text)
}

fn read_all(project: &Project) -> io::Result<BTreeMap<String, LastCopy>> {
    match regular_file::read_unlinked(&path(project), MAX_BYTES)? {
        None => Ok(BTreeMap::new()),
        Some(text) => Ok(serde_json::from_slice(&text)?),
    }
}

fn path(project: &Project) -> PathBuf {
    project.state_dir().join(FILE)
}

fn key(target: &Path) -> String {
    full_name(target).to_string_lossy().into_owned()
}
