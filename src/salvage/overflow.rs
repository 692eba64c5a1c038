//! Overflow pages: the rest of payloads that do not fit into their cell
//! (<https://www.sqlite.org/fileformat2.html#ovflpgs>).
//!
//! A page belongs to one overflow chain. All chains of all trees are followed first, so that a page
//! in two chains is known before a row is read from either. Chains of pages without parents come
//! second, because they may be leftovers.

use super::{file::Source, freelist::trunk, walk::TreeScan};
use crate::sqlite::format::btree::{Cell, Page};

/// Number of overflow chains that use each page: 0, 1, or 2 for two or more.
pub struct Chains {
    pub in_trees: Vec<u8>,
    pub in_orphans: Vec<u8>,
    /// Uses by chains of trees that are as long as their payload. A broken chain takes no page from
    /// another row.
    in_whole: Vec<u8>,
    /// By page: the number of pages to the end of its chain, including itself. [`NO_END`] if there
    /// is no end, 0 if not yet known.
    to_end: Vec<u32>,
}

/// The reason why the payload of a cell could not be read.
pub struct Unread {
    pub reason: &'static str,
    /// The content of the chain if another chain uses one of its pages too. One of the two chains
    /// is wrong.
    pub contested: Option<Vec<u8>>,
}

impl From<&'static str> for Unread {
    fn from(reason: &'static str) -> Unread {
        Unread {
            reason,
            contested: None,
        }
    }
}

const NO_END: u32 = u32::MAX;

/// A page of a chain and the page that leads to it.
struct Link {
    page: u32,
    before: u32,
    /// Whether the page that leads to it holds the cell.
    is_first: bool,
}

/// The owner of the cell that an overflow chain starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Tree,
    Orphan,
}

impl Chains {
    pub fn new(source: &Source) -> Self {
        let pages = source.present as usize + 1;
        Chains {
            in_trees: vec![0; pages],
            in_orphans: vec![0; pages],
            in_whole: vec![0; pages],
            to_end: vec![0; pages],
        }
    }

    /// Records the pages of the overflow chains of all cells of a page.
    pub fn claim(&mut self, walk: &TreeScan<'_>, page: &Page, owner: Owner) {
        for cell in page.cells.iter().filter(|cell| cell.overflow > 0) {
            let length = length(walk.source, cell);
            let uses = match owner {
                Owner::Tree => &mut self.in_trees,
                Owner::Orphan => &mut self.in_orphans,
            };
            note(uses, walk.source, cell.overflow, length);
            if owner == Owner::Tree
                && u64::from(self.find_end(walk.source, cell.overflow)) == length
            {
                note(&mut self.in_whole, walk.source, cell.overflow, length);
            }
        }
    }

    /// Returns the number of pages from `first` to the end of the chain, or [`NO_END`]. Each page
    /// is read once.
    fn find_end(&mut self, source: &Source, first: u32) -> u32 {
        let (mut passed, mut next) = (Vec::new(), first);
        let after = loop {
            match self.to_end.get_mut(next as usize) {
                _ if next == 0 => break 0,
                None => break NO_END,
                Some(known) if *known > 0 => break *known,
                // A page has no end until one is found, so a circle has none either.
                Some(unknown) => *unknown = NO_END,
            }
            passed.push(next);
            match source.first_word(next) {
                Some(following) => next = following,
                None => break NO_END,
            }
        };
        if after == NO_END {
            return NO_END;
        }
        for (count, page) in (after + 1..).zip(passed.iter().rev()) {
            self.to_end[*page as usize] = count;
        }
        after + passed.len() as u32
    }

