//! Hashes of a database at a backup. The page hashes tell the next backup which pages changed. The
//! hashes of blocks of pages identify most of the unchanged pages. Hashing one large block is
//! several times as fast as hashing many small pages.
//!
//! A *root* is the SHA-256 of such hashes in order. Two databases with the same root are equal.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::util::{
    content_hash::{ContentHash, HASH_BYTES, content_hash},
    digest::Sha256Digest,
    hex::hex,
};

const DIGEST_BYTES: usize = 32;
/// The number of hashes that are read from a file at once. `MAX_HEAD_BYTES` limits the length of
/// the first line of the file.
const HASHES_AT_ONCE: usize = 1024;
const MAX_HEAD_BYTES: u64 = 64 * 1024 * 1024;

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

    /// Returns the numbers of the pages that differ from `base` or do not exist there. Returns
    /// `None` if the page sizes differ.
    pub fn changed_since(&self, base: &PageHashes) -> Option<Vec<u64>> {
        if self.page_size_bytes != base.page_size_bytes {
            return None;
        }
        let differs = |(index, hash): (usize, &ContentHash)| {
            (base.hashes.get(index) != Some(hash)).then_some(index as u64 + 1)
        };
        Some(self.hashes.iter().enumerate().filter_map(differs).collect())
    }

    /// Returns the root in hexadecimal.
    pub fn root(&self) -> String {
        root(&self.hashes)
    }
}

/// The hashes of all blocks of a database, divided as in an archive. The last block can be shorter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockHashes {
    pub block_bytes: u64,
    pub hashes: Vec<ContentHash>,
}

impl BlockHashes {
    /// Returns the root in hexadecimal.
    pub fn root(&self) -> String {
        root(&self.hashes)
    }
}

fn root(hashes: &[ContentHash]) -> String {
    let root = Sha256::digest(hashes.as_flattened());
    hex(&root)
}

/// The hashes of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseHashes {
    pub pages: PageHashes,
    /// The block size is 0 if the block hashes are not known.
    pub blocks: BlockHashes,
    /// The SHA-256 of the whole database, if it is known.
    pub sha256: Option<Sha256Digest>,
}

/// A file with the hashes of the databases of a backup, keyed by database path. It ends with a
/// digest of its own content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFile {
    /// The digest of the archive that contains these databases, or empty if there is no archive
    /// yet.
    pub archive: String,
    pub databases: BTreeMap<String, DatabaseHashes>,
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Head {
    archive: String,
    databases: Vec<Described>,
}

/// A database whose hashes follow: first those of its pages, then those of its blocks.
#[derive(Clone, Serialize, Deserialize)]
struct Described {
    path: String,
    page_size: u64,
    pages: usize,
    block_size: u64,
    blocks: usize,
    sha256: Option<Sha256Digest>,
}

impl PageFile {
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let described = |(
            path,
            DatabaseHashes {
                pages,
                blocks,
                sha256,
            },
        ): (&String, &DatabaseHashes)| Described {
            path: path.clone(),
            page_size: pages.page_size_bytes,
            pages: pages.hashes.len(),
            block_size: blocks.block_bytes,
            blocks: blocks.hashes.len(),
            sha256: *sha256,
        };
        let mut out = Digesting {
            out,
            hasher: Sha256::new(),
        };
        out.head(&Head {
            archive: self.archive.clone(),
            databases: self.databases.iter().map(described).collect(),
        })?;
        for DatabaseHashes { pages, blocks, .. } in self.databases.values() {
            out.write(pages.hashes.as_flattened())?;
            out.write(blocks.hashes.as_flattened())?;
        }
        out.finish()
    }

    /// Reads a file of hashes. Returns `None` if the file is incomplete or damaged.
    pub fn read(from: impl Read) -> io::Result<Option<Self>> {
        let Some(mut reading) = Reading::begin(from)? else {
            return Ok(None);
        };
        let mut databases = BTreeMap::new();
        for Described {
            path,
            page_size,
            pages,
            block_size,
            blocks,
            sha256,
        } in reading.head.databases.clone()
        {
            let mut hashes = DatabaseHashes {
                pages: PageHashes::new(page_size),
                blocks: BlockHashes {
                    block_bytes: block_size,
                    hashes: Vec::new(),
                },
                sha256,
            };
            for (into, count) in [
                (&mut hashes.pages.hashes, pages),
                (&mut hashes.blocks.hashes, blocks),
            ] {
                let is_there = reading.hashes(count, |piece| {
                    into.extend_from_slice(piece.as_chunks().0);
                    Ok(())
                })?;
                if !is_there {
                    return Ok(None);
                }
            }
            databases.insert(path, hashes);
        }
        Ok(reading
            .end()?
            .map(|archive| PageFile { archive, databases }))
    }

    /// Copies such a file in pieces, and names `archive` as the archive in the copy. Returns the
    /// archive that the original names.
    ///
    /// Returns `None` if the original is incomplete or damaged. The caller must discard the copy
    /// then, because it may end with a digest that matches damaged content.
    pub fn copy(from: impl Read, out: impl Write, archive: &str) -> io::Result<Option<String>> {
        let Some(mut reading) = Reading::begin(from)? else {
            return Ok(None);
        };
        let databases = reading.head.databases.clone();
        let counts = databases
            .iter()
            .flat_map(|database| [database.pages, database.blocks]);
        let count = counts.fold(0, usize::saturating_add);
        let mut out = Digesting {
            out,
            hasher: Sha256::new(),
        };
        out.head(&Head {
            archive: archive.to_string(),
            databases,
        })?;
        if !reading.hashes(count, |piece| out.write(piece))? {
            return Ok(None);
        }
        out.finish()?;
        reading.end()
    }
}

