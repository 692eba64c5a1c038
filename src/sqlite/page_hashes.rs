//! Hashes of a database at a backup. The page hashes tell the next backup which pages changed. The
//! hashes of blocks of pages identify most of the unchanged pages. Hashing one large block is
//! several times as fast as hashing many small pages.
//!
//! A *root* is the SHA-256 of such hashes in order. Two databases with the same root are equal.
//!
//! A large database has more page hashes than should be in memory. They are written to a file as
//! they are computed, and read from it in order:
//!
//! ```text
//! a line of JSON: the archive
//! for each database, a line of JSON, the hashes of its pages, and the hashes of its blocks
//! the line `null`
//! the SHA-256 of all this
//! ```

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    system::portable::FileExt,
    util::{
        content_hash::{ContentHash, ContentHasher, HASH_BYTES, content_hash},
        hex::hex,
    },
};

const DIGEST_BYTES: usize = 32;
/// The number of hashes that are read from a file at once.
const HASHES_AT_ONCE: usize = 1024;
/// An upper bound for the length of a line.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// The hashes of all pages of a database, in page order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageHashes {
    pub page_size_bytes: u64,
    pub hashes: Vec<ContentHash>,
}

impl PageHashes {
    pub fn new(page_size_bytes: u64) -> Self {
        PageHashes {
            page_size_bytes,
            hashes: Vec::new(),
        }
    }

    pub fn push(&mut self, page: &[u8]) {
        self.hashes.push(content_hash(page));
    }

    /// Sets the hash of the page `number`, which counts from 1. The number may also be that of the
    /// page after the last one. Returns `None` for any other number.
    pub fn set(&mut self, number: u64, hash: ContentHash) -> Option<()> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        if index == self.hashes.len() {
            self.hashes.push(hash);
        } else {
            *self.hashes.get_mut(index)? = hash;
        }
        Some(())
    }

    /// Returns the root in hexadecimal.
    pub fn root(&self) -> String {
        root(&self.hashes)
    }
}

/// The hashes of all blocks of a database, divided as in an archive. The last block can be shorter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockHashes {
    /// 0 if the hashes are not known.
    pub block_bytes: u64,
    pub hashes: Vec<ContentHash>,
}

impl BlockHashes {
    /// Returns the root in hexadecimal.
    pub fn root(&self) -> String {
        root(&self.hashes)
    }
}

/// Computes block hashes from content that arrives in pieces of any length.
#[derive(Default)]
pub struct BlockHasher {
    made: BlockHashes,
    block: ContentHasher,
    /// The number of bytes in the current block.
    filled: u64,
}

impl BlockHasher {
    pub fn new(block_bytes: u64) -> Self {
        BlockHasher {
            made: BlockHashes {
                block_bytes,
                hashes: Vec::new(),
            },
            ..BlockHasher::default()
        }
    }

    pub fn update(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let room = (self.made.block_bytes.max(1) - self.filled).min(piece.len() as u64);
            let (now, later) = piece.split_at(room as usize);
            self.block.update(now);
            self.filled += room;
            piece = later;
            if self.filled >= self.made.block_bytes {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.made.hashes.push(block.finish());
        self.filled = 0;
    }

    /// Returns the hashes; the last block may be shorter.
    pub fn finish(mut self) -> BlockHashes {
        if self.filled > 0 {
            self.end_block();
        }
        self.made
    }
}

fn root(hashes: &[ContentHash]) -> String {
    let root = Sha256::digest(hashes.as_flattened());
    hex(&root)
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Head {
    /// The digest of the archive that contains these databases, or empty if there is no archive
    /// yet.
    archive: String,
}

/// Describes a database whose hashes follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Section {
    pub path: String,
    pub page_size: u64,
    pub pages: u64,
    /// 0 if the hashes of blocks are not known.
    pub block_size: u64,
    pub blocks: u64,
}

impl Section {
    /// Describes a database that is read in blocks of whole pages, at most `block_bytes` each.
    pub fn new(path: &str, page_size: u64, pages: u64, block_bytes: u64) -> Self {
        Section {
            path: path.to_string(),
            page_size,
            pages,
            block_size: block_bytes,
            blocks: match block_bytes {
                0 => 0,
                _ => pages.div_ceil((block_bytes / page_size).max(1)),
            },
        }
    }
}

/// Writes such a file.
pub struct PageFileWriter<W: Write> {
    out: Digesting<W>,
    /// The numbers of pages and blocks that the current section still lacks.
    missing: (u64, u64),
}

impl<W: Write> PageFileWriter<W> {
    pub fn new(out: W, archive: &str) -> io::Result<Self> {
        let mut out = Digesting {
            out,
            hasher: Sha256::new(),
        };
        out.line(&Head {
            archive: archive.to_string(),
        })?;
        Ok(PageFileWriter {
            out,
            missing: (0, 0),
        })
    }

