//! macOS and Windows have no table of locks.

use std::path::Path;

use super::Lock;
use crate::system::file_id::{FileId, Identity};

/// Why a process that holds a lock has no number here.
pub const UNSEEN: &str = "this system does not name";

pub fn command(_process: i32) -> Option<String> {
    None
}

pub fn locks(_file: FileId, _known: &[i32]) -> Vec<Lock> {
    Vec::new()
}

pub fn of_flock(_file: FileId) -> Option<i32> {
    None
}

pub fn has_file_open(_process: i32, _file: FileId) -> bool {
    false
}

pub fn has_open(_process: i32, _path: &Path) -> bool {
    false
}

pub fn in_table(identity: Identity) -> Identity {
    identity
}
