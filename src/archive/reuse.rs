//! Finds blocks of an earlier archive, so that a new archive can copy them instead of compressing
//! the same content again.
//!
//! Large files begin a block of their own, so content that has not changed gives the same blocks.
//! An archive with reused blocks is as complete and independent as any other, because it contains
//! the bytes.
//!
//! Reuse trusts nothing. Every copied block is hashed, and so are all other blocks of the earlier
//! archive before the new archive is sealed. If the earlier archive is not what was written, the
//! new one is not sealed. If the earlier archive is missing or has another format, the backup is
//! slower, but otherwise the same.
//!
//! ```text
//! a thread   heads of the blocks of the earlier archive ─▶ index by content hash
//! pool       a hash ─▶ its block, read and hashed ─▶ new archive
//! at the end the other blocks, hashed ─▶ is all of it what was written?
//! ```

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

use super::{
    block::{HEAD_BYTES, WHOLE_HEAD_BYTES},
    block_digest::{StoredBlock, StoredBlocks},
    manifest::{ArchiveRecord, DIGEST_PREFIX},
};
use crate::{
    error::{Code, Error, Result},
    util::{content_hash::ContentHash, hex::hex, operation::CancelToken, regular_file},
};

/// Number of blocks added to the index at once. Each addition wakes the threads that wait for a
/// block.
const BLOCKS_AT_ONCE: usize = 64;

/// An archive whose blocks can be reused. A thread starts to list its blocks when this value is
/// created.
pub struct ReuseSource {
    record: ArchiveRecord,
    shared: Arc<SharedIndex>,
    listing: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct SharedIndex {
    known: Mutex<BlockIndex>,
    more: Condvar,
    /// Cancels the whole operation; `stop` cancels only the search for blocks.
    cancel: CancelToken,
    stop: CancelToken,
}

#[derive(Default)]
struct BlockIndex {
    file: Option<Arc<File>>,
    /// The blocks in their order.
    blocks: Vec<StoredBlock>,
    /// Hashes of the stored bytes of the blocks that have been read.
    hashes: Vec<Option<ContentHash>>,
    /// Index into `blocks` by the hash of the content.
    places: HashMap<ContentHash, usize>,
    /// Set when all blocks are listed.
    end: Option<End>,
}

/// The hash of the bytes after the last block, or `None` if the archive could not be listed to a
/// valid end.
#[derive(Clone, Copy)]
struct End(Option<ContentHash>);

/// A block of an earlier archive, and where it is.
pub struct ReusedBlock {
    pub block: Vec<u8>,
    /// Hash of the stored bytes of the block.
    pub hash: ContentHash,
    pub file: Arc<File>,
    pub offset: u64,
}

impl ReuseSource {
    pub fn new(archive: &Path, record: ArchiveRecord, cancel: &CancelToken) -> Self {
        let shared = Arc::new(SharedIndex {
            cancel: cancel.clone(),
            ..SharedIndex::default()
        });
        let (archive, unlisted) = (archive.to_path_buf(), Unlisted(shared.clone()));
        let list = move || {
            // An archive that cannot be listed has no valid end, so it never counts as unchanged.
            let end = unlisted.0.list(&archive).ok().flatten();
            unlisted.0.known().end = Some(End(end));
        };
        let listing = thread::Builder::new()
            .name("kg-earlier".into())
            .spawn(list)
            .ok();
        ReuseSource {
            record,
            shared,
            listing,
        }
    }

    /// Returns whether this is the archive with that checksum.
    pub fn is(&self, checksum: &str) -> bool {
        checksum.strip_prefix(DIGEST_PREFIX) == Some(&self.record.sha256)
    }

    /// Returns the block whose content has this hash. Waits until the thread has listed it or has
    /// listed all blocks.
    pub fn block(&self, holds: &ContentHash) -> Option<ReusedBlock> {
        let (file, place, stored) = self.shared.find(holds)?;
        let mut block = Vec::new();
        let hash = stored.read(&file, &mut block).ok()?;
        // The file may have changed since the block was listed.
        let says = block.get(HEAD_BYTES..WHOLE_HEAD_BYTES);
        let is_it = says.is_some_and(|says| says == holds) && self.shared.is_the_same(place, hash);
        is_it.then_some(ReusedBlock {
            block,
            hash,
            file,
            offset: stored.offset,
        })
    }

    /// Ends the search: calls that still wait for a block return `None`.
    pub fn give_up(&self) {
        self.shared.stop.cancel();
    }

