//! The single steps of a transaction. Each step may be repeated after a kill.

use std::{collections::BTreeSet, fs, io, path::Path, thread, time::Duration};

use super::{
    journal::{self, Intent, Swapped},
    record::MadeDir,
    target::{Target, parent},
};
use crate::{
    archive::sparse::SparseFile,
    error::{Code, Error, Result, Warning, WarningCode},
    sqlite::replace::{self, Swap},
    system::{mounts, portable::MetadataExt, user},
    util::{
        atomic_file::{self, PARTIAL_PREFIX},
        dir_handle::{Access, EntryHandle},
        entry_stat::EntryType,
        temp_dir::remove_tree,
        threads::start_in,
        unsupported,
    },
};

/// The permissions that the owner of a directory needs to change its entries.
const WRITABLE: u32 = 0o300;

/// Renames a file. If source and destination lie on different file systems, the file is first
/// copied under a temporary name.
pub fn move_file(
    from: &EntryHandle,
    to: &EntryHandle,
    copy_name: impl FnOnce() -> String,
) -> Result<()> {
    let failed = |cause| Error::io("move", &from.path(), cause);
    match from.rename(to) {
        Err(cause) if cause.kind() == io::ErrorKind::CrossesDevices => {
            let copy = to.beside(copy_name());
            copy.remove_file()?;
            if from.occupant()? == Some(EntryType::Link) {
                copy.make_link(&fs::read_link(from.path()).map_err(failed)?)
                    .map_err(failed)?;
            } else {
                let mut source = from.open(Access::Read).map_err(failed)?;
                let file = copy.create()?;
                let found = source.metadata().map_err(failed)?;
                let written = file
                    .try_clone()
                    .and_then(|file| SparseFile::new(file, found.len()));
                io::copy(&mut source, &mut written.map_err(failed)?).map_err(failed)?;
                unsupported::attributes(file.set_permissions(found.permissions()), &to.path())
                    .map_err(failed)?;
                copy.give_to((found.uid(), found.gid()))?;
                let modified = found.modified().map_err(failed)?;
                let times = fs::FileTimes::new().set_modified(modified);
                unsupported::attributes(file.set_times(times), &to.path()).map_err(failed)?;
                unsupported::sync(&file, &copy.path()).map_err(failed)?;
            }
            copy.rename(to).map_err(failed)?;
            to.dir().sync()?;
            from.remove_file()
        }
        Err(cause) if cause.kind() == io::ErrorKind::ResourceBusy => Err(mounted(from, to, cause)),
        moved => moved.map_err(failed),
    }
}

/// Describes a failed move. A mount point cannot be renamed, and no file can be renamed over it.
fn mounted(from: &EntryHandle, to: &EntryHandle, cause: io::Error) -> Error {
    let Some(point) = [from.path(), to.path()]
        .into_iter()
        .find(|path| mounts::is_point(path))
    else {
        return Error::io("move", &from.path(), cause);
    };
    let message = format!(
        "{} is a mount point: a single file is mounted there, as containers do, and cannot be \
         replaced",
        point.display()
    );
    let remedy = format!(
        "Nothing was changed; unmount it, or mount the directory that contains it instead of {} \
         alone, then restore again; or restore into another directory and copy the content by hand",
        point.file_name().unwrap_or_default().to_string_lossy()
    );
    Error::new(Code::TargetInvalid, message, remedy).with_cause(cause)
}

/// Returns the directories of this user that must be made writable for the changes, with their
/// current permissions.
pub fn read_only_dirs(target: &Target, intent: &Intent) -> Result<Vec<MadeDir>> {
    let moved: Vec<String> = [intent.moves.sources(), intent.moves.destinations()].concat();
    let made = intent.made.iter().map(|dir| &dir.at);
    // SQLite creates a journal or WAL next to a database.
    let swapped = intent.swaps.iter().map(|swapped| &swapped.live);
    let dirs: BTreeSet<&str> = moved
        .iter()
        .chain(made)
        .chain(swapped)
        .chain(&intent.emptied)
        .map(|location| parent(location))
        .filter(|at| !at.is_empty())
        .collect();
    let own = user::current();
    let mut found = Vec::new();
    for at in dirs.into_iter().filter(|at| !at.starts_with('/')) {
        let Some(place) = target.place(at)? else {
            continue;
        };
        let Some(stat) = place
            .stat()?
            .filter(|stat| stat.user == own && stat.mode & WRITABLE != WRITABLE)
        else {
            continue;
        };
        if place.occupant()? == Some(EntryType::Directory) {
            found.push(MadeDir {
                at: at.to_string(),
                mode: Some(stat.mode),
                mtime: None,
            });
        }
    }
    Ok(found)
}

/// Makes directories writable for the changes. May be repeated.
pub fn open_dirs(target: &Target, intent: &Intent) -> Result<()> {
    each_opened(target, intent, |place, mode| {
        place.change_mode(mode | WRITABLE)
    })
}

/// Restores the original permissions of directories. May be repeated.
pub fn close_dirs(target: &Target, intent: &Intent) -> Result<()> {
    each_opened(target, intent, |place, mode| place.change_mode(mode))
}

fn each_opened(
    target: &Target,
    intent: &Intent,
    change: impl Fn(&EntryHandle, u32) -> Result<()>,
) -> Result<()> {
    for dir in &intent.opened {
        let place = target.place(&dir.at)?;
        if let (Some(place), Some(mode)) = (place, dir.mode)
            && place.occupant()? == Some(EntryType::Directory)
        {
            change(&place, mode)?;
        }
    }
    Ok(())
}

