use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::FileId;

pub fn of(file: &File) -> io::Result<FileId> {
    file.metadata().map(id)
}

pub fn at(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(id)
}

pub fn of_link(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(id)
}

pub fn state_of(found: &Metadata) -> Option<(u64, (i64, u32))> {
    Some((found.ino(), (found.ctime(), found.ctime_nsec() as u32)))
}

fn id(found: Metadata) -> FileId {
    FileId {
        identity: (found.dev(), found.ino()),
        names: found.nlink(),
    }
}
