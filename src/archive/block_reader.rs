//! The reading half of the container: reads the bytes of an archive and returns its tar.
//!
//! One thread reads the file block by block and hashes it, all cores decompress, and the caller
//! reads the result in order. A damaged block is recorded and returned as zeros, so that a check
//! can report which other parts are intact. A caller that accepts only intact archives must check
//! [`Decoder::damages`] before it trusts a byte.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    block::{BadBlock, HEAD_BYTES, Head, Unpacker},
    seal::{Container, FileFacts, SealedFile},
};
use crate::{
    error::{Error, Result},
    util::{
        operation::CancelToken,
        ordered_pool::{self, Closed, Deliver, Submit, cores},
        progress::ByteProgress,
        threads,
    },
};

/// Blocks in flight per pool thread. The number is small because blocks of a forged archive can be
/// large.
const BLOCKS_PER_WORKER: usize = 4;
/// Size of the pieces in which an uncompressed archive is read.
const PLAIN_PIECE_BYTES: usize = 256 * 1024;
/// Interval at which the decoder checks whether the input thread has read the rest of the file.
const REST_POLL: Duration = Duration::from_millis(1);

/// A place in the archive whose bytes differ from what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Offset in the archive.
    pub offset: u64,
    /// Offset in the tar.
    pub tar_offset: u64,
    pub what: &'static str,
}

/// Reads the tar of an archive.
pub struct Decoder {
    blocks: Deliver<Block>,
    block: Vec<u8>,
    read: usize,
    /// Counts archive bytes up to the end of `block`; `tar_offset` is its offset in the tar.
    progress: ByteProgress,
    tar_offset: u64,
    damages: Vec<Damage>,
    is_damaged: Arc<AtomicBool>,
    file: Option<JoinHandle<io::Result<FileFacts>>>,
    /// Cancelled when the caller does not need the rest of the file.
    stop: CancelToken,
}

/// A piece of the tar and the number of archive bytes that it was decoded from.
struct Block {
    archive_bytes: u64,
    content: Result<Vec<u8>, BadBlock>,
}

enum Piece {
    Packed {
        block: Vec<u8>,
        head: Head,
        container: Container,
    },
    Plain(Vec<u8>),
    Unreadable {
        archive_bytes: u64,
        what: &'static str,
    },
}

impl Decoder {
    /// Starts to read the archive. `progress` counts the archive bytes that have been decoded, from
    /// 0.
    pub fn new(file: SealedFile, progress: ByteProgress) -> io::Result<Self> {
        let started = ordered_pool::ordered(cores(), BLOCKS_PER_WORKER, || {
            let mut unpacker = Unpacker::default();
            move |piece| decode(piece, &mut unpacker)
        });
        let (submit, blocks) = started.map_err(io::Error::other)?;
        let stop = CancelToken::default();
        let stopped = stop.clone();
        let input = move || read_pieces(file, &submit, &stopped);
        let file = threads::start("kg-input", input).map_err(io::Error::other)?;
        Ok(Decoder {
            blocks,
            block: Vec::new(),
            read: 0,
            progress,
            tar_offset: 0,
            damages: Vec::new(),
            is_damaged: Arc::default(),
            file: Some(file),
            stop,
        })
    }

    /// Returns a flag that is set when damage is found.
    pub fn is_damaged(&self) -> Arc<AtomicBool> {
        self.is_damaged.clone()
    }

    /// Returns the damage found so far.
    pub fn damages(&self) -> &[Damage] {
        &self.damages
    }

    /// Decodes the rest and returns the facts about the whole file. Call it only once. It calls
    /// `tick` from time to time and stops if `tick` fails.
    pub fn finish(&mut self, mut tick: impl FnMut() -> Result<()>) -> Result<FileFacts> {
        while self.next_block()? {
            tick()?;
        }
        // If the blocks end early, the input thread still reads the rest of the file for its
        // digest.
        while self.file.as_ref().is_some_and(|file| !file.is_finished()) {
            tick()?;
            thread::sleep(REST_POLL);
        }
        match self.file.take().map(JoinHandle::join) {
            Some(Ok(facts)) => {
                facts.map_err(|cause| Error::io("read", "the archive".as_ref(), cause))
            }
            _ => Err(Error::internal(
                "The thread that reads the archive panicked",
            )),
        }
    }

