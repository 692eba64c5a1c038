//! Files that exist completely or not at all: they are written under a temporary name, synced and
//! renamed; then the directory is synced.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Code, Error, Result},
    system::{
        paths::STATE_DIR,
        portable::{MetadataExt, set_mode},
        refusal, writers,
    },
    util::{
        dir_handle::{Access, DirHandle, EntryHandle},
        hex::hex,
        ownership,
        unsupported::{self, Unsupported},
    },
};

/// The prefix of unfinished files, by which the next run finds those of a killed run.
pub const PARTIAL_PREFIX: &str = ".kg-partial-";

/// The file that keeps the content of a directory out of a git repository.
pub const GITIGNORE: &str = ".gitignore";

/// The pieces in which a long file is written.
const WRITE_BYTES: usize = 64 * 1024;

/// No run needs this long to write a small file, so an older one was left by a killed run.
const LONGEST_WRITE: Duration = Duration::from_secs(60 * 60);

/// A temporary file in a directory that is held open, readable only by this user. It is removed
/// when it is dropped, unless it was published.
pub struct TempFile {
    file: File,
    place: EntryHandle,
    is_published: bool,
}

impl TempFile {
    /// Creates a file in `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        TempFile::with_mode(dir, 0o600)
    }

    /// Works like [`TempFile::new`], for a file in a store, with these permissions. For `None`, the
    /// group of the directory may also read the file if the directory is shared. A directory is
    /// shared if it has the set-group-ID bit and the group may read, write and enter it.
    pub fn in_store(dir: &Path, mode: Option<u32>) -> Result<Self> {
        const SHARED: u32 = 0o2070;
        let file = TempFile::new(dir)?;
        let is_shared = || fs::metadata(dir).is_ok_and(|found| found.mode() & SHARED == SHARED);
        if let Some(mode) = mode.or_else(|| is_shared().then_some(0o640)) {
            file.set_mode(mode)?;
        }
        Ok(file)
    }

    /// The umask applies to the mode, as for every new file.
    fn with_mode(dir: &Path, mode: u32) -> Result<Self> {
        let made = TempFile::unsettled(dir, mode)?;
        ownership::settle(&made.place);
        Ok(made)
    }

    /// Creates a file that keeps the user who runs this as its owner.
    fn unsettled(dir: &Path, mode: u32) -> Result<Self> {
        let made = DirHandle::open(dir).and_then(|dir| TempFile::make(&dir, mode));
        made.map_err(|cause| Error::io("create a file in", dir, cause))
    }

    fn make(dir: &DirHandle, mode: u32) -> io::Result<Self> {
        let (place, file) = with_free_name(dir, PARTIAL_PREFIX, |place| {
            place.create_new(Access::ReadWrite, mode)
        })?;
        Ok(TempFile {
            file,
            place,
            is_published: false,
        })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Sets the permissions regardless of the umask. A file system without permissions causes a
    /// warning of the run.
    pub fn set_mode(&self, mode: u32) -> Result<()> {
        self.was_set(set_mode(&self.file, mode))
    }

    fn was_set(&self, set: io::Result<()>) -> Result<()> {
        unsupported::attributes(set, &self.place.path())
            .map_err(|cause| Error::io("write", &self.place.path(), cause))
    }

    /// Renames the file to `to`, in the same directory, and makes that durable.
    pub fn persist(mut self, to: &Path) -> Result<()> {
        let failed = |cause| Error::io("write", to, cause);
        unsupported::sync(&self.file, to).map_err(failed)?;
        self.place
            .rename(&self.place.beside(to.file_name().unwrap_or_default()))
            .map_err(failed)?;
        self.is_published = true;
        self.place.dir().sync()
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = self.place.remove_file();
        }
    }
}

/// Calls `make` for a free name in `dir` that begins with `prefix`.
pub fn with_free_name<T>(
    dir: &DirHandle,
    prefix: &str,
    make: impl Fn(&EntryHandle) -> io::Result<T>,
) -> io::Result<(EntryHandle, T)> {
    loop {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let place = dir.name(format!("{prefix}{}", hex(&random)));
        match make(&place) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (place, made)),
        }
    }
}

/// Opens a file for locking and creates it if it does not exist.
pub fn open_lock(path: &Path) -> Result<File> {
    open_to_write(path, Access::ReadWrite)
}

/// Opens a file for appending and creates it if it does not exist.
pub fn open_log(path: &Path) -> Result<File> {
    open_to_write(path, Access::Append)
}

fn open_to_write(path: &Path, access: Access) -> Result<File> {
    let place = around(path, "open")?;
    let file = place.open_to_write(access)?;
    ownership::settle(&place);
    Ok(file)
}

