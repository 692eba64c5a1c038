//! Sends a database: all pages of one snapshot, or those that changed since the base. Content that
//! was deleted is scrubbed from the pages.

use std::thread;

use crossbeam_channel::{Receiver, unbounded};
use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::{
    Saving,
    blocks::{self, Block, Changes, PageHashesOut, Reading},
    records::{owner, record},
};
use crate::{
    archive::{
        delta,
        file_record::{Blocks, FileRecord, Pages, Storage},
    },
    error::{Error, Result},
    project::{Component, discover::Source},
    sqlite::{
        check::{self, Depth, Findings},
        fast_check::FastCheck,
        files::{COMPANIONS, companion},
        page_hashes::BlockHashes,
        scrub,
        snapshot::Snapshot,
    },
    util::{
        content_hash::ContentHash, digest::Sha256Digest, operation::CancelToken, threads::start_in,
    },
    worker::{
        baseline::Baseline,
        protocol::{DATA_CHUNK_BYTES, Message, ResponseSink},
    },
};

/// The most blocks that one message names.
const SAME_AT_ONCE: usize = 256;

impl Saving<'_> {
    pub(super) fn snapshot(&mut self, source: &Source, mut snapshot: Snapshot) -> Result<()> {
        let depth = self.depth(source);
        let found = if self.looks_unchanged(source, &snapshot) {
            // The pages are those of a sound backup, so they are not checked again.
            if let Some(found) = self.pages(source, &mut snapshot, true, None)? {
                self.integrity.full_text &= found == Depth::All;
                return Ok(());
            }
            let (_held, mut connection) = snapshot.into_connection();
            if self.check_source {
                findings(&mut connection, depth, None, self.cancel)?
            } else {
                Findings::default()
            }
        } else if self.check_source {
            self.pages_and_findings(source, snapshot, depth)?
        } else {
            self.pages(source, &mut snapshot, false, None)?;
            return Ok(());
        };
        self.found(&source.path, found, depth);
        Ok(())
    }

    /// Sends the database and checks it at the same time: the fast check sees each page that is
    /// sent, and a second connection runs the checks of SQLite.
    fn pages_and_findings(
        &mut self,
        source: &Source,
        mut snapshot: Snapshot,
        depth: Depth,
    ) -> Result<Findings> {
        let (ask, asked) = unbounded();
        let cancel = self.cancel;
        let mut fast_check = FastCheck::begin(&snapshot, ask, cancel)?;
        let asked = fast_check.is_some().then_some(asked);
        let second = snapshot.second_connection();
        let (sent, is_proven, beside) = thread::scope(|threads| {
            let asked = asked.as_ref();
            let check = |mut second| {
                start_in(threads, "kg-check", move || {
                    findings(&mut second, depth, asked, cancel)
                })
            };
            let beside = second.map(check).transpose()?;
            let sent = self.pages(source, &mut snapshot, false, fast_check.as_mut());
            // This closes the channel, so the thread that asks SQLite ends.
            let is_proven = fast_check.map(FastCheck::end);
            let beside =
                beside.map(|beside| beside.join().unwrap_or_else(|_| Err(check_panicked())));
            Ok::<_, Error>((sent, is_proven, beside))
        })?;
        sent?;
        let (_held, mut connection) = snapshot.into_connection();
        let mut found =
            beside.unwrap_or_else(|| findings(&mut connection, depth, asked.as_ref(), cancel))?;
        // SQLite also reports damage if a single read fails. Real damage is found again.
        if !found.damage.is_empty() {
            let again = findings(&mut connection, depth, None, cancel)?;
            if again.damage.is_empty() {
                found = again;
            }
        }
        if is_proven == Some(false) {
            let mut all = check::structure(&mut connection, cancel)?;
            all.add(found);
            found = all;
        }
        Ok(found)
    }

    /// Returns how much of the database is checked. If the base of an incremental backup is sound,
    /// its full-text indexes are not checked before the next full backup: reading them can take longer
    /// than everything else, and they can be rebuilt from their tables.
    fn depth(&self, source: &Source) -> Depth {
        let was_sound = self
            .base
            .is_some_and(|base| base.sound().is_some() && base.hashes(&source.path).is_some());
        if was_sound {
            Depth::Structure
        } else {
            Depth::All
        }
    }

    /// Returns whether the files of the database look as they did at an earlier sound backup. This
    /// is only a hint that chooses the faster order of work; the blocks decide.
    fn looks_unchanged(&self, source: &Source, snapshot: &Snapshot) -> bool {
        let now = record(source, snapshot.metadata(), snapshot.size_bytes());
        let wal = std::fs::metadata(companion(&source.absolute(self.root), COMPANIONS[0]))
            .map_or(0, |wal| wal.len());
        let looks =
            |known: &Baseline| known.sound().is_some() && known.looks_like(&now, self.block_bytes);
        // Earlier backups contain scrubbed pages, so they match only if this one scrubs too.
        wal == 0 && self.erase && self.known.is_some_and(looks)
    }

    /// Sends the database. If its pages are those of an earlier sound backup, returns how deeply
    /// that backup checked them.
    fn pages(
        &mut self,
        source: &Source,
        snapshot: &mut Snapshot,
        looks_unchanged: bool,
        fast_check: Option<&mut FastCheck>,
    ) -> Result<Option<Depth>> {
        let known = self.reach(source)?.map(|(record, _)| record);
        let has_hashes = self
            .base
            .is_some_and(|base| base.hashes(&source.path).is_some());
        // A database that belonged to another component has no record there that could stay.
        let blocks = match known.filter(|_| has_hashes) {
            Some(known) => self.changed_pages(source, snapshot, &known, fast_check)?,
            None => {
                let pass = self.pass_over(source, looks_unchanged, true);
                self.all_pages(source, snapshot, pass, fast_check)?
            }
        };
        let is_as_then = |known: &&Baseline| known.same_database(&source.path, &blocks).is_some();
        let found = self.known.filter(is_as_then).and_then(Baseline::sound);
        if source.component == Component::Database {
            self.count(snapshot.connection())?;
        }
        Ok(found)
    }

    /// Sends all pages, except blocks that the earlier archive contains.
    fn all_pages(
        &mut self,
        source: &Source,
        snapshot: &mut Snapshot,
        pass: Pass<'_>,
        fast_check: Option<&mut FastCheck>,
    ) -> Result<BlockHashes> {
        let size = snapshot.size_bytes();
        let record = record(source, snapshot.metadata(), size);
        let owner = owner(snapshot.metadata());
        self.responses.message(Message::Database {
            record: record.clone(),
            owner,
        })?;
        // A smaller database shares a block with other files.
        let takes_over = self.takes_over && size >= self.block_bytes as u64;
        let responses = &mut *self.responses;
        let mut same = Vec::new();
        let (hashes, sha256) = pass.read(snapshot, fast_check, &mut self.hashes, &mut |block| {
            if takes_over && block.is_known {
                same.push(block.hash);
                return if same.len() < SAME_AT_ONCE {
                    Ok(())
                } else {
                    send_same(responses, &mut same)
                };
            }
            send_same(responses, &mut same)?;
            responses.block(block.bytes, block.hash)
        })?;
        send_same(responses, &mut same)?;
        let blocks = Blocks::from(&hashes);
        let record = FileRecord {
            sha256: Some(sha256),
            blocks: Some(Box::new(blocks.clone())),
            ..record
        };
        responses.message(Message::DatabaseEnd { sha256, blocks })?;
        self.listing.push(&record, None)?;
        Ok(hashes)
    }

    /// Reads the pages twice in one transaction: first to find those that changed, then to send
    /// them. The hashes of the blocks identify the result, so that no SHA-256 of the whole database
    /// is needed.
    fn changed_pages(
        &mut self,
        source: &Source,
        snapshot: &mut Snapshot,
        known: &FileRecord,
        fast_check: Option<&mut FastCheck>,
    ) -> Result<BlockHashes> {
        let reading = self.reading(source);
        let out = Some(&mut self.hashes);
        let read = blocks::read(snapshot, reading, fast_check, out, self.cancel, |_| Ok(()))?;
        let (page_size, size) = (snapshot.page_size_bytes(), snapshot.size_bytes());
        let same = self
            .base
            .and_then(|base| base.same_database(&source.path, &read.blocks));
        let mut record = record(source, snapshot.metadata(), size);
        record.blocks = Some(Box::new(Blocks::from(&read.blocks)));
        if let Some(same) = same {
            record.sha256 = same.sha256;
            if *known == record {
                self.same(&record, None)?;
            } else {
                self.same_content(record, None)?;
            }
            return Ok(read.blocks);
        }
        let is_smaller =
            |changes: &Changes| delta::size_bytes(page_size, changes.numbers.len() as u64) < size;
        // Hashes by which a database with other blocks did not change are not those of the base.
        let is_wrong = |changes: &Changes| {
            let block_size = known.blocks.as_ref().map(|blocks| blocks.size);
            changes.is_empty() && block_size == Some(read.blocks.block_bytes)
        };
        let changes = read
            .changes
            .filter(|changes| is_smaller(changes) && !is_wrong(changes));
        let Some(Changes { numbers, .. }) = changes else {
            let pass = self.pass_over(source, false, false);
            return self.all_pages(source, snapshot, pass, None);
        };
        self.listing.push(&record, None)?;
        record.stored = Storage::Delta;
        record.pages = Some(Box::new(Pages {
            page_size,
            changed: numbers.len() as u64,
            root: read.pages_root,
        }));
        let owner = owner(snapshot.metadata());
        self.responses.message(Message::Entry { record, owner })?;
        let mut out = Chunks::new(|chunk| self.responses.data(chunk));
        out.push(&delta::header(page_size))?;
        scrub::pages_of(snapshot, &numbers, self.cancel, |number, page| {
            out.push(&number.to_le_bytes())?;
            out.push(page)
        })?;
        out.finish()?;
        Ok(read.blocks)
    }

    fn reading<'s>(&self, source: &'s Source) -> Reading<'s>
    where
        Self: 's,
    {
        Reading {
            path: &source.path,
            block_bytes: self.block_bytes,
            // The pages of the base are scrubbed, and must match.
            erase: self.erase || self.base.is_some(),
            known: self.known.and_then(|known| known.hashes(&source.path)),
        }
    }

    fn pass_over<'s>(
        &self,
        source: &'s Source,
        looks_unchanged: bool,
        writes_hashes: bool,
    ) -> Pass<'s>
    where
        Self: 's,
    {
        Pass {
            reading: self.reading(source),
            earlier: self.known.filter(|_| looks_unchanged),
            writes_hashes,
            cancel: self.cancel,
        }
    }
}

