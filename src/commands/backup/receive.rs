//! Receives what the worker sends, and writes it into the archive.

use std::io::{self, BufRead, Read};

use crate::{
    archive::{
        file_record::Storage,
        writer::{ArchiveWriter, DatabaseEntry, EntryContent},
    },
    error::Result,
    util::{
        digest::Sha256Digest,
        operation::{OperationContext, Phase},
        progress::ByteProgress,
    },
    worker::{
        client::{Response, Worker, protocol_violation},
        protocol::{Message, Saved},
    },
};

/// Moves everything that the worker sends into the archive.
pub(super) fn receive(
    worker: &mut Worker,
    archive: &mut ArchiveWriter,
    plan: impl Fn(u64),
    context: &OperationContext,
) -> Result<Saved> {
    let progress = ByteProgress::new(context, Phase::Saving, 0);
    loop {
        match worker.next()? {
            Response::Message(Message::Planned { bytes_total }) => {
                plan(bytes_total);
                progress.set_total(bytes_total);
                progress.advance(0)?;
            }
            Response::Message(Message::Entry { record, owner }) => {
                let left = record.entry_size().ok_or_else(protocol_violation)?;
                let data = EntryData {
                    left,
                    worker,
                    piece: Vec::new(),
                    taken: 0,
                    digest: match record.stored {
                        Storage::Full if record.kind.is_file() => record
                            .sha256
                            .map_or(ContentDigest::Follows, ContentDigest::Known),
                        _ => ContentDigest::Unknown,
                    },
                    progress: &progress,
                };
                // The worker also reads the pages that did not change.
                let skipped = record.size.saturating_sub(left);
                archive.add(record, owner, data)?;
                progress.advance(skipped)?;
            }
            Response::Message(Message::Database { record, owner }) => {
                receive_database(worker, archive.begin_database(record, owner)?, &progress)?;
            }
            Response::Message(Message::Unstored { record }) => {
                if record.stored == Storage::Unchanged {
                    progress.advance(record.size)?;
                }
                archive.add_unstored(&record)?;
            }
            Response::Message(Message::Passed { bytes }) => progress.advance(bytes)?,
            Response::Message(Message::Saved(saved)) => return Ok(saved),
            _ => return Err(protocol_violation()),
        }
    }
}

/// Moves one database into the archive, block by block.
fn receive_database(
    worker: &mut Worker,
    mut database: DatabaseEntry<'_>,
    progress: &ByteProgress,
) -> Result<()> {
    loop {
        let bytes = match worker.next()? {
            Response::Block(block, hash) => database.write(block, hash)?,
            Response::Message(Message::Same { blocks }) => database.take_over(&blocks)?,
            Response::Message(Message::DatabaseEnd { sha256, blocks }) => {
                return database.finish(sha256, blocks);
            }
            _ => return Err(protocol_violation()),
        };
        progress.advance(bytes)?;
    }
}

/// The content of one entry, as the worker sends it.
struct EntryData<'a> {
    worker: &'a mut Worker,
    left: u64,
    piece: Vec<u8>,
    taken: usize,
    digest: ContentDigest,
    progress: &'a ByteProgress,
}

/// Whether the worker sends the digest of an entry.
enum ContentDigest {
    Known(Sha256Digest),
    Follows,
    Unknown,
}

impl EntryData<'_> {
    fn next_piece(&mut self) -> Result<()> {
        match self.worker.next()? {
            Response::Data(piece) if piece.len() as u64 <= self.left && !piece.is_empty() => {
                self.left -= piece.len() as u64;
                self.progress.advance(piece.len() as u64)?;
                (self.piece, self.taken) = (piece, 0);
                Ok(())
            }
            _ => Err(protocol_violation()),
        }
    }
}

impl Read for EntryData<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for EntryData<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.piece.len() && self.left > 0 {
            self.next_piece().map_err(io::Error::other)?;
        }
        Ok(&self.piece[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

impl EntryContent for EntryData<'_> {
    fn knows_sha256(&self) -> bool {
        !matches!(self.digest, ContentDigest::Unknown)
    }

    fn sha256(&mut self) -> Result<Option<Sha256Digest>> {
        match self.digest {
            ContentDigest::Known(digest) => Ok(Some(digest)),
            ContentDigest::Unknown => Ok(None),
            ContentDigest::Follows => match self.worker.next()? {
                Response::Message(Message::FileEnd { sha256 }) => Ok(Some(sha256)),
                _ => Err(protocol_violation()),
            },
        }
    }
}
