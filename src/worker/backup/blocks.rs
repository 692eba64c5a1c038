//! Reads a database once, block by block.
//!
//! ```text
//! a thread:       read ─▶ scrub ─▶ fast check
//! another thread: hash ─▶ compare with an earlier backup
//! this thread:    send
//! ```
//!
//! A block is hashed as a whole first. If an earlier backup has the same block at the same place,
//! its page hashes are known too. Otherwise each page is hashed, which takes longer.

use std::{
    fs::File,
    io::{self, BufWriter},
    iter, thread,
};

use crossbeam_channel::bounded;
use sha2::{Digest, Sha256};

use super::hashes_failed;
use crate::{
    error::{Error, Result},
    sqlite::{
        fast_check::FastCheck,
        page_hashes::{BlockHashes, DatabaseHashes, PageCursor, PageFileWriter, Section},
        scrub::Scrubber,
        snapshot::Snapshot,
    },
    util::{
        content_hash::{ContentHash, content_hash},
        hex::hex,
        operation::CancelToken,
        threads::start_in,
    },
    worker::protocol::PAGE_HASHES_FILE,
};

/// How many bytes may wait between two threads, but at least a few blocks.
const BYTES_WAITING: usize = 2 * 1024 * 1024;
const LEAST_BLOCKS_WAITING: usize = 4;

/// How a database is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    pub path: &'a str,
    pub block_bytes: usize,
    /// Scrub deleted content from the pages.
    pub erase: bool,
    /// The hashes at an earlier backup.
    pub known: Option<&'a DatabaseHashes>,
}

/// A block of a database, scrubbed and hashed.
pub(super) struct Block {
    pub bytes: Vec<u8>,
    pub hash: ContentHash,
    /// Whether the earlier backup has the same block at the same place.
    pub is_known: bool,
}

/// What identifies a database that was read.
pub(super) struct ReadDatabase {
    pub blocks: BlockHashes,
    /// Root of the pages, see [`crate::sqlite::page_hashes`].
    pub pages_root: String,
    /// What differs from the earlier backup. `None` if it has no such database, or one with another
    /// page size.
    pub changes: Option<Changes>,
}

/// How the pages of a database differ from those of an earlier backup.
pub(super) struct Changes {
    /// The numbers of the pages that differ, or do not exist there, in ascending order.
    pub numbers: Vec<u64>,
    pub has_same_length: bool,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty() && self.has_same_length
    }
}

/// Calls `take` with each block, first to last. Writes the hashes to `out`.
pub(super) fn read(
    snapshot: &mut Snapshot,
    reading: Reading<'_>,
    mut fast_check: Option<&mut FastCheck>,
    out: Option<&mut PageHashesOut>,
    cancel: &CancelToken,
    mut take: impl FnMut(Block) -> Result<()>,
) -> Result<ReadDatabase> {
    let waiting = (BYTES_WAITING / reading.block_bytes).max(LEAST_BLOCKS_WAITING);
    let mut hashes = Hashes::new(snapshot, reading, out)?;
    thread::scope(|threads| {
        let (pieces, read) = bounded::<(u64, Vec<u8>)>(waiting);
        let (blocks, hashed) = bounded::<Block>(waiting);
        let read_all = move || {
            let page_bytes = snapshot.page_size_bytes() as usize;
            let mut scrubber = reading
                .erase
                .then(|| Scrubber::new(snapshot, cancel))
                .transpose()?;
            snapshot.read_chunks(reading.block_bytes, cancel, |first, piece| {
                for (number, page) in (first..).zip(piece.chunks_mut(page_bytes)) {
                    let read = scrubber
                        .as_mut()
                        .and_then(|scrubber| scrubber.scrub_unused(number, page));
                    if let Some(fast_check) = &mut fast_check {
                        fast_check.page(page, read);
                    }
                }
                let sent = pieces.send((first, std::mem::take(piece)));
                sent.map_err(|_| Error::aborted())
            })
        };
        let hash_all = move || {
            for (first, bytes) in read {
                let (hash, is_known) = hashes.add(first, &bytes)?;
                let block = Block {
                    bytes,
                    hash,
                    is_known,
                };
                blocks.send(block).map_err(|_| Error::aborted())?;
            }
            Ok(hashes)
        };
        let reading = start_in(threads, "kg-read", read_all)?;
        let hashing = start_in(threads, "kg-hash", hash_all)?;
        let taken = hashed.iter().try_for_each(&mut take);
        // This ends the threads that wait for room in a channel.
        drop(hashed);
        let panicked = || Error::internal("The reading of the database panicked");
        let hashed = hashing.join().unwrap_or_else(|_| Err(panicked()));
        let read = reading.join().unwrap_or_else(|_| Err(panicked()));
        // A thread that fails aborts those before it, which is not the cause.
        taken?;
        let hashes = hashed?;
        read?;
        hashes.finish()
    })
}

