use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};
use rustix::fs::{RenameFlags, renameat_with};

use super::{Access, Create, MOST_LINKS, foreign};
use crate::{
    system::user,
    util::entry_stat::{EntryStat, EntryType},
};

pub type Dir = OwnedFd;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC);

/// Directories on the path need not be readable.
#[cfg(target_os = "linux")]
const ON_THE_WAY: OFlag = DIRECTORY.union(OFlag::O_PATH);
#[cfg(not(target_os = "linux"))]
const ON_THE_WAY: OFlag = DIRECTORY;

/// The error if an entry is not the expected directory or link.
const NO_LINK: Errno = Errno::ENOTDIR;

/// Opens a directory, of which only names can be accessed, and returns its path without links.
pub fn reach(path: &Path) -> io::Result<(Dir, PathBuf)> {
    let mut waiting: Vec<OsString> = Vec::new();
    let mut way = Way::root()?;
    let mut links = Vec::new();
    way.queue(&std::path::absolute(path)?, &mut waiting)?;
    while let Some(name) = waiting.pop() {
        match openat(
            &way.dir,
            name.as_os_str(),
            ON_THE_WAY | OFlag::O_NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(dir) if name == ".." => {
                way.dir = dir;
                way.path.pop();
            }
            Ok(dir) => {
                way = Way {
                    dir,
                    path: way.path.join(name),
                }
            }
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let (target, owner) = link_at(&way.dir, &way.path, &name)?;
                if links.len() == MOST_LINKS {
                    return Err(too_many_links());
                }
                links.push((way.path.join(name), owner));
                way.queue(&target, &mut waiting)?;
            }
            Err(cause) => return Err(cause.into()),
        }
    }
    let owner = fstat(&way.dir)?.st_uid;
    match links
        .into_iter()
        .find(|(_, of)| *of != owner && !is_trusted(*of))
    {
        Some((link, of)) => Err(io::Error::other(foreign(&link, of, &way.path, owner))),
        None => Ok((way.dir, way.path)),
    }
}

/// How far a path was walked.
struct Way {
    dir: Dir,
    path: PathBuf,
}

impl Way {
    fn root() -> io::Result<Way> {
        Ok(Way {
            dir: nix::fcntl::open("/", ON_THE_WAY, Mode::empty())?,
            path: "/".into(),
        })
    }

    /// Adds the names of a path to `waiting`, the first name last. An absolute path restarts at the
    /// root.
    fn queue(&mut self, path: &Path, waiting: &mut Vec<OsString>) -> io::Result<()> {
        if path.is_absolute() {
            *self = Way::root()?;
        }
        let names = path
            .components()
            .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        waiting.extend(names.rev().map(|part| part.as_os_str().to_os_string()));
        Ok(())
    }
}

pub fn readable(dir: &Dir) -> io::Result<Dir> {
    Ok(openat(dir, ".", DIRECTORY, Mode::empty())?)
}

/// Returns the directory as a file that can be synced.
pub fn to_sync(dir: &Dir) -> io::Result<File> {
    dir.try_clone().map(File::from)
}

/// Returns the directory itself, which leaves no lock file.
pub fn to_lock(dir: &Dir) -> io::Result<File> {
    dir.try_clone().map(File::from)
}

/// Opens a directory; fails for a link.
pub fn enter(dir: &Dir, name: &OsStr) -> io::Result<Dir> {
    Ok(openat(
        dir,
        name,
        DIRECTORY | OFlag::O_NOFOLLOW,
        Mode::empty(),
    )?)
}

/// Returns whether an entry was not opened because it is not a directory.
pub fn is_no_directory(cause: &io::Error) -> bool {
    [Errno::ELOOP, Errno::ENOTDIR]
        .iter()
        .any(|errno| cause.raw_os_error() == Some(*errno as i32))
}

/// Returns whether [`link_at`] failed because the entry is not a link.
pub fn is_no_link(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(NO_LINK as i32)
}

pub fn too_many_links() -> io::Error {
    Errno::ELOOP.into()
}