/// Replaces the content of live databases. `decide` receives the digests of the new contents.
/// `done` runs after each commit.
pub fn swap(
    target: &Target,
    swaps: &[&Swapped],
    lock_timeout: Duration,
    decide: impl FnOnce(Vec<String>) -> Result<()>,
    mut done: impl FnMut(usize),
) -> Result<()> {
    let mut places = Vec::new();
    for swapped in swaps {
        let (live, growing) = (
            target.existing(&swapped.live)?,
            target.existing(&swapped.growing())?,
        );
        growing.remove_file()?;
        let file = growing.create()?;
        dress_as(&growing, &live)?;
        let (new, pending) = (
            target.existing(&swapped.new)?,
            target.existing(&swapped.pending)?,
        );
        places.push((
            live.path(),
            new.path(),
            file,
            growing,
            pending,
            target.existing(&swapped.kept)?,
        ));
    }
    let databases: Vec<Swap<'_>> = places
        .iter()
        .map(|(live, new, file, ..)| Swap {
            live,
            new,
            keep: Some(file),
        })
        .collect();
    thread::scope(|threads| {
        // Computing the digests runs in parallel with copying the replaced content, which waits for
        // the disk.
        let digest = || {
            places
                .iter()
                .map(|(_, new, ..)| replace::content_digest(new))
                .collect::<Result<Vec<String>>>()
        };
        let digesting = start_in(threads, "kg-digest", digest)?;
        let decide = || {
            let digests = digesting
                .join()
                .unwrap_or_else(|_| Err(digest_panicked()))?;
            // A recovery reads the new content from here, possibly after a power loss.
            swaps
                .iter()
                .try_for_each(|swapped| sync_file(&target.existing(&swapped.new)?))?;
            target.sync(swaps.iter().map(|swapped| swapped.new.as_str()))?;
            // The copy is complete from here on, and only a complete copy has this name.
            places
                .iter()
                .try_for_each(|(.., growing, pending, _)| keep(growing, pending))?;
            decide(digests)
        };
        replace::replace(&databases, lock_timeout, decide, |number| {
            done(number);
            let (.., pending, kept) = &places[number];
            keep(pending, kept)
        })
    })
}

fn sync_file(place: &EntryHandle) -> Result<()> {
    let synced = place
        .open(Access::Read)
        .and_then(|file| unsupported::sync(&file, &place.known_path()));
    synced.map_err(|cause| Error::io("sync", &place.path(), cause))
}

fn digest_panicked() -> Error {
    Error::internal("The digest of the new content panicked")
}

/// Gives the previous content of a database its final name once the new content is committed.
pub fn keep(pending: &EntryHandle, kept: &EntryHandle) -> Result<()> {
    pending
        .rename(kept)
        .map_err(|cause| Error::io("keep", &kept.path(), cause))?;
    kept.dir().sync()
}

/// Gives a kept copy the attributes of the live database, because an undo may put it back as a
/// file.
fn dress_as(kept: &EntryHandle, live: &EntryHandle) -> Result<()> {
    let Some(found) = live.stat()? else {
        return Ok(());
    };
    // An undo may have to write to the copy.
    kept.set_mode(found.mode | 0o200)?;
    kept.give_to(found.owner())
}

/// Carries out the steps that follow the changes. May be repeated.
pub fn finish(root: &Path, target: &Target, intent: &Intent) -> Result<Vec<Warning>> {
    open_dirs(target, intent)?;
    let mut warnings = Vec::new();
    // Innermost directories first, so that nothing changes in a directory after its time is set.
    for dir in intent.made.iter().rev() {
        if let Err(error) = dress_dir(target, dir) {
            warnings.push(Warning::about(
                WarningCode::Attributes,
                &dir.at,
                error.message,
            ));
        }
    }
    if let Some((dir, record)) = &intent.undo {
        let path = root.join(dir);
        atomic_file::create_dirs(&path).map_err(|cause| Error::io("create", &path, cause))?;
        record.write(&path)?;
        target.sync([dir.as_str()])?;
    }
    if let Some(retired) = intent
        .retired
        .as_ref()
        .filter(|retired| super::undo::is_dir(retired))
    {
        let dir = root.join(retired);
        remove_tree(&dir).map_err(|cause| Error::io("remove", &dir, cause))?;
        target.sync([retired.as_str()])?;
    }
    for dir in intent.emptied.iter().rev() {
        if let Some(place) = target.place(dir)? {
            // A directory that is not empty stays.
            place.remove_dir();
        }
    }
    if let Err(error) = close_dirs(target, intent) {
        warnings.push(Warning::new(WarningCode::Attributes, error.message));
    }
    journal::end(root)?;
    Ok(warnings)
}

fn dress_dir(target: &Target, dir: &MadeDir) -> Result<()> {
    let Some(place) = target.place(&dir.at)? else {
        return Ok(());
    };
    if place.occupant()? != Some(EntryType::Directory) {
        return Ok(());
    }
    dir.mtime.map_or(Ok(()), |(seconds, nanoseconds)| {
        place.set_modified(seconds, nanoseconds)
    })?;
    // The mode comes last because it may deny access to this user.
    dir.mode.map_or(Ok(()), |mode| place.set_mode(mode))
}

impl Intent {
    /// Returns the temporary name of a file while it is copied from another file system.
    pub fn copy_name(&self, number: usize) -> String {
        format!("{PARTIAL_PREFIX}{}-{number}", self.token)
    }

    pub fn is_staged(&self, location: &str) -> bool {
        self.staging
            .as_ref()
            .is_some_and(|staging| location.starts_with(staging))
    }
}
