//! Access to files below a directory without following symbolic links.
//!
//! A path is walked one name at a time. Each name is opened below the one before it (openat(2)) and
//! refused if it is a link. Therefore no link in a project, added before or during a restore, can
//! lead the restore out of the project.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::{
        stat::{Mode, UtimensatFlags, fstat, fstatat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, linkat, symlinkat, unlinkat},
};
use rustix::fs::{RenameFlags, renameat_with};

use crate::{
    error::{Code, Error, Result},
    util::{
        entry_stat::{EntryStat, EntryType},
        regular_file,
        unsupported::{self, Unsupported},
    },
};

/// An open directory. Clones share its descriptor.
#[derive(Debug, Clone)]
pub struct DirHandle {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

/// Directories on the path need not be readable.
#[cfg(target_os = "linux")]
const ON_THE_WAY: OFlag = DIRECTORY.union(OFlag::O_PATH);
#[cfg(not(target_os = "linux"))]
const ON_THE_WAY: OFlag = DIRECTORY;

/// The error if an entry is not the expected directory or link.
const NO_LINK: Errno = Errno::ENOTDIR;

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
        Ok(DirHandle::reach(path)?.readable()?)
    }

    /// Reopens the directory so that it can be read and synced.
    fn readable(&self) -> nix::Result<Self> {
        Ok(DirHandle {
            fd: openat(&self.fd, ".", DIRECTORY, Mode::empty())?.into(),
            path: self.path.clone(),
        })
    }

    /// Works like [`DirHandle::open`], for a directory that need not be readable. Only names in it
    /// can be accessed.
    fn reach(path: &Path) -> io::Result<Self> {
        let mut waiting: Vec<OsString> = Vec::new();
        let mut way = DirHandle {
            fd: open("/".as_ref(), ON_THE_WAY)?.into(),
            path: "/".into(),
        };
        let mut links = Vec::new();
        way.queue(&std::path::absolute(path)?, &mut waiting)?;
        while let Some(name) = waiting.pop() {
            match openat(
                &way.fd,
                name.as_os_str(),
                ON_THE_WAY | OFlag::O_NOFOLLOW,
                Mode::empty(),
            ) {
                Ok(fd) if name == ".." => {
                    way.fd = fd.into();
                    way.path.pop();
                }
                Ok(fd) => {
                    way = DirHandle {
                        fd: fd.into(),
                        path: way.path.join(name),
                    }
                }
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    let (target, owner) = way.link_at(&name)?;
                    if links.len() == MOST_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    links.push((way.path.join(name), owner));
                    way.queue(&target, &mut waiting)?;
                }
                Err(cause) => return Err(cause.into()),
            }
        }
        let owner = fstat(&way.fd)?.st_uid;
        match links
            .into_iter()
            .find(|(_, of)| *of != owner && !is_ours(*of))
        {
            Some((link, of)) => Err(io::Error::other(foreign(&link, of, &way.path, owner))),
            None => Ok(way),
        }
    }

    /// Adds the names of a path to `waiting`, the first name last. An absolute path restarts at the
    /// root.
    fn queue(&mut self, path: &Path, waiting: &mut Vec<OsString>) -> io::Result<()> {
        if path.is_absolute() {
            *self = DirHandle {
                fd: open("/".as_ref(), ON_THE_WAY)?.into(),
                path: "/".into(),
            };
        }
        let names = path
            .components()
            .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        waiting.extend(names.rev().map(|part| part.as_os_str().to_os_string()));
        Ok(())
    }

    /// Returns the target and the owner of the link of that name. Both are of the same link, even
    /// if the name is reused meanwhile.
    #[cfg(target_os = "linux")]
    fn link_at(&self, name: &OsStr) -> io::Result<(PathBuf, u32)> {
        let link = openat(
            &self.fd,
            name,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        match readlinkat(&link, "") {
            // The entry is not a link.
            Err(Errno::ENOENT | Errno::EINVAL) => Err(NO_LINK.into()),
            target => Ok((target?.into(), fstat(&link)?.st_uid)),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn link_at(&self, name: &OsStr) -> io::Result<(PathBuf, u32)> {
        match readlinkat(&self.fd, name) {
            Err(Errno::EINVAL) => Err(NO_LINK.into()),
            target => Ok((
                target?.into(),
                fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_uid,
            )),
        }
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
            Err(Errno::EACCES) => Ok(dir.name(name)),
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
            match openat(&dir.fd, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
                Ok(fd) => {
                    dir = DirHandle {
                        fd: fd.into(),
                        path,
                    }
                }
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(not_a_directory(&path)),
                Err(cause) => return Err(Error::io("open", &path, cause.into())),
            }
        }
        Ok(Some(dir.name(name)))
    }

    /// Returns a path to exactly this directory, even if its name was reused. Valid in this process
    /// only.
    pub fn held_path(&self) -> PathBuf {
        held_path(&self.fd, &self.path)
    }

    /// Makes changes in the directory durable.
    pub fn sync(&self) -> Result<()> {
        unsupported::sync(&self.as_file()?, &self.path)
            .map_err(|cause| Error::io("sync", &self.path, cause))
    }

    /// Returns the open directory as a file.
    pub fn as_file(&self) -> Result<File> {
        let file = self.fd.try_clone();
        file.map(File::from)
            .map_err(|cause| Error::io("open", &self.path, cause))
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
        let found = fstat(&self.fd).map(EntryStat::from);
        found.map_err(|cause| Error::io("look at", &self.path, cause.into()))
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
            Err(cause) if cause.raw_os_error() == Some(NO_LINK as i32) => return Ok(place.path()),
            target => place.dir.path.join(target?),
        };
    }
    Err(Errno::ELOOP.into())
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
    regular_file::only(DirHandle::around(path)?.open(OFlag::O_RDONLY, 0)?)
}

