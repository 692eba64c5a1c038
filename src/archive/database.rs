//! A database on its way into an archive: blocks that are sent, and blocks that the earlier archive has.

use std::io::Write;

use super::{
    block::Content,
    manifest::{Blocks, FileRecord},
    write::{ArchiveWriter, unannounced},
};
use crate::{error::Result, util::content_hash::ContentHash};

/// The entry that is being written. Without [`DatabaseEntry::finish`] the archive is none.
pub struct DatabaseEntry<'a> {
    archive: &'a mut ArchiveWriter,
    record: FileRecord,
    /// Smaller ones share a block with other files.
    has_own_blocks: bool,
    bytes_left: u64,
}

impl<'a> DatabaseEntry<'a> {
    /// The header was written.
    pub(super) fn begin(archive: &'a mut ArchiveWriter, record: FileRecord) -> Result<Self> {
        let encoder = archive.encoder();
        let has_own_blocks = record.size >= encoder.block_bytes() as u64;
        if has_own_blocks {
            let begun = encoder.begin(Content::Pages);
            archive.explain(begun)?;
        }
        Ok(DatabaseEntry { bytes_left: record.size, archive, record, has_own_blocks })
    }

    /// Adds the next block, which has this hash; how many bytes these are.
    pub fn write(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<u64> {
        let bytes = block.len() as u64;
        self.take(bytes)?;
        let (encoder, has_own_blocks) = (self.archive.encoder(), self.has_own_blocks);
        let written = if has_own_blocks { encoder.block(block, hash) } else { encoder.write_all(&block) };
        self.archive.explain(written)?;
        Ok(bytes)
    }

    /// Adds the blocks that hold what has these hashes, as the earlier archive has them; how many bytes they hold. An archive that lacks one fails with
    /// `KG_BASE_UNUSABLE`.
    pub fn take_over(&mut self, blocks: &[ContentHash]) -> Result<u64> {
        let before = self.bytes_left;
        for hash in blocks {
            let block_bytes = self.archive.encoder().block_bytes() as u64;
            self.take(self.bytes_left.min(block_bytes))?;
            let taken = self.archive.encoder().take_over(*hash);
            self.archive.explain(taken)?;
        }
        Ok(before - self.bytes_left)
    }

    /// `sha256` is of the whole, hexadecimal.
    pub fn finish(mut self, sha256: String, blocks: Blocks) -> Result<()> {
        if self.bytes_left > 0 {
            return Err(unannounced(&self.record, self.record.size - self.bytes_left));
        }
        // No page is smaller than a block of the tar, so nothing is to be filled up.
        if self.has_own_blocks {
            let ended = self.archive.encoder().begin(Content::Other);
            self.archive.explain(ended)?;
        }
        self.record.blocks = Some(blocks);
        self.archive.added(self.record, sha256);
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes).filter(|_| bytes > 0);
        self.bytes_left = left.ok_or_else(|| unannounced(&self.record, self.record.size - self.bytes_left + bytes))?;
        Ok(())
    }
}
