//! The start of a WAL next to a live database.
//!
//! A host may create, truncate or delete its WAL at any moment, so two reads may see different
//! files. A conclusion counts only if the WAL is the same afterwards ([`WalStart::judge`]).

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::format::wal::{WAL_HEADER_BYTES, WalHeader};
use crate::{
    system::{file_id::FileId, portable::FileExt},
    util::regular_file,
};

/// How often a WAL that changes meanwhile is read.
const ATTEMPTS: u32 = 3;

pub struct WalStart {
    path: PathBuf,
    /// Kept open, so that no other file can get its inode.
    file: File,
    header: Option<[u8; WAL_HEADER_BYTES]>,
}

impl WalStart {
    /// Returns what `judge` concludes about the WAL at `path`. Returns `None` if there is no WAL, if
    /// it is empty, or if it changes each time it is read, because then a process uses it.
    pub fn judge<T>(path: &Path, judge: impl Fn(&WalStart) -> Option<T>) -> io::Result<Option<T>> {
        for _ in 0..ATTEMPTS {
            let Some(start) = WalStart::read(path)? else {
                return Ok(None);
            };
            let Some(conclusion) = judge(&start) else {
                return Ok(None);
            };
            if start.is_unchanged() {
                return Ok(Some(conclusion));
            }
        }
        Ok(None)
    }

    /// Reads the start of the WAL at `path`; `None` if there is none or it is empty.
    fn read(path: &Path) -> io::Result<Option<WalStart>> {
        let file = match regular_file::open_linked(path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if file.metadata()?.len() == 0 {
            return Ok(None);
        }
        let header = header_of(&file)?;
        Ok(Some(WalStart {
            path: path.to_path_buf(),
            file,
            header,
        }))
    }

    /// Returns the header; `None` if the file is shorter.
    pub fn header(&self) -> Option<WalHeader> {
        self.header.as_ref().map(WalHeader::parse)
    }

    /// Returns whether the file still has this name and this header.
    fn is_unchanged(&self) -> bool {
        let is_same_file = || -> io::Result<bool> {
            let (named, open) = (FileId::at(&self.path)?, FileId::of(&self.file)?);
            Ok(named.identity == open.identity && self.file.metadata()?.len() > 0)
        };
        is_same_file().unwrap_or(false)
            && header_of(&self.file).is_ok_and(|header| header == self.header)
    }
}

fn header_of(file: &File) -> io::Result<Option<[u8; WAL_HEADER_BYTES]>> {
    let mut header = [0; WAL_HEADER_BYTES];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(Some(header)),
        Err(cause) if cause.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_wal_that_was_deleted_truncated_replaced_or_rewritten_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wal");
        let read = || {
            fs::write(&path, [7; 100]).unwrap();
            WalStart::read(&path).unwrap().unwrap()
        };
        let start = read();
        assert!(start.header().is_some() && start.is_unchanged());
        fs::remove_file(&path).unwrap();
        assert!(!start.is_unchanged() && WalStart::read(&path).unwrap().is_none());
        let start = read();
        fs::write(&path, []).unwrap();
        assert!(!start.is_unchanged() && WalStart::read(&path).unwrap().is_none());
        let start = read();
        fs::write(dir.path().join("other"), [7; 100]).unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(!start.is_unchanged());
        let start = read();
        fs::write(&path, [8; 100]).unwrap();
        assert!(!start.is_unchanged());
    }

    #[test]
    fn a_wal_shorter_than_its_header_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wal");
        fs::write(&path, [7; WAL_HEADER_BYTES - 1]).unwrap();
        let start = WalStart::read(&path).unwrap().unwrap();
        assert!(start.header().is_none() && start.is_unchanged());
    }
}
