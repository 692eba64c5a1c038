//! B-tree pages and their cells (<https://www.sqlite.org/fileformat2.html#b_tree_pages>).
//!
//! Every byte of a sound page is accounted for: header, cell pointers, the gap, cells, free blocks
//! and fragments add up to the page. [`Page::exact`] is set if they do. Noise or a page of another
//! kind practically never passes this test.
//!
//! If the parts of a page do not add up, only cells without contradictions are read. They lie in
//! the cell area, overlap neither each other nor a free block, and have ascending keys. If fewer
//! than half of the cells remain, the page is treated as noise. Deleted rows are never read,
//! because only the cell pointers define which bytes are rows.

use std::{collections::HashSet, ops::Range};

/// The smallest space that SQLite allocates for a cell.
const MIN_CELL_BYTES: usize = 4;
const MAX_VARINT_BYTES: usize = 9;
/// The head of a free block: the position of the next free block, and its own length.
const FREE_BLOCK_HEAD_BYTES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageType {
    IndexInterior,
    TableInterior,
    IndexLeaf,
    TableLeaf,
}

impl PageType {
    fn of(byte: u8) -> Option<PageType> {
        match byte {
            2 => Some(PageType::IndexInterior),
            5 => Some(PageType::TableInterior),
            10 => Some(PageType::IndexLeaf),
            13 => Some(PageType::TableLeaf),
            _ => None,
        }
    }

    pub fn is_interior(self) -> bool {
        matches!(self, PageType::IndexInterior | PageType::TableInterior)
    }

    pub fn is_table(self) -> bool {
        matches!(self, PageType::TableInterior | PageType::TableLeaf)
    }
}

/// The facts about the database that the parser needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The size of a page without the bytes that are reserved at its end.
    pub usable_bytes: usize,
    pub page_count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// The page to the left of the cell, on an interior page.
    pub child: u32,
    /// The key of the cell, on a page of a table.
    pub rowid: i64,
    /// The length of the whole payload. `local_bytes` of it, from `local_start`, are in the page.
    pub payload_bytes: u64,
    pub local_start: usize,
    pub local_bytes: usize,
    /// The first overflow page with the rest of the payload, or 0.
    pub overflow: u32,
}

impl Cell {
    pub fn local<'a>(&self, page: &'a [u8]) -> &'a [u8] {
        page.get(self.local_start..self.local_start + self.local_bytes)
            .unwrap_or_default()
    }
}

#[derive(Debug, Clone)]
pub struct Page {
    pub kind: PageType,
    /// In the order of their keys.
    pub cells: Vec<Cell>,
    /// The child to the right of all cells, on an interior page.
    pub right_child: u32,
    pub exact: bool,
    /// The number of cells that could not be read or that contradict others.
    pub bad_cells: u32,
}

/// Reads a b-tree page. Returns `None` if the page is not a b-tree page, or if fewer than half of
/// its cells can be used.
pub fn parse(bytes: &[u8], number: u32, geometry: Geometry) -> Option<Page> {
    let layout = Layout::read(bytes, number, geometry)?;
    let exact = layout.is_exact(geometry);
    let Layout {
        kind,
        count,
        right_child,
        ..
    } = layout;
    let cells = if exact {
        layout.cells
    } else {
        layout.consistent_cells(geometry)
    };
    let bad = count - cells.len();
    if !exact && (count == 0 || bad > cells.len()) {
        return None;
    }
    Some(Page {
        kind,
        cells,
        right_child,
        exact,
        bad_cells: bad as u32,
    })
}

/// Reads a b-tree page if every byte of it is accounted for. Calls `unallocated` with each unused
/// part of the page. These are the gap between cell pointers and cells, and the content of free
/// blocks after their heads. SQLite never reads these parts and leaves their old content in place.
pub fn exact(
    bytes: &[u8],
    number: u32,
    geometry: Geometry,
    mut unallocated: impl FnMut(Range<usize>),
) -> Option<Page> {
    let layout =
        Layout::read(bytes, number, geometry).filter(|layout| layout.is_exact(geometry))?;
    unallocated(layout.pointers_end..layout.content_start);
    layout
        .free
        .iter()
        .flatten()
        .for_each(|(start, end)| unallocated(start + FREE_BLOCK_HEAD_BYTES..*end));
    let Layout {
        kind,
        cells,
        right_child,
        ..
    } = layout;
    Some(Page {
        kind,
        cells,
        right_child,
        exact: true,
        bad_cells: 0,
    })
}

