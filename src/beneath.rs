//! Files below a directory, reached without following a symbolic link.
//!
//! A path is walked one name at a time, each opened below the one before it (openat(2)) and refused where it is a link.
//! So a link that somebody put into a project, before or while a restore runs, never leads a restore out of it.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, symlinkat, unlinkat},
};

use crate::{
    durable,
    error::{Code, Error, Result},
    tolerated::{self, Refused},
};

/// An open directory.
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

impl Dir {
    /// `path` itself may lead through links: whoever names it means what is behind them.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let fd = nix::fcntl::open(&path, DIRECTORY, Mode::empty())?;
        Ok(Dir { fd, path })
    }

    /// Without symbolic links, when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The place of `relative`, which is made of plain names; `None` where a directory on the way does not exist.
    pub fn place(&self, relative: &Path) -> Result<Option<Place>> {
        let mut names = relative.iter();
        let Some(name) = names.next_back() else {
            return Err(in_the_way(&self.path));
        };
        let mut dir = Dir { fd: self.again()?, path: self.path.clone() };
        for name in names {
            let path = dir.path.join(name);
            match openat(&dir.fd, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
                Ok(fd) => dir = Dir { fd, path },
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ELOOP | Errno::ENOTDIR) => return Err(in_the_way(&path)),
                Err(cause) => return Err(Error::io("open", &path, cause.into())),
            }
        }
        Ok(Some(Place { dir, name: name.to_os_string(), known_as: None }))
    }

    /// A path that leads to this very directory, whatever has its name by now: for this process alone.
    pub fn held_path(&self) -> PathBuf {
        held_path(&self.fd, &self.path)
    }

    /// Makes what changed in the directory durable.
    pub fn sync(&self) -> Result<()> {
        let dir = File::from(self.again()?);
        durable::sync(&dir, &self.path).map_err(|cause| Error::io("sync", &self.path, cause))
    }

    /// User and group that the directory belongs to.
    pub fn owner(&self) -> Result<(u32, u32)> {
        let found = fstat(&self.fd).map_err(|cause| Error::io("look at", &self.path, cause.into()))?;
        Ok((found.st_uid, found.st_gid))
    }

    fn again(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(|cause| Error::io("open", &self.path, cause))
    }
}

pub fn in_the_way(path: &Path) -> Error {
    Error::new(
        Code::TargetInvalid,
        format!("{} is in the way: it is a link or a file where the backup has a directory", path.display()),
        "Move it away, or restore into another directory with `targetDir` (`--target`)",
    )
}

/// A name in an open directory, whether something is there or not.
pub struct Place {
    dir: Dir,
    name: OsString,
    /// What warnings call it, if that is not its path.
    known_as: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    File,
    Directory,
    Link,
    Other,
}

