//! Stores a database as the pages that differ from the database in an earlier backup.
//!
//! ```text
//! 8 bytes   "kg-pages"
//! 4         page size
//! 4         0
//! then for each page, in ascending order:
//! 8         page number, from 1
//! …         the page
//! ```
//!
//! Numbers are little-endian. To apply a delta, write each page at (number − 1) × page size. Then
//! truncate or extend the file to the size in the manifest.

use std::{
    fs::File,
    io::{self, BufReader, Read},
};

use crate::{
    sqlite::{files::MAGIC, page_hashes::PageHashes},
    system::portable::FileExt,
    util::content_hash::content_hash,
};

const START: &[u8; 8] = b"kg-pages";
pub const HEADER_BYTES: u64 = 16;
pub const NUMBER_BYTES: u64 = 8;
/// The page sizes that SQLite supports.
const PAGE_SIZES: std::ops::RangeInclusive<u64> = 512..=65536;
/// Offset of the page size in the header of a database
/// (<https://sqlite.org/fileformat2.html#page_size>).
const PAGE_SIZE_AT: usize = 16;

/// Returns the size of a delta.
pub fn size_bytes(page_size_bytes: u64, pages: u64) -> u64 {
    HEADER_BYTES.saturating_add(pages.saturating_mul(NUMBER_BYTES.saturating_add(page_size_bytes)))
}

pub fn header(page_size_bytes: u64) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(START);
    header[8..12].copy_from_slice(&(page_size_bytes as u32).to_le_bytes());
    header
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Applies a delta to a database file, which has `size_bytes` bytes afterwards.
pub fn apply(delta: impl Read, database: &File, size_bytes: u64) -> io::Result<()> {
    let mut delta = BufReader::with_capacity(1 << 20, delta);
    let mut header = [0; HEADER_BYTES as usize];
    delta.read_exact(&mut header)?;
    let page_size =
        page_size_of_delta(&header).ok_or_else(|| bad("not the pages of a database"))?;
    let mut page = vec![0; page_size as usize];
    let mut number = [0; NUMBER_BYTES as usize];
    database.set_len(size_bytes)?;
    loop {
        match delta.read(&mut number[..1])? {
            0 => return Ok(()),
            _ => delta.read_exact(&mut number[1..])?,
        }
        delta.read_exact(&mut page)?;
        let number = u64::from_le_bytes(number);
        let at = number
            .checked_sub(1)
            .and_then(|before| before.checked_mul(page_size));
        let at = at.filter(|at| {
            at.checked_add(page_size)
                .is_some_and(|end| end <= size_bytes)
        });
        database.write_all_at(
            &page,
            at.ok_or_else(|| bad("a page lies outside the database"))?,
        )?;
    }
}

fn page_size_of_delta(header: &[u8]) -> Option<u64> {
    let size = u64::from(u32::from_le_bytes(header.get(8..12)?.try_into().ok()?));
    (header.starts_with(START) && PAGE_SIZES.contains(&size) && size.is_power_of_two())
        .then_some(size)
}

fn page_size_of_database(header: &[u8]) -> Option<u64> {
    let [high, low] = header
        .get(PAGE_SIZE_AT..PAGE_SIZE_AT + 2)?
        .try_into()
        .ok()?;
    // 65536 does not fit into two bytes, so SQLite writes it as 1.
    let size = match u64::from(u16::from_be_bytes([high, low])) {
        1 => 65536,
        size => size,
    };
    (header.starts_with(MAGIC) && PAGE_SIZES.contains(&size) && size.is_power_of_two())
        .then_some(size)
}

/// Hashes the pages of an entry as its bytes arrive. It recognizes whole databases and deltas, and
/// ignores anything else.
#[derive(Default)]
pub struct PageCollector {
    start: Vec<u8>,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Other,
    Database {
        pages: PageHashes,
        page: Vec<u8>,
    },
    Delta {
        pages: Vec<(u64, [u8; 16])>,
        page_size_bytes: u64,
        record: Vec<u8>,
    },
}

/// The pages found in an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Collected {
    Database(PageHashes),
    Delta {
        page_size_bytes: u64,
        pages: Vec<(u64, [u8; 16])>,
    },
}

impl PageCollector {
    pub fn push(&mut self, mut bytes: &[u8]) {
        const ENOUGH: usize = PAGE_SIZE_AT + 2;
        if matches!(self.state, State::Unknown) {
            let taken = bytes.len().min(ENOUGH - self.start.len());
            self.start.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.start.len() < ENOUGH {
                return;
            }
            self.begin();
        }
        self.take(bytes);
    }

