//! The file that an archive is written to.
//!
//! Blocks reused from an earlier archive need no additional space on file systems that share
//! extents (btrfs, XFS). There, `copy_file_range(2)` makes both files refer to the same bytes.
//! Adjacent blocks are collected because only whole blocks of the file system can be shared. The
//! remainder at both ends is copied.

use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
    sync::Arc,
};

use super::write_behind::WriteBehind;
use crate::{
    archive::{block_writer::Sink, reuse::ReusedBlock},
    system::{file_system, portable::FileExt, refusal},
};

/// The usual extent boundary of both file systems. If a file system was created with another one,
/// nothing is shared.
const PIECE_BYTES: u64 = 4096;
const COPY_BYTES: usize = 1 << 20;

pub struct ArchiveFile {
    file: Arc<File>,
    behind: WriteBehind<Sync>,
    /// The offset at which the pending row, or else the next byte, is written.
    position: u64,
    shares: bool,
    row: Option<Row>,
}

type Sync = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Adjacent blocks of an earlier archive that must be written before any other data.
struct Row {
    from: Arc<File>,
    range: Range<u64>,
}

impl ArchiveFile {
    /// Wraps `file`, which must be empty.
    pub fn new(file: File) -> Self {
        let shares = file_system::shares_blocks(&file);
        let file = Arc::new(file);
        let synced = file.clone();
        let behind = WriteBehind::new(Box::new(move || match synced.sync_data() {
            // The sync at the end reports it.
            Err(cause) if refusal::has_no_sync(&cause) => Ok(()),
            written => written,
        }) as Sync);
        ArchiveFile {
            file,
            behind,
            position: 0,
            shares,
            row: None,
        }
    }

    fn end_row(&mut self) -> io::Result<()> {
        let Some(Row { from, range }) = self.row.take() else {
            return Ok(());
        };
        // Only whole blocks of the file system can be shared.
        let first = range.start.next_multiple_of(PIECE_BYTES).min(range.end);
        let last = (range.end - range.end % PIECE_BYTES).max(first);
        for part in [range.start..first, first..last, last..range.end] {
            self.copy(&from, part)?;
        }
        Ok(())
    }

    fn copy(&mut self, from: &File, mut range: Range<u64>) -> io::Result<()> {
        while !range.is_empty() {
            let most = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let (source, target) = ((from, range.start), (&*self.file, self.position));
            let copied = match file_system::copy_range(source, target, most)? {
                Some(copied) => copied,
                None => {
                    let mut bytes = vec![0; most.min(COPY_BYTES)];
                    from.read_exact_at(&mut bytes, range.start)?;
                    self.file.write_all_at(&bytes, self.position)?;
                    bytes.len()
                }
            };
            range.start += copied as u64;
            self.advance(copied as u64)?;
        }
        Ok(())
    }

    fn advance(&mut self, bytes: u64) -> io::Result<()> {
        self.position += bytes;
        self.behind.wrote(bytes)
    }
}

impl Sink for ArchiveFile {
    fn shared_piece_bytes(&self) -> Option<u64> {
        self.shares.then_some(PIECE_BYTES)
    }

    fn write_taken(&mut self, taken: &ReusedBlock) -> io::Result<()> {
        if !self.shares {
            return self.write_all(&taken.block);
        }
        let end = taken.offset + taken.block.len() as u64;
        match &mut self.row {
            Some(row) if row.range.end == taken.offset && Arc::ptr_eq(&row.from, &taken.file) => {
                row.range.end = end
            }
            _ => {
                self.end_row()?;
                self.row = Some(Row {
                    from: taken.file.clone(),
                    range: taken.offset..end,
                });
            }
        }
        Ok(())
    }
}

