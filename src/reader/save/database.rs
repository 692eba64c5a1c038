//! Sends a database: the pages of one snapshot, all of them or those that changed since the base, without what they no longer hold.

use std::{os::unix::fs::MetadataExt, thread};

use crossbeam_channel::bounded;
use sha2::{Digest, Sha256};

use super::{Saving, record};
use crate::{
    archive::{
        delta,
        manifest::{FileRecord, Pages, Stored, hex},
    },
    error::{Code, Error, Result},
    project::{Component, discover::Source},
    reader::{
        base::Known,
        protocol::{DATA_CHUNK_BYTES, Message},
    },
    sqlite::{
        check::{Depth, IntegrityStatus, quick_check, quick_check_on_two},
        erase,
        files::{COMPANIONS, companion},
        pages::PageHashes,
        snapshot::Snapshot,
    },
    task::Cancel,
};

/// Of a database, those that wait to be hashed.
const CHUNKS_WAITING: usize = 4;

impl Saving<'_> {
    pub(super) fn snapshot(&mut self, source: &Source, mut snapshot: Snapshot) -> Result<()> {
        let depth = self.depth(source);
        let looks_unchanged = self.looks_unchanged(source, &snapshot);
        let checked = if looks_unchanged {
            // Then it has the very pages that were found sound, and is not checked again.
            if let Some(found) = self.pages(source, &snapshot, looks_unchanged)? {
                self.saved.integrity.full_text &= found == Depth::All;
                return Ok(());
            }
            None
        } else {
            // The check costs a second and more a gigabyte: beside the compression of the pages nobody waits for it.
            let (twins, cancel) = (snapshot.twins(), self.cancel);
            let (sent, checked) = thread::scope(|threads| {
                let checking = twins.map(|twins| threads.spawn(move || quick_check_on_two(*twins, depth, cancel)));
                let sent = self.pages(source, &snapshot, looks_unchanged);
                (sent, checking.map(|checking| checking.join().unwrap_or_else(|_| Err(check_panicked()))))
            });
            sent?;
            checked
        };
        let integrity = match checked {
            Some(checked) => checked?,
            None if self.check_source => {
                let (connection, _scratch) = snapshot.into_connection();
                quick_check(connection, depth, self.cancel)?
            }
            None => return Ok(()),
        };
        self.saved.integrity.full_text &= integrity.full_text;
        if integrity.status == IntegrityStatus::Failed {
            self.damaged(&source.path, integrity.messages);
        }
        Ok(())
    }

    /// An incremental backup of a database that was found sound leaves its full-text indexes to the next full one: to read them can take
    /// longer than all else together, and they can be made again from their tables.
    fn depth(&self, source: &Source) -> Depth {
        let was_sound = self.base.is_some_and(|base| base.sound().is_some() && base.pages(&source.path).is_some());
        if was_sound { Depth::Structure } else { Depth::All }
    }

    /// Whether the files of the database look as they did at an earlier backup that was found sound. This only decides what
    /// is done beside what, and what is sent: its pages are compared.
    fn looks_unchanged(&self, source: &Source, snapshot: &Snapshot) -> bool {
        let now = record(source, snapshot.metadata(), snapshot.size_bytes());
        let wal = std::fs::metadata(companion(&source.absolute, COMPANIONS[0])).map_or(0, |wal| wal.len());
        wal == 0 && self.known.is_some_and(|known| known.sound().is_some() && known.looks_like(&now))
    }

    /// Sends what is to be saved of the database. Where it has the very pages that were found sound at an earlier backup, how far they
    /// were checked then.
    fn pages(&mut self, source: &Source, snapshot: &Snapshot, looks_unchanged: bool) -> Result<Option<Depth>> {
        let as_before = if looks_unchanged { self.as_before(source, snapshot) } else { None };
        let is_told = as_before.is_some();
        let hashes = match (self.base.and_then(|base| base.pages(&source.path)), as_before) {
            (Some(base), _) => self.changed_pages(source, snapshot, base)?,
            (None, Some(record)) => self.told_pages(record, snapshot)?,
            (None, None) => self.all_pages(source, snapshot)?,
        };
        let is_as_then = self.known.and_then(|known| known.pages(&source.path)) == Some(&hashes);
        if is_told && !is_as_then {
            let message =
                format!("{} is not as it was at the last backup, though its size and its time are", source.path);
            return Err(Error::new(Code::BaseUnusable, message, "Run it again"));
        }
        let found = self.known.filter(|_| is_as_then).and_then(Known::sound);
        self.hashes.databases.insert(source.path.clone(), hashes);
        if source.component == Component::Database {
            self.saved.node_count = snapshot.count_rows("nodes");
            self.saved.edge_count = snapshot.count_rows("edges");
        }
        Ok(found)
    }

    /// The record of a database that can be told of instead of sent, should it have the pages that the earlier backup has.
    fn as_before(&self, source: &Source, snapshot: &Snapshot) -> Option<FileRecord> {
        let size = snapshot.size_bytes();
        // The pages of the earlier backup are erased: those of this one must be too.
        let is_asked_for = self.as_before_from_bytes.is_some_and(|from_bytes| size >= from_bytes) && self.erase;
        let digest = self.known.filter(|_| is_asked_for)?.digest(&source.path, size)?;
        Some(FileRecord { sha256: Some(digest.to_string()), ..record(source, snapshot.metadata(), size) })
    }

    /// Tells of the database before its pages are hashed, so that it is copied from the earlier archive meanwhile.
    fn told_pages(&mut self, record: FileRecord, snapshot: &Snapshot) -> Result<PageHashes> {
        let owner = (snapshot.metadata().uid(), snapshot.metadata().gid());
        self.answers.message(Message::AsBefore { record, owner })?;
        let mut hashes = PageHashes::new(snapshot.page_size_bytes());
        erase::pages(snapshot, self.cancel, |page| {
            hashes.push(page);
            Ok(())
        })?;
        Ok(hashes)
    }

    fn all_pages(&mut self, source: &Source, snapshot: &Snapshot) -> Result<PageHashes> {
        self.entry(source, snapshot.metadata(), snapshot.size_bytes())?;
        let mut hashes = PageHashes::new(snapshot.page_size_bytes());
        let mut out = Chunks::new(|chunk| self.answers.data(chunk));
        let send = |page: &[u8]| {
            hashes.push(page);
            out.push(page)
        };
        if self.erase { erase::pages(snapshot, self.cancel, send) } else { snapshot.pages(self.cancel, send) }?;
        out.finish()?;
        Ok(hashes)
    }

    /// The pages are read twice in the one transaction: first to see which of them changed, then those.
    fn changed_pages(&mut self, source: &Source, snapshot: &Snapshot, base: &PageHashes) -> Result<PageHashes> {
        let page_size = snapshot.page_size_bytes();
        let (hashes, digest) = hash_pages(snapshot, self.cancel)?;
        let size = snapshot.size_bytes();
        let changed = hashes.changed_since(base).unwrap_or_default();
        let is_other = base.page_size_bytes != page_size || delta::size_bytes(page_size, changed.len() as u64) >= size;
        if is_other {
            return self.all_pages(source, snapshot);
        }
        let mut record = record(source, snapshot.metadata(), size);
        record.sha256 = Some(digest);
        if changed.is_empty() && hashes.hashes.len() == base.hashes.len() {
            record.stored = Stored::Base;
            self.answers.message(Message::Unchanged { record })?;
            return Ok(hashes);
        }
        record.stored = Stored::Pages;
        record.pages = Some(Pages { page_size, changed: changed.len() as u64, root: hashes.root() });
        let owner = (snapshot.metadata().uid(), snapshot.metadata().gid());
        self.answers.message(Message::Entry { record, owner })?;
        let mut out = Chunks::new(|chunk| self.answers.data(chunk));
        out.push(&delta::header(page_size))?;
        erase::pages_of(snapshot, &changed, self.cancel, |number, page| {
            out.push(&number.to_le_bytes())?;
            out.push(page)
        })?;
        out.finish()?;
        Ok(hashes)
    }
}