    /// Writes the file of databases whose blocks are not known, and that name no archive.
    pub fn write_all(out: W, databases: &BTreeMap<String, PageHashes>) -> io::Result<()> {
        let mut writer = PageFileWriter::new(out, "")?;
        for (path, pages) in databases {
            let count = pages.hashes.len() as u64;
            writer.begin(&Section::new(path, pages.page_size_bytes, count, 0))?;
            writer.pages(&pages.hashes)?;
            writer.end(&[])?;
        }
        writer.finish()
    }

    /// Begins a database.
    pub fn begin(&mut self, section: &Section) -> io::Result<()> {
        self.missing = (section.pages, section.blocks);
        self.out.line(section)
    }

    /// Adds the hashes of the next pages.
    pub fn pages(&mut self, hashes: &[ContentHash]) -> io::Result<()> {
        self.missing.0 = self.missing.0.wrapping_sub(hashes.len() as u64);
        self.out.write(hashes.as_flattened())
    }

    /// Adds the hashes of all blocks, and ends the database.
    pub fn end(&mut self, blocks: &[ContentHash]) -> io::Result<()> {
        self.missing.1 = self.missing.1.wrapping_sub(blocks.len() as u64);
        match self.missing {
            (0, 0) => self.out.write(blocks.as_flattened()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Adds a database whose hashes another file has.
    pub fn copy_database(&mut self, path: &str, hashes: &DatabaseHashes) -> io::Result<()> {
        self.begin(&Section {
            path: path.to_string(),
            page_size: hashes.page_size_bytes,
            pages: hashes.page_count,
            block_size: hashes.blocks.block_bytes,
            blocks: hashes.blocks.hashes.len() as u64,
        })?;
        let mut cursor = hashes.pages();
        let mut left = hashes.page_count;
        while left > 0 {
            let now = left.min(HASHES_AT_ONCE as u64) as usize;
            let pages: Vec<ContentHash> = cursor.take(now)?.collect();
            self.pages(&pages)?;
            left -= now as u64;
        }
        self.end(&hashes.blocks.hashes)
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.out.line(&None::<Section>)?;
        self.out.out.write_all(&self.out.hasher.finalize())?;
        self.out.out.flush()
    }
}

/// A file of hashes that was found complete.
#[derive(Debug, Default)]
pub struct PageFile {
    /// By path.
    pub databases: BTreeMap<String, DatabaseHashes>,
}

impl PageFile {
    /// Opens a file of hashes. Returns `None` if it is incomplete or damaged.
    pub fn open(file: File) -> io::Result<Option<Self>> {
        let Some(mut reading) = Reading::begin(&file)? else {
            return Ok(None);
        };
        let mut found = Vec::new();
        while let Some(section) = reading.section()? {
            let pages_at = reading.at;
            let mut blocks = BlockHashes {
                block_bytes: section.block_size,
                hashes: Vec::new(),
            };
            let is_there = reading.hashes(section.pages, |_| Ok(()))?
                && reading.hashes(section.blocks, |piece| {
                    blocks.hashes.extend_from_slice(piece.as_chunks().0);
                    Ok(())
                })?;
            if !is_there {
                return Ok(None);
            }
            found.push((section, pages_at, blocks));
        }
        if reading.end()?.is_none() {
            return Ok(None);
        }
        let file = Arc::new(file);
        let databases = found.into_iter().map(|(section, pages_at, blocks)| {
            let hashes = DatabaseHashes {
                page_size_bytes: section.page_size,
                page_count: section.pages,
                blocks,
                file: file.clone(),
                pages_at,
            };
            (section.path, hashes)
        });
        Ok(Some(PageFile {
            databases: databases.collect(),
        }))
    }

    /// Copies such a file in pieces, and names `archive` as the archive in the copy. Returns the
    /// archive that the original names.
    ///
    /// Returns `None` if the original is incomplete or damaged. The caller must discard the copy
    /// then, because it may end with a digest that matches damaged content.
    pub fn copy(from: &File, out: impl Write, archive: &str) -> io::Result<Option<String>> {
        let Some(mut reading) = Reading::begin(from)? else {
            return Ok(None);
        };
        let mut writer = PageFileWriter::new(out, archive)?;
        while let Some(section) = reading.section()? {
            writer.out.line(&section)?;
            let count = section.pages.saturating_add(section.blocks);
            if !reading.hashes(count, |piece| writer.out.write(piece))? {
                return Ok(None);
            }
        }
        writer.finish()?;
        reading.end()
    }
}

/// The hashes of one database.
#[derive(Debug)]
pub struct DatabaseHashes {
    pub page_size_bytes: u64,
    pub page_count: u64,
    pub blocks: BlockHashes,
    file: Arc<File>,
    pages_at: u64,
}

impl DatabaseHashes {
    /// Reads the hashes of the pages in order.
    pub fn pages(&self) -> PageCursor<'_> {
        PageCursor {
            of: self,
            next: 0,
            hashes: Vec::new(),
        }
    }
}

/// A place in the hashes of the pages of a database.
pub struct PageCursor<'a> {
    of: &'a DatabaseHashes,
    /// The index of the first page after `hashes`.
    next: u64,
    /// Hashes that were read from the file and not taken.
    hashes: Vec<ContentHash>,
}

impl PageCursor<'_> {
    /// Takes the hashes of the next `count` pages, or of fewer if there are no more.
    pub fn take(&mut self, count: usize) -> io::Result<impl Iterator<Item = ContentHash>> {
        while self.hashes.len() < count && self.next < self.of.page_count {
            let now = (self.of.page_count - self.next).min(HASHES_AT_ONCE as u64) as usize;
            let start = self.hashes.len();
            self.hashes.resize(start + now, ContentHash::default());
            let into = self.hashes[start..].as_flattened_mut();
            let at = self.of.pages_at + self.next * HASH_BYTES as u64;
            self.of.file.read_exact_at(into, at)?;
            self.next += now as u64;
        }
        Ok(self.hashes.drain(..count.min(self.hashes.len())))
    }
}

/// A file that is read from beginning to end.
struct Reading<'a> {
    from: BufReader<&'a File>,
    /// How much was read.
    at: u64,
    hasher: Sha256,
    archive: String,
    has_ended: bool,
}

