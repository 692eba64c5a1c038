//! The writing half of the container: takes the bytes of a tar and writes a sealed archive.
//!
//! ```text
//! tar ─▶ pieces ─▶ on all cores: reused from an earlier archive, or compressed
//!               ─▶ in order, hashed ─▶ file ─▶ seal
//! ```

use std::{
    io::{self, Write},
    sync::Arc,
    thread::JoinHandle,
};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use sha2::{Digest, Sha256};

use super::{
    block::{Compression, Content, Packer},
    manifest::ArchiveRecord,
    reuse::{self, ReuseSource, ReusedBlock},
    seal::{Container, DIGEST_BYTES},
};
use crate::{
    error::{Error, Result},
    util::{
        content_hash::{ContentHash, content_hash},
        hex::hex,
        operation::POLL_INTERVAL,
        ordered_pool::{self, Submit, cores},
        threads,
    },
};

/// Content in flight per pool thread, in blocks of a full backup. It is large enough that no thread
/// waits until another one is scheduled.
const BYTES_PER_WORKER: usize = 1024 * 1024;
const LEAST_BLOCKS_PER_WORKER: usize = 4;
/// An upper bound for the size of an empty block.
const LEAST_FILLER_BYTES: u64 = 128;

/// Size and digest of a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    pub size_bytes: u64,
    pub sha256: [u8; DIGEST_BYTES],
}

/// Facts about an archive that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub file: FileDigest,
    /// Root of its blocks, see [`super::block_digest`]. `None` for an archive without blocks and
    /// for an encrypted archive.
    pub root: Option<[u8; DIGEST_BYTES]>,
    /// Number of bytes that were reused from an earlier archive.
    pub reused_bytes: u64,
}

impl Written {
    /// Returns the record for the sidecar.
    pub fn record(&self, name: String) -> ArchiveRecord {
        let root = self.root.map(|root| hex(&root));
        ArchiveRecord {
            name,
            size: self.file.size_bytes,
            sha256: hex(&self.file.sha256),
            root,
            list_offset: None,
            object: None,
        }
    }
}

/// A file or a connection that an archive is written to.
pub trait Sink: Write + Send {
    /// Returns the size of the pieces that the sink can share with an earlier archive instead of
    /// storing them twice. Returns `None` if it cannot share.
    fn shared_piece_bytes(&self) -> Option<u64> {
        None
    }

    /// Writes a block that an earlier archive contains.
    fn write_taken(&mut self, taken: &ReusedBlock) -> io::Result<()> {
        self.write_all(&taken.block)
    }

    /// Ends the archive. Call it only once. If the sink transforms the bytes, it returns the digest
    /// of the resulting file.
    fn finish(&mut self) -> io::Result<Option<FileDigest>> {
        self.flush().map(|()| None)
    }
}

/// Writes the bytes of one archive. Without [`Encoder::finish`] the archive has no seal and is not
/// valid.
///
/// After an error of [`Write`], [`Encoder::finish`] returns the cause.
pub struct Encoder {
    block: Vec<u8>,
    content: Content,
    compression: Compression,
    pipeline: Option<Submit<Piece, Item>>,
    output: Option<JoinHandle<Result<Written>>>,
    earlier: Option<Arc<ReuseSource>>,
}

/// A message from the producer to the pool threads.
enum Piece {
    /// Content, with its hash if the hash is known.
    Block(Vec<u8>, Content, Option<ContentHash>),
    /// Stands for the block of the earlier archive whose content has this hash.
    Earlier(ContentHash),
    Mark(Sender<u64>),
    End,
}

/// A message from the pool threads to the output thread.
enum Item {
    /// A block with the hash of its stored bytes. In an uncompressed archive the hash is not used.
    Block(Vec<u8>, ContentHash),
    Taken(ReusedBlock),
    /// Asks for the number of archive bytes written before this mark.
    Mark(Sender<u64>),
    /// Nothing follows, so the output thread seals the archive.
    End,
    Failed(Error),
}

impl Encoder {
    /// Creates an encoder. It reuses the blocks that `earlier` contains.
    pub fn new(
        sink: Box<dyn Sink>,
        compression: Compression,
        earlier: Option<Arc<ReuseSource>>,
    ) -> Result<Self> {
        let container = compression.container();
        let workers = if container == Container::Plain {
            1
        } else {
            cores()
        };
        let blocks_per_worker =
            (BYTES_PER_WORKER / compression.block_bytes()).max(LEAST_BLOCKS_PER_WORKER);
        let packers = (0..workers)
            .map(|_| Packer::new(compression))
            .collect::<Result<Vec<_>>>()?;
        let packers = std::cell::RefCell::new(packers);
        let worker = || packing(packers.borrow_mut().pop().flatten(), earlier.clone());
        let (submit, deliver) = ordered_pool::ordered(workers, blocks_per_worker, worker)?;
        let needed = earlier.clone();
        let output = threads::start("kg-output", move || {
            let written = Output::new(sink, compression, earlier.clone())
                .and_then(|output| output.write_all(deliver));
            if written.is_err() {
                earlier.iter().for_each(|earlier| earlier.give_up());
            }
            written
        })?;
        Ok(Encoder {
            block: Vec::new(),
            content: Content::Other,
            compression,
            pipeline: Some(submit),
            output: Some(output),
            earlier: needed,
        })
    }