fn around(path: &Path, action: &str) -> Result<EntryHandle> {
    DirHandle::around(path).map_err(|cause| Error::io(action, path, cause))
}

/// Moves a finished and synced file to an unused name and makes that durable. If the name is in
/// use, neither file is changed.
pub fn persist_noclobber(from: &Path, to: &Path) -> Result<()> {
    let (from, new) = (around(from, "write")?, around(to, "write")?);
    let moved = match move_new(&from, &new, EntryHandle::rename_new) {
        Err(cause) if cause.kind() == io::ErrorKind::CrossesDevices => copy_new(&from, &new),
        moved => moved,
    };
    moved.map_err(|cause| Error::io("write", to, cause))?;
    ownership::settle(&new);
    new.dir().sync()
}

/// Copies a file to another file system and removes the original.
fn copy_new(from: &EntryHandle, to: &EntryHandle) -> io::Result<()> {
    let mut source = from.open(Access::Read)?;
    let found = source.metadata()?;
    let mut copy = TempFile::make(to.dir(), 0o600)?;
    io::copy(&mut source, &mut copy)?;
    unsupported::attributes(copy.file.set_permissions(found.permissions()), &to.path())?;
    let owned = copy.file.metadata()?;
    if (owned.uid(), owned.gid()) != (found.uid(), found.gid()) {
        // Only root can change the owner. A refusal causes a warning of the run.
        let _ = copy.place.give_to((found.uid(), found.gid()));
    }
    unsupported::sync(&copy.file, &to.path())?;
    move_new(&copy.place, to, EntryHandle::rename_new)?;
    copy.is_published = true;
    from.unlink()
}

/// Moves a file to an unused name. Some file systems (FAT, some network mounts) support neither
/// hard links nor a rename that replaces nothing. On those, an empty file reserves the name and the
/// rename replaces it. Only a kill between the two steps leaves a file, and that file is empty.
fn move_new(
    from: &EntryHandle,
    to: &EntryHandle,
    rename_new: fn(&EntryHandle, &EntryHandle) -> io::Result<()>,
) -> io::Result<()> {
    match rename_new(from, to) {
        Err(cause) if is_for_lack_of_means(&cause) => {}
        outcome => return outcome,
    }
    to.create_new(Access::Write, 0o600)?;
    from.rename(to).inspect_err(|_| drop(to.remove_file()))
}

/// Returns whether `link` or `renameat2` failed because the file system does not support it.
fn is_for_lack_of_means(cause: &io::Error) -> bool {
    let kinds = [
        io::ErrorKind::Unsupported,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::InvalidInput,
    ];
    kinds.contains(&cause.kind())
}

/// Renames a file to `name` in its own directory, replacing any file of that name. Does not sync
/// the directory.
pub fn rename(path: &Path, name: &OsStr) -> io::Result<()> {
    let place = DirHandle::around(path)?;
    let to = place.beside(name);
    place.rename(&to)
}

/// Writes a small file.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    write_as(TempFile::new(parent(path))?, path, content)
}

fn write_as(mut file: TempFile, path: &Path, content: &[u8]) -> Result<()> {
    file.write_all(content)
        .map_err(|cause| Error::io("write", path, cause))?;
    file.persist(path)
}

/// Works like [`write`], for a file in a store: see [`TempFile::in_store`].
pub fn write_in_store(path: &Path, content: &[u8], mode: Option<u32>) -> Result<()> {
    write_as(TempFile::in_store(parent(path), mode)?, path, content)
}

/// Works like [`write`], for a file that other users of the project may read.
pub fn write_shared(path: &Path, content: &[u8]) -> Result<()> {
    write_as(TempFile::with_mode(parent(path), 0o644)?, path, content)
}

/// Works like [`write_shared`], but fails if the file exists.
pub fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |cause| Error::io("write", path, cause);
    let mut file = TempFile::with_mode(parent(path), 0o644)?;
    file.write_all(content).map_err(failed)?;
    unsupported::sync(&file.file, path).map_err(failed)?;
    let new = around(path, "write")?;
    move_new(&file.place, &new, EntryHandle::rename_new).map_err(failed)?;
    file.is_published = true;
    new.dir().sync()
}

/// Works like [`write`], for a file that a later run obeys. It keeps the user who wrote it as its
/// owner, as proof that no other user wrote it. Every user may read it. `content` writes it piece
/// by piece, because it may be long.
pub fn write_orders(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut file = TempFile::unsettled(parent(path), 0o600)?;
    // The mode must not depend on the umask, because the owner of the project reads files that root
    // wrote.
    file.was_set(writers::keep_others_out(&file.file))?;
    let mut out = BufWriter::with_capacity(WRITE_BYTES, &mut file);
    let written = content(&mut out).and_then(|()| out.flush());
    drop(out);
    written.map_err(|cause| Error::io("write", path, cause))?;
    file.persist(path)
}