    /// Returns the complete payload of a cell, or the reason why it cannot be read.
    pub fn payload(
        &self,
        walk: &TreeScan<'_>,
        number: u32,
        bytes: &[u8],
        cell: &Cell,
        owner: Owner,
    ) -> Result<Vec<u8>, Unread> {
        let mut payload = cell.local(bytes).to_vec();
        if cell.overflow == 0 {
            return Ok(payload);
        }
        let total = cell.payload_bytes as usize;
        let is_whole = |to_end: &u32| u64::from(*to_end) == length(walk.source, cell);
        if owner == Owner::Tree
            && !self
                .to_end
                .get(cell.overflow as usize)
                .is_some_and(is_whole)
        {
            return Err("its chain of overflow pages is broken".into());
        }
        let mut is_contested = false;
        let (mut before, mut next) = (number, cell.overflow);
        while payload.len() < total {
            let link = Link {
                page: next,
                before,
                is_first: before == number,
            };
            is_contested |= self.is_contested(walk, &link, owner)?;
            let page = overflow_page(walk, next, owner)?;
            let content = &page[4..walk.source.geometry.usable_bytes];
            let wanted = content.len().min(total - payload.len());
            payload.extend_from_slice(&content[..wanted]);
            let following = u32::from_be_bytes([page[0], page[1], page[2], page[3]]);
            let is_last = payload.len() == total;
            if is_last != (following == 0) {
                return Err("its chain of overflow pages is broken".into());
            }
            if is_last && page.iter().all(|byte| *byte == 0) {
                return Err("its last overflow page contains only zeros".into());
            }
            (before, next) = (next, following);
        }
        match is_contested {
            true => Err(Unread {
                reason: "one of its overflow pages is claimed by another row too",
                contested: Some(payload),
            }),
            false => Ok(payload),
        }
    }

    /// Returns whether another chain uses the page too. A page that the pointer map assigns to this
    /// chain is not contested if a tree owns the chain.
    fn is_contested(&self, walk: &TreeScan<'_>, link: &Link, owner: Owner) -> Result<bool, Unread> {
        let index = link.page as usize;
        let in_trees = *self
            .in_trees
            .get(index)
            .ok_or("its chain of overflow pages leads out of the file")?;
        let used = match owner {
            Owner::Tree => self.in_whole[index],
            Owner::Orphan if in_trees > 0 => 2,
            Owner::Orphan => self.in_orphans[index],
        };
        // The pointer map names the owner of the page.
        let kind = if link.is_first { 3 } else { 4 };
        let by_map = walk.source.pointer(link.page) == Some((kind, link.before));
        Ok(used != 1 && !(owner == Owner::Tree && by_map))
    }
}

/// Reads an overflow page, unless it cannot be one.
fn overflow_page(walk: &TreeScan<'_>, number: u32, owner: Owner) -> Result<Vec<u8>, Unread> {
    let index = number as usize;
    if number < 2 || walk.is_owned[index] || walk.source.is_reserved(number) {
        return Err("its chain of overflow pages leads to a page of another kind".into());
    }
    let page = walk
        .source
        .page(number)
        .ok_or("one of its overflow pages could not be read")?;
    // A leaf of the freelist keeps its old content, so if a tree leads to it, the freelist is
    // wrong. A trunk page does not keep its content.
    if walk.is_free[index] && (owner == Owner::Orphan || trunk(walk.source, &page).is_some()) {
        return Err("its chain of overflow pages leads to a free page".into());
    }
    Ok(page)
}

/// Counts a use of each page of a chain.
fn note(uses: &mut [u8], source: &Source, first: u32, length: u64) {
    let mut next = first;
    for _ in 0..length {
        let Some(used) = uses.get_mut(next as usize).filter(|used| **used < 2) else {
            break;
        };
        *used += 1;
        match source.first_word(next) {
            // From here on this is another chain, whose pages were counted already. They are walked
            // only once.
            Some(_) if *used == 2 => break,
            Some(following) if following > 0 => next = following,
            _ => break,
        }
    }
}

/// Returns the number of overflow pages that a cell needs.
fn length(source: &Source, cell: &Cell) -> u64 {
    (cell.payload_bytes - cell.local_bytes as u64).div_ceil(source.geometry.usable_bytes as u64 - 4)
}
