//! The writing half of the container: bytes go in, a sealed archive comes out.
//!
//! The stream is cut into blocks; each becomes a gzip member of its own, compressed by libdeflate on any core, and the
//! members are written in order. Every gzip reads them as one stream (RFC 1952, 2.2). An extra field of each member holds
//! its size, so that this crate reads members on all cores too.

use std::{
    io::{self, Write},
    thread::{self, JoinHandle},
};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use libdeflater::{CompressionLvl, Compressor, crc32};
use sha2::{Digest, Sha256};

use super::seal::{Container, DIGEST_BYTES};
use crate::{
    error::{Code, Error, Result},
    parallel::{self, Submit, cores},
    task::POLL_INTERVAL,
};

/// What one member holds. Smaller ones cost size (1.4 % at 128 KiB, 0.2 % at 1 MiB), larger ones memory.
pub const BLOCK_BYTES: usize = 512 * 1024;
/// A member's header: the ten bytes of RFC 1952, then one extra field `KG` with the size of the member.
pub const MEMBER_HEADER_BYTES: usize = 20;
/// CRC and length.
pub const MEMBER_TRAILER_BYTES: usize = 8;
const MEMBER_START: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0, b'K', b'G', 4, 0];

/// libdeflate's level for each of gzip's from 1 on: the fastest one whose archives are no larger than gzip's, as measured
/// on databases of text (`docs/performance.md`).
const LIBDEFLATE_LEVELS: [i32; 9] = [1, 2, 3, 4, 5, 5, 6, 7, 9];

/// Whether and how hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    /// 1 (fast) to 9 (small), as gzip means them.
    Gzip(u8),
}

/// An archive as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub size_bytes: u64,
    pub sha256: [u8; DIGEST_BYTES],
}

/// A file or a connection that an archive is written to.
pub type Sink = Box<dyn Write + Send>;

/// Writes one archive's bytes. Without [`Encoder::finish`] there is no seal, and so no archive.
///
/// After an error of [`Write`], `finish` tells the cause.
pub struct Encoder {
    block: Vec<u8>,
    pipeline: Option<Submit<Item, Item>>,
    output: Option<JoinHandle<Result<Written>>>,
}

/// What travels from the producer through the workers to the output.
enum Item {
    Bytes(Vec<u8>),
    /// Answered with the number of bytes that were written before it.
    Mark(Sender<u64>),
    /// Nothing follows: the archive is sealed.
    End,
}

impl Encoder {
    pub fn new(sink: Sink, compression: Compression) -> Result<Self> {
        let (container, workers) = match compression {
            Compression::None => (Container::Plain, 1),
            Compression::Gzip(_) => (Container::Gzip, cores()),
        };
        let (submit, deliver) = parallel::ordered(workers, || member_maker(compression))?;
        let output = thread::Builder::new()
            .name("kg-output".into())
            .spawn(move || write_all(deliver, sink, container))
            .map_err(|cause| {
                Error::new(Code::Internal, "No thread could be started", "Run it again").with_cause(cause)
            })?;
        Ok(Encoder { block: Vec::with_capacity(BLOCK_BYTES), pipeline: Some(submit), output: Some(output) })
    }

    /// Ends the current block, so that what comes next begins a member of its own.
    pub fn end_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        self.submit(Item::Bytes(block))
    }

    /// How many bytes of the archive everything takes that was written until now.
    pub fn size_so_far(&mut self) -> io::Result<u64> {
        self.end_block()?;
        let (mark, size) = bounded(1);
        self.submit(Item::Mark(mark))?;
        // An output that failed may leave the mark in a queue that nobody empties.
        while self.output.as_ref().is_some_and(|output| !output.is_finished()) {
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
        let _ = self.end_block().and_then(|()| self.submit(Item::End));
        self.pipeline = None;
        match self.output.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            _ => Err(Error::new(Code::Internal, "The thread that writes the archive panicked", "Please report this")),
        }
    }

    fn submit(&self, item: Item) -> io::Result<()> {
        let pipeline = self.pipeline.as_ref().ok_or_else(gave_up)?;
        pipeline.submit(item).map_err(|_| gave_up())
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
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
    io::Error::new(io::ErrorKind::BrokenPipe, "the archive's output ended early")
}