/// The positions of the parts of a b-tree page.
struct Layout {
    kind: PageType,
    /// The number of cells in the header.
    count: usize,
    right_child: u32,
    pointers_end: usize,
    content_start: usize,
    fragments: usize,
    /// Start and end of each free block, in order. `None` if the chain of free blocks is broken.
    free: Option<Vec<(usize, usize)>>,
    /// The cells that can be read, in the order of their keys.
    cells: Vec<Cell>,
    /// Start and end of each cell in `cells`.
    cell_spans: Vec<(usize, usize)>,
}

impl Layout {
    fn read(bytes: &[u8], number: u32, geometry: Geometry) -> Option<Self> {
        let usable = geometry.usable_bytes;
        let bytes = bytes.get(..usable)?;
        let start = if number == 1 { 100 } else { 0 };
        let kind = PageType::of(*bytes.get(start)?)?;
        let header = if kind.is_interior() { 12 } else { 8 };
        let count = usize::from(u16_at(bytes, start + 3)?);
        let pointers_end = start + header + 2 * count;
        if pointers_end > usable {
            return None;
        }
        let content_start = match usize::from(u16_at(bytes, start + 5)?) {
            0 => 65_536,
            other => other,
        };
        let (mut cells, mut cell_spans) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for index in 0..count {
            let at = usize::from(u16_at(bytes, start + header + 2 * index)?);
            if at < pointers_end || at >= usable {
                continue;
            }
            if let Some((cell, length)) = cell_at(bytes, at, kind, geometry) {
                cells.push(cell);
                cell_spans.push((at, at + length.max(MIN_CELL_BYTES)));
            }
        }
        Some(Layout {
            kind,
            count,
            right_child: if kind.is_interior() {
                u32_at(bytes, start + 8)?
            } else {
                0
            },
            pointers_end,
            content_start,
            fragments: usize::from(bytes[start + 7]),
            free: free_blocks(bytes, start, content_start),
            cells,
            cell_spans,
        })
    }

    /// Returns whether every byte of the page is accounted for.
    fn is_exact(&self, geometry: Geometry) -> bool {
        let usable = geometry.usable_bytes;
        self.cells.len() == self.count
            && (self.pointers_end..=usable).contains(&self.content_start)
            && self.fills(usable)
            && (!self.kind.is_table()
                || self
                    .cells
                    .windows(2)
                    .all(|pair| pair[0].rowid < pair[1].rowid))
            && (!self.kind.is_interior() || is_page(self.right_child, geometry))
    }

    /// Returns start and end of all cells and free blocks, in ascending order.
    fn spans(&self) -> Vec<(usize, usize)> {
        let mut spans =
            Vec::with_capacity(self.cell_spans.len() + self.free.as_ref().map_or(0, Vec::len));
        spans.extend_from_slice(&self.cell_spans);
        spans.extend(self.free.iter().flatten());
        spans.sort_unstable();
        spans
    }

    /// Returns whether cells, free blocks and fragments fill the cell area without overlap.
    fn fills(&self, usable: usize) -> bool {
        if self.free.is_none() {
            return false;
        }
        let mut at = self.content_start;
        let mut gaps = 0;
        for (start, end) in self.spans() {
            if start < at || end > usable {
                return false;
            }
            gaps += start - at;
            at = end;
        }
        gaps + (usable - at) == self.fragments
    }

    /// Returns the cells without those that lie outside the cell area, overlap something, or are
    /// out of order.
    fn consistent_cells(self, geometry: Geometry) -> Vec<Cell> {
        let cell_area = self.pointers_end..=geometry.usable_bytes;
        let content_start = if cell_area.contains(&self.content_start) {
            self.content_start
        } else {
            0
        };
        let mut clashing = HashSet::new();
        let mut longest = (0, 0);
        for span in self.spans() {
            if span.0 < longest.1 {
                clashing.insert(span.0);
                clashing.insert(longest.0);
            }
            if span.1 > longest.1 {
                longest = span;
            }
        }
        let cells = self.cells.into_iter().zip(self.cell_spans);
        let consistent =
            cells.filter(|(_, (start, _))| *start >= content_start && !clashing.contains(start));
        let mut cells: Vec<Cell> = consistent.map(|(cell, _)| cell).collect();
        if self.kind.is_table() {
            let kept = longest_ascending(&cells.iter().map(|cell| cell.rowid).collect::<Vec<_>>());
            let mut kept = kept.into_iter().peekable();
            let mut index = 0;
            cells.retain(|_| {
                index += 1;
                kept.next_if_eq(&(index - 1)).is_some()
            });
        }
        cells
    }
}

