//! The damaged file: the trustworthy part of its header, and its pages, with those of the log
//! taking precedence.
//!
//! The page size and the number of reserved bytes are those that most pages fit. The text encoding
//! is the one that the texts use. A header of random bytes therefore loses only the settings that
//! no other page holds.

use std::{fs::File, path::Path};

use super::overlay::Overlay;
use crate::{
    error::{Error, Result},
    sqlite::{
        files,
        format::{
            btree::{Geometry, Page, PageType, parse, u32_at},
            header::{HEADER_BYTES, Header},
            record::{Class, class_of, serial_types, size_of},
        },
    },
    system::portable::FileExt,
    util::{operation::CancelToken, regular_file},
};

/// Number of pages that are sampled to find the page size and the encoding.
const SAMPLES: u64 = 96;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
}

/// A read-only database file, with the pages of the log next to it.
pub struct Source {
    file: File,
    overlay: Option<Overlay>,
    pub header: Header,
    pub page_size: usize,
    pub geometry: Geometry,
    /// Number of pages that exist, regardless of the header.
    pub present: u32,
    pub encoding: Encoding,
    /// Whether the database has pointer map pages.
    pub has_pointer_map: bool,
    /// Number of sampled pages that parse to the last byte as b-tree pages of the detected size.
    pub recognised: u32,
}

