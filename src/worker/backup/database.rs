//! Sends a database: the pages of one snapshot, all of them or those that changed since the base, without what they no longer hold.

use std::thread;

use crossbeam_channel::{Receiver, unbounded};
use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::{
    Saving,
    blocks::{self, Block, Reading},
    owner, record,
};
use crate::{
    archive::{
        delta,
        manifest::{Blocks, Pages, Storage},
    },
    error::{Code, Error, Result},
    project::{Component, discover::Source},
    sqlite::{
        check::{self, Depth, Findings},
        fast_check::FastCheck,
        files::{COMPANIONS, companion},
        page_hashes::DatabaseHashes,
        scrub,
        snapshot::Snapshot,
    },
    util::{content_hash::ContentHash, hex::hex, operation::CancelToken, threads::start_in},
    worker::{
        baseline::Baseline,
        protocol::{DATA_CHUNK_BYTES, Message, ResponseSink},
    },
};

/// How many blocks one message tells of.
const SAME_AT_ONCE: usize = 256;

impl Saving<'_> {
    pub(super) fn snapshot(&mut self, source: &Source, mut snapshot: Snapshot) -> Result<()> {
        let depth = self.depth(source);
        let found = if self.looks_unchanged(source, &snapshot) {
            // Then it has the very pages that were found sound, and is not checked again.
            if let Some(found) = self.pages(source, &mut snapshot, true, None)? {
                self.saved.integrity.full_text &= found == Depth::All;
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

    /// Sends what is to be saved, and checks it meanwhile: the pages as they come by, and what has to be asked of SQLite beside that.
    fn pages_and_findings(
        &mut self,
        source: &Source,
        mut snapshot: Snapshot,
        depth: Depth,
    ) -> Result<Findings> {
        let (ask, asked) = unbounded();
        let cancel = self.cancel;
        let mut proof = FastCheck::begin(&snapshot, ask, cancel)?;
        let asked = proof.is_some().then_some(asked);
        let twin = snapshot.second_connection();
        let (sent, is_proven, beside) = thread::scope(|threads| {
            let asked = asked.as_ref();
            let check = |mut twin| {
                start_in(threads, "kg-check", move || {
                    findings(&mut twin, depth, asked, cancel)
                })
            };
            let beside = twin.map(check).transpose()?;
            let sent = self.pages(source, &mut snapshot, false, proof.as_mut());
            // Nothing more is asked then.
            let is_proven = proof.map(FastCheck::end);
            let beside =
                beside.map(|beside| beside.join().unwrap_or_else(|_| Err(check_panicked())));
            Ok::<_, Error>((sent, is_proven, beside))
        })?;
        sent?;
        let (_held, mut connection) = snapshot.into_connection();
        let mut found =
            beside.unwrap_or_else(|| findings(&mut connection, depth, asked.as_ref(), cancel))?;
        // SQLite calls a read that fails once damage too. What is damaged is so the next time.
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

    /// An incremental backup of a database that was found sound leaves its full-text indexes to the next full one: to read them can take
    /// longer than all else together, and they can be made again from their tables.
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

    /// Whether the files of the database look as they did at an earlier backup that was found sound. This only decides what
    /// is done beside what: its blocks are compared.
    fn looks_unchanged(&self, source: &Source, snapshot: &Snapshot) -> bool {
        let now = record(source, snapshot.metadata(), snapshot.size_bytes());
        let wal = std::fs::metadata(companion(&source.absolute, COMPANIONS[0]))
            .map_or(0, |wal| wal.len());
        let looks =
            |known: &Baseline| known.sound().is_some() && known.looks_like(&now, self.block_bytes);
        // What is kept of pages that are not erased is in no earlier backup.
        wal == 0 && self.erase && self.known.is_some_and(looks)
    }

    /// Sends what is to be saved of the database. Where it has the very pages that were found sound at an earlier backup, how far they
    /// were checked then.
    fn pages(
        &mut self,
        source: &Source,
        snapshot: &mut Snapshot,
        looks_unchanged: bool,
        proof: Option<&mut FastCheck>,
    ) -> Result<Option<Depth>> {
        let hashes = match self.base.and_then(|base| base.hashes(&source.path)) {
            Some(base) => self.changed_pages(source, snapshot, base, looks_unchanged, proof)?,
            None => self.all_pages(source, snapshot, looks_unchanged, proof)?,
        };
        let is_as_then = |known: &&Baseline| {
            known
                .digest(&source.path, snapshot.size_bytes(), &hashes.blocks)
                .is_some()
        };
        let found = self.known.filter(is_as_then).and_then(Baseline::sound);
        self.hashes.databases.insert(source.path.clone(), hashes);
        if source.component == Component::Database {
            self.count(snapshot.connection())?;
        }
        Ok(found)
    }

    /// Sends all of it, but for the blocks that the earlier archive has.
    fn all_pages(
        &mut self,
        source: &Source,
        snapshot: &mut Snapshot,
        looks_unchanged: bool,
        proof: Option<&mut FastCheck>,
    ) -> Result<DatabaseHashes> {
        let size = snapshot.size_bytes();
        let record = record(source, snapshot.metadata(), size);
        let owner = owner(snapshot.metadata());
        self.answers.message(Message::Database { record, owner })?;
        // Smaller ones share a block with other files.
        let takes_over = self.takes_over && size >= self.block_bytes as u64;
        let (pass, answers) = (self.pass(source, looks_unchanged), &mut *self.answers);
        let mut same = Vec::new();
        let hashes = pass.read(snapshot, proof, &mut |block| {
            if takes_over && block.is_known {
                same.push(block.hash);
                return if same.len() < SAME_AT_ONCE {
                    Ok(())
                } else {
                    tell_same(answers, &mut same)
                };
            }
            tell_same(answers, &mut same)?;
            answers.block(block.bytes, block.hash)
        })?;
        tell_same(answers, &mut same)?;
        let (sha256, blocks) = (hashes.sha256.clone(), Blocks::from(&hashes.blocks));
        answers.message(Message::DatabaseEnd { sha256, blocks })?;
        Ok(hashes)
    }

    /// The pages are read twice in the one transaction: first to see which of them changed, then those.
    fn changed_pages(
        &mut self,
        source: &Source,
        snapshot: &mut Snapshot,
        base: &DatabaseHashes,
        looks_unchanged: bool,
        proof: Option<&mut FastCheck>,
    ) -> Result<DatabaseHashes> {
        let hashes = self
            .pass(source, looks_unchanged)
            .read(snapshot, proof, &mut |_| Ok(()))?;
        let (page_size, size) = (snapshot.page_size_bytes(), snapshot.size_bytes());
        let (pages, base) = (&hashes.pages, &base.pages);
        let changed = pages.changed_since(base).unwrap_or_default();
        let is_same = changed.is_empty() && pages.hashes.len() == base.hashes.len();
        // Hashes of something else: what the manifest says of the base decides.
        let is_wrong = is_same
            && !self
                .base
                .is_some_and(|base| base.has(&source.path, size, &hashes.sha256));
        let is_other = base.page_size_bytes != page_size
            || delta::size_bytes(page_size, changed.len() as u64) >= size;
        if is_other || is_wrong {
            return self.all_pages(source, snapshot, false, None);
        }
        let mut record = record(source, snapshot.metadata(), size);
        record.sha256 = Some(hashes.sha256.clone());
        record.blocks = Some(Blocks::from(&hashes.blocks));
        if is_same {
            record.stored = Storage::Unchanged;
            self.answers.message(Message::Unchanged { record })?;
            return Ok(hashes);
        }
        record.stored = Storage::Delta;
        record.pages = Some(Pages {
            page_size,
            changed: changed.len() as u64,
            root: pages.root(),
        });
        let owner = owner(snapshot.metadata());
        self.answers.message(Message::Entry { record, owner })?;
        let mut out = Chunks::new(|chunk| self.answers.data(chunk));
        out.push(&delta::header(page_size))?;
        scrub::pages_of(snapshot, &changed, self.cancel, |number, page| {
            out.push(&number.to_le_bytes())?;
            out.push(page)
        })?;
        out.finish()?;
        Ok(hashes)
    }

    fn pass<'a>(&self, source: &'a Source, looks_unchanged: bool) -> Pass<'a>
    where
        Self: 'a,
    {
        let reading = Reading {
            block_bytes: self.block_bytes,
            // What a backup rests on is erased too.
            erase: self.erase || self.base.is_some(),
            known: self.known.and_then(|known| known.hashes(&source.path)),
        };
        Pass {
            reading,
            path: &source.path,
            earlier: self.known.filter(|_| looks_unchanged),
            cancel: self.cancel,
        }
    }
}

/// One pass over a database, which tells its hashes and the SHA-256 of the whole.
struct Pass<'a> {
    reading: Reading<'a>,
    path: &'a str,
    /// The backup since which it seems not to have changed.
    earlier: Option<&'a Baseline>,
    cancel: &'a CancelToken,
}

impl Pass<'_> {
    /// The SHA-256 takes longer than all else here, so what seems to be as it was is read without. If it is, the manifest has it; if not, it is read
    /// again.
    fn read(
        self,
        snapshot: &mut Snapshot,
        proof: Option<&mut FastCheck>,
        take: &mut dyn FnMut(Block) -> Result<()>,
    ) -> Result<DatabaseHashes> {
        let mut whole = Sha256::new();
        let mut hashes = blocks::read(snapshot, self.reading, proof, self.cancel, |block| {
            if self.earlier.is_none() {
                whole.update(&block.bytes);
            }
            take(block)
        })?;
        hashes.sha256 = match self.earlier {
            None => hex(&whole.finalize()),
            Some(earlier) => match earlier.digest(self.path, snapshot.size_bytes(), &hashes.blocks)
            {
                Some(digest) => digest.to_string(),
                None => {
                    return Pass {
                        earlier: None,
                        ..self
                    }
                    .read(snapshot, None, &mut |_| Ok(()));
                }
            },
        };
        Ok(hashes)
    }
}

fn tell_same(answers: &mut dyn ResponseSink, same: &mut Vec<ContentHash>) -> Result<()> {
    if same.is_empty() {
        Ok(())
    } else {
        answers.message(Message::Same {
            blocks: std::mem::take(same),
        })
    }
}

/// What SQLite finds: in these tables, or everywhere, and in full-text indexes.
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
    Error::new(
        Code::Internal,
        "The check of the database panicked",
        "Please report this",
    )
}

/// Collects data into chunks of `DATA_CHUNK_BYTES`, and hands them on.
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
