//! Unpacks an archive into a directory. Each selected file gets its number as its name, so that a
//! name from an archive is never used as a path.
//!
//! An archive may be forged to fill the disk. The sidecar, if there is one, states the size of all
//! files. No entry is written unless there is enough room for it, with a reserve for other
//! processes.

use std::{collections::HashSet, fs::File, io::Write, path::Path};

use nix::sys::statvfs::statvfs;

use super::{
    errors::checksum_mismatch, file_record::Owner, manifest::Manifest, reader::Unpack,
    sparse::SparseFile,
};
use crate::error::{Code, Error, Result};

/// The reserve that stays free: 1/64 of the file system, but at most this number of bytes.
const MAX_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
const RESERVE_SHARE: u64 = 64;
/// Small entries share a look at the free space.
const BYTES_BETWEEN_LOOKS: u64 = 1024 * 1024;

/// Unpacks the entries of an archive. It does not sync: the worker syncs the files that it moves
/// into place.
pub struct Unpacking<'a> {
    /// `None` if the archive is only checked.
    dir: Option<&'a Path>,
    /// Entries to unpack; `None` for all.
    wanted: Option<&'a HashSet<String>>,
    /// The bytes that the following entries may have according to the sidecar; `None` if it does
    /// not say.
    expected_bytes: Option<u64>,
    current: Option<SparseFile>,
    owners: Vec<Owner>,
    /// The bytes that may still be written before the free space is looked up again.
    room_bytes: u64,
}

impl<'a> Unpacking<'a> {
    /// Creates an unpacker. `beside` is the sidecar. It is used only to reject entries: its content
    /// is verified at the end.
    pub fn new(
        dir: Option<&'a Path>,
        wanted: Option<&'a HashSet<String>>,
        beside: Option<&Manifest>,
    ) -> Self {
        Unpacking {
            dir,
            wanted,
            // An entry of changed pages is smaller than its file.
            expected_bytes: beside.map(|manifest| manifest.stats.total_size),
            current: None,
            owners: Vec::new(),
            room_bytes: 0,
        }
    }

    /// Returns the owners of all entries, in their order.
    pub fn into_owners(self) -> Vec<Owner> {
        self.owners
    }
}

impl Unpack for Unpacking<'_> {
    fn entry(
        &mut self,
        number: usize,
        name: &str,
        size_bytes: u64,
    ) -> Result<Option<&mut dyn Write>> {
        if let Some(expected) = &mut self.expected_bytes {
            *expected = expected.checked_sub(size_bytes).ok_or_else(|| {
                checksum_mismatch(format_args!(
                    "{name} has {size_bytes} bytes, which is more than the manifest next to the \
                     archive says"
                ))
            })?;
        }
        let Some(dir) = self
            .dir
            .filter(|_| self.wanted.is_none_or(|wanted| wanted.contains(name)))
        else {
            return Ok(None);
        };
        if size_bytes > self.room_bytes {
            self.room_bytes = room(dir, name, size_bytes)?;
        }
        self.room_bytes = self.room_bytes.saturating_sub(size_bytes);
        let path = dir.join(number.to_string());
        let file = File::create_new(&path).and_then(|file| SparseFile::new(file, size_bytes));
        let file = file.map_err(|cause| Error::io("write", &path, cause))?;
        Ok(Some(self.current.insert(file)))
    }

    fn owner(&mut self, owner: Owner) {
        self.owners.push(owner);
    }

    fn wants_whole(&self) -> bool {
        true
    }
}

/// Returns how many bytes may be written before the next look at the free space. `KG_NO_SPACE` if
/// there is no room for the entry.
fn room(dir: &Path, name: &str, size_bytes: u64) -> Result<u64> {
    let found = statvfs(dir)
        .map_err(|cause| Error::io("determine the free space of", dir, cause.into()))?;
    let unit = found.fragment_size();
    let (free, all) = (found.blocks_available() * unit, found.blocks() * unit);
    let usable = free.saturating_sub(MAX_RESERVE_BYTES.min(all / RESERVE_SHARE));
    if size_bytes <= usable {
        return Ok(usable.min(size_bytes.max(BYTES_BETWEEN_LOOKS)));
    }
    Err(Error::new(
        Code::NoSpace,
        format!(
            "{name} has {size_bytes} bytes, but only {usable} can be used in {}",
            dir.display()
        ),
        "Nothing was changed; free some space there, or restore into another directory (`targetDir`), and run it again",
    ))
}