impl<'a> Reading<'a> {
    fn begin(from: &'a File) -> io::Result<Option<Self>> {
        let mut reading = Reading {
            from: BufReader::with_capacity(HASHES_AT_ONCE * HASH_BYTES, from),
            at: 0,
            hasher: Sha256::new(),
            archive: String::new(),
            has_ended: false,
        };
        let head: Option<Head> = serde_json::from_slice(&reading.line()?).ok();
        Ok(head.map(|head| Reading {
            archive: head.archive,
            ..reading
        }))
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut from = self.from.by_ref().take(MAX_LINE_BYTES);
        self.at += from.read_until(b'\n', &mut line)? as u64;
        self.hasher.update(&line);
        Ok(line)
    }

    /// Returns the next database. `None` after the last one, or if no database follows.
    fn section(&mut self) -> io::Result<Option<Section>> {
        let section: Option<Option<Section>> = serde_json::from_slice(&self.line()?).ok();
        self.has_ended = section == Some(None);
        Ok(section.flatten())
    }

    /// Passes the next `count` hashes to `take`, in pieces. Returns `false` if the file contains
    /// fewer.
    fn hashes(
        &mut self,
        count: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let mut left = count;
        let mut piece = [0; HASHES_AT_ONCE * HASH_BYTES];
        while left > 0 {
            let now = left.min(HASHES_AT_ONCE as u64);
            let piece = &mut piece[..now as usize * HASH_BYTES];
            match self.from.read_exact(piece) {
                Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                read => read?,
            }
            self.at += piece.len() as u64;
            self.hasher.update(&*piece);
            take(piece)?;
            left -= now;
        }
        Ok(true)
    }

    /// Returns the archive that the file names, if the rest of the file is exactly the digest of
    /// everything before.
    fn end(mut self) -> io::Result<Option<String>> {
        let mut digest = Vec::new();
        self.from
            .by_ref()
            .take(DIGEST_BYTES as u64 + 1)
            .read_to_end(&mut digest)?;
        let is_whole = self.has_ended && self.hasher.finalize().as_slice() == digest;
        Ok(is_whole.then_some(self.archive))
    }
}

/// A writer that keeps the digest of everything written through it.
struct Digesting<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Digesting<W> {
    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(line).map_err(io::Error::other)?;
        line.push(b'\n');
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn hashes(fills: &[u8]) -> Vec<ContentHash> {
        fills.iter().map(|fill| content_hash(&[*fill])).collect()
    }