/// Points the symbolic link at `link` to `target`, replacing it in one step. A file system without
/// links causes a warning of the run.
pub fn replace_symlink(target: &Path, link: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", link, cause);
    let dir = DirHandle::open(parent(link)).map_err(failed)?;
    let made = with_free_name(&dir, PARTIAL_PREFIX, |place| place.make_link(target));
    let (new, ()) = match made {
        Err(cause) if refusal::has_no_links(&cause) => {
            unsupported::note(Unsupported::Link, link, &cause);
            return Ok(());
        }
        made => made.map_err(failed)?,
    };
    ownership::settle(&new);
    let place = new.beside(link.file_name().unwrap_or_default());
    let named = new.rename(&place).map_err(failed);
    named.inspect_err(|_| drop(new.remove_file()))?;
    new.dir().sync()
}

/// Removes a file. A missing file is not an error.
pub fn remove(path: &Path) -> Result<()> {
    match DirHandle::around(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        place => place
            .map_err(|cause| Error::io("remove", path, cause))?
            .remove_file(),
    }
}

/// Removes temporary files that killed runs left in a directory of small files. Files that cannot
/// be removed are left to the next run.
pub fn sweep_partials(dir: &Path) {
    let is_old = |found: &fs::Metadata| {
        let age = found.modified().ok().and_then(|at| at.elapsed().ok());
        found.is_file() && age.is_some_and(|age| age > LONGEST_WRITE)
    };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_partial = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PARTIAL_PREFIX));
        if is_partial && entry.metadata().is_ok_and(|found| is_old(&found)) {
            let _ = remove(&entry.path());
        }
    }
}

/// Creates a directory as [`create_dirs`] does, for files that no repository should contain: the
/// directory gets a `.gitignore`, so that `git add` leaves them out.
///
/// In `.kg`, that file goes into the outermost directory that is new or empty, or else into `dir`: the
/// host, or an earlier version, may have used it. Elsewhere only a new directory in a work tree of
/// git gets one. A file that exists stays.
pub fn create_unversioned_dirs(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let ignored = to_ignore(&dir);
    create_dirs(&dir)?;
    let Some(ignored) = ignored.filter(|ignored| !ignored.join(GITIGNORE).exists()) else {
        return Ok(());
    };
    match write_new(&ignored.join(GITIGNORE), b"*\n") {
        // Another run was faster.
        Err(_) if ignored.join(GITIGNORE).exists() => Ok(()),
        written => written.map_err(|error| match error.code {
            Code::NoSpace => io::ErrorKind::StorageFull.into(),
            _ => io::Error::other(error),
        }),
    }
}

/// Returns the directory at or above `dir` that gets a `.gitignore`, if one does.
fn to_ignore(dir: &Path) -> Option<PathBuf> {
    let is_state = |dir: &&Path| dir.file_name().is_some_and(|name| name == STATE_DIR);
    if !dir.ancestors().skip(1).any(|dir| is_state(&dir)) {
        let is_new = dir.symlink_metadata().is_err();
        let in_work_tree = || dir.ancestors().skip(1).any(|dir| dir.join(".git").exists());
        return (is_new && in_work_tree()).then(|| dir.to_path_buf());
    }
    let below: Vec<&Path> = dir.ancestors().take_while(|dir| !is_state(dir)).collect();
    if below.iter().any(|dir| dir.join(GITIGNORE).exists()) {
        return None;
    }
    let new = below.iter().rev().find(|dir| is_new_or_empty(dir));
    Some(new.map_or(dir, |new| new).to_path_buf())
}

/// Returns whether there is no such directory, or nothing in it. A link to one does not count.
pub fn is_new_or_empty(dir: &Path) -> bool {
    let Ok(found) = dir.symlink_metadata() else {
        return true;
    };
    let is_empty = || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    found.is_dir() && is_empty()
}

/// Creates a directory and its parents durably. Directories that root creates in a project are
/// given to its owner. So are existing directories below `.kg` that still belong to root.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let in_state = dir
        .ancestors()
        .position(|dir| dir.file_name().is_some_and(|name| name == STATE_DIR))
        .unwrap_or(0);
    // The order is top-down because ownership follows from the parent directory.
    for there in parents(&dir, in_state)
        .into_iter()
        .filter(|dir| dir.exists())
    {
        ownership::settle(&DirHandle::around(there)?);
    }
    let missing = parents(
        &dir,
        dir.ancestors().take_while(|dir| !dir.exists()).count(),
    );
    let Some((first, others)) = missing.split_first() else {
        return DirHandle::open(&dir).map(drop);
    };
    let mut made = DirHandle::around(first)?;
    for next in others.iter().map(Some).chain([None]) {
        made.make_dir(0o777)?;
        ownership::settle(&made);
        made.dir().sync().map_err(io::Error::other)?;
        let Some(next) = next else { break };
        made = made.enter()?.name(next.file_name().unwrap_or_default());
    }
    Ok(())
}