    /// Moves to the next block and skips the unread rest of the current one. Returns false at the
    /// end.
    fn next_block(&mut self) -> Result<bool> {
        let Some(block) = self.blocks.next() else {
            self.read = self.block.len();
            return Ok(false);
        };
        let Block {
            archive_bytes,
            content,
        } = block?;
        self.read = 0;
        self.block = content.unwrap_or_else(|BadBlock { what, tar_bytes }| {
            let offset = self.progress.done();
            self.is_damaged.store(true, Ordering::Relaxed);
            self.damages.push(Damage {
                offset,
                tar_offset: self.tar_offset,
                what,
            });
            vec![0; tar_bytes as usize]
        });
        self.progress.add(archive_bytes);
        self.tar_offset += self.block.len() as u64;
        Ok(true)
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.block.len() {
            if !self.next_block().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let taken = buffer.len().min(self.block.len() - self.read);
        buffer[..taken].copy_from_slice(&self.block[self.read..self.read + taken]);
        self.read += taken;
        Ok(taken)
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn read_pieces(
    mut file: SealedFile,
    pieces: &Submit<Piece, Block>,
    stop: &CancelToken,
) -> io::Result<FileFacts> {
    loop {
        let piece = match file.container() {
            Container::Plain => next_plain(&mut file)?,
            Container::Gzip | Container::Zstd => next_block(&mut file)?,
        };
        let Some(piece) = piece else { break };
        let is_last = matches!(piece, Piece::Unreadable { .. });
        // `Closed` means that the caller needs no more content.
        if pieces.submit(piece) == Err(Closed) || is_last {
            break;
        }
    }
    file.finish(|| stop.is_cancelled())
}

fn next_plain(file: &mut SealedFile) -> io::Result<Option<Piece>> {
    let mut piece = Vec::new();
    append(&mut piece, file, PLAIN_PIECE_BYTES)?;
    Ok((!piece.is_empty()).then_some(Piece::Plain(piece)))
}

fn next_block(file: &mut SealedFile) -> io::Result<Option<Piece>> {
    let container = file.container();
    let mut block = Vec::new();
    append(&mut block, file, HEAD_BYTES)?;
    if block.is_empty() {
        return Ok(None);
    }
    let unreadable = |what, read: usize| {
        Ok(Some(Piece::Unreadable {
            archive_bytes: read as u64,
            what,
        }))
    };
    let head = match Head::parse(&block, container) {
        Ok(Some(head)) => head,
        Ok(None) => {
            return unreadable("a block has no valid header", block.len());
        }
        Err(what) => return unreadable(what, block.len()),
    };
    append(&mut block, file, head.size - HEAD_BYTES)?;
    if block.len() < head.size {
        return unreadable("the archive ends within a block", block.len());
    }
    Ok(Some(Piece::Packed {
        block,
        head,
        container,
    }))
}

/// Appends `count` bytes of `file`, or fewer if the file ends.
fn append(bytes: &mut Vec<u8>, file: &mut impl Read, count: usize) -> io::Result<()> {
    append_from(bytes, count, |rest, _| file.read(rest))
}

/// Appends `count` bytes, or fewer if `read` returns 0. `read` fills the start of the slice that it
/// gets. Its second argument is the number of bytes that came before.
pub(super) fn append_from(
    bytes: &mut Vec<u8>,
    count: usize,
    mut read: impl FnMut(&mut [u8], usize) -> io::Result<usize>,
) -> io::Result<()> {
    let start = bytes.len();
    let mut filled = start;
    bytes.resize(start + count, 0);
    while filled < bytes.len() {
        match read(&mut bytes[filled..], filled - start) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    bytes.truncate(filled);
    Ok(())
}

fn decode(piece: Piece, unpacker: &mut Unpacker) -> Block {
    match piece {
        Piece::Plain(bytes) => Block {
            archive_bytes: bytes.len() as u64,
            content: Ok(bytes),
        },
        Piece::Unreadable {
            archive_bytes,
            what,
        } => Block {
            archive_bytes,
            content: Err(BadBlock { what, tar_bytes: 0 }),
        },
        Piece::Packed {
            block,
            head,
            container,
        } => Block {
            archive_bytes: block.len() as u64,
            content: unpacker.unpack(&block, head, container),
        },
    }
}
