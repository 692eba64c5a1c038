//! Access to files below a directory without following symbolic links.
//!
//! A path is walked one name at a time. Each name is opened below the one before it and refused if
//! it is a link. Therefore no link in a project, added before or during a restore, can lead the
//! restore out of the project.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    error::{Code, Error, Result},
    system::{
        portable::{is_link, set_mode},
        user,
    },
    util::{
        entry_stat::{EntryStat, EntryType},
        regular_file,
        unsupported::{self, Unsupported},
    },
};

#[cfg_attr(unix, path = "dir_handle/unix.rs")]
#[cfg_attr(windows, path = "dir_handle/windows.rs")]
mod os;

pub use os::held_path;

/// An open directory. Clones share its handle.
#[derive(Debug, Clone)]
pub struct DirHandle {
    dir: Arc<os::Dir>,
    path: PathBuf,
}

/// The number of links that Linux follows on one path (path_resolution(7)).
const MOST_LINKS: usize = 40;

impl DirHandle {
    /// Opens a directory. `path` may contain links, because the user who names it means their
    /// target.
    ///
    /// A link of another user who is not root is followed only if its target belongs to that user.
    /// Such a link therefore cannot redirect writes to a place where its owner may not write.
    /// `KG_UNSAFE_FILE`, inside the I/O error, if the target belongs to anyone else.
    pub fn open(path: &Path) -> io::Result<Self> {
        DirHandle::reach(path)?.readable()
    }

    /// Works like [`DirHandle::open`], for a directory that need not be readable. Only names in it
    /// can be accessed.
    fn reach(path: &Path) -> io::Result<Self> {
        let (dir, path) = os::reach(path)?;
        Ok(DirHandle {
            dir: dir.into(),
            path,
        })
    }

    /// Reopens the directory so that it can be read and synced.
    fn readable(&self) -> io::Result<Self> {
        Ok(DirHandle {
            dir: os::readable(&self.dir)?.into(),
            path: self.path.clone(),
        })
    }

    /// Works like [`DirHandle::open`], for the directory that contains `path`, and returns the
    /// entry in it. The directory need not be readable, but if it is not, it cannot be synced.
    pub fn around(path: &Path) -> io::Result<EntryHandle> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        let dir = DirHandle::reach(parent)?;
        match dir.readable() {
            Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => Ok(dir.name(name)),
            readable => Ok(readable?.name(name)),
        }
    }

    /// Returns the entry of that name in the directory, which need not exist.
    pub fn name(&self, name: impl Into<OsString>) -> EntryHandle {
        EntryHandle {
            dir: self.clone(),
            name: name.into(),
            known_as: None,
        }
    }

    /// Returns the path, without symbolic links, at which the directory was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the entry at `relative`, which consists of plain names, or `None` if a directory on
    /// the path does not exist.
    pub fn place(&self, relative: &Path) -> Result<Option<EntryHandle>> {
        let mut names = relative.iter();
        let Some(name) = names.next_back() else {
            return Err(not_a_directory(&self.path));
        };
        let mut dir = self.clone();
        for name in names {
            let path = dir.path.join(name);
            match os::enter(&dir.dir, name) {
                Ok(entered) => {
                    dir = DirHandle {
                        dir: entered.into(),
                        path,
                    }
                }
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(cause) if os::is_no_directory(&cause) => return Err(not_a_directory(&path)),
                Err(cause) => return Err(Error::io("open", &path, cause)),
            }
        }
        Ok(Some(dir.name(name)))
    }

    /// Returns a path to exactly this directory, even if its name was reused. Valid in this process
    /// only.
    pub fn held_path(&self) -> PathBuf {
        held_path(&*self.dir, &self.path)
    }

    /// Makes changes in the directory durable.
    pub fn sync(&self) -> Result<()> {
        os::to_sync(&self.dir)
            .and_then(|dir| unsupported::sync(&dir, &self.path))
            .map_err(|cause| Error::io("sync", &self.path, cause))
    }

    /// Returns the open directory as a file.
    pub fn as_file(&self) -> Result<File> {
        let file = self.dir.try_clone();
        file.map(File::from)
            .map_err(|cause| Error::io("open", &self.path, cause))
    }

    /// Returns what to lock in order to lock the directory.
    pub fn to_lock(&self) -> io::Result<File> {
        os::to_lock(&self.dir)
    }

    /// Returns the number of the device that the directory is on.
    pub fn device(&self) -> Result<u64> {
        Ok(self.stat()?.device)
    }

    /// Returns the user and group that own the directory.
    pub fn owner(&self) -> Result<(u32, u32)> {
        Ok(self.stat()?.owner())
    }

    fn stat(&self) -> Result<EntryStat> {
        os::stat(&self.dir).map_err(|cause| Error::io("look at", &self.path, cause))
    }
}

/// Returns `path` with links resolved. Only links that [`DirHandle::open`] would follow are
/// allowed.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        // The root has no name.
        if path.file_name().is_none() {
            return DirHandle::open(&path).map(|dir| dir.path);
        }
        let place = DirHandle::around(&path)?;
        path = match place.read_link() {
            Err(cause) if os::is_no_link(&cause) => return Ok(place.path()),
            target => place.dir.path.join(target?),
        };
    }
    Err(os::too_many_links())
}

