//! Carries out an [`Intent`], or takes it back: now, or in a later process after a kill.
//!
//! ```text
//! journal ─▶ directories ─▶ renames ─▶ databases locked, their content kept ─▶ "decided" ─▶ new content committed ─▶ record ─▶ end
//!            └────────────── a failure or kill here is taken back ───────────┘             └── from here on it is completed ──┘
//! ```

use std::{fs, io, path::Path, time::Duration};

use nix::fcntl::OFlag;

use super::{
    journal::{self, Intent, Move, Swapped},
    target::Target,
};
use crate::{
    beneath::{Occupant, Place},
    error::{Error, Result},
    project::STATE_DIR,
    sqlite::replace::{self, Swap},
};

/// Of a file that is copied from another file system, until it is whole.
const COPY_SUFFIX: &str = ".kg-partial";
/// Of what a database held when a killed restore was about to replace it, and was found changed again.
const INTERRUPTED_SUFFIX: &str = "-interrupted";

/// What became of an interrupted restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    TakenBack,
    Completed,
}

/// Makes all changes, or none. The target is locked by the caller.
pub fn carry_out(target: &Target, root: &Path, mut intent: Intent, lock_timeout: Duration) -> Result<()> {
    journal::write(root, &intent)?;
    let mut committed = 0;
    let done =
        make_moves(target, &intent).and_then(|()| make_swaps(target, root, &mut intent, lock_timeout, &mut committed));
    match done {
        Ok(()) => finish(root, target, &intent).map_err(|error| {
            let remedy =
                format!("The files are restored; the next backup or restore completes the rest. {}", error.remedy);
            Error { remedy, ..error }
        }),
        Err(error) => Err(match take_back(target, root, &mut intent, committed, lock_timeout) {
            Ok(()) => error,
            Err(second) => Error {
                message: format!("{}; and then, taking it back: {}", error.message, second.message),
                remedy: format!("{}; the next backup or restore of this project takes the rest back", second.remedy),
                ..error
            },
        }),
    }
}

/// Makes whole what a killed restore left. The target is locked by the caller.
pub fn recover(target: &mut Target, root: &Path, lock_timeout: Duration) -> Result<Option<Recovered>> {
    let Some(intent) = journal::read(root)? else { return Ok(None) };
    target.allow(intent.outside.clone());
    if !intent.decided {
        roll_back(target, root, &intent)?;
        return Ok(Some(Recovered::TakenBack));
    }
    swap_again(target, &intent, lock_timeout)?;
    finish(root, target, &intent)?;
    Ok(Some(Recovered::Completed))
}

fn make_moves(target: &Target, intent: &Intent) -> Result<()> {
    let owner = target.existing(STATE_DIR)?.stat()?.filter(|_| nix::unistd::geteuid().is_root());
    for dir in &intent.made {
        let place = target.existing(&dir.at)?;
        place.make_dir(dir.mode.map_or(0o777, |mode| mode | 0o700))?;
        if let Some(owner) = owner {
            place.set_owner(owner.st_uid, owner.st_gid)?;
        }
    }
    for Move { from, to } in &intent.moves {
        move_file(&target.existing(from)?, &target.existing(to)?)?;
    }
    let renamed = intent.moves.iter().flat_map(|change| [change.from.as_str(), change.to.as_str()]);
    target.sync(renamed.chain(intent.made.iter().map(|dir| dir.at.as_str())))
}

fn make_swaps(
    target: &Target,
    root: &Path,
    intent: &mut Intent,
    lock_timeout: Duration,
    committed: &mut usize,
) -> Result<()> {
    let swaps = intent.swaps.clone();
    let mut decide = || {
        intent.decided = true;
        journal::write(root, intent)
    };
    if swaps.is_empty() {
        return decide();
    }
    swap(target, &swaps, lock_timeout, decide, |_| {
        *committed += 1;
        Ok(())
    })
}

/// Replaces the content of live databases; what each held is kept from the moment of its commit on.
fn swap(
    target: &Target,
    swaps: &[Swapped],
    lock_timeout: Duration,
    decide: impl FnOnce() -> Result<()>,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut places = Vec::new();
    for swapped in swaps {
        let (live, before) = (target.existing(&swapped.live)?, target.existing(&swapped.before())?);
        let keep = before.create()?;
        places.push((
            live.path(),
            target.existing(&swapped.new)?.path(),
            keep,
            before,
            target.existing(&swapped.kept)?,
        ));
        dress_as(&places[places.len() - 1].3, &live)?;
    }
    let databases: Vec<Swap<'_>> =
        places.iter().map(|(live, new, keep, ..)| Swap { live, new, keep: Some(keep) }).collect();
    replace::replace(&databases, lock_timeout, decide, |number| {
        let (.., before, kept) = &places[number];
        before.rename(kept).map_err(|cause| Error::io("keep", &kept.path(), cause))?;
        kept.dir().sync()?;
        done(number)
    })
}

/// What is kept of a database may be put back as a file.
fn dress_as(kept: &Place, live: &Place) -> Result<()> {
    let Some(found) = live.stat()? else { return Ok(()) };
    kept.set_mode(found.st_mode)?;
    if nix::unistd::geteuid().is_root() { kept.set_owner(found.st_uid, found.st_gid) } else { Ok(()) }
}