/// Where the hashes of all databases go.
pub(super) type PageHashesOut = PageFileWriter<BufWriter<File>>;

/// The hashes of a database that is being read.
struct Hashes<'a> {
    page_bytes: usize,
    page_count: u64,
    out: Option<&'a mut PageHashesOut>,
    blocks: BlockHashes,
    pages: Sha256,
    /// The hashes of an earlier backup with the same page size.
    known: Option<(&'a DatabaseHashes, PageCursor<'a>)>,
    changed: Vec<u64>,
    /// The hashes of the pages of one block.
    own: Vec<ContentHash>,
    earlier: Vec<ContentHash>,
}

impl<'a> Hashes<'a> {
    fn new(
        snapshot: &Snapshot,
        reading: Reading<'a>,
        mut out: Option<&'a mut PageHashesOut>,
    ) -> Result<Self> {
        let (page_size, page_count) = (snapshot.page_size_bytes(), snapshot.page_count());
        let block_bytes = reading.block_bytes as u64;
        if let Some(out) = &mut out {
            let section = Section::new(reading.path, page_size, page_count, block_bytes);
            out.begin(&section).map_err(hashes_failed)?;
        }
        let is_alike = |known: &&DatabaseHashes| known.page_size_bytes == page_size;
        Ok(Hashes {
            page_bytes: page_size as usize,
            page_count,
            out,
            blocks: BlockHashes {
                block_bytes,
                hashes: Vec::new(),
            },
            pages: Sha256::new(),
            known: reading
                .known
                .filter(is_alike)
                .map(|known| (known, known.pages())),
            changed: Vec::new(),
            own: Vec::new(),
            earlier: Vec::new(),
        })
    }

    /// Returns the hash of the next block, and whether it is known.
    fn add(&mut self, first_page: u64, block: &[u8]) -> Result<(ContentHash, bool)> {
        let hash = content_hash(block);
        let page_count = block.len() / self.page_bytes;
        self.own.clear();
        self.earlier.clear();
        if let Some((_, cursor)) = &mut self.known {
            let pages = cursor.take(page_count);
            self.earlier.extend(pages.map_err(not_read)?);
        }
        let is_known = self.earlier.len() == page_count && self.is_known_block(hash);
        if is_known {
            std::mem::swap(&mut self.own, &mut self.earlier);
        } else {
            let pages = block.chunks(self.page_bytes).map(content_hash);
            self.own.extend(pages);
            if self.known.is_some() {
                let earlier = self.earlier.iter().map(Some).chain(iter::repeat(None));
                let pages = (first_page..).zip(self.own.iter().zip(earlier));
                let differs = |(_, (own, earlier)): &(_, (_, Option<_>))| *earlier != Some(*own);
                self.changed
                    .extend(pages.filter(differs).map(|(number, _)| number));
            }
        }
        self.pages.update(self.own.as_flattened());
        if let Some(out) = &mut self.out {
            out.pages(&self.own).map_err(hashes_failed)?;
        }
        self.blocks.hashes.push(hash);
        Ok((hash, is_known))
    }

    /// Returns whether the earlier backup has a block with this hash at the next place.
    fn is_known_block(&self, hash: ContentHash) -> bool {
        let known = self.known.as_ref().map(|(known, _)| &known.blocks);
        known.is_some_and(|known| {
            known.block_bytes == self.blocks.block_bytes
                && known.hashes.get(self.blocks.hashes.len()) == Some(&hash)
        })
    }

    fn finish(self) -> Result<ReadDatabase> {
        if let Some(out) = self.out {
            out.end(&self.blocks.hashes).map_err(hashes_failed)?;
        }
        let changes = self.known.map(|(known, _)| Changes {
            numbers: self.changed,
            has_same_length: known.page_count == self.page_count,
        });
        Ok(ReadDatabase {
            blocks: self.blocks,
            pages_root: hex(&self.pages.finalize()),
            changes,
        })
    }
}

fn not_read(cause: io::Error) -> Error {
    Error::io("read", PAGE_HASHES_FILE.as_ref(), cause)
}