/// Works like [`resolve`], but returns the path unchanged if it is missing or inaccessible.
/// `KG_UNSAFE_FILE` for a link that is not followed.
pub fn resolve_if_there(path: PathBuf) -> Result<PathBuf> {
    match resolve(&path) {
        Err(cause) if cause.get_ref().is_some_and(|own| own.is::<Error>()) => {
            Err(Error::io("open", &path, cause))
        }
        resolved => Ok(resolved.unwrap_or(path)),
    }
}

/// Opens the regular file at `path` for reading. Fails if the last name is a link.
pub fn open_file(path: &Path) -> io::Result<File> {
    regular_file::only(DirHandle::around(path)?.open(Access::Read)?)
}

fn foreign(link: &Path, of: u32, dir: &Path, owner: u32) -> Error {
    let message = format!(
        "{} is a link of user {of}, which is not followed: it leads to {}, which belongs to user {owner}",
        link.display(),
        dir.display()
    );
    let remedy = format!(
        "If the link is intended, make it yours (`chown -h {} {}`); nothing was changed there",
        user::current(),
        link.display()
    );
    Error::new(Code::UnsafeFile, message, remedy)
}

/// Describes an existing entry that a restore does not replace. `what` says why.
pub fn in_the_way(path: &Path, what: &str) -> Error {
    Error::new(
        Code::TargetInvalid,
        format!("{} {what}", path.display()),
        "Move it away, or restore into another directory with `targetDir`",
    )
}

pub fn not_a_directory(path: &Path) -> Error {
    in_the_way(
        path,
        "is in the way: it is a link or a file where the backup has a directory",
    )
}

/// A name in an open directory, whether it exists or not.
#[derive(Debug)]
pub struct EntryHandle {
    dir: DirHandle,
    name: OsString,
    /// The path for warnings, if it differs from the actual path.
    known_as: Option<PathBuf>,
}

/// Whether a file is created.
#[derive(Debug, Clone, Copy)]
enum Create {
    No,
    IfMissing,
    New {
        #[cfg_attr(
            windows,
            expect(dead_code, reason = "a new file gets the access list of its directory")
        )]
        mode: u32,
    },
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
    /// Every write goes to the end of the file.
    Append,
}

impl EntryHandle {
    pub fn dir(&self) -> &DirHandle {
        &self.dir
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path.join(&self.name)
    }

    /// Works like [`DirHandle::held_path`].
    pub fn held_path(&self) -> PathBuf {
        self.dir.held_path().join(&self.name)
    }

    /// Returns the same entry with `path` as its name in warnings, because the entry will be moved
    /// there.
    pub fn known_as(self, path: PathBuf) -> EntryHandle {
        EntryHandle {
            known_as: Some(path),
            ..self
        }
    }

    /// Turns a change of permissions or times that the file system does not support into a warning
    /// of the run.
    pub fn tolerate(&self, set: io::Result<()>) -> io::Result<()> {
        unsupported::attributes(set, &self.known_path())
    }

    pub fn known_path(&self) -> PathBuf {
        self.known_as.clone().unwrap_or_else(|| self.path())
    }

    /// Returns the entry of another name in the same directory.
    pub fn beside(&self, name: impl Into<OsString>) -> EntryHandle {
        self.dir.name(name)
    }

