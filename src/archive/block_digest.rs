//! Reads an archive to its end and checks whether it is what was written.
//!
//! The sidecar of an archive holds two digests. The SHA-256 of the file can be checked with any
//! tool. The *root* is the SHA-256 of a list of hashes: the first 16 bytes of the BLAKE3 of each
//! block, and of the bytes after the last block. The root takes a third of the time, and every
//! backup that uses an earlier one checks it.

use std::{fs::File, io, path::Path, sync::Arc};

use sha2::{Digest, Sha256};

use super::{
    block::{HEAD_BYTES, Head, WHOLE_HEAD_BYTES},
    block_reader::append_from,
    manifest::ArchiveRecord,
    seal::{Container, SealedFile},
};
use crate::{
    system::portable::FileExt,
    util::{
        content_hash::{ContentHash, content_hash},
        hex::hex,
        operation::CancelToken,
    },
};

/// Returns whether the archive at `path` is the one that `record` describes. `record` may itself be
/// damaged, so it is enough if one of its two digests matches.
pub fn is_as_written(
    path: &Path,
    record: &ArchiveRecord,
    cancel: &CancelToken,
) -> io::Result<bool> {
    if let Some(root) = &record.root {
        let mut blocks = StoredBlocks::new(Arc::new(File::open(path)?))?;
        let (mut hashes, mut bytes) = (Sha256::new(), Vec::new());
        while let Some((block, _)) = blocks.next_block()? {
            cancel.check().map_err(io::Error::other)?;
            hashes.update(block.read(&blocks.file, &mut bytes)?);
        }
        if blocks
            .end()?
            .is_some_and(|end| hex(&hashes.chain_update(end).finalize()) == *root)
        {
            return Ok(true);
        }
    }
    let facts = SealedFile::new(Box::new(File::open(path)?))?.finish(|| cancel.is_cancelled())?;
    Ok(hex(&facts.sha256) == record.sha256)
}

/// Iterates over the stored blocks of an archive in order, reading only their heads.
pub struct StoredBlocks {
    pub file: Arc<File>,
    container: Container,
    /// Offset of the next block.
    offset: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct StoredBlock {
    pub offset: u64,
    pub size: u32,
}

impl StoredBlocks {
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let mut start = Vec::new();
        read_at(&file, &mut start, 4, 0)?;
        Ok(StoredBlocks {
            container: Container::of(&start),
            file,
            offset: 0,
        })
    }

    /// Returns the next block, and the hash of its content if the block states it. Returns `None`
    /// at the end of the file, or if something other than a block follows.
    pub fn next_block(&mut self) -> io::Result<Option<(StoredBlock, Option<ContentHash>)>> {
        let mut start = Vec::new();
        read_at(&self.file, &mut start, WHOLE_HEAD_BYTES, self.offset)?;
        let Ok(Some(head)) = Head::parse(&start, self.container) else {
            return Ok(None);
        };
        let block = StoredBlock {
            offset: self.offset,
            size: head.size as u32,
        };
        self.offset += head.size as u64;
        Ok(Some((block, head.hash(&start))))
    }

    /// Returns the hash of the bytes after the last block, or `None` if they are longer than a
    /// seal.
    pub fn end(&self) -> io::Result<Option<ContentHash>> {
        let (seal_bytes, mut end) = (self.container.seal_bytes(), Vec::new());
        read_at(
            &self.file,
            &mut end,
            seal_bytes.max(HEAD_BYTES) + 1,
            self.offset,
        )?;
        Ok((end.len() <= seal_bytes).then(|| content_hash(&end)))
    }
}

impl StoredBlock {
    /// Reads the block into `bytes`, or as much of it as the file has. Returns the hash of the
    /// bytes read.
    pub fn read(&self, file: &File, bytes: &mut Vec<u8>) -> io::Result<ContentHash> {
        read_at(file, bytes, self.size as usize, self.offset)?;
        Ok(content_hash(bytes))
    }
}

/// Replaces `bytes` with `count` bytes from `offset`, or with fewer if the file ends.
fn read_at(file: &File, bytes: &mut Vec<u8>, count: usize, offset: u64) -> io::Result<()> {
    bytes.clear();
    append_from(bytes, count, |rest, read| {
        file.read_at(rest, offset + read as u64)
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::{
        archive::{
            block::Compression,
            block_writer::{Encoder, Written},
        },
        store::ArchiveFile,
    };

    fn written(path: &Path, compression: Compression) -> Written {
        let sink = Box::new(ArchiveFile::new(File::create(path).unwrap()));
        let mut encoder = Encoder::new(sink, compression, None).unwrap();
        let content: Vec<u8> = (0..300_000_u32)
            .map(|n| (n.wrapping_mul(n) % 251) as u8)
            .collect();
        encoder.write_all(&content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn one_right_digest_is_enough_and_a_changed_archive_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        for compression in [Compression::GZIP, Compression::ZSTD, Compression::None] {
            let right = written(&path, compression).record("archive".into());
            let is = |record: &ArchiveRecord| {
                is_as_written(&path, record, &CancelToken::default()).unwrap()
            };
            assert_eq!(right.root.is_some(), compression != Compression::None);
            let wrong = || "00".repeat(32);
            let others = [
                ArchiveRecord {
                    root: None,
                    ..right.clone()
                },
                ArchiveRecord {
                    root: Some(wrong()),
                    ..right.clone()
                },
            ];
            assert!(is(&right) && others.iter().all(is));
            assert_eq!(
                is(&ArchiveRecord {
                    sha256: wrong(),
                    ..right.clone()
                }),
                right.root.is_some()
            );
            assert!(!is(&ArchiveRecord {
                sha256: wrong(),
                root: None,
                ..right.clone()
            }));
            let whole = fs::read(&path).unwrap();
            for at in (0..whole.len())
                .step_by(whole.len() / 300 + 1)
                .chain(whole.len() - 100..whole.len())
            {
                let mut changed = whole.clone();
                changed[at] ^= 1;
                fs::write(&path, &changed).unwrap();
                assert!(!is(&right) && !others.iter().any(is), "byte {at}");
                fs::write(&path, &whole[..at]).unwrap();
                assert!(!is(&right) && !others.iter().any(is), "cut at {at}");
            }
            fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
            assert!(!is(&right) && !others.iter().any(is));
        }
    }
}