/// After a kill: replaces what was not replaced yet.
fn swap_again(target: &Target, intent: &Intent, lock_timeout: Duration) -> Result<()> {
    let mut left = Vec::new();
    for swapped in &intent.swaps {
        let kept = target.existing(&swapped.kept)?;
        if kept.occupant()?.is_some() {
            continue;
        }
        let (before, live, new) =
            (target.existing(&swapped.before())?, target.existing(&swapped.live)?, target.existing(&swapped.new)?);
        let is_before = before.occupant()?.is_some();
        if live.occupant()?.is_none() {
            // Somebody removed the database meanwhile.
            move_file(&new, &live)?;
        } else if is_before && replace::has_content_of(&live.path(), &new.path())? {
            before.rename(&kept).map_err(|cause| Error::io("keep", &kept.path(), cause))?;
        } else {
            if is_before {
                let interrupted = kept.with_suffix(INTERRUPTED_SUFFIX)?;
                before.rename(&interrupted).map_err(|cause| Error::io("keep", &interrupted.path(), cause))?;
            }
            left.push(swapped.clone());
        }
    }
    if left.is_empty() { Ok(()) } else { swap(target, &left, lock_timeout, || Ok(()), |_| Ok(())) }
}

/// What comes after the changes; may be done twice.
fn finish(root: &Path, target: &Target, intent: &Intent) -> Result<()> {
    // Innermost first: nothing changes in a directory any more when it gets its time.
    for dir in intent.made.iter().rev() {
        let place = target.existing(&dir.at)?;
        if let Some(mode) = dir.mode {
            place.set_mode(mode)?;
        }
        if let Some((seconds, nanoseconds)) = dir.mtime {
            place.set_modified(seconds, nanoseconds)?;
        }
    }
    if let Some((dir, record)) = &intent.undo {
        record.write(&root.join(dir))?;
        target.sync([dir.as_str()])?;
    }
    if let Some(retired) = &intent.retired {
        let dir = root.join(retired);
        match fs::remove_dir_all(&dir) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &dir, cause)),
            _ => target.sync([retired.as_str()])?,
        }
    }
    for dir in intent.emptied.iter().rev() {
        if let Some(place) = target.place(dir)? {
            // One that holds something by now stays.
            place.remove_dir();
        }
    }
    journal::end(root)
}

/// After a failure: the first `committed` databases have their new content.
fn take_back(
    target: &Target,
    root: &Path,
    intent: &mut Intent,
    committed: usize,
    lock_timeout: Duration,
) -> Result<()> {
    for swapped in intent.swaps[..committed].iter().rev() {
        let (live, before, kept) =
            (target.existing(&swapped.live)?, target.existing(&swapped.before())?, target.existing(&swapped.kept)?);
        // Under its other name it says that the commit is to be made: as long as the journal says `decided`, it is made again.
        kept.rename(&before).map_err(|cause| Error::io("put back", &kept.path(), cause))?;
        let old = Swap { live: &live.path(), new: &before.path(), keep: None };
        replace::replace(&[old], lock_timeout, || Ok(()), |_| Ok(()))?;
    }
    if intent.decided {
        intent.decided = false;
        journal::write(root, intent)?;
    }
    roll_back(target, root, intent)
}

/// Takes back what was renamed and made; may be done twice.
fn roll_back(target: &Target, root: &Path, intent: &Intent) -> Result<()> {
    for swapped in &intent.swaps {
        if let Some(before) = target.place(&swapped.before())? {
            before.remove_file()?;
        }
    }
    for change in intent.moves.iter().rev() {
        move_back(target, intent, change)?;
    }
    for dir in intent.made.iter().rev() {
        if let Some(place) = target.place(&dir.at)? {
            place.remove_dir();
        }
    }
    target.sync(intent.moves.iter().map(|change| change.from.as_str()))?;
    journal::end(root)
}

fn move_back(target: &Target, intent: &Intent, Move { from, to }: &Move) -> Result<()> {
    let Some(now) = target.place(to)? else { return Ok(()) };
    now.with_suffix(COPY_SUFFIX)?.remove_file()?;
    if now.occupant()?.is_none() {
        // Not made yet, or taken back already.
        return Ok(());
    }
    match target.place(from)? {
        // The directory that it was unpacked into is gone: it is still in the archive.
        None => now.remove_file(),
        Some(was) if was.occupant()?.is_none() => move_file(&now, &was),
        // Copied from another file system, and not removed there yet.
        Some(_) if intent.undo.as_ref().is_some_and(|(dir, _)| to.starts_with(dir)) => now.remove_file(),
        // Not made yet.
        Some(_) => Ok(()),
    }
}

/// Renames; where the two lie on different file systems, copies under a temporary name first.
fn move_file(from: &Place, to: &Place) -> Result<()> {
    let failed = |cause| Error::io("move", &from.path(), cause);
    match from.rename(to) {
        Err(cause) if cause.kind() == io::ErrorKind::CrossesDevices => {
            let copy = to.with_suffix(COPY_SUFFIX)?;
            copy.remove_file()?;
            if from.occupant()? == Some(Occupant::Link) {
                copy.make_link(&fs::read_link(from.path()).map_err(failed)?)?;
            } else {
                let mut source = from.open(OFlag::O_RDONLY, 0).map_err(failed)?;
                let mut file = copy.create()?;
                io::copy(&mut source, &mut file).map_err(failed)?;
                let found = source.metadata().map_err(failed)?;
                file.set_permissions(found.permissions()).map_err(failed)?;
                let modified = found.modified().map_err(failed)?;
                file.set_times(fs::FileTimes::new().set_modified(modified)).map_err(failed)?;
                file.sync_all().map_err(failed)?;
            }
            copy.rename(to).map_err(failed)?;
            to.dir().sync()?;
            from.remove_file()
        }
        moved => moved.map_err(failed),
    }
}