    pub fn stat(&self) -> Result<Option<EntryStat>> {
        match os::stat_at(&self.dir.dir, self.name(), false) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found
                .map(Some)
                .map_err(|cause| Error::io("look at", &self.path(), cause)),
        }
    }

    pub fn occupant(&self) -> Result<Option<EntryType>> {
        Ok(self.stat()?.map(|found| found.entry_type))
    }

    /// Returns the target of the link, if it is trusted: see [`DirHandle::open`]. Another entry is
    /// an error.
    pub fn read_link(&self) -> io::Result<PathBuf> {
        let (target, owner) = os::link_at(&self.dir.dir, &self.dir.path, self.name())?;
        if !os::is_trusted(owner) {
            let found = os::stat_at(&self.dir.dir, self.name(), true)?;
            if found.user != owner {
                let leads_to = self.dir.path.join(&target);
                return Err(io::Error::other(foreign(
                    &self.path(),
                    owner,
                    &leads_to,
                    found.user,
                )));
            }
        }
        Ok(target)
    }

    /// Opens an existing file; fails for a link.
    pub fn open(&self, access: Access) -> io::Result<File> {
        os::open_at(&self.dir.dir, self.name(), access, Create::No)
    }

    /// Creates a file with these permissions, less those of the umask.
    pub fn create_new(&self, access: Access, mode: u32) -> io::Result<File> {
        os::open_at(&self.dir.dir, self.name(), access, Create::New { mode })
    }

    /// Opens or creates a file with the flags of open(2); fails for a link.
    #[cfg(unix)]
    pub fn open_with(&self, flags: nix::fcntl::OFlag, mode: u32) -> io::Result<File> {
        os::open_with(&self.dir.dir, self.name(), flags, mode)
    }

    /// Opens a file for writing and creates it if it does not exist.
    /// `KG_UNSAFE_FILE` if the entry is not a regular file or has other names. Otherwise any user
    /// who may write to the directory could have another file overwritten.
    pub fn open_to_write(&self, access: Access) -> Result<File> {
        let path = self.path();
        let file = match os::open_at(&self.dir.dir, self.name(), access, Create::IfMissing) {
            Err(cause) if is_link(&cause) => {
                return Err(regular_file::unsafe_file(&path, "it is a symbolic link"));
            }
            opened => opened.map_err(|cause| Error::io("open", &path, cause))?,
        };
        if !file
            .metadata()
            .map_err(|cause| Error::io("open", &path, cause))?
            .is_file()
        {
            return Err(regular_file::unsafe_file(&path, "it is not a regular file"));
        }
        regular_file::assert_one_name(&file, &path)?;
        Ok(file)
    }

    /// Opens a directory; fails for a link.
    pub fn enter(&self) -> io::Result<DirHandle> {
        Ok(DirHandle {
            dir: os::enter(&self.dir.dir, self.name())?.into(),
            path: self.path(),
        })
    }

    /// Creates a new file that only this user may read.
    pub fn create(&self) -> Result<File> {
        let created = self.create_new(Access::Write, 0o600);
        created.map_err(|cause| Error::io("write", &self.path(), cause))
    }

    pub fn starts_with(&self, magic: &[u8]) -> bool {
        let mut start = vec![0; magic.len()];
        self.open(Access::Read)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok()
            && start == magic
    }

    /// Renames the entry, replacing any existing file. The caller must handle a target on another
    /// file system.
    pub fn rename(&self, to: &EntryHandle) -> io::Result<()> {
        os::rename(&self.dir.dir, self.name(), &to.dir.dir, to.name())
    }

    /// Renames the entry to an unused name. Uses a rename that replaces nothing, or else a hard
    /// link and the removal of the old name.
    pub fn rename_new(&self, to: &EntryHandle) -> io::Result<()> {
        os::rename_new(&self.dir.dir, self.name(), &to.dir.dir, to.name())
    }

    /// Creates a directory. An existing directory is not an error.
    pub fn make_dir(&self, mode: u32) -> io::Result<()> {
        match self.make_new_dir(mode) {
            Err(cause)
                if cause.kind() == io::ErrorKind::AlreadyExists
                    && self.is(EntryType::Directory) =>
            {
                Ok(())
            }
            made => made,
        }
    }

    pub fn make_new_dir(&self, mode: u32) -> io::Result<()> {
        os::make_dir(&self.dir.dir, self.name(), mode)
    }

    pub fn make_link(&self, target: &Path) -> io::Result<()> {
        os::make_link(&self.dir.dir, &self.dir.path, self.name(), target)
    }

    fn is(&self, what: EntryType) -> bool {
        self.occupant().is_ok_and(|found| found == Some(what))
    }

    /// Removes a file. A missing file is not an error.
    pub fn remove_file(&self) -> Result<()> {
        match self.unlink() {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path(), cause))
            }
            _ => Ok(()),
        }
    }

    pub fn unlink(&self) -> io::Result<()> {
        os::unlink(&self.dir.dir, self.name())
    }

    /// Removes the directory if it is empty. Returns whether it was removed.
    pub fn remove_dir(&self) -> bool {
        os::remove_dir(&self.dir.dir, self.name()).is_ok()
    }

    /// Sets the permissions of a file or directory that this user can read. Never follows a link.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        self.tolerate(self.chmod(mode & 0o777))
            .map_err(|cause| Error::io("set the permissions of", &self.path(), cause))
    }

    /// Works like [`EntryHandle::set_mode`], but keeps the set-group-ID and similar bits, for a
    /// mode that was read earlier. A file system without permissions is an error.
    pub fn change_mode(&self, mode: u32) -> Result<()> {
        self.chmod(mode & 0o7777)
            .map_err(|cause| Error::io("set the permissions of", &self.path(), cause))
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        set_mode(&self.open(Access::Read)?, mode)
    }

    pub fn set_modified(&self, seconds: i64, nanoseconds: i64) -> Result<()> {
        let time = (seconds, nanoseconds);
        self.tolerate(os::set_modified(&self.dir.dir, self.name(), time))
            .map_err(|cause| Error::io("set the time of", &self.path(), cause))
    }

    /// Changes the user and group, if the process runs as root. A refusal causes a warning of the
    /// run.
    pub fn give_to(&self, (user, group): (u32, u32)) -> Result<()> {
        if !user::is_root()
            || self
                .stat()?
                .is_some_and(|found| found.owner() == (user, group))
        {
            return Ok(());
        }
        if let Err(cause) = os::give(&self.dir.dir, self.name(), user, group) {
            unsupported::note(Unsupported::Owner, &self.known_path(), &cause);
        }
        Ok(())
    }

    fn name(&self) -> &OsStr {
        &self.name
    }
}

#[cfg(test)]
mod tests;