/// A file that is read from beginning to end.
struct Reading<R> {
    from: BufReader<R>,
    hasher: Sha256,
    head: Head,
}

impl<R: Read> Reading<R> {
    fn begin(from: R) -> io::Result<Option<Self>> {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        from.by_ref()
            .take(MAX_HEAD_BYTES)
            .read_until(b'\n', &mut line)?;
        let head = serde_json::from_slice(&line).ok();
        Ok(head.map(|head| Reading {
            from,
            hasher: Sha256::new_with_prefix(&line),
            head,
        }))
    }

    /// Passes the next `count` hashes to `take`, in pieces. Returns `false` if the file contains
    /// fewer.
    fn hashes(
        &mut self,
        count: usize,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let mut left = count;
        let mut piece = [0; HASHES_AT_ONCE * HASH_BYTES];
        while left > 0 {
            let now = left.min(HASHES_AT_ONCE);
            let piece = &mut piece[..now * HASH_BYTES];
            match self.from.read_exact(piece) {
                Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                read => read?,
            }
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
        Ok((self.hasher.finalize().as_slice() == digest).then_some(self.head.archive))
    }
}

/// A writer that appends the digest of everything written through it.
struct Digesting<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Digesting<W> {
    fn head(&mut self, head: &Head) -> io::Result<()> {
        let mut line = serde_json::to_vec(head).map_err(io::Error::other)?;
        line.push(b'\n');
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&self.hasher.finalize())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(pages: &[u8]) -> PageHashes {
        let mut hashes = PageHashes::new(512);
        pages.iter().for_each(|page| hashes.push(&[*page; 512]));
        hashes
    }

    #[test]
    fn changed_and_added_pages_are_found_and_a_shorter_database_has_none_beyond_its_end() {
        let base = hashes(&[1, 2, 3]);
        assert_eq!(hashes(&[1, 2, 3]).changed_since(&base), Some(vec![]));
        assert_eq!(hashes(&[1, 9, 3, 4]).changed_since(&base), Some(vec![2, 4]));
        assert_eq!(hashes(&[1]).changed_since(&base), Some(vec![]));
        assert_eq!(PageHashes::new(1024).changed_since(&base), None);
        assert_ne!(hashes(&[1]).root(), hashes(&[1, 1]).root());
    }

    #[test]
    fn a_file_of_hashes_is_read_as_it_was_written_or_not_at_all() {
        let blocks = BlockHashes {
            block_bytes: 1024,
            hashes: vec![content_hash(&[1]), content_hash(&[2])],
        };
        let of = |pages: &[u8], blocks| DatabaseHashes {
            pages: hashes(pages),
            blocks,
            sha256: Some(Sha256Digest::of(b"22")),
        };
        let databases = [
            ("a", of(&[1, 2, 3], blocks)),
            ("b", of(&[], BlockHashes::default())),
        ];
        let databases = databases
            .map(|(path, hashes)| (path.to_string(), hashes))
            .into();
        let file = PageFile {
            archive: "00".into(),
            databases,
        };
        let mut bytes = Vec::new();
        file.write(&mut bytes).unwrap();
        let read = |bytes: &[u8]| PageFile::read(bytes).unwrap();
        assert_eq!(read(&bytes).as_ref(), Some(&file));
        let copy = |bytes: &[u8]| {
            let mut copy = Vec::new();
            PageFile::copy(bytes, &mut copy, "11")
                .unwrap()
                .map(|of| (of, copy))
        };
        let (of, copied) = copy(&bytes).unwrap();
        assert_eq!(of, "00");
        assert_eq!(
            read(&copied),
            Some(PageFile {
                archive: "11".into(),
                ..file
            })
        );
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
}