/// One pass over a database. It computes the hashes of pages and blocks, and the SHA-256 of the
/// whole.
struct Pass<'a> {
    reading: Reading<'a>,
    /// The backup since which the database looks unchanged.
    earlier: Option<&'a Baseline>,
    /// Whether no earlier pass has written the hashes.
    writes_hashes: bool,
    cancel: &'a CancelToken,
}

impl Pass<'_> {
    /// The SHA-256 takes longer than everything else here. If the database looks unchanged, this
    /// takes the SHA-256 from the earlier backup, and reads again if the blocks differ after all.
    fn read(
        self,
        snapshot: &mut Snapshot,
        fast_check: Option<&mut FastCheck>,
        out: &mut PageHashesOut,
        take: &mut dyn FnMut(Block) -> Result<()>,
    ) -> Result<(BlockHashes, Sha256Digest)> {
        let Pass {
            reading,
            earlier,
            writes_hashes,
            cancel,
        } = self;
        let path = reading.path;
        let record = earlier.and_then(|earlier| earlier.database(path));
        let earlier = earlier.filter(|_| record.is_some_and(|record| record.sha256.is_some()));
        let mut whole = Sha256::new();
        let out = writes_hashes.then_some(out);
        let read = blocks::read(snapshot, reading, fast_check, out, cancel, |block| {
            if earlier.is_none() {
                whole.update(&block.bytes);
            }
            take(block)
        })?;
        let sha256 = match earlier {
            None => whole.finalize().into(),
            Some(earlier) => match earlier.same_database(path, &read.blocks) {
                Some(FileRecord {
                    sha256: Some(digest),
                    ..
                }) => *digest,
                _ => {
                    blocks::read(snapshot, reading, None, None, cancel, |block| {
                        whole.update(&block.bytes);
                        Ok(())
                    })?;
                    whole.finalize().into()
                }
            },
        };
        Ok((read.blocks, sha256))
    }
}

