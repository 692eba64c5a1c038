//! Files that are there whole or not at all: written under a temporary name, synced, renamed, the directory synced.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use nix::{libc, unistd::geteuid};
use tempfile::{Builder, NamedTempFile, TempPath};

use crate::{
    error::{Error, Result},
    ownership,
    paths::STATE_DIR,
    regular,
    tolerated::{self, Refused},
};

/// What the names of unfinished files start with, so that the next run finds what a killed one left.
pub const PARTIAL_PREFIX: &str = ".kg-partial-";

/// Nobody needs so long to write a small file: one that is older was left by a run that was killed.
const LONGEST_WRITE: Duration = Duration::from_secs(60 * 60);

/// A temporary file in `dir`, for this user alone, removed when it is dropped.
pub fn partial(dir: &Path) -> Result<NamedTempFile> {
    partial_of(dir, 0o600).inspect(|file| ownership::settle(file.path()))
}

/// As [`partial`], in a store: also for the group of the directory if that shares it, which its set-group-ID bit and the right of the group to
/// write say.
pub fn partial_in_store(dir: &Path) -> Result<NamedTempFile> {
    const SHARED: u32 = 0o2070;
    let file = partial(dir)?;
    if fs::metadata(dir).is_ok_and(|found| found.mode() & SHARED == SHARED) {
        let permitted = file.as_file().set_permissions(Permissions::from_mode(0o640));
        tolerated::attributes(permitted, file.path()).map_err(|cause| Error::io("write", file.path(), cause))?;
    }
    Ok(file)
}

/// The umask takes from the mode what it takes from that of every file.
fn partial_of(dir: &Path, mode: u32) -> Result<NamedTempFile> {
    let made = Builder::new().prefix(PARTIAL_PREFIX).permissions(Permissions::from_mode(mode)).tempfile_in(dir);
    made.map_err(|cause| Error::io("create a file in", dir, cause))
}

/// Opens a file that processes lock, which is made if it does not exist.
pub fn open_lock(path: &Path) -> Result<File> {
    let file = regular::open_to_write(path, File::options().read(true).truncate(false))?;
    ownership::settle(path);
    Ok(file)
}

/// Gives a written temporary file its name and makes that durable.
pub fn publish(file: NamedTempFile, to: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", to, cause);
    sync(file.as_file(), to).map_err(failed)?;
    file.persist(to).map_err(|cause| failed(cause.error))?;
    sync_parent(to)
}

/// Moves a finished and synced file to a name that nothing has yet, and makes that durable. Where something has the name, it stays as
/// it is, and so does the file.
pub fn publish_new(from: &Path, to: &Path) -> Result<()> {
    move_new(from, to, rename_new).map_err(|cause| Error::io("write", to, cause))?;
    ownership::settle(to);
    sync_parent(to)
}

/// A rename that replaces nothing, or a hard link.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    TempPath::try_from_path(from)?.persist_noclobber(to).map_err(|failed| {
        // Dropped, it would remove the file.
        let _ = failed.path.keep();
        failed.error
    })
}

/// Where a file system knows neither (FAT, some network mounts), the name is taken by an empty file first, which the rename replaces: so
/// only a kill between the two leaves something, and that is empty.
fn move_new(from: &Path, to: &Path, rename_new: fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    match rename_new(from, to) {
        Err(cause) if is_for_lack_of_means(&cause) => {}
        outcome => return outcome,
    }
    File::create_new(to)?;
    fs::rename(from, to).inspect_err(|_| drop(fs::remove_file(to)))
}

/// What `link` and `renameat2` say where the file system cannot do it.
fn is_for_lack_of_means(cause: &io::Error) -> bool {
    let kinds = [io::ErrorKind::Unsupported, io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput];
    kinds.contains(&cause.kind())
}

/// Writes a small file.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    write_as(partial(path.parent().unwrap_or(path))?, path, content)
}

fn write_as(mut file: NamedTempFile, path: &Path, content: &[u8]) -> Result<()> {
    file.write_all(content).map_err(|cause| Error::io("write", path, cause))?;
    publish(file, path)
}

/// As [`write`], in a store: see [`partial_in_store`].
pub fn write_in_store(path: &Path, content: &[u8]) -> Result<()> {
    write_as(partial_in_store(path.parent().unwrap_or(path))?, path, content)
}

/// As [`write`], for what other users of the project may read.
pub fn write_shared(path: &Path, content: &[u8]) -> Result<()> {
    let file = partial_of(path.parent().unwrap_or(path), 0o644)?;
    ownership::settle(file.path());
    write_as(file, path, content)
}

/// As [`write`], for what a later run does as it says: it stays the file of the user who wrote it, so that nobody else could have.
/// Everybody may read it.
pub fn write_orders(path: &Path, content: &[u8]) -> Result<()> {
    let file = partial_of(path.parent().unwrap_or(path), 0o644)?;
    // The umask does not count: the owner of the project reads what root wrote.
    let permitted = file.as_file().set_permissions(Permissions::from_mode(0o644));
    tolerated::attributes(permitted, path).map_err(|cause| Error::io("write", path, cause))?;
    write_as(file, path, content)
}

