//! Gives unpacked files the attributes of the originals.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, Permissions},
    os::unix::fs::PermissionsExt,
    thread,
};

use nix::fcntl::OFlag;

use super::{
    placement::{self, Placements},
    plan::Plan,
    target::{Target, parent},
};
use crate::{
    archive::file_record::{EntryKind, FileRecord},
    error::{Error, Result},
    project::names,
    util::{
        dir_handle::{DirHandle, EntryHandle},
        sync_many,
        threads::start_in,
        unsupported,
    },
};

/// The number of files that are worth a thread.
const LEAST_FILES_OF_A_THREAD: usize = 64;

/// Gives unpacked files the permissions and time of the originals, creates links, and syncs the
/// files to disk, or the whole file system once for many files.
///
/// Owners are not restored. If the restore runs as root, a file gets the owner of the file that it
/// replaces, or else the owner of its destination directory.
///
/// This does not touch a database whose content goes into a live database, because SQLite writes to
/// that file too.
pub(super) fn set_attributes(
    target: &Target,
    placements: &Placements<'_>,
    plan: &Plan,
) -> Result<()> {
    let swapped: HashSet<&str> = plan
        .intent
        .swaps
        .iter()
        .map(|swapped| swapped.new.as_str())
        .collect();
    let files: Vec<Unpacked<'_>> = placements
        .files
        .iter()
        .filter_map(|placement| {
            let from = placement
                .from
                .as_deref()
                .filter(|at| !swapped.contains(at))?;
            Some(Unpacked {
                from,
                to: &placement.to,
                record: placement.record?,
            })
        })
        .collect();
    let staging = target.staging().map(DirHandle::as_file).transpose()?;
    let batch = staging
        .as_ref()
        .and_then(|staging| sync_many::begin(staging, target.path(), files.len()));
    in_threads(target, &files, batch.is_none())?;
    batch.map_or(Ok(()), |batch| batch.sync())
}

/// An unpacked file or link.
struct Unpacked<'a> {
    from: &'a str,
    to: &'a str,
    record: &'a FileRecord,
}

/// Divides the files among the cores, because most of the time passes in the file system.
fn in_threads(target: &Target, files: &[Unpacked<'_>], syncs: bool) -> Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = files.len().div_ceil(cores).max(LEAST_FILES_OF_A_THREAD);
    let (own, others) = files.split_at(share.min(files.len()));
    thread::scope(|threads| {
        let running: Vec<_> = others
            .chunks(share)
            .map(|files| {
                let target = target.share();
                start_in(threads, "kg-attributes", move || {
                    dress(&target, files, syncs)
                })
            })
            .collect::<Result<_>>()?;
        dress(target, own, syncs)?;
        running.into_iter().try_for_each(|thread| {
            let done = thread.join();
            done.unwrap_or_else(|_| Err(Error::internal("The thread for attributes panicked")))
        })
    })
}

fn dress(target: &Target, files: &[Unpacked<'_>], syncs: bool) -> Result<()> {
    target.while_no_directory_is_made(|| dress_each(target, files, syncs))
}

fn dress_each(target: &Target, files: &[Unpacked<'_>], syncs: bool) -> Result<()> {
    // The owners of files that replace none, by directory.
    let mut owners = HashMap::new();
    for file in files {
        let staged = target
            .existing(file.from)?
            .known_as(target.absolute(file.to));
        // Opened before its mode is set, because the mode may deny access to this user.
        let open = if file.record.kind == EntryKind::Link {
            make_link(&staged, file.record)?;
            None
        } else {
            let opened = staged.open(OFlag::O_WRONLY, 0);
            Some(opened.map_err(|cause| Error::io("open", &staged.path(), cause))?)
        };
        let owner = match target.stat(file.to)? {
            Some(replaced) => Some((replaced.st_uid, replaced.st_gid)),
            None if file.to.starts_with('/') => target.owner_of(file.to)?,
            None => owner_in(target, parent(file.to), &mut owners)?,
        };
        owner.map_or(Ok(()), |owner| staged.give_to(owner))?;
        let (seconds, nanoseconds) = placement::seconds_and_nanoseconds(file.record.mtime);
        staged.set_modified(seconds, nanoseconds)?;
        if let Some(open) = open {
            set_mode(&staged, &open, file.record)?;
            if syncs {
                unsupported::sync(&open, &staged.known_path())
                    .map_err(|cause| Error::io("sync", &staged.path(), cause))?;
            }
        }
    }
    Ok(())
}

fn owner_in<'a>(
    target: &Target,
    dir: &'a str,
    known: &mut HashMap<&'a str, Option<(u32, u32)>>,
) -> Result<Option<(u32, u32)>> {
    if let Some(owner) = known.get(dir) {
        return Ok(*owner);
    }
    let owner = target.owner_of(dir)?;
    known.insert(dir, owner);
    Ok(owner)
}

fn make_link(staged: &EntryHandle, record: &FileRecord) -> Result<()> {
    let target = record.target.as_deref().and_then(names::decode);
    let made = staged.make_link(&target.unwrap_or_default());
    made.map_err(|cause| Error::io("create", &staged.path(), cause))
}

fn set_mode(staged: &EntryHandle, file: &File, record: &FileRecord) -> Result<()> {
    // A database is data, so it never gets execute permission, whatever its record says.
    let mode = if record.database {
        record.mode & 0o666
    } else {
        record.mode & 0o777
    };
    let set = file.set_permissions(Permissions::from_mode(mode));
    staged
        .tolerate(set)
        .map_err(|cause| Error::io("set the permissions of", &staged.path(), cause))
}