    /// Returns the content size of a full block in a file or database that is stored in full.
    pub fn block_bytes(&self) -> usize {
        self.compression.block_bytes()
    }

    /// Ends the current block. The bytes that follow begin a new block of this kind.
    pub fn begin(&mut self, content: Content) -> io::Result<()> {
        self.end_block()?;
        self.content = content;
        Ok(())
    }

    /// Writes a block whose hash is known.
    pub fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> io::Result<()> {
        self.end_block()?;
        self.submit(Piece::Block(block, self.content, Some(hash)))
    }

    /// Writes the block of the earlier archive whose content has this hash.
    pub fn reuse_block(&mut self, hash: ContentHash) -> io::Result<()> {
        self.end_block()?;
        self.submit(Piece::Earlier(hash))
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        self.submit(Piece::Block(block, self.content, None))
    }

    /// Returns the number of archive bytes that everything written so far takes.
    pub fn size_so_far(&mut self) -> io::Result<u64> {
        self.end_block()?;
        let (mark, size) = bounded(1);
        self.submit(Piece::Mark(mark))?;
        // If the output thread fails, the mark may stay in a queue that is no longer read.
        while self
            .output
            .as_ref()
            .is_some_and(|output| !output.is_finished())
        {
            match size.recv_timeout(POLL_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                answer => return answer.map_err(|_| gave_up()),
            }
        }
        size.try_recv().map_err(|_| gave_up())
    }

    /// Writes the rest and the seal.
    pub fn finish(&mut self) -> Result<Written> {
        // If this fails, the output thread has ended, and its error is returned below.
        let _ = self.end_block().and_then(|()| self.submit(Piece::End));
        self.pipeline = None;
        match self.output.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            _ => Err(Error::internal(
                "The thread that writes the archive panicked",
            )),
        }
    }

    fn submit(&self, piece: Piece) -> io::Result<()> {
        let pipeline = self.pipeline.as_ref().ok_or_else(gave_up)?;
        pipeline.submit(piece).map_err(|_| gave_up())
    }
}

impl Drop for Encoder {
    /// Ends the pool threads that wait for the earlier archive.
    fn drop(&mut self) {
        self.earlier.iter().for_each(|earlier| earlier.give_up());
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block_bytes = self.compression.block_bytes_of(self.content);
        if self.block.capacity() == 0 {
            self.block.reserve(block_bytes);
        }
        let taken = bytes.len().min(block_bytes - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == block_bytes {
            self.end_block()?;
        }
        Ok(taken)
    }

    /// Does nothing: blocks end when they are full, not when a caller flushes.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn gave_up() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the archive's output ended early",
    )
}

/// Returns the function that one pool thread runs.
fn packing(
    mut packer: Option<Packer>,
    earlier: Option<Arc<ReuseSource>>,
) -> impl FnMut(Piece) -> Item + Send + 'static {
    move |piece| match (piece, &mut packer) {
        (Piece::Block(bytes, content, hash), Some(packer)) => {
            let hash = hash.unwrap_or_else(|| content_hash(&bytes));
            match earlier.as_ref().and_then(|earlier| earlier.block(&hash)) {
                Some(taken) => Item::Taken(taken),
                None => packer
                    .pack(&bytes, content, &hash)
                    .map_or_else(Item::Failed, |block| {
                        let hash = content_hash(&block);
                        Item::Block(block, hash)
                    }),
            }
        }
        (Piece::Block(bytes, ..), None) => Item::Block(bytes, ContentHash::default()),
        (Piece::Earlier(hash), _) => {
            let taken = earlier.as_ref().and_then(|earlier| earlier.block(&hash));
            taken.map_or_else(|| Item::Failed(reuse::source_changed()), Item::Taken)
        }
        (Piece::Mark(mark), _) => Item::Mark(mark),
        (Piece::End, _) => Item::End,
    }
}

/// The output thread. It writes and hashes everything in order, then writes the seal unless the
/// producer gave up.
struct Output {
    sink: Box<dyn Sink>,
    container: Container,
    hasher: Sha256,
    /// Digest over the hashes of all blocks.
    root: Sha256,
    written: u64,
    reused: u64,
    /// Creates filler blocks, if the sink can share pieces of an earlier archive.
    fillers: Option<(Packer, u64)>,
    earlier: Option<Arc<ReuseSource>>,
    /// Offset in the earlier archive at which the last reused block ends.
    taken_end: Option<u64>,
}