impl Place {
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path.join(&self.name)
    }

    /// The same place, which warnings call `path`: what is there now will be moved to that.
    pub fn known_as(self, path: PathBuf) -> Place {
        Place { known_as: Some(path), ..self }
    }

    /// Remembers a change of permissions or times that the file system has no means for, as a warning of the run.
    pub fn tolerate(&self, set: io::Result<()>) -> io::Result<()> {
        tolerated::attributes(set, &self.known_path())
    }

    pub fn known_path(&self) -> PathBuf {
        self.known_as.clone().unwrap_or_else(|| self.path())
    }

    /// The place of another name in the same directory.
    pub fn beside(&self, name: &str) -> Result<Place> {
        Ok(Place { dir: Dir { fd: self.dir.again()?, path: self.dir.path.clone() }, name: name.into(), known_as: None })
    }

    pub fn stat(&self) -> Result<Option<FileStat>> {
        match fstatat(&self.dir.fd, self.name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(cause) => Err(self.failed("look at", cause)),
        }
    }

    pub fn occupant(&self) -> Result<Option<Occupant>> {
        let found = self.stat()?;
        Ok(found.map(|found| match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Occupant::File,
            SFlag::S_IFDIR => Occupant::Directory,
            SFlag::S_IFLNK => Occupant::Link,
            _ => Occupant::Other,
        }))
    }

    /// Opens a file there, and no link.
    pub fn open(&self, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir.fd, self.name(), flags, mode_of(mode))?.into())
    }

    /// Opens the directory there, and no link.
    pub fn enter(&self) -> Result<Dir> {
        let opened = openat(&self.dir.fd, self.name(), DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty());
        let fd = opened.map_err(|cause| self.failed("open", cause))?;
        Ok(Dir { fd, path: self.path() })
    }

    /// A new file, which only this user may read.
    pub fn create(&self) -> Result<File> {
        let created = self.open(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, 0o600);
        created.map_err(|cause| Error::io("write", &self.path(), cause))
    }

    pub fn starts_with(&self, magic: &[u8]) -> bool {
        let mut start = vec![0; magic.len()];
        self.open(OFlag::O_RDONLY, 0).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == magic
    }

    /// Renames; over what is there. The caller deals with two file systems.
    pub fn rename(&self, to: &Place) -> io::Result<()> {
        Ok(renameat(&self.dir.fd, self.name(), &to.dir.fd, to.name())?)
    }

    pub fn make_dir(&self, mode: u32) -> Result<()> {
        match mkdirat(&self.dir.fd, self.name(), mode_of(mode)) {
            Err(Errno::EEXIST) if self.occupant()? == Some(Occupant::Directory) => Ok(()),
            made => made.map_err(|cause| self.failed("create", cause)),
        }
    }

    pub fn make_link(&self, target: &Path) -> Result<()> {
        symlinkat(target, &self.dir.fd, self.name()).map_err(|cause| self.failed("create", cause))
    }

    /// Something that is not there is fine.
    pub fn remove_file(&self) -> Result<()> {
        match unlinkat(&self.dir.fd, self.name(), UnlinkatFlags::NoRemoveDir) {
            Err(cause) if cause != Errno::ENOENT => Err(self.failed("remove", cause)),
            _ => Ok(()),
        }
    }

    /// Whether it was empty and is gone.
    pub fn remove_dir(&self) -> bool {
        unlinkat(&self.dir.fd, self.name(), UnlinkatFlags::RemoveDir).is_ok()
    }

    /// Of a file or directory, which this user must be able to read; never of what a link leads to.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        self.tolerate(self.chmod(mode & 0o777))
            .map_err(|cause| Error::io("set the permissions of", &self.path(), cause))
    }

    /// As [`Place::set_mode`], with the bits for set-group-id and the like: for a mode that was found there.
    pub fn change_mode(&self, mode: u32) -> Result<()> {
        self.chmod(mode & 0o7777).map_err(|cause| Error::io("set the permissions of", &self.path(), cause))
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        self.open(OFlag::O_RDONLY, 0)?.set_permissions(Permissions::from_mode(mode))
    }

    pub fn set_modified(&self, seconds: i64, nanoseconds: i64) -> Result<()> {
        let time = TimeSpec::new(seconds, nanoseconds);
        let set = utimensat(&self.dir.fd, self.name(), &time, &time, UtimensatFlags::NoFollowSymlink);
        self.tolerate(set.map_err(io::Error::from)).map_err(|cause| Error::io("set the time of", &self.path(), cause))
    }

    /// Gives it to a user and group, if root runs this. A refusal is a warning of the run.
    pub fn give_to(&self, (user, group): (u32, u32)) -> Result<()> {
        if !geteuid().is_root() || self.stat()?.is_some_and(|found| (found.st_uid, found.st_gid) == (user, group)) {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        let set = fchownat(&self.dir.fd, self.name(), Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW);
        if let Err(cause) = set {
            tolerated::note(Refused::Owner, &self.known_path(), &cause.into());
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

/// As [`Dir::held_path`], of an open directory. Where the system has no such path, its own.
pub fn held_path(fd: &impl AsRawFd, path: &Path) -> PathBuf {
    if cfg!(target_os = "linux") { format!("/proc/self/fd/{}", fd.as_raw_fd()).into() } else { path.to_path_buf() }
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o777)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn no_link_on_the_way_is_followed_and_the_last_name_is_the_link_itself() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "outside").unwrap();
        fs::create_dir(inside.path().join("real")).unwrap();
        symlink(outside.path(), inside.path().join("real/link")).unwrap();
        symlink("real", inside.path().join("short")).unwrap();
        let dir = Dir::open(inside.path()).unwrap();
        let refused = |path: &str| dir.place(Path::new(path)).map(|_| ()).unwrap_err().code == Code::TargetInvalid;
        assert!(refused("real/link/file") && refused("short/x") && refused(""));
        assert!(dir.place(Path::new("missing/x")).unwrap().is_none());
        let link = dir.place(Path::new("real/link")).unwrap().unwrap();
        assert_eq!(link.occupant().unwrap(), Some(Occupant::Link));
        assert!(link.open(OFlag::O_RDONLY, 0).is_err());
        link.remove_file().unwrap();
        assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"outside");
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_after_it_was_opened_is_still_the_one_that_was_opened() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::create_dir(inside.path().join("real")).unwrap();
        let place = Dir::open(inside.path()).unwrap().place(Path::new("real/file")).unwrap().unwrap();
        fs::rename(inside.path().join("real"), inside.path().join("moved")).unwrap();
        symlink(outside.path(), inside.path().join("real")).unwrap();
        place.create().unwrap();
        assert!(inside.path().join("moved/file").exists() && !outside.path().join("file").exists());
    }
}
