//! Private directories for temporary files. They are removed when they are dropped, or by the next
//! run after a kill.
//!
//! Their content may be secret: copies of databases, decrypted files. [`PrivateDir::end`] therefore
//! reports a directory that could not be removed. A run holds a lock on its [`Scratch`] directory;
//! one without a lock was left by a killed run.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    system::{
        file_system, paths,
        portable::{MetadataExt, lock, set_mode_at, try_lock},
        user,
    },
    util::{
        atomic_file,
        dir_handle::{DirHandle, EntryHandle},
        file_lock,
    },
};

/// A directory that only this user may enter. It is removed with all its contents.
#[derive(Debug)]
pub struct PrivateDir {
    place: EntryHandle,
    path: PathBuf,
    /// Held until the directory is removed.
    lock: Option<File>,
    is_removed: bool,
}

impl PrivateDir {
    /// Creates a directory in `parent` with a name that starts with `prefix`.
    pub fn new(parent: &Path, prefix: &str) -> Result<Self> {
        let made = DirHandle::open(parent).and_then(|dir| {
            atomic_file::with_free_name(&dir, prefix, |place| place.make_new_dir(0o700))
        });
        let (place, ()) =
            made.map_err(|cause| Error::io("create a directory in", parent, cause))?;
        Ok(PrivateDir {
            path: place.path(),
            place,
            lock: None,
            is_removed: false,
        })
    }

    /// Creates a directory as [`PrivateDir::new`] does, and locks it, because another run may
    /// remove one without a lock.
    pub fn locked(parent: &Path, prefix: &str) -> Result<Self> {
        loop {
            let mut dir = PrivateDir::new(parent, prefix)?;
            dir.lock = dir.lock()?;
            if dir.lock.is_some() {
                return Ok(dir);
            }
        }
    }

    /// Returns the locked directory, open. On Windows, it is a file in the directory.
    pub fn lock_file(&self) -> Option<&File> {
        self.lock.as_ref()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens and locks the directory. Returns `None` if another run removed it, or if another entry
    /// has its name.
    fn lock(&self) -> Result<Option<File>> {
        let dir = match self.place.enter() {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|cause| Error::io("open", &self.path, cause))?,
        }
        .to_lock()
        .map_err(|cause| Error::io("lock", &self.path, cause))?;
        let is_own = dir
            .metadata()
            .is_ok_and(|found| found.uid() == user::current());
        lock(&dir).map_err(|cause| file_lock::refused(&self.path, cause))?;
        Ok(Some(dir).filter(|_| is_own && self.path.exists()))
    }

    /// Leaves the directory to the next run.
    pub fn keep(mut self) {
        self.is_removed = true;
    }

    /// Removes the entry of that name in the directory where it was created, even if that directory
    /// was moved.
    fn remove_all(&mut self) -> io::Result<()> {
        match remove_at(&self.place) {
            // Some file systems of Windows keep the name of an open file, and so that of the lock.
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => {
                self.lock = None;
                remove_at(&self.place)
            }
            removed => removed,
        }
    }

    /// Removes the directory now.
    pub fn remove(mut self) -> Result<()> {
        self.is_removed = true;
        self.remove_all().map_err(|cause| left(&self.path, cause))
    }

    /// Removes the directory after the work that produced `done`, and returns `done`. If the
    /// removal fails, returns an error, or adds to the error in `done`.
    pub fn end<T>(self, done: Result<T>) -> Result<T> {
        match (done, self.remove()) {
            (done, Ok(())) => done,
            (Ok(_), Err(left)) => Err(left),
            (Err(error), Err(left)) => Err(Error {
                remedy: format!("{}. {}: {}", error.remedy, left.message, left.remedy),
                ..error
            }),
        }
    }
}

impl Drop for PrivateDir {
    /// A caller that needs the result of the removal calls [`PrivateDir::end`] instead.
    fn drop(&mut self) {
        if !self.is_removed {
            let _ = self.remove_all();
        }
    }
}

fn left(dir: &Path, cause: io::Error) -> Error {
    let error = Error::io("remove", dir, cause);
    Error {
        remedy: "Remove that directory: it contains decrypted files of the project or of a backup"
            .into(),
        ..error
    }
}

/// Removes a directory of this user with all its contents, even if directories in it may not be
/// entered or written. A missing directory is not an error.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    match DirHandle::around(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        place => remove_at(&place?),
    }
}