impl Output {
    fn new(
        sink: Box<dyn Sink>,
        compression: Compression,
        earlier: Option<Arc<ReuseSource>>,
    ) -> Result<Self> {
        let fillers = Packer::new(compression)?.zip(sink.shared_piece_bytes());
        Ok(Output {
            sink,
            container: compression.container(),
            hasher: Sha256::new(),
            root: Sha256::new(),
            written: 0,
            reused: 0,
            fillers,
            earlier,
            taken_end: None,
        })
    }

    fn write_all(mut self, items: impl Iterator<Item = Result<Item>>) -> Result<Written> {
        let mut is_whole = false;
        for item in items {
            match item? {
                Item::Block(block, hash) => self.write(&block, hash)?,
                Item::Taken(taken) => self.write_taken(&taken)?,
                // Sending fails if the producer has given up. The items end then too.
                Item::Mark(mark) => drop(mark.send(self.written)),
                Item::End => is_whole = true,
                Item::Failed(error) => return Err(error),
            }
        }
        if !is_whole {
            return Err(Error::aborted());
        }
        if self.reused > 0 {
            self.earlier.as_ref().map_or_else(
                || Err(reuse::source_changed()),
                |earlier| earlier.assert_as_written(),
            )?;
        }
        let seal = self.container.seal(&self.hasher.clone().finalize().into());
        self.write(&seal, content_hash(&seal))?;
        let transformed = self.sink.finish().map_err(failed)?;
        let has_blocks = self.container != Container::Plain && transformed.is_none();
        let archive = FileDigest {
            size_bytes: self.written,
            sha256: self.hasher.finalize().into(),
        };
        Ok(Written {
            file: transformed.unwrap_or(archive),
            root: has_blocks.then(|| self.root.finalize().into()),
            reused_bytes: self.reused,
        })
    }

    fn write(&mut self, bytes: &[u8], hash: ContentHash) -> Result<()> {
        self.hash(bytes, hash);
        self.taken_end = None;
        self.sink.write_all(bytes).map_err(failed)
    }

    fn hash(&mut self, bytes: &[u8], hash: ContentHash) {
        self.hasher.update(bytes);
        self.root.update(hash);
        self.written += bytes.len() as u64;
    }

    /// Writes a reused block. A sink can share a piece only if it has the same offset within a
    /// piece in both files. So a filler block moves the first block of each run to such an offset.
    fn write_taken(&mut self, taken: &ReusedBlock) -> Result<()> {
        if let Some((packer, piece_bytes)) = &mut self.fillers
            && self.taken_end != Some(taken.offset)
        {
            let (here, there) = (self.written % *piece_bytes, taken.offset % *piece_bytes);
            let gap = (there + *piece_bytes - here) % *piece_bytes;
            // A filler cannot be smaller than an empty block.
            let size = if gap > 0 && gap < LEAST_FILLER_BYTES {
                gap + *piece_bytes
            } else {
                gap
            };
            if size > 0 {
                let filler = packer.filler(size as usize)?;
                self.write(&filler, content_hash(&filler))?;
            }
        }
        let size = taken.block.len() as u64;
        self.hash(&taken.block, taken.hash);
        self.reused += size;
        self.taken_end = Some(taken.offset + size);
        self.sink.write_taken(taken).map_err(failed)
    }
}

fn failed(cause: io::Error) -> Error {
    Error::io("write", "the archive".as_ref(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    /// Fails from write number `writes_left` on, as a full disk does.
    struct Full {
        writes_left: usize,
    }

    impl Sink for Full {}

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes_left = self
                .writes_left
                .checked_sub(1)
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_is_full_at_any_write_is_an_error_and_never_a_wait() {
        for compression in [
            Compression::None,
            Compression::Gzip(1),
            Compression::Zstd(1),
        ] {
            let block: Vec<u8> = (0..compression.block_bytes())
                .map(|n| (n * n % 251) as u8)
                .collect();
            for writes_left in 0..12 {
                let mut encoder =
                    Encoder::new(Box::new(Full { writes_left }), compression, None).unwrap();
                let written = (0..10).try_for_each(|_| encoder.write_all(&block));
                let size = encoder.size_so_far();
                let finished = encoder.finish();
                if writes_left <= 10 {
                    assert_eq!(
                        finished.unwrap_err().code,
                        Code::NoSpace,
                        "{compression:?}, {writes_left}"
                    );
                } else {
                    assert!(
                        written.is_ok() && size.is_ok() && finished.is_ok(),
                        "{compression:?}, {writes_left}"
                    );
                }
            }
        }
    }
}