/// Reads a cell. Returns the cell and its length in the page.
fn cell_at(bytes: &[u8], at: usize, kind: PageType, geometry: Geometry) -> Option<(Cell, usize)> {
    let mut cell = Cell {
        child: 0,
        rowid: 0,
        payload_bytes: 0,
        local_start: 0,
        local_bytes: 0,
        overflow: 0,
    };
    let mut next = at;
    if kind.is_interior() {
        cell.child = u32_at(bytes, next).filter(|child| is_page(*child, geometry))?;
        next += 4;
    }
    if kind != PageType::TableInterior {
        let (payload, length) = varint(bytes.get(next..)?)?;
        // No length needs nine bytes, and SQLite interprets the ninth byte differently here.
        if length == MAX_VARINT_BYTES {
            return None;
        }
        cell.payload_bytes = payload;
        next += length;
    }
    if kind.is_table() {
        let (rowid, length) = varint(bytes.get(next..)?)?;
        cell.rowid = rowid as i64;
        next += length;
    }
    if kind == PageType::TableInterior {
        return (next <= bytes.len()).then_some((cell, next - at));
    }
    // A record has a header of at least one byte.
    if cell.payload_bytes == 0 || cell.payload_bytes > i32::MAX as u64 {
        return None;
    }
    cell.local_start = next;
    cell.local_bytes = local_bytes(cell.payload_bytes as usize, kind, geometry.usable_bytes);
    next = next
        .checked_add(cell.local_bytes)
        .filter(|end| *end <= bytes.len())?;
    if (cell.local_bytes as u64) < cell.payload_bytes {
        cell.overflow = u32_at(bytes, next).filter(|page| is_page(*page, geometry))?;
        next += 4;
    }
    Some((cell, next - at))
}

/// Returns the number of payload bytes that are stored in the page.
fn local_bytes(payload: usize, kind: PageType, usable: usize) -> usize {
    let most = if kind == PageType::TableLeaf {
        usable - 35
    } else {
        (usable - 12) * 64 / 255 - 23
    };
    if payload <= most {
        return payload;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let kept = least + (payload - least) % (usable - 4);
    if kept <= most { kept } else { least }
}

fn is_page(number: u32, geometry: Geometry) -> bool {
    (2..=geometry.page_count).contains(&number)
}

/// Returns start and end of each free block, in order. Returns `None` if the chain of free blocks
/// is broken.
fn free_blocks(bytes: &[u8], start: usize, content_start: usize) -> Option<Vec<(usize, usize)>> {
    let mut blocks = Vec::new();
    let mut next = usize::from(u16_at(bytes, start + 1)?);
    let mut least = content_start;
    while next != 0 {
        let length = usize::from(u16_at(bytes, next + 2)?);
        let end = next + length;
        if next < least || length < FREE_BLOCK_HEAD_BYTES || end > bytes.len() {
            return None;
        }
        blocks.push((next, end));
        // A free block that starts nearer would be part of the previous one.
        least = end + FREE_BLOCK_HEAD_BYTES;
        next = usize::from(u16_at(bytes, next)?);
    }
    Some(blocks)
}

/// Returns the positions of a longest strictly ascending subsequence.
fn longest_ascending(keys: &[i64]) -> Vec<usize> {
    let mut tails: Vec<usize> = Vec::new();
    let mut before = vec![usize::MAX; keys.len()];
    for (index, key) in keys.iter().enumerate() {
        let place = tails.partition_point(|tail| keys[*tail] < *key);
        before[index] = if place > 0 {
            tails[place - 1]
        } else {
            usize::MAX
        };
        if place == tails.len() {
            tails.push(index);
        } else {
            tails[place] = index;
        }
    }
    let mut chain = Vec::with_capacity(tails.len());
    let mut next = tails.last().copied().unwrap_or(usize::MAX);
    while next != usize::MAX {
        chain.push(next);
        next = before[next];
    }
    chain.reverse();
    chain
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

/// Reads a variable-length integer. Returns the value and the number of bytes.
pub fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().take(8).enumerate() {
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    bytes
        .get(8)
        .map(|byte| ((value << 8) | u64::from(*byte), 9))
}
