//! Takes back what was done of an [`Intent`].
//!
//! It looks at what is there: a file is only moved or removed where its identity says that it is the one that was moved. So it may be
//! killed and begun again.

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

/// After a failure: the first `committed` databases have their new content.
///
/// What they held stays under a name that the journal knows until everything is back.
pub fn take_back(
    target: &Target,
    root: &Path,
    intent: &Intent,
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

/// Takes back what was renamed and made; may be done twice.
pub fn roll_back(target: &Target, root: &Path, intent: &Intent) -> Result<()> {
    if intent.decided {
        // A full disk may refuse it. It is needed only where this is killed between the last removal and the end.
        let _ = journal::write(
            root,
            &Intent {
                decided: false,
                ..intent.clone()
            },
        );
    }
    open_dirs(target, intent)?;
    for number in (0..intent.moves.len()).rev() {
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
    target.sync(intent.moves.iter().map(|change| change.from.as_str()))?;
    journal::end(root)
}

fn move_back(target: &Target, intent: &Intent, number: usize) -> Result<()> {
    let Move { from, to, identity } = &intent.moves[number];
    let Some(now) = target.place(to)? else {
        return Ok(());
    };
    let copy = now.beside(intent.copy_name(number))?;
    copy.remove_file()?;
    let Some(found) = now.stat()? else {
        // Not made yet, or taken back already.
        return Ok(());
    };
    let is_renamed = ({ found.st_dev }, { found.st_ino }) == *identity;
    let was = target.place(from)?;
    let original = was.as_ref().map_or(Ok(None), EntryHandle::stat)?;
    let is_at_home =
        original.is_some_and(|found| ({ found.st_dev }, { found.st_ino }) == *identity);
    // A copy from another file system has an identity of its own; what stood in its place tells that it is one.
    let is_copied = found.st_dev != identity.0 && is_vacated(target, intent, number)?;
    match (was, original) {
        // Copied, and not removed where it came from.
        (_, Some(_)) if is_at_home && is_copied => now.remove_file(),
        // Not made yet; or something else is there by now, and what was moved stays where it is kept.
        (_, Some(_)) => Ok(()),
        (Some(was), None) if is_renamed || is_copied => {
            move_file(&now, &was, &intent.copy_name(number))
        }
        // The directory that it was unpacked into is gone: it is still in the archive.
        (None, None) if (is_renamed || is_copied) && intent.is_staged(from) => now.remove_file(),
        _ => Ok(()),
    }
}

/// Whether what had stood at the destination of this move was moved away, or nothing had.
fn is_vacated(target: &Target, intent: &Intent, number: usize) -> Result<bool> {
    let to = &intent.moves[number].to;
    match intent.moves[..number]
        .iter()
        .find(|earlier| earlier.from == *to)
    {
        Some(earlier) => target.is_taken(&earlier.to),
        None => Ok(true),
    }
}