/// The function of one worker.
fn member_maker(compression: Compression) -> impl FnMut(Item) -> Item + Send + 'static {
    let mut compressor = match compression {
        Compression::None => None,
        Compression::Gzip(level) => {
            let own = LIBDEFLATE_LEVELS[usize::from(level.clamp(1, 9)) - 1];
            Some(Compressor::new(CompressionLvl::new(own).unwrap_or_default()))
        }
    };
    move |item| match (item, &mut compressor) {
        (Item::Bytes(block), Some(compressor)) => Item::Bytes(member(&block, compressor)),
        (item, _) => item,
    }
}

/// One gzip member around `block`.
pub fn member(block: &[u8], compressor: &mut Compressor) -> Vec<u8> {
    let bound = compressor.deflate_compress_bound(block.len());
    let mut member = vec![0; MEMBER_HEADER_BYTES + bound + MEMBER_TRAILER_BYTES];
    let deflated = compressor
        .deflate_compress(block, &mut member[MEMBER_HEADER_BYTES..MEMBER_HEADER_BYTES + bound])
        .unwrap_or_else(|_| unreachable!("libdeflate's bound holds"));
    let size = MEMBER_HEADER_BYTES + deflated + MEMBER_TRAILER_BYTES;
    member[..16].copy_from_slice(&MEMBER_START);
    member[16..20].copy_from_slice(&(size as u32).to_le_bytes());
    member[size - 8..size - 4].copy_from_slice(&crc32(block).to_le_bytes());
    member[size - 4..size].copy_from_slice(&(block.len() as u32).to_le_bytes());
    member.truncate(size);
    member
}

/// The size of the member that starts with `header`; `None` where it is not one of this crate's.
pub fn member_size(header: &[u8; MEMBER_HEADER_BYTES]) -> Option<u32> {
    let [start @ .., a, b, c, d] = header;
    (start == &MEMBER_START).then(|| u32::from_le_bytes([*a, *b, *c, *d]))
}

/// The output thread: everything in order, hashed, then the seal, unless the producer gave up.
fn write_all(items: impl Iterator<Item = Result<Item>>, mut sink: Sink, container: Container) -> Result<Written> {
    let failed = |cause| Error::io("write", "the archive".as_ref(), cause);
    let mut hasher = Sha256::new();
    let mut size_bytes = 0;
    let mut is_whole = false;
    for item in items {
        match item? {
            Item::Bytes(bytes) => {
                hasher.update(&bytes);
                sink.write_all(&bytes).map_err(failed)?;
                size_bytes += bytes.len() as u64;
            }
            // Where nobody waits for it any more, the producer has given up, and the items end.
            Item::Mark(mark) => drop(mark.send(size_bytes)),
            Item::End => is_whole = true,
        }
    }
    if !is_whole {
        return Err(Error::aborted());
    }
    let seal = container.seal(&hasher.clone().finalize().into());
    hasher.update(&seal);
    sink.write_all(&seal).and_then(|()| sink.flush()).map_err(failed)?;
    Ok(Written { size_bytes: size_bytes + seal.len() as u64, sha256: hasher.finalize().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails from the `writes_left`th write on, as a full disk does.
    struct Full {
        writes_left: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes_left = self.writes_left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_is_full_at_any_write_is_an_error_and_never_a_wait() {
        let block: Vec<u8> = (0..BLOCK_BYTES).map(|n| (n * n % 251) as u8).collect();
        for compression in [Compression::None, Compression::Gzip(1)] {
            for writes_left in 0..12 {
                let mut encoder = Encoder::new(Box::new(Full { writes_left }), compression).unwrap();
                let written = (0..10).try_for_each(|_| encoder.write_all(&block));
                let size = encoder.size_so_far();
                let finished = encoder.finish();
                if writes_left <= 10 {
                    assert_eq!(finished.unwrap_err().code, Code::NoSpace, "{compression:?}, {writes_left}");
                } else {
                    assert!(written.is_ok() && size.is_ok() && finished.is_ok(), "{compression:?}, {writes_left}");
                }
            }
        }
    }
}
