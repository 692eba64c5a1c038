//! Gives unpacked files the attributes of the originals.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    thread,
};

use super::{
    placement::{Placement, Placements},
    plan::Plan,
    target::{Target, parent},
};
use crate::{
    error::{Error, Result},
    project::names,
    system::portable,
    util::{
        dir_handle::{Access, DirHandle, EntryHandle},
        sync_many,
        threads::start_in,
        unsupported,
    },
};

/// The number of files that are worth a thread.
const LEAST_FILES_OF_A_THREAD: usize = 64;

/// Gives unpacked files the permissions and time of the originals, creates links, and syncs the
/// files to disk, or the whole file system once for many files. Most files of many have all that
/// since they were unpacked, see [`Plan::undressed`].
///
/// Owners are not restored. If the restore runs as root, a file gets the owner of the file that it
/// replaces, or else the owner of its destination directory.
///
/// This does not touch a database whose content goes into a live database, because SQLite writes to
/// that file too.
pub(super) fn set_attributes(target: &Target, placements: &Placements, plan: &Plan) -> Result<()> {
    let swapped: HashSet<&str> = plan
        .intent
        .swaps
        .iter()
        .map(|swapped| swapped.new.as_str())
        .collect();
    let is_swapped = |placement: &Placement<'_>| {
        !swapped.is_empty()
            && placement.is_database()
            && placement
                .from()
                .is_some_and(|from| swapped.contains(from.as_str()))
    };
    let staging = target.staging().map(DirHandle::as_file).transpose()?;
    let batch = staging
        .as_ref()
        .and_then(|staging| sync_many::begin(staging, target.path(), placements.count()));
    // Without the batch, each file is synced.
    let all: Vec<usize> = match batch {
        Some(_) => Vec::new(),
        None => (0..placements.count()).collect(),
    };
    let files = if batch.is_some() {
        &plan.undressed
    } else {
        &all
    };
    if files.is_empty() {
        return Ok(());
    }
    let work = Work {
        placements,
        is_swapped: &is_swapped,
        syncs: batch.is_none(),
    };
    in_threads(target, &work, files)?;
    batch.map_or(Ok(()), |batch| batch.sync())
}

/// How files get their attributes.
struct Work<'a> {
    placements: &'a Placements,
    is_swapped: &'a (dyn Fn(&Placement<'_>) -> bool + Sync),
    /// Whether each file is synced.
    syncs: bool,
}

/// Divides the files among the cores, because most of the time passes in the file system.
fn in_threads(target: &Target, work: &Work<'_>, files: &[usize]) -> Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = files.len().div_ceil(cores).max(LEAST_FILES_OF_A_THREAD);
    let (own, others) = files.split_at(share.min(files.len()));
    thread::scope(|threads| {
        let running: Vec<_> = others
            .chunks(share)
            .map(|files| {
                let target = target.share();
                start_in(threads, "kg-attributes", move || {
                    dress(&target, work, files)
                })
            })
            .collect::<Result<_>>()?;
        dress(target, work, own)?;
        running.into_iter().try_for_each(|thread| {
            let done = thread.join();
            done.unwrap_or_else(|_| Err(Error::internal("The thread for attributes panicked")))
        })
    })
}

fn dress(target: &Target, work: &Work<'_>, files: &[usize]) -> Result<()> {
    target.while_no_directory_is_made(|| dress_each(target, work, files))
}

fn dress_each(target: &Target, work: &Work<'_>, files: &[usize]) -> Result<()> {
    // The owners of files that replace none, by directory.
    let mut owners = HashMap::new();
    let files = files.iter();
    for file in files.filter_map(|index| work.placements.file(*index)) {
        let Some(attributes) = file.attributes().filter(|_| !(work.is_swapped)(&file)) else {
            continue;
        };
        let Some(staged) = file.staged(target)? else {
            continue;
        };
        let staged = staged.known_as(target.absolute(file.to()));
        // Opened before its mode is set, because the mode may deny access to this user.
        let open = match file.link() {
            Some(link) => {
                make_link(&staged, link)?;
                None
            }
            None => {
                let opened = staged.open(Access::Write);
                Some(opened.map_err(|cause| Error::io("open", &staged.path(), cause))?)
            }
        };
        let owner = match target.stat(file.to())? {
            Some(replaced) => Some(replaced.owner()),
            None if file.to().starts_with('/') => target.owner_of(file.to())?,
            None => owner_in(target, parent(file.to()), &mut owners)?,
        };
        owner.map_or(Ok(()), |owner| staged.give_to(owner))?;
        let (seconds, nanoseconds) = attributes.modified();
        staged.set_modified(seconds, nanoseconds)?;
        if let Some(open) = open {
            set_mode(&staged, &open, attributes.mode())?;
            if work.syncs {
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

fn make_link(staged: &EntryHandle, link: &str) -> Result<()> {
    let made = staged.make_link(&names::decode(link).unwrap_or_default());
    made.map_err(|cause| Error::io("create", &staged.path(), cause))
}

fn set_mode(staged: &EntryHandle, file: &File, mode: u32) -> Result<()> {
    let set = portable::set_mode(file, mode);
    staged
        .tolerate(set)
        .map_err(|cause| Error::io("set the permissions of", &staged.path(), cause))
}
