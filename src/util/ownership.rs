//! Owners of the files that root writes.
//!
//! A file in a project, also in a store next to `.kg`, belongs to the owner of `.kg`, also when root made it: the owner's
//! next backup would fail at a lock, a directory or a journal of root's. In a store elsewhere it belongs to the owner of the
//! project if the directory is that owner's too ([`share`]). In any other place it stays root's: it may be secret. Everything
//! that creates files comes through here, by way of [`crate::util::durable`].
//!
//! A refusal (a container without `CAP_CHOWN`, a file system without owners) is a warning of the run ([`crate::util::tolerated`]). What is given
//! away is named below an open directory, so that nobody puts something else in its place.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    system::paths::{STATE_DIR, resolve},
    util::beneath::{Dir, Occupant, Place},
};

/// The directories of [`Shared`], without links, and the owner of the project.
static SHARED: Mutex<Vec<(PathBuf, u32)>> = Mutex::new(Vec::new());

/// While this lives, what root makes in a store outside the project belongs to the owner of the project, wherever the
/// directory is that owner's too.
#[derive(Debug)]
#[must_use]
pub struct Shared(PathBuf, u32);

/// `store` need not exist yet; `state` is the directory `.kg` of the project.
pub fn share(store: &Path, state: &Path) -> Option<Shared> {
    let owner = fs::metadata(state).ok().filter(|_| nix::unistd::geteuid().is_root())?.uid();
    let shared = Shared(resolve(store), owner);
    shares().push((shared.0.clone(), owner));
    Some(shared)
}

fn shares() -> MutexGuard<'static, Vec<(PathBuf, u32)>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut shares = shares();
        if let Some(at) = shares.iter().position(|(dir, owner)| (dir, *owner) == (&self.0, self.1)) {
            shares.swap_remove(at);
        }
    }
}

/// Gives what root just made at a place to the owner of the project that it lies in, or whose store it lies in.
pub fn settle(made: &Place) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = made.dir().path();
    let state = dir.ancestors().find_map(|dir| match dir.file_name() {
        Some(name) if name == STATE_DIR => fs::metadata(dir).ok(),
        _ => fs::metadata(dir.join(STATE_DIR)).ok(),
    });
    match state.filter(Metadata::is_dir) {
        Some(owner) => give(made, &owner),
        None => settle_in_store(made, dir),
    }
}

/// Also directories on the way to the store.
fn settle_in_store(made: &Place, dir: &Path) {
    let Ok(owner) = fs::metadata(dir) else { return };
    let is_of = |(store, of): &(PathBuf, u32)| store.starts_with(dir) && *of == owner.uid();
    if shares().iter().any(is_of) {
        give(made, &owner);
    }
}

/// Gives what root just made at `path` to the owner of the directory that it lies in.
pub fn inherit(path: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let Ok(made) = Dir::around(path) else { return };
    if let Ok(owner) = fs::metadata(made.dir().held_path()) {
        give(&made, &owner);
    }
}

/// Only what is root's is given away, and nothing that has another name: that may be a file of somebody else.
fn give(made: &Place, owner: &Metadata) {
    let Ok(Some(found)) = made.stat() else { return };
    let is_dir = made.occupant().is_ok_and(|found| found == Some(Occupant::Directory));
    if found.st_uid == 0 && (is_dir || found.st_nlink == 1) {
        // A refusal is a warning of the run; what is not there any more is nobody's.
        let _ = made.give_to((owner.uid(), owner.gid()));
    }
}
