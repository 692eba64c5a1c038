//! The writing half of the container: bytes go in, a sealed archive comes out.
//!
//! ```text
//! tar ─▶ pieces ─▶ on any core: taken over from an earlier archive, or compressed ─▶ in order, hashed ─▶ file ─▶ seal
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
    error::{Code, Error, Result},
    util::{
        content_hash::{ContentHash, content_hash},
        hex::hex,
        operation::POLL_INTERVAL,
        ordered_pool::{self, Submit, cores},
        threads,
    },
};

/// What is under way for each worker, in blocks of a full backup: enough that nobody waits for another one's turn on the processor.
const BYTES_PER_WORKER: usize = 1024 * 1024;
const LEAST_BLOCKS_PER_WORKER: usize = 4;
/// More than an empty block takes.
const LEAST_FILLER_BYTES: u64 = 128;

/// A file as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileDigest {
    pub size_bytes: u64,
    pub sha256: [u8; DIGEST_BYTES],
}

/// An archive as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub file: FileDigest,
    /// Of its blocks, see [`super::block_digest`]; `None` for an archive without, or one whose blocks are encrypted.
    pub root: Option<[u8; DIGEST_BYTES]>,
    /// How much of it was taken over from an earlier archive.
    pub reused_bytes: u64,
}

impl Written {
    /// As the manifest beside it has it.
    pub fn record(&self, name: String) -> ArchiveRecord {
        let root = self.root.map(|root| hex(&root));
        ArchiveRecord {
            name,
            size: self.file.size_bytes,
            sha256: hex(&self.file.sha256),
            root,
        }
    }
}

/// A file or a connection that an archive is written to.
pub trait Sink: Write + Send {
    /// The size of the pieces that it can share with an earlier archive instead of holding them twice, where it can.
    fn shared_piece_bytes(&self) -> Option<u64> {
        None
    }

    /// Writes a block that an earlier archive has.
    fn write_taken(&mut self, taken: &ReusedBlock) -> io::Result<()> {
        self.write_all(&taken.block)
    }

    /// Ends it, once. What the file is, where it is not what was written to this.
    fn finish(&mut self) -> io::Result<Option<FileDigest>> {
        self.flush().map(|()| None)
    }
}

/// Writes one archive's bytes. Without [`Encoder::finish`] there is no seal, and so no archive.
///
/// After an error of [`Write`], `finish` tells the cause.
pub struct Encoder {
    block: Vec<u8>,
    content: Content,
    compression: Compression,
    pipeline: Option<Submit<Piece, Item>>,
    output: Option<JoinHandle<Result<Written>>>,
    earlier: Option<Arc<ReuseSource>>,
}

/// What the producer hands to the workers.
enum Piece {
    /// With the hash of it, where it is known.
    Block(Vec<u8>, Content, Option<ContentHash>),
    /// The block of the earlier archive that holds what has this hash.
    Earlier(ContentHash),
    Mark(Sender<u64>),
    End,
}

/// What the workers hand to the output.
enum Item {
    /// With its own hash, where it is one.
    Block(Vec<u8>, ContentHash),
    Taken(ReusedBlock),
    /// Answered with the number of bytes that were written before it.
    Mark(Sender<u64>),
    /// Nothing follows: the archive is sealed.
    End,
    Failed(Error),
}

impl Encoder {
    /// Blocks that `earlier` has are taken over from there.
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

    /// What a full block of a whole file or database holds.
    pub fn block_bytes(&self) -> usize {
        self.compression.block_bytes()
    }

    /// What comes next begins a block of its own, and is of this kind.
    pub fn begin(&mut self, content: Content) -> io::Result<()> {
        self.end_block()?;
        self.content = content;
        Ok(())
    }

    /// Writes a block of which the hash is known.
    pub fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> io::Result<()> {
        self.end_block()?;
        self.submit(Piece::Block(block, self.content, Some(hash)))
    }

    /// Writes the block of the earlier archive that holds what has this hash.
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

    /// How many bytes of the archive everything takes that was written until now.
    pub fn size_so_far(&mut self) -> io::Result<u64> {
        self.end_block()?;
        let (mark, size) = bounded(1);
        self.submit(Piece::Mark(mark))?;
        // An output that failed may leave the mark in a queue that nobody empties.
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

    /// Writes what is left and the seal.
    pub fn finish(&mut self) -> Result<Written> {
        // Where this fails the output has ended, with the cause that is returned below.
        let _ = self.end_block().and_then(|()| self.submit(Piece::End));
        self.pipeline = None;
        match self.output.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            _ => Err(Error::new(
                Code::Internal,
                "The thread that writes the archive panicked",
                "Please report this",
            )),
        }
    }

    fn submit(&self, piece: Piece) -> io::Result<()> {
        let pipeline = self.pipeline.as_ref().ok_or_else(gave_up)?;
        pipeline.submit(piece).map_err(|_| gave_up())
    }
}

impl Drop for Encoder {
    /// Workers that wait for the earlier archive end with this.
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

    /// Blocks end where they are full, not where a caller flushes.
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

/// The function of one worker.
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

/// The output thread: everything in order, hashed, then the seal, unless the producer gave up.
struct Output {
    sink: Box<dyn Sink>,
    container: Container,
    hasher: Sha256,
    /// Takes the hash of each block.
    root: Sha256,
    written: u64,
    reused: u64,
    /// Makes fillers, where the sink can share pieces of an earlier archive.
    fillers: Option<(Packer, u64)>,
    earlier: Option<Arc<ReuseSource>>,
    /// Where in it the block ends that was written last.
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
                // Where nobody waits for it any more, the producer has given up, and the items end.
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

    /// Pieces can be shared where they are at places of the same kind in both files, so the first block of a row is moved there.
    fn write_taken(&mut self, taken: &ReusedBlock) -> Result<()> {
        if let Some((packer, piece_bytes)) = &mut self.fillers
            && self.taken_end != Some(taken.offset)
        {
            let (here, there) = (self.written % *piece_bytes, taken.offset % *piece_bytes);
            let gap = (there + *piece_bytes - here) % *piece_bytes;
            // Any filler takes some bytes.
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

    /// Fails from the `writes_left`th write on, as a full disk does.
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