/// Returns the target and the owner of the link of that name. Both are of the same link, even if
/// the name is reused meanwhile.
#[cfg(target_os = "linux")]
pub fn link_at(dir: &Dir, _path: &Path, name: &OsStr) -> io::Result<(PathBuf, u32)> {
    let link = openat(
        dir,
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
pub fn link_at(dir: &Dir, _path: &Path, name: &OsStr) -> io::Result<(PathBuf, u32)> {
    match readlinkat(dir, name) {
        Err(Errno::EINVAL) => Err(NO_LINK.into()),
        target => Ok((
            target?.into(),
            fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_uid,
        )),
    }
}

/// Returns whether links of this user are trusted.
pub fn is_trusted(user: u32) -> bool {
    [0, user::current()].contains(&user) || is_unmapped(user)
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

/// Opens or creates a file; fails for a link.
pub fn open_at(dir: &Dir, name: &OsStr, access: Access, create: Create) -> io::Result<File> {
    let access = match access {
        Access::Read => OFlag::O_RDONLY,
        Access::Write => OFlag::O_WRONLY,
        Access::ReadWrite => OFlag::O_RDWR,
        Access::Append => OFlag::O_WRONLY | OFlag::O_APPEND,
    };
    let (create, mode) = match create {
        Create::No => (OFlag::empty(), 0),
        Create::IfMissing => (OFlag::O_CREAT, 0o666),
        Create::New { mode } => (OFlag::O_CREAT | OFlag::O_EXCL, mode),
    };
    open_with(dir, name, access | create, mode)
}

pub fn open_with(dir: &Dir, name: &OsStr, flags: OFlag, mode: u32) -> io::Result<File> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(openat(dir, name, flags, mode_of(mode))?.into())
}

pub fn stat(dir: &Dir) -> io::Result<EntryStat> {
    Ok(described(fstat(dir)?))
}

pub fn stat_at(dir: &Dir, name: &OsStr, follows_link: bool) -> io::Result<EntryStat> {
    let flags = if follows_link {
        AtFlags::empty()
    } else {
        AtFlags::AT_SYMLINK_NOFOLLOW
    };
    Ok(described(fstatat(dir, name, flags)?))
}

#[allow(
    clippy::unnecessary_cast,
    reason = "these numbers are smaller on other systems"
)]
fn described(found: FileStat) -> EntryStat {
    EntryStat {
        entry_type: match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => EntryType::File,
            SFlag::S_IFDIR => EntryType::Directory,
            SFlag::S_IFLNK => EntryType::Link,
            _ => EntryType::Other,
        },
        mode: found.st_mode as u32 & 0o7777,
        user: found.st_uid,
        group: found.st_gid,
        device: found.st_dev as u64,
        inode: found.st_ino,
        names: found.st_nlink as u64,
        modified: (found.st_mtime, found.st_mtime_nsec),
    }
}

pub fn rename(from: &Dir, old: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
    Ok(renameat(from, old, to, new)?)
}

/// Renames to an unused name, or else makes a hard link and removes the old name.
pub fn rename_new(from: &Dir, old: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
    let renamed = renameat_with(from, old, to, new, RenameFlags::NOREPLACE);
    match renamed.map_err(|cause| Errno::from_raw(cause.raw_os_error())) {
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) => {}
        renamed => return Ok(renamed?),
    }
    linkat(from, old, to, new, AtFlags::empty())?;
    unlink(from, old)
}

pub fn make_dir(dir: &Dir, name: &OsStr, mode: u32) -> io::Result<()> {
    Ok(mkdirat(dir, name, mode_of(mode))?)
}

pub fn make_link(dir: &Dir, _path: &Path, name: &OsStr, target: &Path) -> io::Result<()> {
    Ok(symlinkat(target, dir, name)?)
}

pub fn unlink(dir: &Dir, name: &OsStr) -> io::Result<()> {
    Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?)
}

pub fn remove_dir(dir: &Dir, name: &OsStr) -> io::Result<()> {
    Ok(unlinkat(dir, name, UnlinkatFlags::RemoveDir)?)
}

/// Sets the time of the last modification, in seconds and nanoseconds since the epoch.
pub fn set_modified(dir: &Dir, name: &OsStr, time: (i64, i64)) -> io::Result<()> {
    let time = TimeSpec::new(time.0, time.1);
    Ok(utimensat(
        dir,
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

pub fn give(dir: &Dir, name: &OsStr, user: u32, group: u32) -> io::Result<()> {
    Ok(fchownat(
        dir,
        name,
        Some(Uid::from_raw(user)),
        Some(Gid::from_raw(group)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?)
}

/// Returns a path to exactly this open directory, even if its name was reused; valid in this
/// process only. Returns `path` if the system has no such paths.
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
