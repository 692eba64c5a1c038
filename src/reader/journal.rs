//! What a restore is about to rename, written down before it begins.
//!
//! A restore that is killed between its first and its last rename would leave a project without a database, or with a WAL
//! beside the wrong one. The journal lists every rename in order; the next restore or backup of the project takes them
//! back, last first. Taking back is safe to repeat: each step looks at what is there.
//!
//! Only `rename`, `stat` and this journal's own file are used here, so a host process may recover a project.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    durable,
    error::{Code, Error, Result},
    project::{UNDO_DIR, exclude::JOURNAL_FILE},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// Whether a restore was interrupted, or is at work.
pub fn is_pending(state: &Path) -> bool {
    state.join(JOURNAL_FILE).exists()
}

/// Writes the journal, durably.
pub fn begin(state: &Path, renames: &[Rename]) -> Result<()> {
    let path = state.join(JOURNAL_FILE);
    let json = serde_json::to_vec(renames).map_err(|cause| {
        Error::new(
            Code::TargetInvalid,
            format!("The path of {} is not UTF-8", state.display()),
            "Restore into a directory whose path is UTF-8",
        )
        .with_cause(cause)
    })?;
    durable::write(&path, &json)
}

/// The restore is complete, or was taken back.
pub fn end(state: &Path) -> Result<()> {
    let path = state.join(JOURNAL_FILE);
    durable::remove(&path)?;
    durable::sync_parent(&path)
}

/// Takes back what an interrupted restore had renamed. The caller has made sure that none is at work.
pub fn recover(state: &Path) -> Result<()> {
    let path = state.join(JOURNAL_FILE);
    let json = match fs::read(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|cause| Error::io("read", &path, cause))?,
    };
    let renames: Vec<Rename> = serde_json::from_slice(&json).map_err(|cause| {
        Error::new(
            Code::TargetInvalid,
            format!("{} cannot be read: it is not what an interrupted restore left", path.display()),
            format!("Look for the old files in {}, then remove it", state.join(UNDO_DIR).display()),
        )
        .with_cause(cause)
    })?;
    for rename in renames.iter().rev() {
        take_back(rename)?;
    }
    for rename in &renames {
        remove_empty_undo_dirs(state, &rename.to);
        for end in [&rename.from, &rename.to] {
            // A directory that is gone needs no sync.
            let _ = durable::sync_parent(end);
        }
    }
    end(state)
}

fn take_back(Rename { from, to }: &Rename) -> Result<()> {
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    // Not made yet, or taken back already.
    if exists(from) || !exists(to) {
        return Ok(());
    }
    match fs::rename(to, from) {
        // The staging directory is gone: what came from it is still in the archive.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => durable::remove(to),
        renamed => renamed.map_err(|cause| Error::io("move", to, cause)),
    }
}

fn remove_empty_undo_dirs(state: &Path, path: &Path) {
    let undo = state.join(UNDO_DIR);
    for dir in path.ancestors().skip(1).take_while(|dir| dir.starts_with(&undo)) {
        // One that still holds something stays.
        if fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A project of two files and a restore of them, killed after each number of renames.
    #[test]
    fn a_restore_that_is_killed_after_any_rename_is_taken_back() {
        for made in 0..=4 {
            let dir = tempfile::tempdir().unwrap();
            let at = |path: &str| dir.path().join(path);
            fs::create_dir_all(at("restore-undo/now")).unwrap();
            fs::create_dir(at("staging")).unwrap();
            for (path, content) in [("db", "old"), ("db-wal", "old wal"), ("staging/0", "new"), ("staging/1", "added")]
            {
                fs::write(at(path), content).unwrap();
            }
            let renames = [
                ("db", "restore-undo/now/db"),
                ("db-wal", "restore-undo/now/db-wal"),
                ("staging/0", "db"),
                ("staging/1", "other"),
            ]
            .map(|(from, to)| Rename { from: at(from), to: at(to) });
            begin(dir.path(), &renames).unwrap();
            for Rename { from, to } in &renames[..made] {
                fs::rename(from, to).unwrap();
            }
            for _ in 0..2 {
                recover(dir.path()).unwrap();
                assert_eq!(fs::read(at("db")).unwrap(), b"old", "after {made}");
                assert_eq!(fs::read(at("db-wal")).unwrap(), b"old wal", "after {made}");
                assert!(
                    !at("other").exists() && !at("restore-undo").exists() && !is_pending(dir.path()),
                    "after {made}"
                );
            }
        }
    }
}
