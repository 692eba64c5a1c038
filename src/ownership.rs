//! Owners of the files that root writes.
//!
//! A file in a project, also in a store next to `.kg`, belongs to the owner of `.kg`, also when root made it: the owner's
//! next backup would fail at a lock, a directory or a journal of root's. Everything that creates files in a project comes through here, by way of
//! [`crate::durable`]. A store outside any project keeps the files of the user who made them: they may be secret.
//!
//! A refusal (a container without `CAP_CHOWN`, a file system without owners) is a warning of the run ([`crate::tolerated`]).

use std::{
    fs::{self, Metadata},
    os::unix::fs::{MetadataExt, lchown},
    path::Path,
};

use crate::{
    paths::{STATE_DIR, resolve},
    tolerated::{self, Refused},
};

/// Gives what root just made at `path` to the owner of the project that it lies in.
pub fn settle(path: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = resolve(path.parent().unwrap_or(path));
    let state = dir.ancestors().find_map(|dir| match dir.file_name() {
        Some(name) if name == STATE_DIR => fs::metadata(dir).ok(),
        _ => fs::metadata(dir.join(STATE_DIR)).ok(),
    });
    if let Some(owner) = state.filter(Metadata::is_dir) {
        give(path, &owner);
    }
}

/// Gives what root just made at `path` to the owner of the directory that it lies in.
pub fn inherit(path: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    if let Some(owner) = path.parent().and_then(|dir| fs::metadata(dir).ok()) {
        give(path, &owner);
    }
}

/// Only what is root's is given away, and nothing that has another name: that may be a file of somebody else.
fn give(path: &Path, owner: &Metadata) {
    let Ok(found) = fs::symlink_metadata(path) else { return };
    let is_ours = found.uid() == 0 && (found.is_dir() || found.nlink() == 1);
    if !is_ours || (found.uid(), found.gid()) == (owner.uid(), owner.gid()) {
        return;
    }
    if let Err(cause) = lchown(path, Some(owner.uid()), Some(owner.gid())) {
        tolerated::note(Refused::Owner, path, &cause);
    }
}