/// Points the symbolic link at `link` to `target`, replacing it in one step. A file system without links is a warning of
/// the run.
pub fn relink(target: &Path, link: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", link, cause);
    let parent = link.parent().unwrap_or(link);
    let linked = Builder::new().prefix(PARTIAL_PREFIX).make_in(parent, |path| std::os::unix::fs::symlink(target, path));
    let linked = match linked {
        // FAT, and some network mounts.
        Err(cause) if matches!(cause.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)) => {
            tolerated::note(Refused::Link, link, &cause);
            return Ok(());
        }
        linked => linked,
    };
    let linked = linked.map_err(failed)?.into_temp_path();
    ownership::settle(&linked);
    linked.persist(link).map_err(|cause| failed(cause.error))?;
    sync_parent(link)
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, cause)),
        _ => Ok(()),
    }
}

/// Removes the temporary files that killed runs left in a directory of small files. What cannot be removed is left to the next run.
pub fn sweep_partials(dir: &Path) {
    let is_old = |found: &fs::Metadata| {
        let age = found.modified().ok().and_then(|at| at.elapsed().ok());
        found.is_file() && age.is_some_and(|age| age > LONGEST_WRITE)
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_partial = entry.file_name().to_str().is_some_and(|name| name.starts_with(PARTIAL_PREFIX));
        if is_partial && entry.metadata().is_ok_and(|found| is_old(&found)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Creates a directory and its parents durably. Below `.kg` no link of another user leads the way.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    // In `.kg` also what root made before, and kept for itself.
    let in_state = dir.ancestors().position(|dir| dir.file_name().is_some_and(|name| name == STATE_DIR));
    dir.ancestors().take(in_state.unwrap_or(0)).try_for_each(assert_no_foreign_link)?;
    fs::create_dir_all(dir)?;
    let made: Vec<&Path> = dir.ancestors().take(in_state.unwrap_or(0).max(missing.len())).collect();
    // From the top: what belongs to whom follows from the directory around it.
    made.into_iter().rev().for_each(ownership::settle);
    missing.iter().filter_map(|made| made.parent()).try_for_each(sync_at)
}

fn assert_no_foreign_link(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() && ![0, geteuid().as_raw()].contains(&found.uid()) => {
            let what = format!("{} is a link of user {}, which is not followed", path.display(), found.uid());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
        }
        _ => Ok(()),
    }
}

/// Makes a rename or removal in the directory of `path` durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(path.parent().unwrap_or(path))
}

pub fn sync_dir(dir: &Path) -> Result<()> {
    sync_at(dir).map_err(|cause| Error::io("sync", dir, cause))
}

fn sync_at(dir: &Path) -> io::Result<()> {
    sync(&File::open(dir)?, dir)
}

/// Writes what the file or directory at `path` holds to the disk. A file system that has no such call is a warning of the
/// run, not an error: the data is where it can be.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    match file.sync_all() {
        Err(cause) if cannot_sync(&cause) => {
            tolerated::note(Refused::Sync, path, &cause);
            Ok(())
        }
        synced => synced,
    }
}

/// What FUSE, CIFS and NFS answer to `fsync` if they do not have it. Anything else is about the data.
pub fn cannot_sync(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_means(_: &Path, _: &Path) -> io::Result<()> {
        // EPERM is what Linux says of a hard link on FAT.
        Err(io::Error::from_raw_os_error(1))
    }

    #[test]
    fn a_file_gets_a_name_that_is_free_and_replaces_nothing_whatever_the_file_system_can_do() {
        for means in [rename_new, without_means] {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            assert_eq!(move_new(&from, &to, means).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!((fs::read(&from).unwrap(), fs::read(&to).unwrap()), (b"new".to_vec(), b"old".to_vec()));
            fs::remove_file(&to).unwrap();
            move_new(&from, &to, means).unwrap();
            assert_eq!((from.exists(), fs::read(&to).unwrap()), (false, b"new".to_vec()));
        }
    }

    #[test]
    fn what_a_killed_run_left_is_removed_once_nobody_can_be_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str, age: Duration| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        };
        made(".kg-partial-old", LONGEST_WRITE * 2);
        made(".kg-partial-new", Duration::ZERO);
        made("other", LONGEST_WRITE * 2);
        fs::create_dir(dir.path().join(".kg-partial-dir")).unwrap();
        sweep_partials(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".kg-partial-dir", ".kg-partial-new", "other"]);
    }

    #[test]
    fn a_move_that_fails_leaves_no_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("gone"), dir.path().join("to"));
        for means in [rename_new, without_means] {
            assert_eq!(move_new(&from, &to, means).unwrap_err().kind(), io::ErrorKind::NotFound);
            assert!(!to.exists());
        }
    }
}
