//! The answers of systems that share no blocks of ranges and sync each file by itself.

use std::{fs::File, io};

pub fn shares_blocks(_file: &File) -> bool {
    false
}

pub fn copy_range(
    _from: (&File, u64),
    _to: (&File, u64),
    _most: usize,
) -> io::Result<Option<usize>> {
    Ok(None)
}

pub fn reports_every_error(_file: &File) -> bool {
    false
}

pub fn sync(_dir: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
