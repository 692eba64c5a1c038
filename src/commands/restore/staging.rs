//! The staging directory of a restore.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::RestoreResult;
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    project::{STAGING_PREFIX, STATE_DIR},
    util::{
        atomic_file,
        dir_handle::{DirHandle, held_path},
        ownership,
        sync_many::{self, EarlySync},
        temp_dir::PrivateDir,
    },
};

/// A private directory in the target where a restore unpacks. Unless the restore succeeds, dropping
/// it removes every directory that the restore created.
pub(super) struct Staging {
    dir: Option<PrivateDir>,
    /// The directories that the restore created, innermost first.
    made: Vec<PathBuf>,
}

impl Staging {
    /// Creates the staging directory: in the target's state directory, or, for a dry run, in the
    /// system's directory for temporary files. `KG_TARGET_INVALID`.
    pub fn prepare(target: &Path, dry_run: bool) -> Result<Self> {
        let state = target.join(STATE_DIR);
        if target
            .components()
            .any(|part| part.as_os_str() == STATE_DIR)
        {
            return Err(Error::new(
                Code::TargetInvalid,
                format!(
                    "{} is inside the state directory of a project",
                    target.display()
                ),
                format!("Name the directory that contains {STATE_DIR}"),
            ));
        }
        for dir in [target, &state] {
            if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
                return Err(Error::new(
                    Code::TargetInvalid,
                    format!("{} is a file", dir.display()),
                    "Name a directory as the target of the restore",
                ));
            }
        }
        if dry_run {
            let dir = Some(PrivateDir::new(&std::env::temp_dir(), STAGING_PREFIX)?);
            return Ok(Staging {
                dir,
                made: Vec::new(),
            });
        }
        let made: Vec<_> = state
            .ancestors()
            .take_while(|dir| !dir.exists())
            .map(Path::to_path_buf)
            .collect();
        // From here on, a failure removes the directories that were created.
        let mut staging = Staging { dir: None, made };
        atomic_file::create_dirs(&state).map_err(|cause| Error::io("create", &state, cause))?;
        staging
            .made
            .iter()
            .rev()
            .for_each(|made| ownership::inherit(made));
        staging.dir = Some(PrivateDir::locked(&state, STAGING_PREFIX)?);
        Ok(staging)
    }

    fn lock_file(&self) -> Option<&File> {
        self.dir.as_ref().and_then(PrivateDir::lock_file)
    }

    pub fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), |dir| dir.path())
    }

    /// Returns a path that leads to the created directory, even if its name now belongs to another
    /// one. Valid only in this process.
    pub fn held_path(&self) -> PathBuf {
        self.lock_file().map_or_else(
            || self.path().to_path_buf(),
            |dir| held_path(dir, self.path()),
        )
    }

    /// Writes `count` unpacked files to the disk if they are synced together later. The directory
    /// was opened before the first write, so that every failed write is an error here.
    pub fn sync(&self, count: usize) -> Result<()> {
        let batch = self
            .lock_file()
            .and_then(|dir| sync_many::begin(dir, self.path(), count));
        batch.map_or(Ok(()), |batch| batch.sync())
    }

    /// Begins to sync unpacked files while others are unpacked. Only [`Staging::sync`] makes all of
    /// them durable.
    pub fn early_sync(&self) -> Option<EarlySync<'_>> {
        EarlySync::begin(self.lock_file()?, self.path())
    }

    /// Replaces the held path in the message of an error by the real path.
    pub fn named(&self, error: Error) -> Error {
        let (held, path) = (self.held_path(), self.path());
        Error {
            message: error
                .message
                .replace(&*held.to_string_lossy(), &path.to_string_lossy()),
            ..error
        }
    }

    /// Removes the directory. If that fails after a successful restore, the result has a warning.
    pub fn end(mut self, done: Result<RestoreResult>) -> Result<RestoreResult> {
        let Some(dir) = self.dir.take() else {
            return done;
        };
        let Ok(mut restored) = done else {
            return dir.end(done);
        };
        let left = dir.remove().err();
        restored
            .warnings
            .extend(left.map(|left| Warning::new(WarningCode::Store, left.to_string())));
        Ok(restored)
    }

    /// Keeps the directories that the restore created.
    pub fn succeeded(&mut self) {
        self.made.clear();
    }

    /// Leaves everything in place for the next run, which completes the restore or rolls it back.
    pub fn keep(&mut self) {
        self.made.clear();
        if let Some(dir) = self.dir.take() {
            dir.keep();
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.dir = None;
        for dir in &self.made {
            // A directory that is not empty has content of another process, and stays.
            let _ = DirHandle::around(dir).map(|place| place.remove_dir());
        }
    }
}
