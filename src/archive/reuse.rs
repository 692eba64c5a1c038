//! The blocks of an earlier archive, for a new one to take over instead of compressing the same again.
//!
//! Large files begin a block of their own, so what did not change since makes the same blocks. An archive that takes them over
//! is as whole and as independent as any: it holds the bytes.
//!
//! It is safe because nothing is taken on trust. Every block that is copied is hashed, and before the new archive is sealed so are all others of the earlier
//! one: unless they are together what was written, the new one is not sealed. So an archive that is damaged, gone or of another kind makes a
//! backup slower and nothing else.
//!
//! ```text
//! a thread: heads of the blocks of the earlier archive ─▶ which block holds what
//! workers: a hash ─▶ its block, read and hashed ─▶ new archive ─▶ at its end: the other blocks, hashed; is all of it what was written?
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

/// How many blocks are told of at once, which wakes whoever waits for one.
const BLOCKS_AT_ONCE: usize = 64;

/// An archive whose blocks may be taken over. Where they are is found out from when this is made on.
pub struct ReuseSource {
    record: ArchiveRecord,
    shared: Arc<SharedIndex>,
    listing: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct SharedIndex {
    known: Mutex<BlockIndex>,
    more: Condvar,
    /// Of the whole task, and of this alone.
    cancel: CancelToken,
    stop: CancelToken,
}

#[derive(Default)]
struct BlockIndex {
    file: Option<Arc<File>>,
    /// In their order.
    blocks: Vec<StoredBlock>,
    /// Of the blocks themselves, as far as they were read.
    hashes: Vec<Option<ContentHash>>,
    /// By the hash of what is in them: their places among the blocks.
    places: HashMap<ContentHash, usize>,
    /// Once all are known.
    end: Option<End>,
}

/// What follows the last block.
#[derive(Clone, Copy)]
struct End(Option<ContentHash>);

/// A block of an earlier archive, and where it is.
pub struct ReusedBlock {
    pub block: Vec<u8>,
    /// Of the block itself.
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
            // What cannot be listed has no end that was written.
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

    /// Whether it is the archive of that checksum.
    pub fn is(&self, checksum: &str) -> bool {
        checksum.strip_prefix(DIGEST_PREFIX) == Some(&self.record.sha256)
    }

    /// The block that holds what has this hash, as soon as it is known where that is.
    pub fn block(&self, holds: &ContentHash) -> Option<ReusedBlock> {
        let (file, place, stored) = self.shared.find(holds)?;
        let mut block = Vec::new();
        let hash = stored.read(&file, &mut block).ok()?;
        // It may have been listed by something else.
        let says = block.get(HEAD_BYTES..WHOLE_HEAD_BYTES);
        let is_it = says.is_some_and(|says| says == holds) && self.shared.is_the_same(place, hash);
        is_it.then_some(ReusedBlock {
            block,
            hash,
            file,
            offset: stored.offset,
        })
    }

    /// Nobody needs it any more: whoever still waits gets nothing.
    pub fn give_up(&self) {
        self.shared.stop.cancel();
    }

    /// As [`ReuseSource::is_as_written`]. `KG_BASE_UNUSABLE`, `KG_ABORTED`.
    pub fn assert_as_written(&self) -> Result<()> {
        let is_as_written = self.is_as_written();
        self.shared.cancel.check()?;
        if is_as_written {
            Ok(())
        } else {
            Err(source_changed())
        }
    }

    /// Whether it is what was written. What was not taken is read for that.
    pub fn is_as_written(&self) -> bool {
        self.record.root.is_some() && self.shared.root().ok().flatten() == self.record.root
    }
}

impl Drop for ReuseSource {
    fn drop(&mut self) {
        self.give_up();
        if let Some(listing) = self.listing.take() {
            // After a panic it is one that is not what was written.
            let _ = listing.join();
        }
    }
}

/// With this the listing ends, however it does, and nobody waits for it any more.
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

    /// Waits until there is what `is_missing` denies, or all is known that can be.
    fn wait_while(&self, is_missing: impl Fn(&BlockIndex) -> bool) -> MutexGuard<'_, BlockIndex> {
        let is_to_come = |known: &mut BlockIndex| known.end.is_none() && is_missing(known);
        self.more
            .wait_while(self.known(), is_to_come)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash of what follows the last block.
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

    /// Notes the hash of a block that was read; whether it was the same whenever it was.
    fn is_the_same(&self, place: usize, hash: ContentHash) -> bool {
        let mut known = self.known();
        known
            .hashes
            .get_mut(place)
            .is_some_and(|noted| *noted.get_or_insert(hash) == hash)
    }

    /// The root of the archive, hexadecimal (see [`super::block_digest`]); `None` where it is none.
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

/// The archive that something was to be taken from, or was taken from, is not what it was.
pub fn source_changed() -> Error {
    Error::new(
        Code::BaseUnusable,
        "The earlier backup that unchanged blocks are taken from is not what was written",
        "Run it again; see the damage with `kg diag backup --verify`",
    )
}