/// Returns whether links of this user are trusted.
fn is_ours(user: u32) -> bool {
    [0, geteuid().as_raw()].contains(&user) || is_unmapped(user)
}

/// Returns whether this user id stands for all users that the container does not map. The root user
/// of the host is one of them, and owns the links of the system.
fn is_unmapped(user: u32) -> bool {
    static STANDS_FOR_OTHERS: OnceLock<Option<u32>> = OnceLock::new();
    let of_system = || {
        const ALL: &str = "0 0 4294967295";
        let read = |name: &str| fs::read_to_string(name).ok();
        let map = read("/proc/self/uid_map")?;
        let has_all = map.split_whitespace().eq(ALL.split(' '));
        read("/proc/sys/kernel/overflowuid")?
            .trim()
            .parse()
            .ok()
            .filter(|_| !has_all)
    };
    *STANDS_FOR_OTHERS.get_or_init(of_system) == Some(user)
}

fn open(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

fn foreign(link: &Path, of: u32, dir: &Path, owner: u32) -> Error {
    let message = format!(
        "{} is a link of user {of}, which is not followed: it leads to {}, which belongs to user {owner}",
        link.display(),
        dir.display()
    );
    let remedy = format!(
        "If the link is intended, make it yours (`chown -h {} {}`); nothing was changed there",
        geteuid(),
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
        match fstatat(&self.dir.fd, self.name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found.into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(cause) => Err(self.failed("look at", cause)),
        }
    }

    pub fn occupant(&self) -> Result<Option<EntryType>> {
        Ok(self.stat()?.map(|found| found.entry_type))
    }

    /// Returns the target of the link, if it is trusted: see [`DirHandle::open`]. `ENOTDIR` if the
    /// entry is not a link.
    pub fn read_link(&self) -> io::Result<PathBuf> {
        let (target, owner) = self.dir.link_at(&self.name)?;
        if !is_ours(owner) {
            let found = fstatat(&self.dir.fd, self.name(), AtFlags::empty())?;
            if found.st_uid != owner {
                let leads_to = self.dir.path.join(&target);
                return Err(io::Error::other(foreign(
                    &self.path(),
                    owner,
                    &leads_to,
                    found.st_uid,
                )));
            }
        }
        Ok(target)
    }

    /// Opens a file; fails for a link.
    pub fn open(&self, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir.fd, self.name(), flags, mode_of(mode))?.into())
    }

    /// Opens a file for writing with these flags and creates it if it does not exist.
    /// `KG_UNSAFE_FILE` if the entry is not a regular file or has other names. Otherwise any user
    /// who may write to the directory could have another file overwritten.
    pub fn open_to_write(&self, flags: OFlag) -> Result<File> {
        let path = self.path();
        let file = match self.open(flags | OFlag::O_CREAT, 0o666) {
            Err(cause) if cause.raw_os_error() == Some(Errno::ELOOP as i32) => {
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
        let fd = openat(
            &self.dir.fd,
            self.name(),
            DIRECTORY | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )?;
        Ok(DirHandle {
            fd: fd.into(),
            path: self.path(),
        })
    }

    /// Creates a new file that only this user may read.
    pub fn create(&self) -> Result<File> {
        let created = self.open(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, 0o600);
        created.map_err(|cause| Error::io("write", &self.path(), cause))
    }

    pub fn starts_with(&self, magic: &[u8]) -> bool {
        let mut start = vec![0; magic.len()];
        self.open(OFlag::O_RDONLY, 0)
            .and_then(|mut file| file.read_exact(&mut start))
            .is_ok()
            && start == magic
    }

    /// Renames the entry, replacing any existing file. The caller must handle a target on another
    /// file system.
    pub fn rename(&self, to: &EntryHandle) -> io::Result<()> {
        Ok(renameat(&self.dir.fd, self.name(), &to.dir.fd, to.name())?)
    }

    /// Renames the entry to an unused name. Uses a rename that replaces nothing, or else a hard
    /// link and the removal of the old name.
    pub fn rename_new(&self, to: &EntryHandle) -> io::Result<()> {
        let renamed = renameat_with(
            &self.dir.fd,
            self.name(),
            &to.dir.fd,
            to.name(),
            RenameFlags::NOREPLACE,
        );
        match renamed.map_err(|cause| Errno::from_raw(cause.raw_os_error())) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) => {}
            renamed => return Ok(renamed?),
        }
        linkat(
            &self.dir.fd,
            self.name(),
            &to.dir.fd,
            to.name(),
            AtFlags::empty(),
        )?;
        Ok(unlinkat(
            &self.dir.fd,
            self.name(),
            UnlinkatFlags::NoRemoveDir,
        )?)
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
        Ok(mkdirat(&self.dir.fd, self.name(), mode_of(mode))?)
    }

    pub fn make_link(&self, target: &Path) -> io::Result<()> {
        Ok(symlinkat(target, &self.dir.fd, self.name())?)
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
        Ok(unlinkat(
            &self.dir.fd,
            self.name(),
            UnlinkatFlags::NoRemoveDir,
        )?)
    }

    /// Removes the directory if it is empty. Returns whether it was removed.
    pub fn remove_dir(&self) -> bool {
        unlinkat(&self.dir.fd, self.name(), UnlinkatFlags::RemoveDir).is_ok()
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
        self.open(OFlag::O_RDONLY, 0)?
            .set_permissions(Permissions::from_mode(mode))
    }

    pub fn set_modified(&self, seconds: i64, nanoseconds: i64) -> Result<()> {
        let time = TimeSpec::new(seconds, nanoseconds);
        let set = utimensat(
            &self.dir.fd,
            self.name(),
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        );
        self.tolerate(set.map_err(io::Error::from))
            .map_err(|cause| Error::io("set the time of", &self.path(), cause))
    }

    /// Changes the user and group, if the process runs as root. A refusal causes a warning of the
    /// run.
    pub fn give_to(&self, (user, group): (u32, u32)) -> Result<()> {
        if !geteuid().is_root()
            || self
                .stat()?
                .is_some_and(|found| found.owner() == (user, group))
        {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        let set = fchownat(
            &self.dir.fd,
            self.name(),
            Some(user),
            Some(group),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        );
        if let Err(cause) = set {
            unsupported::note(Unsupported::Owner, &self.known_path(), &cause.into());
        }
        Ok(())
    }

    fn name(&self) -> &OsStr {
        &self.name
    }

    fn failed(&self, action: &str, cause: Errno) -> Error {
        Error::io(action, &self.path(), cause.into())
    }
}

/// Works like [`DirHandle::held_path`], for any open directory. Returns `path` if the system has no
/// such paths.
pub fn held_path(fd: &impl AsRawFd, path: &Path) -> PathBuf {
    static HAS_PATHS: OnceLock<bool> = OnceLock::new();
    // They are missing in a chroot without /proc.
    if *HAS_PATHS.get_or_init(|| cfg!(target_os = "linux") && Path::new("/proc/self/fd").is_dir()) {
        format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
    } else {
        path.to_path_buf()
    }
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_bits_truncate((mode & 0o777) as nix::libc::mode_t)
}

#[cfg(test)]
mod tests;
