//! Pins: marks that keep backups from being removed.
//!
//! A pin is a small file next to the archive, `….pin.json`. It is part of neither the archive nor
//! the sidecar, so both still verify unchanged. It can be copied together with them. The existence
//! of the file is the pin: if the file cannot be read, the reason is lost but the backup stays
//! pinned.
//!
//! A pin whose archive is missing is kept because the archive may come back. Its id is not given to
//! another backup.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Backup, Store, StoreLock, names::PIN_SUFFIX};
use crate::{
    error::{Code, Error, Result},
    place::{Archive, ObjectPlace, Place},
    util::{atomic_file, regular_file},
};

/// The maximum length of a reason.
const MAX_REASON_BYTES: usize = 4096;
/// The maximum length of a pin file, however its reason is escaped.
const MAX_PIN_BYTES: u64 = 64 * 1024;

/// Why a backup is kept, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pin {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the backup was pinned, in milliseconds since the epoch.
    pub at: i64,
}

/// The content of a pin file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Store {
    /// Pins the backup with that id. Replaces the reason if it is already pinned.
    pub fn pin(&self, _lock: &StoreLock, id: &str, reason: Option<String>) -> Result<Backup> {
        let backup = self.get(id)?;
        if reason
            .as_ref()
            .is_some_and(|reason| reason.len() > MAX_REASON_BYTES)
        {
            let message = format!("The reason of a pin has more than {MAX_REASON_BYTES} bytes");
            return Err(Error::invalid(message, "Shorten it"));
        }
        let path = pin_path(&backup.archive);
        let pin = Written {
            at: Some(Timestamp::now()),
            reason,
        };
        let mut json = serde_json::to_vec_pretty(&pin)
            .map_err(|cause| Error::io("write", &path, cause.into()))?;
        json.push(b'\n');
        self.write_beside(&backup.archive, PIN_SUFFIX, &json)?;
        self.get(id)
    }

    /// Removes the pin of a backup, if it has one.
    pub fn unpin(&self, _lock: &StoreLock, id: &str) -> Result<Backup> {
        self.remove_file(&self.get(id)?.archive.beside(PIN_SUFFIX))?;
        if let Some(dir) = self.place.directory() {
            atomic_file::sync_dir(dir)?;
        }
        self.get(id)
    }

    /// Refuses to remove a pinned backup (`KG_BACKUP_PINNED`).
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
            format!("Nothing was removed; unpin it first: `kg diag unpin {id}`"),
        ))
    }
}

/// Returns the path of the pin of `archive`.
pub(super) fn pin_path(archive: &Archive) -> PathBuf {
    archive.beside(PIN_SUFFIX).path()
}

/// Returns the pin of an archive, if it has one.
pub(super) fn pin_beside(archive: &Archive) -> Option<Pin> {
    if let Place::Objects(objects) = archive.place() {
        return pin_object(objects, archive);
    }
    let path = pin_path(archive);
    let since = match fs::symlink_metadata(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return None,
        found => found
            .and_then(|found| found.modified())
            .ok()
            .and_then(|at| Timestamp::try_from(at).ok()),
    };
    Some(pin(read(&path), since))
}

/// Works like [`pin_beside`]. A pin also counts if the service does not say whether it exists.
fn pin_object(objects: &ObjectPlace, archive: &Archive) -> Option<Pin> {
    let name = format!("{}{PIN_SUFFIX}", archive.name());
    let since = match objects.find(&name) {
        Ok(None) => return None,
        found => found.ok().flatten().map(|object| object.modified),
    };
    let json = objects.read(&name, MAX_PIN_BYTES).ok().flatten();
    let written = json.and_then(|json| serde_json::from_slice(&json).ok());
    Some(pin(written, since))
}

fn pin(written: Option<Written>, since: Option<Timestamp>) -> Pin {
    let written = written.unwrap_or_default();
    let at = written.at.or(since).unwrap_or(Timestamp::UNIX_EPOCH);
    Pin {
        reason: written.reason,
        at: at.as_millisecond(),
    }
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
        let archive = Archive::at(&dir.path().join("kg-backup-20240115-020000.tar.gz"));
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
