//! Directories for what is thrown away again: gone when they are dropped, and after a kill by the next run.
//!
//! Whoever uses one holds a lock on the directory. One that nobody has locked is left behind.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// A directory that only this user may enter.
pub struct Scratch {
    dir: TempDir,
    /// Closed after `dir` is removed.
    _lock: File,
}

impl Scratch {
    /// Makes one in `parent`, whose name starts with `prefix`, and removes what killed runs left of that prefix.
    pub fn new(parent: &Path, prefix: &str) -> Result<Self> {
        sweep(parent, prefix);
        loop {
            let dir = tempfile::Builder::new()
                .prefix(prefix)
                .permissions(Permissions::from_mode(0o700))
                .tempdir_in(parent)
                .map_err(|cause| Error::io("create a directory in", parent, cause))?;
            // Between its making and its locking another run may take it for left behind: then another is made.
            match File::open(dir.path()).and_then(|file| file.lock().map(|()| file)) {
                Ok(lock) if dir.path().exists() => return Ok(Scratch { dir, _lock: lock }),
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("lock", dir.path(), cause));
                }
                _ => {}
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// What is left on the disk of `path` for this user.
#[allow(clippy::unnecessary_cast, reason = "these numbers are smaller on other systems")]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    Some(found.blocks_available() as u64 * found.fragment_size() as u64)
}

/// What cannot be removed is left to the next run.
fn sweep(parent: &Path, prefix: &str) {
    let own = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix))
            && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own);
        if is_ours
            && let Ok(dir) = File::open(entry.path())
            && dir.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_another_run_uses_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let used = Scratch::new(parent.path(), ".kg-test-").unwrap();
        fs::create_dir(parent.path().join(".kg-test-left")).unwrap();
        fs::write(parent.path().join(".kg-test-left/file"), "x").unwrap();
        fs::create_dir(parent.path().join("other")).unwrap();
        let second = Scratch::new(parent.path(), ".kg-test-").unwrap();
        assert!(used.path().exists() && second.path().exists() && parent.path().join("other").exists());
        assert!(!parent.path().join(".kg-test-left").exists());
        drop((used, second));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