/// The hashes of all pages, and the SHA-256 of the whole, hexadecimal. The latter has a thread of its own: it takes as long as the reading.
fn hash_pages(snapshot: &Snapshot, cancel: &Cancel) -> Result<(PageHashes, String)> {
    let mut hashes = PageHashes::new(snapshot.page_size_bytes());
    let (chunks, received) = bounded::<Vec<u8>>(CHUNKS_WAITING);
    // The sender moves in, so that a failure in here ends the thread that this waits for.
    thread::scope(move |threads| {
        let hashing = threads.spawn(move || {
            let mut whole = Sha256::new();
            received.iter().for_each(|chunk| whole.update(chunk));
            hex(&whole.finalize())
        });
        let panicked = || Error::new(Code::Internal, "The hashing of the database panicked", "Please report this");
        let mut out = Chunks::new(move |chunk| chunks.send(chunk).map_err(|_| panicked()));
        erase::pages(snapshot, cancel, |page| {
            hashes.push(page);
            out.push(page)
        })?;
        out.finish()?;
        let digest = hashing.join().map_err(|_| panicked())?;
        Ok((hashes, digest))
    })
}

fn check_panicked() -> Error {
    Error::new(Code::Internal, "The check of the database panicked", "Please report this")
}

/// Collects data into chunks of `DATA_CHUNK_BYTES`, and hands them on.
struct Chunks<F> {
    hand_on: F,
    chunk: Vec<u8>,
}

impl<F: FnMut(Vec<u8>) -> Result<()>> Chunks<F> {
    fn new(hand_on: F) -> Self {
        Chunks { hand_on, chunk: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if self.chunk.len() + bytes.len() > DATA_CHUNK_BYTES {
            (self.hand_on)(std::mem::take(&mut self.chunk))?;
        }
        if self.chunk.capacity() == 0 {
            self.chunk.reserve(DATA_CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { (self.hand_on)(self.chunk) }
    }
}
