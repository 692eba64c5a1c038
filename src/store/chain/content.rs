//! Compares a database that was assembled with its record.

use std::{fs::File, path::Path, thread};

use sha2::{Digest, Sha256};

use super::broken;
use crate::{
    archive::file_record::FileRecord,
    error::{Error, Result},
    place::Archive,
    sqlite::page_hashes::{BlockHasher, BlockHashes},
    system::portable::FileExt,
    util::{
        digest::Sha256Digest,
        operation::{OperationContext, Phase},
        ordered_pool::cores,
        progress::ByteProgress,
        threads::start_in,
    },
};

/// How much of a file a thread reads at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Fails unless a database that was assembled is the one that its record describes, by the SHA-256
/// or by the hashes of its blocks.
pub fn assert_content(
    record: &FileRecord,
    database: &Path,
    member: &Archive,
    context: &OperationContext,
) -> Result<()> {
    let progress = ByteProgress::new(context, Phase::Unpacking, record.size);
    let (what, found, expected) = match (record.sha256, &record.blocks) {
        (Some(expected), _) => {
            let mut hasher = Sha256::new();
            progress.read(database, |piece| hasher.update(piece))?;
            let found = Sha256Digest::from(hasher.finalize());
            ("SHA-256", found.to_string(), expected.to_string())
        }
        (None, Some(blocks)) => {
            let found = block_hashes(database, blocks.size, &progress)?.root();
            ("the block root", found, blocks.root.clone())
        }
        (None, None) => {
            let what = format!("the list of files has no digest of {}", record.path);
            return Err(broken(member, what));
        }
    };
    if found == expected {
        return Ok(());
    }
    Err(broken(
        member,
        format!(
            "{} has {what} {found} after it is assembled; the list of files says {expected}",
            record.path
        ),
    ))
}

/// Computes the hashes of the blocks of a file on all cores.
fn block_hashes(path: &Path, block_bytes: u64, progress: &ByteProgress) -> Result<BlockHashes> {
    let failed = |cause| Error::io("read", path, cause);
    let file = File::open(path).map_err(failed)?;
    let size_bytes = file.metadata().map_err(failed)?.len();
    let blocks_each = size_bytes
        .div_ceil(block_bytes.max(1))
        .div_ceil(cores() as u64);
    let share = blocks_each.max(1).saturating_mul(block_bytes.max(1));
    let hash = |from: u64| -> Result<BlockHashes> {
        let mut hasher = BlockHasher::new(block_bytes);
        let mut piece = vec![0; PIECE_BYTES];
        let (mut at, end) = (from, from.saturating_add(share).min(size_bytes));
        while at < end {
            let most = piece.len().min((end - at) as usize);
            let read = file.read_at(&mut piece[..most], at).map_err(failed)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            progress.advance(read as u64)?;
            at += read as u64;
        }
        Ok(hasher.finish())
    };
    thread::scope(|threads| {
        let hash = &hash;
        let parts = (0..size_bytes).step_by(share as usize);
        let parts = parts.map(|from| start_in(threads, "kg-hash", move || hash(from)));
        let mut hashes = Vec::new();
        for part in parts.collect::<Result<Vec<_>>>()? {
            let part = part.join();
            let part = part.map_err(|_| Error::internal("A thread that hashes panicked"))??;
            hashes.extend(part.hashes);
        }
        Ok(BlockHashes {
            block_bytes,
            hashes,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn parts_of_a_file_have_the_hashes_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for size_bytes in [0, 1, 511, 512, 513, 1024, 100_000, 3 << 20] {
            let content: Vec<u8> = (0..size_bytes).map(|at| (at / 100) as u8).collect();
            fs::write(&path, &content).unwrap();
            for block_bytes in [512, 4096, 65536, 1 << 30] {
                let mut whole = BlockHasher::new(block_bytes);
                whole.update(&content);
                let progress = ByteProgress::default();
                let found = block_hashes(&path, block_bytes, &progress).unwrap();
                assert_eq!(
                    found,
                    whole.finish(),
                    "{size_bytes} bytes in blocks of {block_bytes}"
                );
                assert_eq!(progress.done(), size_bytes as u64);
            }
        }
    }

    #[test]
    fn hashing_ends_when_the_operation_is_cancelled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let context = OperationContext::default();
        context.cancel.cancel();
        let progress = ByteProgress::new(&context, Phase::Unpacking, 0);
        let error = block_hashes(file.path(), 4096, &progress).unwrap_err();
        assert_eq!(error.code, crate::error::Code::Aborted);
    }
}