    fn begin(&mut self) {
        let start = std::mem::take(&mut self.start);
        if let Some(page_size) = page_size_of_database(&start) {
            self.state = State::Database {
                pages: PageHashes::new(page_size),
                page: Vec::with_capacity(page_size as usize),
            };
            self.take(&start);
        } else if let Some(page_size_bytes) = page_size_of_delta(&start) {
            self.state = State::Delta {
                pages: Vec::new(),
                page_size_bytes,
                record: Vec::new(),
            };
            self.take(&start[HEADER_BYTES as usize..]);
        } else {
            self.state = State::Other;
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Unknown | State::Other => {}
            State::Database { pages, page } => {
                let size = pages.page_size_bytes as usize;
                pieces(page, size, bytes, |page| pages.push(page));
            }
            State::Delta {
                pages,
                page_size_bytes,
                record,
            } => {
                let size = (NUMBER_BYTES + *page_size_bytes) as usize;
                pieces(record, size, bytes, |record| {
                    let (number, page) = record.split_at(NUMBER_BYTES as usize);
                    let number = u64::from_le_bytes(number.try_into().unwrap_or_default());
                    pages.push((number, content_hash(page)));
                });
            }
        }
    }

    /// Returns `None` if the entry is neither a database nor a delta, or ends within a page.
    pub fn finish(mut self) -> Option<Collected> {
        if matches!(self.state, State::Unknown) && self.start.len() as u64 >= HEADER_BYTES {
            // This is a delta without pages.
            self.begin();
        }
        match self.state {
            State::Database { pages, page } if page.is_empty() => Some(Collected::Database(pages)),
            State::Delta {
                pages,
                page_size_bytes,
                record,
            } if record.is_empty() => Some(Collected::Delta {
                page_size_bytes,
                pages,
            }),
            _ => None,
        }
    }
}

/// Calls `whole` with each piece of `size` bytes. `rest` carries the remaining bytes to the next
/// call.
fn pieces(rest: &mut Vec<u8>, size: usize, mut bytes: &[u8], mut whole: impl FnMut(&[u8])) {
    if !rest.is_empty() {
        let taken = bytes.len().min(size - rest.len());
        rest.extend_from_slice(&bytes[..taken]);
        bytes = &bytes[taken..];
        if rest.len() < size {
            return;
        }
        whole(rest);
        rest.clear();
    }
    let mut chunks = bytes.chunks_exact(size);
    chunks.by_ref().for_each(&mut whole);
    rest.extend_from_slice(chunks.remainder());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(page_size: usize, pages: &[(u64, u8)]) -> Vec<u8> {
        let mut delta = header(page_size as u64).to_vec();
        for (number, fill) in pages {
            delta.extend(number.to_le_bytes());
            delta.extend(vec![*fill; page_size]);
        }
        delta
    }

    fn database(page_size: u16, pages: &[u8]) -> Vec<u8> {
        let mut database: Vec<u8> = pages
            .iter()
            .flat_map(|fill| vec![*fill; usize::from(page_size)])
            .collect();
        database[..16].copy_from_slice(MAGIC);
        database[16..18].copy_from_slice(&page_size.to_be_bytes());
        database
    }

    fn collect(bytes: &[u8], step: usize) -> Option<Collected> {
        let mut collector = PageCollector::default();
        bytes.chunks(step).for_each(|chunk| collector.push(chunk));
        collector.finish()
    }

    #[test]
    fn a_delta_changes_adds_and_cuts_pages_and_refuses_one_outside() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 512 * 3], 0).unwrap();
        apply(delta(512, &[(2, 7), (4, 8)]).as_slice(), &file, 512 * 4).unwrap();
        let mut content = vec![0; 512 * 4];
        file.read_exact_at(&mut content, 0).unwrap();
        let pages: Vec<u8> = content.chunks(512).map(|page| page[511]).collect();
        assert_eq!(pages, [1, 7, 1, 8]);
        apply(delta(512, &[]).as_slice(), &file, 512).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 512);
        for pages in [[(0, 1)], [(2, 1)], [(u64::MAX, 1)]] {
            assert!(apply(delta(512, &pages).as_slice(), &file, 512).is_err());
        }
        assert!(apply(&b"no delta at all, whatever it is"[..], &file, 512).is_err());
        assert!(apply(&delta(512, &[(1, 1)])[..500], &file, 512).is_err());
    }

    #[test]
    fn pages_are_collected_alike_however_the_bytes_arrive() {
        let whole = database(512, &[1, 2, 3]);
        let changes = delta(1024, &[(1, 5), (9, 6)]);
        for step in [1, 7, 512, 513, 5000] {
            let Some(Collected::Database(pages)) = collect(&whole, step) else {
                panic!("step {step}")
            };
            assert_eq!((pages.page_size_bytes, pages.hashes.len()), (512, 3));
            assert_eq!(pages.hashes[1], content_hash(&[2; 512]));
            let pages = vec![(1, content_hash(&[5; 1024])), (9, content_hash(&[6; 1024]))];
            assert_eq!(
                collect(&changes, step),
                Some(Collected::Delta {
                    page_size_bytes: 1024,
                    pages
                })
            );
            assert_eq!(
                collect(&delta(512, &[]), step),
                Some(Collected::Delta {
                    page_size_bytes: 512,
                    pages: vec![]
                })
            );
            for other in [&whole[..600], &changes[..1000], b"text", b"", &[0; 4096]] {
                assert_eq!(collect(other, step), None);
            }
        }
    }
}
