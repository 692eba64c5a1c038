//! Pins: backups that nothing removes until they are unpinned.
//!
//! A pin is a small file beside the archive, `….pin.json`. It is part neither of the archive nor of its manifest, so both verify
//! as they were written, and it goes wherever the files of a backup are copied. That the file is there is what pins: one that
//! cannot be read has lost its reason, not its effect. One whose archive is gone stays, for the archive may come back, and its
//! id is not given to another backup.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Backup, Store, StoreLock};
use crate::{
    error::{Code, Error, Result},
    util::{atomic_file, regular_file},
};

const PIN_SUFFIX: &str = ".pin.json";
/// Of a reason.
const MAX_REASON_BYTES: usize = 4096;
/// No pin is longer, however its reason is escaped.
const MAX_PIN_BYTES: u64 = 64 * 1024;

/// Why a backup stays, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pin {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In milliseconds since the epoch.
    pub at: i64,
}

/// As it stands in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Store {
    /// Pins the backup of that id; one that is pinned gets the new reason.
    pub fn pin(&self, _lock: &StoreLock, id: &str, reason: Option<String>) -> Result<Backup> {
        let backup = self.get(id)?;
        if reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_REASON_BYTES)
        {
            let message = format!("The reason of a pin has more than {MAX_REASON_BYTES} bytes");
            return Err(Error::invalid(message, "Shorten it"));
        }
        let path = pin_path(&backup.path);
        let pin = Written {
            at: Some(Timestamp::now()),
            reason,
        };
        let mut json = serde_json::to_vec_pretty(&pin)
            .map_err(|cause| Error::io("write", &path, cause.into()))?;
        json.push(b'\n');
        atomic_file::write_in_store(&path, &json, self.mode)?;
        self.get(id)
    }

    /// Takes the pin of a backup away, if it has one.
    pub fn unpin(&self, _lock: &StoreLock, id: &str) -> Result<Backup> {
        atomic_file::remove(&pin_path(&self.get(id)?.path))?;
        atomic_file::sync_dir(&self.dir)?;
        self.get(id)
    }

    /// Refuses what would remove a pinned backup.
    pub(super) fn assert_unpinned(&self, id: &str) -> Result<()> {
        let Some(pin) = self.get(id)?.pinned else {
            return Ok(());
        };
        let reason = pin
            .reason
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        Err(Error::new(
            Code::BackupPinned,
            format!("{id} is pinned{reason}"),
            format!(
                "Nothing was removed; unpin it first: `kg diag backup --unpin {id}` or unpin()"
            ),
        ))
    }
}

/// Where the pin of the archive at `archive` stands.
pub(super) fn pin_path(archive: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_os_string();
    path.push(PIN_SUFFIX);
    path.into()
}

/// The pin beside an archive.
pub(super) fn pin_beside(archive: &Path) -> Option<Pin> {
    let path = pin_path(archive);
    let since = match fs::symlink_metadata(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return None,
        found => found
            .and_then(|found| found.modified())
            .ok()
            .and_then(|at| Timestamp::try_from(at).ok()),
    };
    let written = read(&path).unwrap_or_default();
    let at = written
        .at
        .or(since)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .as_millisecond();
    Some(Pin {
        reason: written.reason,
        at,
    })
}

fn read(path: &Path) -> Option<Written> {
    let json = regular_file::read_if_there(path, MAX_PIN_BYTES).ok()??;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_pins_whatever_has_become_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("kg-backup-20240115-020000.tar.gz");
        let path = pin_path(&archive);
        assert_eq!(pin_beside(&archive), None);
        fs::write(
            &path,
            r#"{"at": "2024-01-15T02:00:00.5Z", "reason": "before the move", "since": "later"}"#,
        )
        .unwrap();
        let pin = Pin {
            reason: Some("before the move".into()),
            at: 1_705_284_000_500,
        };
        assert_eq!(pin_beside(&archive), Some(pin));
        for content in ["", "{", "[]", "\"x\"", r#"{"at": 7}"#] {
            fs::write(&path, content).unwrap();
            let pin = pin_beside(&archive).unwrap();
            assert!(
                pin.reason.is_none() && pin.at > 1_705_284_000_500,
                "{content}"
            );
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(pin_beside(&archive).is_some());
    }
}
