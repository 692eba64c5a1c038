//! Reads an archive to its end and tells whether it is what was written.
//!
//! The manifest beside an archive has its SHA-256, which is for everyone, and its *root*: the SHA-256 of the first 16 bytes of the BLAKE3 of each of its
//! blocks, and of what follows the last one. That takes a third of the time, and every backup that makes use of an earlier one asks it first.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    block::{HEAD_BYTES, Head},
    decoder::append,
    manifest::{ArchiveRecord, hex},
    seal::{Container, SealedFile},
};
use crate::{
    content_hash::{ContentHash, content_hash},
    task::Cancel,
};

/// Whether the archive at `path` is the one that `record` describes. `record` itself may be damaged: it is enough that one of the two is right.
pub fn is_as_written(path: &Path, record: &ArchiveRecord, cancel: &Cancel) -> io::Result<bool> {
    if let Some(root) = &record.root {
        let mut blocks = StoredBlocks::new(File::open(path)?)?;
        while blocks.read()?.is_some() {
            cancel.check().map_err(io::Error::other)?;
        }
        if blocks.finish()?.as_ref() == Some(root) {
            return Ok(true);
        }
    }
    let facts = SealedFile::new(File::open(path)?)?.finish(|| cancel.is_cancelled())?;
    Ok(hex(&facts.sha256) == record.sha256)
}

/// The blocks of an archive as they are stored, first to last.
pub struct StoredBlocks {
    file: File,
    container: Container,
    root: Sha256,
    /// Where the next one begins.
    offset: u64,
    block: Vec<u8>,
}

pub struct StoredBlock<'a> {
    pub head: Head,
    pub bytes: &'a [u8],
    pub offset: u64,
    /// Of `bytes`.
    pub hash: ContentHash,
}

impl StoredBlocks {
    /// `file` is at its beginning.
    pub fn new(mut file: File) -> io::Result<Self> {
        let mut start = Vec::new();
        append(&mut start, &mut file, 4)?;
        file.seek(SeekFrom::Start(0))?;
        let container = Container::of(&start);
        Ok(StoredBlocks { file, container, root: Sha256::new(), offset: 0, block: Vec::new() })
    }

    /// `None` where something else follows, or nothing.
    pub fn read(&mut self) -> io::Result<Option<StoredBlock<'_>>> {
        self.block.clear();
        append(&mut self.block, &mut self.file, HEAD_BYTES)?;
        let Ok(Some(head)) = Head::parse(&self.block, self.container) else { return Ok(None) };
        append(&mut self.block, &mut self.file, head.size - HEAD_BYTES)?;
        let (offset, hash) = (self.offset, content_hash(&self.block));
        self.root.update(hash);
        self.offset += head.size as u64;
        Ok(Some(StoredBlock { head, bytes: &self.block, offset, hash }))
    }

    /// The root, hexadecimal, once there is no other block, where no more than a seal follows.
    pub fn finish(mut self) -> io::Result<Option<String>> {
        let seal_bytes = self.container.seal_bytes();
        let more = (seal_bytes + 1).saturating_sub(self.block.len());
        append(&mut self.block, &mut self.file, more)?;
        self.root.update(content_hash(&self.block));
        Ok((self.block.len() <= seal_bytes).then(|| hex(&self.root.finalize())))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;
    use crate::{
        archive::{
            block::Compression,
            encoder::{Encoder, Written},
        },
        store::ArchiveFile,
    };

    fn written(path: &Path, compression: Compression) -> Written {
        let sink = Box::new(ArchiveFile::new(File::create(path).unwrap()));
        let mut encoder = Encoder::new(sink, compression, None).unwrap();
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(n) % 251) as u8).collect();
        encoder.write_all(&content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn one_right_digest_is_enough_and_a_changed_archive_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        for compression in [Compression::GZIP, Compression::ZSTD, Compression::None] {
            let right = written(&path, compression).record("archive".into());
            let is = |record: &ArchiveRecord| is_as_written(&path, record, &Cancel::default()).unwrap();
            assert_eq!(right.root.is_some(), compression != Compression::None);
            let wrong = || "00".repeat(32);
            let others =
                [ArchiveRecord { root: None, ..right.clone() }, ArchiveRecord { root: Some(wrong()), ..right.clone() }];
            assert!(is(&right) && others.iter().all(is));
            assert_eq!(is(&ArchiveRecord { sha256: wrong(), ..right.clone() }), right.root.is_some());
            assert!(!is(&ArchiveRecord { sha256: wrong(), root: None, ..right.clone() }));
            let whole = fs::read(&path).unwrap();
            for at in (0..whole.len()).step_by(whole.len() / 300 + 1).chain(whole.len() - 100..whole.len()) {
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
