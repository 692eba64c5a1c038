//! What the pages of a database were at a backup: a hash of each, by which the next backup knows the pages that changed.
//!
//! A hash is the first 16 bytes of a page's BLAKE3. The *root* of a database is the SHA-256 of all its hashes in order: two
//! databases of one root have the same pages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub const HASH_BYTES: usize = 16;
pub type PageHash = [u8; HASH_BYTES];

/// The hashes of all pages of a database, first page first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageHashes {
    pub page_size_bytes: u64,
    pub hashes: Vec<PageHash>,
}

impl PageHashes {
    pub fn new(page_size_bytes: u64) -> Self {
        PageHashes { page_size_bytes, hashes: Vec::new() }
    }

    pub fn push(&mut self, page: &[u8]) {
        self.hashes.push(hash(page));
    }

    /// Of the page of that number, which counts from 1, or the one after the last. `None` for any other.
    pub fn set(&mut self, number: u64, hash: PageHash) -> Option<()> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        if index == self.hashes.len() {
            self.hashes.push(hash);
        } else {
            *self.hashes.get_mut(index)? = hash;
        }
        Some(())
    }

    /// Numbers of the pages that differ from `base`, or are not in it; `None` where the page sizes differ.
    pub fn changed_since(&self, base: &PageHashes) -> Option<Vec<u64>> {
        if self.page_size_bytes != base.page_size_bytes {
            return None;
        }
        let differs =
            |(index, hash): (usize, &PageHash)| (base.hashes.get(index) != Some(hash)).then_some(index as u64 + 1);
        Some(self.hashes.iter().enumerate().filter_map(differs).collect())
    }

    /// Hexadecimal.
    pub fn root(&self) -> String {
        let mut hasher = Sha256::new();
        self.hashes.iter().for_each(|hash| hasher.update(hash));
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

pub fn hash(page: &[u8]) -> PageHash {
    let mut hash = PageHash::default();
    hash.copy_from_slice(&blake3::hash(page).as_bytes()[..HASH_BYTES]);
    hash
}

/// Hashes of the databases of a backup in a file, by the paths of the databases. It ends with a digest of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFile {
    /// Digest of the archive that the hashes are of; empty while there is none yet.
    pub archive: String,
    pub databases: BTreeMap<String, PageHashes>,
}

/// The first line of the file.
#[derive(Serialize, Deserialize)]
struct Head {
    archive: String,
    /// Path, size of a page, number of pages.
    databases: Vec<(String, u64, usize)>,
}

impl PageFile {
    pub fn encode(&self) -> Vec<u8> {
        let databases = self.databases.iter();
        let databases =
            databases.map(|(path, pages)| (path.clone(), pages.page_size_bytes, pages.hashes.len())).collect();
        let head = Head { archive: self.archive.clone(), databases };
        let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
        bytes.push(b'\n');
        self.databases.values().flat_map(|pages| &pages.hashes).for_each(|hash| bytes.extend(hash));
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// `None` where the file is not whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Sha256::digest(content).as_slice() != digest {
            return None;
        }
        let end = content.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&content[..end]).ok()?;
        let (mut hashes, rest) = content[end + 1..].as_chunks::<HASH_BYTES>();
        let mut databases = BTreeMap::new();
        for (path, page_size_bytes, count) in head.databases {
            let (own, others) = hashes.split_at_checked(count)?;
            hashes = others;
            databases.insert(path, PageHashes { page_size_bytes, hashes: own.to_vec() });
        }
        (hashes.is_empty() && rest.is_empty()).then_some(PageFile { archive: head.archive, databases })
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
        let databases = [("a".to_string(), hashes(&[1, 2, 3])), ("b".to_string(), hashes(&[]))].into();
        let file = PageFile { archive: "00".into(), databases };
        let bytes = file.encode();
        assert_eq!(PageFile::decode(&bytes), Some(file));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(PageFile::decode(&changed), None, "byte {at}");
            assert_eq!(PageFile::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