    /// Returns a file with these bytes, as [`PageFile`] needs one.
    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    /// The path, pages and blocks of a database.
    type Read = (String, Vec<ContentHash>, BlockHashes);

    /// Returns the databases that a file names.
    fn read(bytes: &[u8]) -> Option<Vec<Read>> {
        let read = PageFile::open(file(bytes)).unwrap()?;
        let databases = read.databases.into_iter().map(|(path, database)| {
            let mut cursor = database.pages();
            let mut pages = Vec::new();
            for count in [2, 0, 5000] {
                pages.extend(cursor.take(count).unwrap());
            }
            assert_eq!(cursor.take(1).unwrap().count(), 0);
            (path, pages, database.blocks)
        });
        Some(databases.collect())
    }

    fn copy(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
        let mut copy = Vec::new();
        let of = PageFile::copy(&file(bytes), &mut copy, "11").unwrap()?;
        Some((of, copy))
    }

    #[test]
    fn a_file_of_hashes_is_read_as_it_was_written_or_not_at_all() {
        let mut bytes = Vec::new();
        let mut writer = PageFileWriter::new(&mut bytes, "00").unwrap();
        writer.begin(&Section::new("a", 512, 3, 1024)).unwrap();
        writer.pages(&hashes(&[1, 2])).unwrap();
        writer.pages(&hashes(&[3])).unwrap();
        writer.end(&hashes(&[4, 5])).unwrap();
        writer.begin(&Section::new("b", 512, 0, 0)).unwrap();
        writer.end(&[]).unwrap();
        writer.finish().unwrap();
        let blocks = BlockHashes {
            block_bytes: 1024,
            hashes: hashes(&[4, 5]),
        };
        let databases = vec![
            ("a".to_string(), hashes(&[1, 2, 3]), blocks),
            ("b".to_string(), vec![], BlockHashes::default()),
        ];
        assert_eq!(read(&bytes).as_ref(), Some(&databases));
        let (of, copied) = copy(&bytes).unwrap();
        assert_eq!(of, "00");
        assert_eq!(read(&copied), Some(databases));
        assert_eq!(copy(&copied).unwrap().0, "11");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!((read(&changed), copy(&changed)), (None, None), "byte {at}");
            assert_eq!(
                (read(&bytes[..at]), copy(&bytes[..at])),
                (None, None),
                "cut at {at}"
            );
        }
        assert_eq!(copy(&[&bytes[..], b"x"].concat()), None);
    }

    #[test]
    fn a_section_with_another_number_of_hashes_is_an_error() {
        for (pages, blocks) in [(2, 2), (4, 2), (3, 1), (3, 3)] {
            let mut writer = PageFileWriter::new(io::sink(), "").unwrap();
            writer.begin(&Section::new("a", 512, 3, 1024)).unwrap();
            writer.pages(&hashes(&vec![0; pages])).unwrap();
            assert!(writer.end(&hashes(&vec![0; blocks])).is_err());
        }
    }

    #[test]
    fn more_hashes_than_are_read_at_once_come_in_order() {
        let count = 3 * HASHES_AT_ONCE as u32 + 7;
        let all: Vec<ContentHash> = (0..count)
            .map(|number| content_hash(&number.to_le_bytes()))
            .collect();
        let pages = PageHashes {
            page_size_bytes: 512,
            hashes: all.clone(),
        };
        let mut bytes = Vec::new();
        PageFileWriter::write_all(&mut bytes, &[("a".to_string(), pages)].into()).unwrap();
        let databases = read(&bytes).unwrap();
        assert_eq!(databases[0].1, all);
    }

    #[test]
    fn blocks_have_the_same_hashes_however_the_bytes_arrive() {
        let content: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let expected: Vec<ContentHash> = content.chunks(4096).map(content_hash).collect();
        for piece_bytes in [1, 1000, 4096, 10_000] {
            let mut hasher = BlockHasher::new(4096);
            let pieces = content.chunks(piece_bytes);
            pieces.for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish().hashes, expected);
        }
        assert!(BlockHasher::new(4096).finish().hashes.is_empty());
    }

    #[test]
    fn databases_of_the_same_pages_have_the_same_root() {
        let root = |pages: &[u8]| root(&hashes(pages));
        assert_eq!(root(&[1, 2]), root(&[1, 2]));
        assert_ne!(root(&[1]), root(&[1, 1]));
        assert_ne!(root(&[1, 2]), root(&[2, 1]));
    }
}