fn remove_at(place: &EntryHandle) -> io::Result<()> {
    let dir = place.held_path();
    match fs::remove_dir_all(&dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(&dir)?;
            fs::remove_dir_all(&dir)
        }
        done => done,
    }
}

/// Lets this user enter and change the directory and all directories below it. Follows no links.
fn make_writable(dir: &Path) -> io::Result<()> {
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        set_mode_at(&dir, 0o700)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Returns where to create a private directory that belongs in `dir`. The result is `dir`, or the
/// system's directory for temporary files if other users could replace the directory in `dir`.
pub fn safe_parent(dir: &Path) -> PathBuf {
    if paths::replaceable(&dir.join("private")).is_some() {
        std::env::temp_dir()
    } else {
        dir.to_path_buf()
    }
}

/// A private directory that another run of this user removes after a kill.
pub struct Scratch(PrivateDir);

impl Scratch {
    /// Creates a directory in `parent` with a name that starts with `prefix`. Removes directories
    /// of that prefix that killed runs left.
    pub fn new(parent: &Path, prefix: &str) -> Result<Self> {
        sweep(parent, prefix);
        PrivateDir::locked(parent, prefix).map(Scratch)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Works like [`PrivateDir::end`].
    pub fn end<T>(self, done: Result<T>) -> Result<T> {
        self.0.end(done)
    }
}

/// Returns the free bytes on the disk of `path` that this user may use.
pub fn free_bytes(path: &Path) -> Option<u64> {
    file_system::space(path).ok().map(|space| space.free_bytes)
}

/// Removes directories of that prefix that killed runs of this user left. Directories that cannot
/// be removed are left to the next run.
pub fn sweep(parent: &Path, prefix: &str) {
    let own = user::current();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(prefix))
            && entry
                .metadata()
                .is_ok_and(|found| found.is_dir() && found.uid() == own);
        if is_ours
            && let Ok(dir) = DirHandle::open(&entry.path()).and_then(|dir| dir.to_lock())
            && try_lock(&dir).is_ok()
        {
            let _ = remove_tree(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_another_run_uses_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let used = Scratch::new(parent.path(), ".kg-test-").unwrap();
        fs::create_dir(parent.path().join(".kg-test-left")).unwrap();
        fs::write(parent.path().join(".kg-test-left/file"), "x").unwrap();
        fs::create_dir(parent.path().join("other")).unwrap();
        let second = Scratch::new(parent.path(), ".kg-test-").unwrap();
        assert!(
            used.path().exists() && second.path().exists() && parent.path().join("other").exists()
        );
        assert!(!parent.path().join(".kg-test-left").exists());
        drop((used, second));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_that_may_not_be_entered_or_written_are_removed_too() {
        let parent = tempfile::tempdir().unwrap();
        for (mode, name) in [
            (0o555, "write"),
            (0o000, "none"),
            (0o111, "enter"),
            (0o444, "read"),
        ] {
            let dir = PrivateDir::new(parent.path(), ".kg-test-").unwrap();
            let inner = dir.path().join(name).join("inner");
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join("file"), "secret").unwrap();
            fs::write(dir.path().join(name).join("file"), "secret").unwrap();
            symlink(parent.path(), dir.path().join(name).join("link")).unwrap();
            for locked in [inner.as_path(), inner.parent().unwrap()] {
                fs::set_permissions(locked, Permissions::from_mode(mode)).unwrap();
            }
            // Root is not affected by permissions, so this calls the function that other users
            // need.
            make_writable(dir.path()).unwrap();
            dir.remove().unwrap();
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_stays_is_reported_and_so_is_the_error_before() {
        let parent = tempfile::tempdir().unwrap();
        let stays = || {
            let dir = PrivateDir::new(parent.path(), ".kg-test-").unwrap();
            fs::remove_dir(dir.path()).unwrap();
            // A file in its place, which cannot be removed as a directory.
            fs::write(dir.path(), "").unwrap();
            dir
        };
        let error = stays().end(Ok(())).unwrap_err();
        assert!(
            error.message.contains(".kg-test-") && error.remedy.contains("Remove that directory"),
            "{error}"
        );
        let error = stays().end::<()>(Err(Error::aborted())).unwrap_err();
        assert_eq!(error.code, crate::error::Code::Aborted);
        assert!(error.remedy.contains(".kg-test-"), "{error}");
    }
}
