//! Carries out an [`Intent`] and rolls it back if that fails. After a kill, [`super::recovery`]
//! completes it or rolls it back.
//!
//! ```text
//! journal ─▶ directories ─▶ renames ─▶ databases locked, previous content kept ─▶ "decided"
//!         ─▶ new content committed ─▶ record ─▶ end of the journal
//! ```
//!
//! A failure up to the last commit rolls everything back, and so does recovery after a kill before
//! the first commit. After a kill from the first commit on, recovery completes the rest. Without
//! live databases, "decided" takes the place of the first commit.

use std::{path::Path, time::Duration};

use super::{
    file_steps::{finish, move_file, open_dirs, swap},
    journal::{self, Intent, Swapped},
    roll_back::take_back,
    target::{Target, parent},
};
use crate::error::{Error, Result, Warning};

/// Makes all changes or none. The caller holds the lock of the target.
pub fn carry_out(
    target: &Target,
    root: &Path,
    mut intent: Intent,
    lock_timeout: Duration,
) -> Result<Vec<Warning>> {
    journal::write(root, &intent)?;
    let mut committed = 0;
    let done = make_moves(target, &intent)
        .and_then(|()| make_swaps(target, root, &mut intent, lock_timeout, &mut committed));
    match done {
        Ok(()) => finish(root, target, &intent).map_err(|error| {
            let remedy = format!(
                "The files are restored; the next backup or restore completes the rest. {}",
                error.remedy
            );
            Error { remedy, ..error }
        }),
        Err(error) => Err(
            match take_back(target, root, &mut intent, committed, lock_timeout) {
                Ok(()) => error,
                Err(second) => Error {
                    message: format!(
                        "{}; rolling it back failed too: {}",
                        error.message, second.message
                    ),
                    remedy: format!(
                        "{}; the next backup or restore of this project rolls it back or completes \
                         it",
                        second.remedy
                    ),
                    ..error
                },
            },
        ),
    }
}

fn make_moves(target: &Target, intent: &Intent) -> Result<()> {
    open_dirs(target, intent)?;
    for dir in &intent.made {
        let owner = target.owner_of(parent(&dir.at))?;
        let place = target.existing(&dir.at)?;
        let made = place.make_dir(dir.mode.map_or(0o777, |mode| mode | 0o700));
        made.map_err(|cause| Error::io("create", &place.path(), cause))?;
        owner.map_or(Ok(()), |owner| place.give_to(owner))?;
    }
    let (mut from, mut to) = (String::new(), String::new());
    for number in 0..intent.moves.count() {
        intent.moves.write_paths(number, &mut from, &mut to);
        let unpacked = target.unpacked(intent.moves.number_of(number));
        let old = unpacked.map_or_else(|| target.existing(&from), Ok)?;
        let new = target.existing(&to)?;
        move_file(&old, &new, || intent.copy_name(number))?;
    }
    let renamed = [intent.moves.sources(), intent.moves.destinations()].concat();
    let made = intent.made.iter().map(|dir| dir.at.as_str());
    target.sync(renamed.iter().map(String::as_str).chain(made))
}

fn make_swaps(
    target: &Target,
    root: &Path,
    intent: &mut Intent,
    lock_timeout: Duration,
    committed: &mut usize,
) -> Result<()> {
    let swaps = intent.swaps.clone();
    let mut decide = |digests: Vec<String>| {
        intent.decided = true;
        for (swapped, digest) in intent.swaps.iter_mut().zip(digests) {
            swapped.digest = Some(digest);
        }
        if !swaps.is_empty() {
            return journal::write(root, intent);
        }
        // Without databases to commit, recovery only completes the rest, and moves nothing.
        let moves = std::mem::take(&mut intent.moves);
        let written = journal::write(root, intent);
        intent.moves = moves;
        written
    };
    if swaps.is_empty() {
        return decide(Vec::new());
    }
    let all: Vec<&Swapped> = swaps.iter().collect();
    swap(target, &all, lock_timeout, decide, |_| *committed += 1)
}