impl Write for ArchiveFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.end_row()?;
        let written = self.file.write_at(bytes, self.position)?;
        self.advance(written as u64)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.end_row()?;
        self.behind.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        archive::{
            block::{Compression, Content},
            block_writer::{Encoder, Written},
            encryption::Keys,
            reader::{Discard, read_archive},
            reuse::ReuseSource,
            seal::SealedFile,
        },
        error::{Code, Result},
        util::operation::{OperationContext, Phase},
    };

    /// Writes pieces of content, each of which begins a block.
    fn write(
        path: &std::path::Path,
        compression: Compression,
        pieces: &[Vec<u8>],
        earlier: Option<Arc<ReuseSource>>,
    ) -> Result<Written> {
        let mut file = ArchiveFile::new(File::create(path).unwrap());
        // Pretends that the file system shares extents; the kernel copies if it does not.
        file.shares = true;
        let mut encoder = Encoder::new(Box::new(file), compression, earlier).unwrap();
        for piece in pieces {
            encoder.write_all(piece).unwrap();
            encoder.begin(Content::Other).unwrap();
        }
        encoder.finish()
    }

    fn content(path: &std::path::Path, compression: Compression) -> Vec<u8> {
        let file = File::open(path).unwrap();
        let mut content = Vec::new();
        match compression {
            Compression::Zstd(_) => zstd::stream::copy_decode(file, &mut content).unwrap(),
            _ => drop(
                flate2::read::MultiGzDecoder::new(file)
                    .read_to_end(&mut content)
                    .unwrap(),
            ),
        }
        content
    }

    fn noise(seed: u8, bytes: usize) -> Vec<u8> {
        (0..bytes as u32)
            .map(|n| (n.wrapping_mul(2_654_435_761 + u32::from(seed)) >> 13) as u8)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_archive_that_takes_blocks_over_holds_what_was_written_and_is_sealed(
            before in prop::collection::vec((0..6_u8, 1..40_000_usize), 1..12),
            after in prop::collection::vec((0..6_u8, 1..40_000_usize), 1..12),
            kept in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            compression in prop_oneof![Just(Compression::GZIP), Just(Compression::ZSTD)],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (old, new) = (dir.path().join("old"), dir.path().join("new"));
            let before: Vec<Vec<u8>> = before.into_iter().map(|(seed, bytes)| noise(seed, bytes)).collect();
            let first = write(&old, compression, &before, None).unwrap();
            let mut pieces: Vec<Vec<u8>> = kept.into_iter().map(|index| index.get(&before).clone()).collect();
            let kept_any = !pieces.is_empty();
            pieces.extend(after.into_iter().map(|(seed, bytes)| noise(seed ^ 64, bytes)));
            let earlier = ReuseSource::new(&old, first.record(String::new()), &Default::default());
            let second = write(&new, compression, &pieces, Some(Arc::new(earlier))).unwrap();
            prop_assert_eq!(content(&new, compression), pieces.concat());
            prop_assert_eq!(second.reused_bytes > 0, kept_any);
            let facts = SealedFile::new(Box::new(File::open(&new).unwrap())).unwrap().finish(|| false).unwrap();
            prop_assert!(facts.sealed && facts.sha256 == second.file.sha256 && facts.size_bytes == second.file.size_bytes);
            // The content is not a tar file, so the archive is not one of ours, but every block is
            // readable.
            let report = read_archive(&crate::place::Archive::at(&new), &Keys::default(), None, &mut Discard, &OperationContext::default(), Phase::Verifying).unwrap();
            prop_assert!(report.problems.iter().all(|problem| !problem.message.contains("block")), "{:?}", report.problems);
        }
    }

    #[test]
    fn an_earlier_archive_that_was_changed_anywhere_gives_nothing_to_an_archive_that_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let pieces = [noise(1, 3000), noise(2, 3000)];
        let first = write(&old, Compression::GZIP, &pieces, None).unwrap();
        let whole = std::fs::read(&old).unwrap();
        for at in (0..whole.len()).step_by(97) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&old, changed).unwrap();
            let earlier = ReuseSource::new(&old, first.record(String::new()), &Default::default());
            match write(&new, Compression::GZIP, &pieces, Some(Arc::new(earlier))) {
                Ok(second) => {
                    let content = content(&new, Compression::GZIP);
                    assert_eq!(
                        (second.reused_bytes, content),
                        (0, pieces.concat()),
                        "byte {at}"
                    );
                }
                Err(error) => assert_eq!(error.code, Code::BaseUnusable, "byte {at}"),
            }
        }
    }
}
