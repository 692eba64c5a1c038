//! The blocks of an earlier archive, for a new one to take over instead of compressing the same again.
//!
//! Large files begin a block of their own, so what did not change since makes the same blocks. An archive that takes them over
//! is as whole and as independent as any: it holds the bytes.
//!
//! It is safe because nothing is taken on trust. The earlier archive is read to its end first, and used only when its SHA-256
//! is the one that was recorded when it was written and its seal is right. Each block is then found by the hash of
//! what it holds, or, for a large file of which the source has every page still, by where the tar inside has that file; and what is copied is
//! compared with what was read the first time. An archive that is damaged, gone or of another kind makes a backup slower and
//! nothing else.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{
    block::{HEAD_BYTES, Head, Unpacker},
    decoder::append,
    manifest::{DIGEST_PREFIX, hex},
    seal::{Container, SealedFile},
    write::TAR_BLOCK_BYTES,
};
use crate::{
    content_hash::{ContentHash, content_hash},
    error::{Code, Error},
    task::Cancel,
};

/// An archive whose blocks may be taken over.
pub struct Earlier {
    archive: PathBuf,
    /// Hexadecimal, as it was when the archive was written.
    sha256: String,
    cancel: Cancel,
    blocks: OnceLock<Option<Blocks>>,
}

impl Earlier {
    pub fn new(archive: PathBuf, sha256: String, cancel: Cancel) -> Self {
        Earlier { archive, sha256, cancel, blocks: OnceLock::new() }
    }

    /// Whether it is the archive of that checksum.
    pub fn is(&self, checksum: &str) -> bool {
        checksum.strip_prefix(DIGEST_PREFIX) == Some(&self.sha256)
    }

    /// Reads it now, instead of when something of it is asked for.
    pub fn read(&self) {
        self.blocks();
    }

    /// The block that holds what has this hash.
    pub fn block(&self, hash: &ContentHash) -> Option<Taken> {
        let blocks = self.blocks()?;
        blocks.take(*blocks.by_hash.get(hash)?)
    }

    /// The numbers of the blocks that hold this large file and nothing else.
    pub fn blocks_of(&self, entry: &str, size_bytes: u64) -> Option<Range<usize>> {
        self.blocks()?.of(entry, size_bytes).ok().flatten()
    }

    /// The block of that number.
    pub fn take(&self, number: usize) -> Option<Taken> {
        self.blocks()?.take(number)
    }

    fn blocks(&self) -> Option<&Blocks> {
        let read = || Blocks::read(&self.archive, &self.sha256, &self.cancel).ok().flatten();
        self.blocks.get_or_init(read).as_ref()
    }
}

/// The archive that something unchanged was to be taken from is not what it was.
pub fn is_gone() -> Error {
    Error::new(
        Code::BaseUnusable,
        "The earlier backup that unchanged databases were to be taken from is not what was written",
        "Run it again; see the damage with `kg diag backup --verify`",
    )
}

/// A block of an earlier archive, and where it is.
pub struct Taken {
    pub block: Vec<u8>,
    pub file: Arc<File>,
    pub offset: u64,
}

struct Blocks {
    file: Arc<File>,
    container: Container,
    /// In the order of the archive.
    places: Vec<Place>,
    by_hash: HashMap<ContentHash, usize>,
}

struct Place {
    offset: u64,
    size: usize,
    /// Of the tar inside.
    content: Range<u64>,
    /// Of the block itself.
    hash: ContentHash,
}

impl Blocks {
    /// `None` where the archive is not what was written.
    fn read(archive: &Path, sha256: &str, cancel: &Cancel) -> io::Result<Option<Self>> {
        let file = File::open(archive)?;
        let mut sealed = SealedFile::new(file.try_clone()?)?;
        let container = sealed.container();
        let (mut places, mut by_hash) = (Vec::new(), HashMap::new());
        let (mut offset, mut content_end, mut block) = (0, 0, Vec::new());
        loop {
            cancel.check().map_err(io::Error::other)?;
            block.clear();
            append(&mut block, &mut sealed, HEAD_BYTES)?;
            let Ok(Some(head)) = Head::parse(&block, container) else { break };
            append(&mut block, &mut sealed, head.size - HEAD_BYTES)?;
            let Some(content_bytes) = head.content_bytes(&block, container) else { break };
            if let Some(hash) = head.hash(&block) {
                by_hash.insert(hash, places.len());
            }
            let content = content_end..content_end + content_bytes;
            content_end = content.end;
            places.push(Place { offset, size: head.size, content, hash: content_hash(&block) });
            offset += head.size as u64;
        }
        let facts = sealed.finish(|| cancel.is_cancelled())?;
        let is_as_written = facts.sealed && hex(&facts.sha256) == sha256;
        Ok(is_as_written.then_some(Blocks { file: Arc::new(file), container, places, by_hash }))
    }

    fn take(&self, number: usize) -> Option<Taken> {
        let place = self.places.get(number)?;
        let mut block = vec![0; place.size];
        self.file.read_exact_at(&mut block, place.offset).ok()?;
        let is_as_read = content_hash(&block) == place.hash;
        is_as_read.then(|| Taken { block, file: self.file.clone(), offset: place.offset })
    }

    /// `None` where there is no such file, or where it shares a block with something else.
    fn of(&self, entry: &str, size_bytes: u64) -> io::Result<Option<Range<usize>>> {
        let mut tar = tar::Archive::new(Inside { blocks: self, at: 0, unpacked: None });
        for found in tar.entries_with_seek()? {
            let found = found?;
            if found.path_bytes().as_ref() != entry.as_bytes() {
                continue;
            }
            let start = found.raw_file_position();
            let end = start + size_bytes.next_multiple_of(TAR_BLOCK_BYTES);
            let first = self.places.partition_point(|place| place.content.start < start);
            let last = self.places.partition_point(|place| place.content.end <= end);
            let Some(blocks) = self.places.get(first..last) else { return Ok(None) };
            let bounds = blocks.first().zip(blocks.last()).map(|(first, last)| (first.content.start, last.content.end));
            return Ok((found.size() == size_bytes && bounds == Some((start, end))).then_some(first..last));
        }
        Ok(None)
    }
}

/// The tar inside. Only the blocks are unpacked that hold what is read of it.
struct Inside<'a> {
    blocks: &'a Blocks,
    at: u64,
    unpacked: Option<(usize, Vec<u8>)>,
}

impl Inside<'_> {
    /// What the block of that number holds.
    fn content(&mut self, number: usize) -> io::Result<&[u8]> {
        if self.unpacked.as_ref().is_none_or(|(unpacked, _)| *unpacked != number) {
            let damaged = || io::Error::from(io::ErrorKind::InvalidData);
            let block = self.blocks.take(number).ok_or_else(damaged)?.block;
            let head = Head::parse(&block, self.blocks.container).ok().flatten().ok_or_else(damaged)?;
            let content = Unpacker::default().unpack(&block, head, self.blocks.container);
            self.unpacked = Some((number, content.map_err(|_| damaged())?));
        }
        Ok(self.unpacked.as_ref().map_or(&[], |(_, content)| content))
    }
}

impl Read for Inside<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let number = self.blocks.places.partition_point(|place| place.content.end <= self.at);
        let Some(place) = self.blocks.places.get(number) else { return Ok(0) };
        let into = (self.at - place.content.start) as usize;
        let mut rest = self.content(number)?.get(into..).unwrap_or_default();
        let read = rest.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Inside<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
