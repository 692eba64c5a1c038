//! Reads the list of files of an archive without the rest of it.
//!
//! The list begins a block, and the sidecar tells where. What is read here is not verified: it only
//! decides what is unpacked while the whole archive is read and verified.

use std::{
    io::Read,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    vec,
};

use flate2::read::MultiGzDecoder;
use jiff::Timestamp;

use super::{
    file_list::{FILE_LIST_ENTRY, FileList, ListParser, RecordParser},
    first_format,
    manifest::Manifest,
    seal::Container,
    tar_entries::{Entries, TarItem},
};
use crate::{
    place::{Archive, Bytes},
    util::threads,
};

const READ_BYTES: usize = 128 * 1024;
/// How many pieces of the list a thread reads ahead.
const PIECES_AHEAD: usize = 4;

/// Returns the list of an archive. `json` is the text of its sidecar, and `beside` the manifest in
/// it. `None` if the sidecar does not tell where the list is, or if there is none.
pub fn file_list(archive: &Archive, json: &[u8], beside: &Manifest) -> Option<FileList> {
    if let Some(files) = first_format::file_list(json, beside) {
        return (!beside.encrypted).then_some(files);
    }
    let (mut list, from) = (ListParser::default(), open(archive, beside)?);
    read_list(from, |bytes| {
        list.push(bytes);
        true
    })?;
    list.finish().ok()
}

/// Opens an archive where its list of files begins.
fn open(archive: &Archive, beside: &Manifest) -> Option<Box<dyn Read + Send>> {
    let offset = beside.archive.as_ref()?.list_offset?;
    let file = archive.open().ok()?;
    decompressed(file, offset).filter(|_| !beside.encrypted)
}

/// The attributes that a list has for an entry.
#[derive(Debug, Clone, Copy)]
pub struct Hint {
    /// Permission bits.
    pub mode: u32,
    pub modified: Timestamp,
}

/// Tells the attributes of the entries in their order, while another thread reads the list.
pub struct Hints {
    received: Receiver<Vec<Hint>>,
    piece: vec::IntoIter<Hint>,
    /// The number of the next entry.
    next: usize,
}

impl Hints {
    /// Starts to read the list of an archive. `None` if the sidecar does not tell where the list
    /// is, or if the system refuses a thread.
    pub fn of(archive: &Archive, beside: Option<&Manifest>) -> Option<Hints> {
        let from = open(archive, beside?)?;
        let (sender, received) = sync_channel(PIECES_AHEAD);
        threads::start("kg-hints", move || send_hints(from, &sender)).ok()?;
        Some(Hints {
            received,
            piece: Vec::new().into_iter(),
            next: 0,
        })
    }

    /// Returns the attributes of that entry, which must come after the ones asked for before.
    pub fn of_entry(&mut self, number: usize) -> Option<Hint> {
        loop {
            let Some(hint) = self.piece.next() else {
                self.piece = self.received.recv().ok()?.into_iter();
                continue;
            };
            self.next += 1;
            if self.next > number {
                return Some(hint);
            }
        }
    }
}

fn send_hints(from: impl Read, sender: &SyncSender<Vec<Hint>>) -> Option<()> {
    let mut list = RecordParser::default();
    let mut hints = Vec::new();
    read_list(from, |bytes| {
        list.push(bytes, |record| {
            hints.extend(record.entry_size().map(|_| Hint {
                mode: record.mode,
                modified: record.mtime,
            }));
        });
        sender.send(std::mem::take(&mut hints)).is_ok()
    })
}

/// Decompresses a file from the block at `offset` on.
fn decompressed(mut file: Box<dyn Bytes>, offset: u64) -> Option<Box<dyn Read + Send>> {
    let mut start = [0; 4];
    file.read_exact_at(&mut start, offset).ok()?;
    file.seek_to(offset).ok()?;
    Some(match Container::of(&start) {
        Container::Gzip => Box::new(MultiGzDecoder::new(file)),
        Container::Zstd => Box::new(zstd::Decoder::new(file).ok()?),
        Container::Plain => file,
    })
}

/// Passes on the text of the list, until `each` returns `false`.
fn read_list(tar: impl Read, mut each: impl FnMut(&[u8]) -> bool) -> Option<()> {
    let mut tar = tar::Archive::new(tar);
    let (item, mut content) = Entries::new(&mut tar).ok()?.next().ok()??;
    if !matches!(item, TarItem::Entry(head) if head.name == FILE_LIST_ENTRY) {
        return None;
    }
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match content.read(&mut buffer).ok()? {
            0 => return Some(()),
            read if each(&buffer[..read]) => {}
            _ => return None,
        }
    }
}