impl Source {
    pub fn open(path: &Path, overlay: Option<Overlay>, cancel: &CancelToken) -> Result<Source> {
        let failed = |cause| Error::io("read", path, cause);
        let file = regular_file::open_linked(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut source = Source {
            file,
            overlay: None,
            header: Header::default(),
            page_size: 4096,
            geometry: Geometry {
                usable_bytes: 4096,
                page_count: 0,
            },
            present: 0,
            encoding: Encoding::Utf8,
            has_pointer_map: false,
            recognised: 0,
        };
        source.header = Header::read(&source.read_at(0, HEADER_BYTES));
        let (size, reserved) = source.find_page_size(length, overlay.as_ref(), cancel)?;
        source.page_size = size;
        let in_file = u32::try_from(length / size as u64).unwrap_or(u32::MAX - 1);
        if let Some(overlay) = overlay.filter(|overlay| overlay.page_size_bytes == size) {
            // The header in the log replaces that of the file.
            if let Some(offset) = overlay.offsets.get(&1) {
                let header = Header::read_at(&overlay.file, *offset);
                source.header =
                    header.ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))?;
            }
            let beyond = overlay.offsets.keys().copied().max().unwrap_or(0);
            source.present = in_file.max(beyond).min(overlay.page_count.max(beyond));
            source.overlay = Some(overlay);
        } else {
            source.present = in_file;
        }
        let claimed = if source.header.is_sound {
            source.header.page_count
        } else {
            0
        };
        source.geometry = Geometry {
            usable_bytes: size - reserved,
            page_count: source.present.max(claimed).min(u32::MAX - 1),
        };
        source.recognised = source.sample(|_, page| page.exact && !page.cells.is_empty()) as u32;
        source.encoding = source.find_encoding();
        source.has_pointer_map = source.find_pointer_map();
        Ok(source)
    }

    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }

    pub fn overlay_has(&self, number: u32) -> bool {
        self.overlay
            .as_ref()
            .is_some_and(|overlay| overlay.offsets.contains_key(&number))
    }

    /// Returns the bytes of a page, or `None` if it does not exist or cannot be read.
    pub fn page(&self, number: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.page_size];
        self.read_page(number, &mut bytes).then_some(bytes)
    }

    /// Returns the first four bytes of a page. In an overflow page, they are the number of the next
    /// page.
    pub fn first_word(&self, number: u32) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read_page(number, &mut bytes)
            .then(|| u32::from_be_bytes(bytes))
    }

    fn read_page(&self, number: u32, bytes: &mut [u8]) -> bool {
        if number == 0 || number > self.present {
            return false;
        }
        let in_log = self
            .overlay
            .as_ref()
            .and_then(|log| Some((&log.file, *log.offsets.get(&number)?)));
        let (file, at) =
            in_log.unwrap_or((&self.file, u64::from(number - 1) * self.page_size as u64));
        file.read_exact_at(bytes, at).is_ok()
    }

    /// Returns whether the number of a page alone excludes that it holds data. Such a page is the
    /// lock page or a pointer map page
    /// (<https://www.sqlite.org/fileformat2.html#pointer_map_or_ptrmap_pages>).
    pub fn is_reserved(&self, number: u32) -> bool {
        number == self.lock_page()
            || (self.has_pointer_map && self.pointer_map_of(number) == number)
    }

    /// Returns the type and parent of a page according to the pointer map.
    pub fn pointer(&self, number: u32) -> Option<(u8, u32)> {
        if !self.has_pointer_map || number < 3 || self.is_reserved(number) {
            return None;
        }
        let map = self.pointer_map_of(number);
        let bytes = self.page(map)?;
        let at = 5 * (number - map - 1) as usize;
        let (kind, parent) = (*bytes.get(at)?, u32_at(&bytes, at + 1)?);
        let fits = match kind {
            1 | 2 => parent == 0,
            3..=5 => (1..=self.geometry.page_count).contains(&parent),
            _ => false,
        };
        (fits && at + 5 <= self.geometry.usable_bytes).then_some((kind, parent))
    }

    fn pointer_map_of(&self, number: u32) -> u32 {
        if number < 2 {
            return 0;
        }
        let group = (self.geometry.usable_bytes / 5) as u32 + 1;
        let map = (number - 2) / group * group + 2;
        if map == self.lock_page() {
            map + 1
        } else {
            map
        }
    }

    fn lock_page(&self) -> u32 {
        files::lock_page(self.page_size as u64) as u32
    }

    fn read_at(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut read = 0;
        while read < length {
            match self.file.read_at(&mut bytes[read..], at + read as u64) {
                Ok(0) | Err(_) => break,
                Ok(more) => read += more,
            }
        }
        bytes.truncate(read);
        bytes
    }

    /// Finds the page size and the number of reserved bytes that most bytes of the file agree with.
    /// The header decides ties. If no page is recognised, the page size of the log or the header
    /// counts.
    fn find_page_size(
        &self,
        length: u64,
        overlay: Option<&Overlay>,
        cancel: &CancelToken,
    ) -> Result<(usize, usize)> {
        let header = &self.header;
        let said = (header.page_size, header.reserved);
        let is_legal = |size: usize, reserved: usize| {
            size.is_power_of_two() && (512..=65_536).contains(&size) && size >= reserved + 480
        };
        let probable = [header.reserved, 0];
        let others: Vec<usize> = (1..=255).collect();
        for candidates in [&probable[..], &others] {
            let mut best = (0, (0, 0));
            for size in (9..=16).map(|bits| 1 << bits) {
                cancel.check()?;
                let legal = candidates
                    .iter()
                    .copied()
                    .filter(|reserved| is_legal(size, *reserved))
                    .collect::<Vec<_>>();
                for (reserved, score) in self.score(length, size, &legal) {
                    let is_said = (size, reserved) == said;
                    if score > best.0 || (score == best.0 && score > 0 && is_said) {
                        best = (score, (size, reserved));
                    }
                }
            }
            if best.0 > 0 {
                return Ok(best.1);
            }
        }
        let of_log = overlay.map(|overlay| overlay.page_size_bytes);
        let size = of_log.unwrap_or(if is_legal(said.0, said.1) {
            said.0
        } else {
            4096
        });
        Ok((
            size,
            if is_legal(size, header.reserved) && header.is_sound {
                header.reserved
            } else {
                0
            },
        ))
    }

    /// Returns for each number of reserved bytes an estimate of how many bytes of the file belong
    /// to valid b-tree pages. A page is valid if it parses to the last byte.
    fn score(&self, length: u64, size: usize, candidates: &[usize]) -> Vec<(usize, u64)> {
        let pages = length / size as u64;
        let page_count = u32::try_from(pages)
            .unwrap_or(u32::MAX)
            .max(self.header.page_count);
        // The sample is spread over the file so that every page size is judged by the same parts of
        // it.
        let stride = pages.div_ceil(SAMPLES).max(1);
        let mut scores: Vec<(usize, u64)> =
            candidates.iter().map(|reserved| (*reserved, 0)).collect();
        for index in (0..pages).step_by(stride as usize) {
            let bytes = self.read_at(index * size as u64, size);
            for (reserved, score) in &mut scores {
                let geometry = Geometry {
                    usable_bytes: size - *reserved,
                    page_count,
                };
                let fits = |page: Page| page.exact && !page.cells.is_empty();
                if parse(&bytes, index as u32 + 1, geometry).is_some_and(fits) {
                    *score += stride * size as u64;
                }
            }
        }
        scores
    }

    /// Counts the pages that meet a condition, in a sample that is spread over the file.
    fn sample(&self, mut is_counted: impl FnMut(&[u8], &Page) -> bool) -> usize {
        let stride = (u64::from(self.present).div_ceil(SAMPLES)).max(1) as usize;
        let mut counted = 0;
        for number in (1..=self.present).step_by(stride) {
            let Some(bytes) = self.page(number) else {
                continue;
            };
            if let Some(page) = parse(&bytes, number, self.geometry) {
                counted += usize::from(is_counted(&bytes, &page));
            }
        }
        counted
    }

    /// Detects the text encoding: the texts of the schema are ASCII, which looks different in each
    /// encoding.
    fn find_encoding(&self) -> Encoding {
        let mut seen = [0_u32; 3];
        let mut tally = |bytes: &[u8], page: &Page| {
            for cell in page
                .cells
                .iter()
                .filter(|_| page.kind == PageType::TableLeaf)
            {
                let local = cell.local(bytes);
                let Some((types, mut at)) = serial_types(local, cell.payload_bytes) else {
                    continue;
                };
                for serial in types {
                    let length = size_of(serial).unwrap_or(0) as usize;
                    let Some(text) = local.get(at..at + length) else {
                        break;
                    };
                    at += length;
                    if class_of(serial) == Class::Text && length >= 4 {
                        let zeros = |start: usize| {
                            text.iter()
                                .skip(start)
                                .step_by(2)
                                .take(16)
                                .all(|byte| *byte == 0)
                        };
                        let index = if length.is_multiple_of(2) && zeros(1) {
                            1
                        } else if length.is_multiple_of(2) && zeros(0) {
                            2
                        } else {
                            0
                        };
                        seen[index] += 1;
                    }
                }
            }
            true
        };
        if let Some(bytes) = self.page(1)
            && let Some(page) = parse(&bytes, 1, self.geometry)
        {
            tally(&bytes, &page);
        }
        self.sample(&mut tally);
        let best = seen.iter().max().copied().unwrap_or(0);
        match self.header.encoding {
            1 if seen[0] == best => Encoding::Utf8,
            2 if seen[1] == best => Encoding::Utf16Le,
            3 if seen[2] == best => Encoding::Utf16Be,
            _ if seen[1] == best && best > 0 => Encoding::Utf16Le,
            _ if seen[2] == best && best > 0 => Encoding::Utf16Be,
            _ => Encoding::Utf8,
        }
    }

    /// Detects a pointer map. Its first page is page 2, where other databases have a b-tree or
    /// another page.
    fn find_pointer_map(&self) -> bool {
        let Some(bytes) = self.page(2) else {
            return false;
        };
        let entries = (self.geometry.usable_bytes / 5).min(self.present.saturating_sub(2) as usize);
        let fits = |entry: &[u8]| match entry[0] {
            1 | 2 => entry[1..] == [0; 4],
            3..=5 => u32_at(entry, 1)
                .is_some_and(|parent| (1..=self.geometry.page_count).contains(&parent)),
            _ => false,
        };
        let good = bytes
            .chunks_exact(5)
            .take(entries)
            .filter(|entry| fits(entry))
            .count();
        let is_said = self.header.is_sound && self.header.largest_root != 0;
        let is_btree = parse(&bytes, 2, self.geometry)
            .is_some_and(|page| page.exact && !page.cells.is_empty());
        entries > 0 && !is_btree && (good * 10 >= entries * 9 || is_said)
    }
}
