//! Reads a database once, block by block.
//!
//! ```text
//! a thread:    read ─▶ scrub ─▶ fast check ─▶ hash ─▶ compare with an earlier backup
//! this thread: send
//! ```
//!
//! A block is hashed as a whole first. If an earlier backup has the same block at the same place,
//! its
//! page hashes are known too. Otherwise each page is hashed, which takes longer.

use std::thread;

use crossbeam_channel::bounded;

use crate::{
    error::{Error, Result},
    sqlite::{
        fast_check::FastCheck,
        page_hashes::{BlockHashes, DatabaseHashes, PageHashes},
        scrub::Scrubber,
        snapshot::Snapshot,
    },
    util::{
        content_hash::{ContentHash, content_hash},
        operation::CancelToken,
        threads::start_in,
    },
};

/// How many bytes may wait between the two threads, but at least a few blocks.
const BYTES_WAITING: usize = 2 * 1024 * 1024;
const LEAST_BLOCKS_WAITING: usize = 4;

/// How a database is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
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

/// Calls `take` with each block, first to last.
pub(super) fn read(
    snapshot: &mut Snapshot,
    reading: Reading<'_>,
    mut fast_check: Option<&mut FastCheck>,
    cancel: &CancelToken,
    mut take: impl FnMut(Block) -> Result<()>,
) -> Result<DatabaseHashes> {
    thread::scope(|threads| {
        let (blocks, received) =
            bounded::<Block>((BYTES_WAITING / reading.block_bytes).max(LEAST_BLOCKS_WAITING));
        let hash = move || {
            let page_bytes = snapshot.page_size_bytes();
            let mut hashes = Hashes::new(page_bytes, reading);
            let mut scrubber = reading
                .erase
                .then(|| Scrubber::new(snapshot, cancel))
                .transpose()?;
            let mut look = |number: u64, page: &mut [u8]| {
                let read = scrubber
                    .as_mut()
                    .and_then(|scrubber| scrubber.scrub_unused(number, page));
                if let Some(fast_check) = &mut fast_check {
                    fast_check.page(page, read);
                }
            };
            snapshot.read_chunks(reading.block_bytes, cancel, |first, piece| {
                piece
                    .chunks_mut(page_bytes as usize)
                    .zip(first..)
                    .for_each(|(page, number)| look(number, page));
                let (hash, is_known) = hashes.add(first, piece);
                // Nobody takes it where that failed, which is told there.
                blocks
                    .send(Block {
                        bytes: std::mem::take(piece),
                        hash,
                        is_known,
                    })
                    .map_err(|_| Error::aborted())
            })?;
            Ok(hashes.made)
        };
        let hashing = start_in(threads, "kg-hash", hash)?;
        let taken = received.iter().try_for_each(&mut take);
        // This ends a thread that waits for room in the channel.
        drop(received);
        let panicked = |_| Err(Error::internal("The hashing of the database panicked"));
        let hashes = hashing.join().unwrap_or_else(panicked);
        taken.and(hashes)
    })
}

struct Hashes<'a> {
    made: DatabaseHashes,
    /// The hashes of an earlier backup with the same page size.
    known: Option<&'a DatabaseHashes>,
}

impl<'a> Hashes<'a> {
    fn new(page_size_bytes: u64, reading: Reading<'a>) -> Self {
        let blocks = BlockHashes {
            block_bytes: reading.block_bytes as u64,
            hashes: Vec::new(),
        };
        let made = DatabaseHashes {
            pages: PageHashes::new(page_size_bytes),
            blocks,
            sha256: None,
        };
        let is_alike = |known: &&DatabaseHashes| known.pages.page_size_bytes == page_size_bytes;
        Hashes {
            made,
            known: reading.known.filter(is_alike),
        }
    }

    /// The hash of the next block, and whether it is known.
    fn add(&mut self, first_page: u64, block: &[u8]) -> (ContentHash, bool) {
        let hash = content_hash(block);
        let start = first_page as usize - 1;
        let page_bytes = self.made.pages.page_size_bytes as usize;
        let pages = start..start + block.len() / page_bytes;
        let known_pages = self.known.and_then(|known| known.pages.hashes.get(pages));
        let is_known = match known_pages.filter(|_| self.is_known_block(hash)) {
            Some(known_pages) => {
                self.made.pages.hashes.extend_from_slice(known_pages);
                true
            }
            None => {
                block
                    .chunks(page_bytes)
                    .for_each(|page| self.made.pages.push(page));
                false
            }
        };
        self.made.blocks.hashes.push(hash);
        (hash, is_known)
    }

    /// Whether the next block has this hash there.
    fn is_known_block(&self, hash: ContentHash) -> bool {
        let (made, known) = (&self.made.blocks, self.known.map(|known| &known.blocks));
        known.is_some_and(|known| {
            known.block_bytes == made.block_bytes
                && known.hashes.get(made.hashes.len()) == Some(&hash)
        })
    }
}
