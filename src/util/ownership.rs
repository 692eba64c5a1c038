//! Owners of the files that root writes.
//!
//! A file in a project, also in a store next to `.kg`, belongs to the owner of `.kg`, also when root made it: the owner's
//! next backup would fail at a lock, a directory or a journal of root's. In a store elsewhere it belongs to the owner of the
//! project if the directory is that owner's too ([`share`]). In any other place it stays root's: it may be secret. Everything
//! that creates files comes through here, by way of [`crate::util::atomic_file`].
//!
//! A refusal (a container without `CAP_CHOWN`, a file system without owners) is a warning of the run ([`crate::util::unsupported`]). What is given
//! away is named below an open directory, so that nobody puts something else in its place.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    system::paths::{STATE_DIR, resolve},
    util::dir_handle::{DirHandle, EntryHandle, EntryType},
};

/// The stores of the runs of this process.
static SHARES: Mutex<Vec<Share>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    /// Without links.
    store: PathBuf,
    /// The root of the project whose store it is, without links, and the owner of its `.kg`.
    project: PathBuf,
    owner: u32,
}

/// While this lives, what root makes in the store of a project belongs to the owner of the project, wherever the directory is that owner's too or
/// lies in a project that is.
#[derive(Debug)]
#[must_use]
pub struct Shared(Share);

/// `store` need not exist yet; `state` is the directory `.kg` of the project.
pub fn share(store: &Path, state: &Path) -> Option<Shared> {
    let owner = fs::metadata(state)
        .ok()
        .filter(|_| nix::unistd::geteuid().is_root())?
        .uid();
    let share = Share {
        store: resolve(store),
        project: resolve(state.parent()?),
        owner,
    };
    shares().push(share.clone());
    Some(Shared(share))
}

fn shares() -> MutexGuard<'static, Vec<Share>> {
    SHARES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut shares = shares();
        if let Some(at) = shares.iter().position(|share| *share == self.0) {
            shares.swap_remove(at);
        }
    }
}

/// Gives what root just made at a place to the owner of the project that it lies in, or whose store it lies in.
pub fn settle(made: &EntryHandle) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = made.dir().path();
    let owner = match dir
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == STATE_DIR))
    {
        Some(state) => fs::metadata(state).ok(),
        None => owner_in_store(dir).unwrap_or_else(|| owner_beside_state(dir)),
    };
    if let Some(owner) = owner {
        give(made, &owner);
    }
}

/// Who owns what is made in `dir`, if that is a store or lies on the way to one. Whose `.kg` lies above it says nothing: anybody could have put it
/// there.
fn owner_in_store(dir: &Path) -> Option<Option<Metadata>> {
    let shares: Vec<Share> = shares()
        .iter()
        .filter(|share| share.store.starts_with(dir))
        .cloned()
        .collect();
    let owner_of = |share: &Share| {
        let dirs = [
            Some(dir),
            Some(share.project.as_path()).filter(|project| dir.starts_with(project)),
        ];
        let found = dirs
            .into_iter()
            .flatten()
            .filter_map(|dir| fs::metadata(dir).ok());
        found.into_iter().find(|found| found.uid() == share.owner)
    };
    (!shares.is_empty()).then(|| shares.iter().find_map(owner_of))
}

/// Who owns what is made in `dir`, if that is a directory of the owner of the project that it lies in.
fn owner_beside_state(dir: &Path) -> Option<Metadata> {
    let state = dir
        .ancestors()
        .find_map(|dir| fs::metadata(dir.join(STATE_DIR)).ok())
        .filter(Metadata::is_dir)?;
    fs::metadata(dir)
        .is_ok_and(|found| found.uid() == state.uid())
        .then_some(state)
}

/// Gives what root just made at `path` to the owner of the directory that it lies in.
pub fn inherit(path: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let Ok(made) = DirHandle::around(path) else {
        return;
    };
    if let Ok(owner) = fs::metadata(made.dir().held_path()) {
        give(&made, &owner);
    }
}

/// Only what is root's is given away, and nothing that has another name: that may be a file of somebody else.
fn give(made: &EntryHandle, owner: &Metadata) {
    let Ok(Some(found)) = made.stat() else { return };
    let is_dir = made
        .occupant()
        .is_ok_and(|found| found == Some(EntryType::Directory));
    if found.st_uid == 0 && (is_dir || found.st_nlink == 1) {
        // A refusal is a warning of the run; what is not there any more is nobody's.
        let _ = made.give_to((owner.uid(), owner.gid()));
    }
}
