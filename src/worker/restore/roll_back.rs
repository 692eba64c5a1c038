//! Rolls back the changes of an [`Intent`].
//!
//! It looks at the existing files. A file is moved or removed only if its identity shows that it is
//! the one that was moved. A roll back may therefore be killed and repeated.

use std::{path::Path, time::Duration};

use super::{
    file_steps::{close_dirs, move_file, open_dirs},
    journal::{self, Intent, Move},
    target::Target,
};
use crate::{
    error::{Error, Result},
    sqlite::replace::{self, Swap},
    util::dir_handle::EntryHandle,
};

/// Rolls back after a failure. The first `committed` databases have their new content.
///
/// Their previous content keeps a name that the journal knows until everything is back.
pub fn take_back(
    target: &Target,
    root: &Path,
    intent: &mut Intent,
    committed: usize,
    lock_timeout: Duration,
) -> Result<()> {
    for swapped in intent.swaps[..committed].iter().rev() {
        let (live, pending, kept) = (
            target.existing(&swapped.live)?,
            target.existing(&swapped.pending)?,
            target.existing(&swapped.kept)?,
        );
        if pending.occupant()?.is_none() {
            kept.rename(&pending)
                .map_err(|cause| Error::io("put back", &kept.path(), cause))?;
        }
        let old = Swap {
            live: &live.path(),
            new: &pending.path(),
            keep: None,
        };
        replace::replace(&[old], lock_timeout, || Ok(()), |_| Ok(()))?;
    }
    roll_back(target, root, intent)
}

/// Rolls back renames and new directories. May be repeated.
pub fn roll_back(target: &Target, root: &Path, intent: &mut Intent) -> Result<()> {
    if intent.decided {
        intent.decided = false;
        // A full disk may prevent this write. It only matters if a kill happens between the last
        // removal and the end of the journal.
        let _ = journal::write(root, intent);
    }
    open_dirs(target, intent)?;
    for number in (0..intent.moves.count()).rev() {
        move_back(target, intent, number)?;
    }
    for swapped in &intent.swaps {
        for kept in [swapped.growing(), swapped.pending.clone()] {
            target
                .place(&kept)?
                .map_or(Ok(()), |kept| kept.remove_file())?;
        }
    }
    for dir in intent.made.iter().rev() {
        if let Some(place) = target.place(&dir.at)? {
            place.remove_dir();
        }
    }
    close_dirs(target, intent)?;
    target.sync(intent.moves.sources().iter().map(String::as_str))?;
    journal::end(root)
}

fn move_back(target: &Target, intent: &Intent, number: usize) -> Result<()> {
    let Some(Move { from, to, identity }) = intent.moves.get(number) else {
        return Ok(());
    };
    let Some(now) = target.place(&to)? else {
        return Ok(());
    };
    let copy = now.beside(intent.copy_name(number));
    copy.remove_file()?;
    let Some(found) = now.stat()? else {
        // The move was not made yet, or was already rolled back.
        return Ok(());
    };
    let is_renamed = found.identity() == identity;
    let was = target.place(&from)?;
    let original = was.as_ref().map_or(Ok(None), EntryHandle::stat)?;
    let is_at_home = original.is_some_and(|found| found.identity() == identity);
    // A copy from another file system has a different identity. It counts as the copy if its place
    // was empty before or the previous occupant was moved away.
    let is_copied = found.device != identity.0 && is_vacated(target, intent, number, &to)?;
    match (was, original) {
        // The file was copied, and the original was not removed.
        (_, Some(_)) if is_at_home && is_copied => now.remove_file(),
        // The move was not made yet, or another file has taken the original place. In that case,
        // the moved file stays where it is kept.
        (_, Some(_)) => Ok(()),
        (Some(was), None) if is_renamed || is_copied => {
            move_file(&now, &was, || intent.copy_name(number))
        }
        // The staging directory is gone, but the archive still contains the file.
        (None, None) if (is_renamed || is_copied) && intent.is_staged(&from) => now.remove_file(),
        _ => Ok(()),
    }
}

/// Returns whether the previous occupant of the destination of this move was moved away, or whether
/// there was none.
fn is_vacated(target: &Target, intent: &Intent, number: usize, to: &str) -> Result<bool> {
    let mut before = intent.moves.iter().take(number);
    match before.find(|earlier| earlier.from == to) {
        Some(earlier) => target.is_taken(&earlier.to),
        None => Ok(true),
    }
}