    /// Checks the same as [`ReuseSource::is_as_written`]. Fails with `KG_BASE_UNUSABLE`, or with
    /// `KG_ABORTED` if the operation was cancelled.
    pub fn assert_as_written(&self) -> Result<()> {
        let is_as_written = self.is_as_written();
        self.shared.cancel.check()?;
        if is_as_written {
            Ok(())
        } else {
            Err(source_changed())
        }
    }

    /// Returns whether the archive is what was written. Reads the blocks that were not reused.
    pub fn is_as_written(&self) -> bool {
        self.record.root.is_some() && self.shared.root().ok().flatten() == self.record.root
    }
}

impl Drop for ReuseSource {
    fn drop(&mut self) {
        self.give_up();
        if let Some(listing) = self.listing.take() {
            // If the thread panicked, the archive counts as changed.
            let _ = listing.join();
        }
    }
}

/// Marks the list as ended when it is dropped, even after an error or a panic, so that no thread
/// waits forever.
struct Unlisted(Arc<SharedIndex>);

impl Drop for Unlisted {
    fn drop(&mut self) {
        self.0.known().end.get_or_insert(End(None));
        self.0.more.notify_all();
    }
}

impl SharedIndex {
    fn known(&self) -> MutexGuard<'_, BlockIndex> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_wanted(&self) -> io::Result<()> {
        self.cancel
            .check()
            .and_then(|()| self.stop.check())
            .map_err(io::Error::other)
    }

    /// Waits until `is_missing` returns false or all blocks are listed.
    fn wait_while(&self, is_missing: impl Fn(&BlockIndex) -> bool) -> MutexGuard<'_, BlockIndex> {
        let is_to_come = |known: &mut BlockIndex| known.end.is_none() && is_missing(known);
        self.more
            .wait_while(self.known(), is_to_come)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists the blocks and returns the hash of the bytes after the last one.
    fn list(&self, archive: &Path) -> io::Result<Option<ContentHash>> {
        let mut blocks = StoredBlocks::new(Arc::new(regular_file::open_linked(archive)?))?;
        self.known().file = Some(blocks.file.clone());
        let mut listed = Vec::with_capacity(BLOCKS_AT_ONCE);
        while let Some(block) = blocks.next_block()? {
            self.is_wanted()?;
            listed.push(block);
            if listed.len() == BLOCKS_AT_ONCE {
                self.tell(&mut listed);
            }
        }
        self.tell(&mut listed);
        blocks.end()
    }

    fn tell(&self, listed: &mut Vec<(StoredBlock, Option<ContentHash>)>) {
        let mut known = self.known();
        for (block, holds) in listed.drain(..) {
            let place = known.blocks.len();
            known.places.extend(holds.map(|holds| (holds, place)));
            known.blocks.push(block);
            known.hashes.push(None);
        }
        self.more.notify_all();
    }

    fn find(&self, hash: &ContentHash) -> Option<(Arc<File>, usize, StoredBlock)> {
        let known = self.wait_while(|known| !known.places.contains_key(hash));
        let place = *known.places.get(hash)?;
        Some((known.file.clone()?, place, *known.blocks.get(place)?))
    }

    /// Records the hash of a block that was read. Returns whether it equals the hash of any earlier
    /// read.
    fn is_the_same(&self, place: usize, hash: ContentHash) -> bool {
        let mut known = self.known();
        known
            .hashes
            .get_mut(place)
            .is_some_and(|noted| *noted.get_or_insert(hash) == hash)
    }

    /// Returns the root of the archive in hexadecimal (see [`super::block_digest`]), or `None` if
    /// it has no valid end or changed while it was read.
    fn root(&self) -> io::Result<Option<String>> {
        let known = self.wait_while(|_| true);
        let (Some(file), Some(End(Some(end)))) = (known.file.clone(), known.end) else {
            return Ok(None);
        };
        let count = known.blocks.len();
        drop(known);
        let (mut root, mut bytes) = (Sha256::new(), Vec::new());
        for place in 0..count {
            let (block, noted) = {
                let known = self.known();
                (known.blocks[place], known.hashes[place])
            };
            root.update(match noted {
                Some(hash) => hash,
                None => {
                    self.is_wanted()?;
                    let hash = block.read(&file, &mut bytes)?;
                    if !self.is_the_same(place, hash) {
                        return Ok(None);
                    }
                    hash
                }
            });
        }
        Ok(Some(hex(&root.chain_update(end).finalize())))
    }
}

/// Returns the error for an earlier archive that has changed since it was written
/// (`KG_BASE_UNUSABLE`).
pub fn source_changed() -> Error {
    Error::new(
        Code::BaseUnusable,
        "The earlier backup from which unchanged blocks are reused is not what was written",
        "Run the backup again; see the damage with `kg diag verify`",
    )
}
