//! What identifies a file under any name.

use std::{
    fs::{File, Metadata},
    io,
    path::Path,
};

#[cfg_attr(unix, path = "file_id/unix.rs")]
#[cfg_attr(windows, path = "file_id/windows.rs")]
mod os;

/// The device and the number of the file on it.
pub type Identity = (u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    pub identity: Identity,
    /// The number of names (hard links) of the file.
    pub names: u64,
}

impl FileId {
    pub fn of(file: &File) -> io::Result<FileId> {
        os::of(file)
    }

    /// Follows links.
    pub fn at(path: &Path) -> io::Result<FileId> {
        os::at(path)
    }

    /// Does not follow a link at the end of the path.
    pub fn of_link(path: &Path) -> io::Result<FileId> {
        os::of_link(path)
    }
}

/// Returns the number of a file on its device, and when it last changed, if its metadata tells.
pub fn state_of(found: &Metadata) -> Option<(u64, (i64, u32))> {
    os::state_of(found)
}
