//! The blocks of an earlier archive, for a new one to take over instead of compressing the same again.
//!
//! Large files begin a block of their own, so what did not change since makes the same blocks. An archive that takes them over
//! is as whole and as independent as any: it holds the bytes.
//!
//! It is safe because nothing is taken on trust. A block is found by the hash of what it holds, and what is copied is compared with what was hashed
//! when the earlier archive was read. That is read from its beginning to its end meanwhile, and unless it is what was written, a new archive that took anything
//! from it is not sealed. So an archive that is damaged, gone or of another kind makes a backup slower and nothing else.
//!
//! ```text
//! a thread: earlier archive ─▶ block, hashed ─▶ its place ─▶ … ─▶ its end: is it what was written?
//!                                                 └─▶ workers: read it again, compare ─▶ new archive
//! ```

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use super::{
    as_written::StoredBlocks,
    manifest::{ArchiveRecord, DIGEST_PREFIX},
};
use crate::{
    content_hash::{ContentHash, content_hash},
    error::{Code, Error},
    task::Cancel,
};

/// How many blocks are told of at once, which wakes whoever waits for one.
const PLACES_AT_ONCE: usize = 64;

/// An archive whose blocks may be taken over. It is read from when this is made on.
pub struct Earlier {
    /// Hexadecimal, as it was when the archive was written.
    sha256: String,
    shared: Arc<Shared>,
    reading: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    more: Condvar,
    stop: Cancel,
}

#[derive(Default)]
struct Known {
    file: Option<Arc<File>>,
    /// By the hash of what is in them.
    places: HashMap<ContentHash, Place>,
    /// Once it was read to its end.
    is_as_written: Option<bool>,
}

#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    size: usize,
    /// Of the block itself.
    hash: ContentHash,
}

/// A block of an earlier archive, and where it is.
pub struct Taken {
    pub block: Vec<u8>,
    /// Of the block itself.
    pub hash: ContentHash,
    pub file: Arc<File>,
    pub offset: u64,
}

impl Earlier {
    pub fn new(archive: &Path, record: ArchiveRecord, cancel: &Cancel) -> Self {
        let shared = Arc::new(Shared::default());
        let (archive, expected, cancel) = (archive.to_path_buf(), record.root, cancel.clone());
        let unread = Unread(shared.clone());
        let read = move || {
            let root = unread.0.read(&archive, &cancel).ok().flatten();
            unread.0.known().is_as_written = Some(root.is_some() && root == expected);
        };
        let reading = thread::Builder::new().name("kg-earlier".into()).spawn(read).ok();
        Earlier { sha256: record.sha256, shared, reading }
    }

    /// Whether it is the archive of that checksum.
    pub fn is(&self, checksum: &str) -> bool {
        checksum.strip_prefix(DIGEST_PREFIX) == Some(&self.sha256)
    }

    /// The block that holds what has this hash, as soon as it was read.
    pub fn block(&self, hash: &ContentHash) -> Option<Taken> {
        let (file, place) = self.shared.place(hash)?;
        let mut block = vec![0; place.size];
        file.read_exact_at(&mut block, place.offset).ok()?;
        let is_as_read = content_hash(&block) == place.hash;
        is_as_read.then_some(Taken { block, hash: place.hash, file, offset: place.offset })
    }

    /// Nobody needs it any more: whoever still waits gets nothing.
    pub fn give_up(&self) {
        self.shared.stop.cancel();
    }

    /// Waits until it was read to its end; whether it is what was written.
    pub fn is_as_written(&self) -> bool {
        let known = self.shared.known();
        let known = self.shared.more.wait_while(known, |known| known.is_as_written.is_none());
        known.unwrap_or_else(PoisonError::into_inner).is_as_written == Some(true)
    }
}

impl Drop for Earlier {
    fn drop(&mut self) {
        self.give_up();
        if let Some(reading) = self.reading.take() {
            // After a panic it is one that is not what was written.
            let _ = reading.join();
        }
    }
}

/// With this the reading ends, however it does, and nobody waits for it any more.
struct Unread(Arc<Shared>);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.known().is_as_written.get_or_insert(false);
        self.0.more.notify_all();
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The root of the archive, hexadecimal.
    fn read(&self, archive: &Path, cancel: &Cancel) -> io::Result<Option<String>> {
        let file = File::open(archive)?;
        let mut blocks = StoredBlocks::new(file.try_clone()?)?;
        self.known().file = Some(Arc::new(file));
        let mut read = Vec::with_capacity(PLACES_AT_ONCE);
        while let Some(block) = blocks.read()? {
            cancel.check().and_then(|()| self.stop.check()).map_err(io::Error::other)?;
            if let Some(holds) = block.head.hash(block.bytes) {
                let place = Place { offset: block.offset, size: block.head.size, hash: block.hash };
                read.push((holds, place));
            }
            if read.len() == PLACES_AT_ONCE {
                self.tell(&mut read);
            }
        }
        self.tell(&mut read);
        blocks.finish()
    }

    fn tell(&self, read: &mut Vec<(ContentHash, Place)>) {
        self.known().places.extend(read.drain(..));
        self.more.notify_all();
    }

    fn place(&self, hash: &ContentHash) -> Option<(Arc<File>, Place)> {
        let is_to_come = |known: &mut Known| known.is_as_written.is_none() && !known.places.contains_key(hash);
        let known = self.more.wait_while(self.known(), is_to_come).unwrap_or_else(PoisonError::into_inner);
        let place = known.places.get(hash).filter(|_| known.is_as_written != Some(false))?;
        Some((known.file.clone()?, *place))
    }
}

/// The archive that something was to be taken from, or was taken from, is not what it was.
pub fn is_gone() -> Error {
    Error::new(
        Code::BaseUnusable,
        "The earlier backup that unchanged blocks are taken from is not what was written",
        "Run it again; see the damage with `kg diag backup --verify`",
    )
}