fn send_same(responses: &mut dyn ResponseSink, same: &mut Vec<ContentHash>) -> Result<()> {
    if same.is_empty() {
        Ok(())
    } else {
        responses.message(Message::Same {
            blocks: std::mem::take(same),
        })
    }
}

/// Returns what SQLite finds in the given tables, or in all of them, and in full-text indexes.
fn findings(
    connection: &mut Connection,
    depth: Depth,
    tables: Option<&Receiver<String>>,
    cancel: &CancelToken,
) -> Result<Findings> {
    let mut found = match depth {
        Depth::Structure => Findings::default(),
        Depth::All => check::full_text(connection, cancel)?,
    };
    found.add(match tables {
        Some(tables) => check::tables(connection, tables, cancel)?,
        None => check::structure(connection, cancel)?,
    });
    Ok(found)
}

fn check_panicked() -> Error {
    Error::internal("The check of the database panicked")
}

/// Collects data into chunks of `DATA_CHUNK_BYTES` and passes them on.
struct Chunks<F> {
    hand_on: F,
    chunk: Vec<u8>,
}

impl<F: FnMut(Vec<u8>) -> Result<()>> Chunks<F> {
    fn new(hand_on: F) -> Self {
        Chunks {
            hand_on,
            chunk: Vec::new(),
        }
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
        if self.chunk.is_empty() {
            Ok(())
        } else {
            (self.hand_on)(self.chunk)
        }
    }
}