/// Returns the last `count` directories of the path `dir`, topmost first.
fn parents(dir: &Path, count: usize) -> Vec<&Path> {
    let mut dirs: Vec<&Path> = dir.ancestors().take(count).collect();
    dirs.reverse();
    dirs
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// Makes a rename or removal in the directory of `path` durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(parent(path))
}

pub fn sync_dir(dir: &Path) -> Result<()> {
    DirHandle::open(dir)
        .map_err(|cause| Error::io("sync", dir, cause))?
        .sync()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_means(_: &EntryHandle, _: &EntryHandle) -> io::Result<()> {
        // Linux returns EPERM for a hard link on FAT.
        Err(io::Error::from_raw_os_error(1))
    }

    #[test]
    fn only_new_directories_and_those_of_kg_keep_their_content_out_of_git() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let make = |path: &str| create_unversioned_dirs(&at(path)).unwrap();
        let is_ignored = |path: &str| {
            fs::read_to_string(at(path).join(GITIGNORE)).is_ok_and(|text| text == "*\n")
        };
        // Outside a work tree, only `.kg` counts.
        make("outside");
        make("project/.kg/cache/pages/store");
        make("project/.kg/cache/pages/other");
        assert!(is_ignored("project/.kg/cache"));
        for path in [
            "outside",
            "project",
            "project/.kg",
            "project/.kg/cache/pages",
        ] {
            assert!(!at(path).join(GITIGNORE).exists(), "{path}");
        }
        // A directory that a killed run left empty still gets the file.
        fs::create_dir(at("project/.kg/backups")).unwrap();
        make("project/.kg/backups");
        assert!(is_ignored("project/.kg/backups"));
        // The host has such a directory: the part that is new, or the directory itself.
        fs::create_dir(at("project/.kg/logs")).unwrap();
        fs::write(at("project/.kg/logs/host.log"), "").unwrap();
        make("project/.kg/logs/ours");
        assert!(is_ignored("project/.kg/logs/ours"));
        assert!(!at("project/.kg/logs").join(GITIGNORE).exists());
        make("project/.kg/logs");
        assert!(is_ignored("project/.kg/logs"));
        // In a work tree, the new directory, and no existing one.
        fs::create_dir(at("project/.git")).unwrap();
        fs::create_dir(at("project/mine")).unwrap();
        make("project/mine");
        make("project/data/backups");
        assert!(is_ignored("project/data/backups"));
        for path in ["project/mine", "project/data"] {
            assert!(!at(path).join(GITIGNORE).exists(), "{path}");
        }
        // A file of the user stays.
        fs::write(at("project/data/backups").join(GITIGNORE), "!*\n").unwrap();
        make("project/data/backups");
        assert!(!is_ignored("project/data/backups"));
    }

    #[test]
    fn a_file_gets_a_name_that_is_free_and_replaces_nothing_whatever_the_file_system_can_do() {
        for means in [EntryHandle::rename_new, without_means] {
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            let [old, new] = [&from, &to].map(|path| DirHandle::around(path).unwrap());
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            assert_eq!(
                move_new(&old, &new, means).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
            assert_eq!(
                (fs::read(&from).unwrap(), fs::read(&to).unwrap()),
                (b"new".to_vec(), b"old".to_vec())
            );
            fs::remove_file(&to).unwrap();
            move_new(&old, &new, means).unwrap();
            assert_eq!(
                (from.exists(), fs::read(&to).unwrap()),
                (false, b"new".to_vec())
            );
        }
    }

    #[test]
    fn what_a_killed_run_left_is_removed_once_nobody_can_be_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str, age: Duration| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age)
                .unwrap();
        };
        made(".kg-partial-old", LONGEST_WRITE * 2);
        made(".kg-partial-new", Duration::ZERO);
        made("other", LONGEST_WRITE * 2);
        fs::create_dir(dir.path().join(".kg-partial-dir")).unwrap();
        sweep_partials(dir.path());
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".kg-partial-dir", ".kg-partial-new", "other"]);
    }

    #[test]
    fn a_move_that_fails_leaves_no_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] =
            ["gone", "to"].map(|name| DirHandle::around(&dir.path().join(name)).unwrap());
        for means in [EntryHandle::rename_new, without_means] {
            assert_eq!(
                move_new(&from, &to, means).unwrap_err().kind(),
                io::ErrorKind::NotFound
            );
            assert!(!to.path().exists());
        }
    }
}
