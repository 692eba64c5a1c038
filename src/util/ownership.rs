//! The owners of files that root writes.
//!
//! A file in a project, or in a store next to `.kg`, belongs to the owner of `.kg`, even if root
//! created it. Otherwise the owner's next backup would fail at a lock, directory or journal of
//! root. In a store elsewhere it belongs to the owner of the project if that user also owns the
//! directory ([`share`]). Anywhere else it stays root's, because it may be secret. All code that
//! creates files uses this module through [`crate::util::atomic_file`].
//!
//! A refusal (a container without `CAP_CHOWN`, a file system without owners) is a warning of the
//! run ([`crate::util::unsupported`]). Files are given away by their name below an open directory,
//! so that another user cannot replace them first.

use std::{
    fs::{self, Metadata},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    system::{
        paths::{STATE_DIR, resolve},
        portable::MetadataExt,
        user,
    },
    util::{
        dir_handle::{DirHandle, EntryHandle},
        entry_stat::EntryType,
    },
};

/// The stores of the runs in this process.
static SHARES: Mutex<Vec<Share>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    /// The path of the store, without links.
    store: PathBuf,
    /// The root of the project that uses the store, without links, and the owner of its `.kg`.
    project: PathBuf,
    owner: u32,
}

/// While this value exists, files that root creates in the store belong to the owner of the
/// project. This requires that the owner also owns the directory, or the project root that contains
/// it.
#[derive(Debug)]
#[must_use]
pub struct Shared(Share);

/// Registers a store, if the process runs as root. `store` need not exist yet; `state` is the
/// directory `.kg` of the project.
pub fn share(store: &Path, state: &Path) -> Option<Shared> {
    let owner = fs::metadata(state).ok().filter(|_| user::is_root())?.uid();
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

/// Gives an entry that root just created to the owner of the project that contains it or uses the
/// store.
pub fn settle(made: &EntryHandle) {
    if !user::is_root() {
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

/// Returns the owner for files in `dir`, if it is a store or on the path to one. A `.kg` above it
/// is not trusted, because any user could have created it.
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

/// Returns the owner for files in `dir`, if the directory belongs to the owner of the project that
/// contains it.
fn owner_beside_state(dir: &Path) -> Option<Metadata> {
    let state = dir
        .ancestors()
        .find_map(|dir| fs::metadata(dir.join(STATE_DIR)).ok())
        .filter(Metadata::is_dir)?;
    fs::metadata(dir)
        .is_ok_and(|found| found.uid() == state.uid())
        .then_some(state)
}

/// Gives an entry that root just created at `path` to the owner of its directory.
pub fn inherit(path: &Path) {
    if !user::is_root() {
        return;
    }
    let Ok(made) = DirHandle::around(path) else {
        return;
    };
    if let Ok(owner) = fs::metadata(made.dir().held_path()) {
        give(&made, &owner);
    }
}

/// Gives away only entries of root that have no other name, because another name may belong to
/// another user.
fn give(made: &EntryHandle, owner: &Metadata) {
    let Ok(Some(found)) = made.stat() else { return };
    let is_dir = found.entry_type == EntryType::Directory;
    if found.user == 0 && (is_dir || found.names == 1) {
        // A refusal is a warning of the run, and an entry that no longer exists needs no owner.
        let _ = made.give_to((owner.uid(), owner.gid()));
    }
}
