//! Overflow pages: the rest of payloads that do not fit into their cell
//! (<https://www.sqlite.org/fileformat2.html#ovflpgs>).
//!
//! A page belongs to one chain. All chains of all trees are followed first, so that a page that two of them lead to is known
//! before a row is made of either. Chains of pages without parents come second: they may be leftovers.

use super::{
    file::Source,
    page::{Cell, Page},
    walk::Walk,
};

/// How often each page is used in chains: 0, 1, or 2 for more.
pub struct Chains {
    pub in_trees: Vec<u8>,
    pub in_orphans: Vec<u8>,
}

/// Whose cell it is that a chain starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Tree,
    Orphan,
}

impl Chains {
    pub fn new(source: &Source) -> Self {
        let pages = source.present as usize + 1;
        Chains { in_trees: vec![0; pages], in_orphans: vec![0; pages] }
    }

    /// Notes the pages of all chains of a page's cells.
    pub fn claim(&mut self, walk: &Walk<'_>, page: &Page, owner: Owner) {
        let uses = match owner {
            Owner::Tree => &mut self.in_trees,
            Owner::Orphan => &mut self.in_orphans,
        };
        for cell in page.cells.iter().filter(|cell| cell.overflow > 0) {
            let mut next = cell.overflow;
            for _ in 0..length(walk.source, cell) {
                let Some(used) = uses.get_mut(next as usize).filter(|used| **used < 2) else { break };
                *used += 1;
                match walk.source.first_word(next) {
                    // The rest is that of another chain already: it is walked once.
                    Some(_) if *used == 2 => break,
                    Some(following) if following > 0 => next = following,
                    _ => break,
                }
            }
        }
    }

    /// The whole payload of a cell, or why there is none.
    pub fn payload(
        &self,
        walk: &Walk<'_>,
        number: u32,
        bytes: &[u8],
        cell: &Cell,
        owner: Owner,
    ) -> Result<Vec<u8>, &'static str> {
        let mut payload = cell.local(bytes).to_vec();
        if cell.overflow == 0 {
            return Ok(payload);
        }
        let total = cell.payload_bytes as usize;
        let (mut before, mut next) = (number, cell.overflow);
        while payload.len() < total {
            let index = next as usize;
            let used = *self.in_trees.get(index).ok_or("its chain of overflow pages leads out of the file")?;
            let used = match owner {
                Owner::Tree => used,
                Owner::Orphan if used > 0 => 2,
                Owner::Orphan => self.in_orphans[index],
            };
            // The pointer map knows whose page it is.
            let by_map = before != number && walk.source.pointer(next) == Some((4, before));
            if used != 1 && !(owner == Owner::Tree && by_map) {
                return Err("an overflow page of it is claimed by another row too");
            }
            if next < 2 || walk.is_owned[index] || walk.is_free[index] || walk.source.is_reserved(next) {
                return Err("its chain of overflow pages leads to a page of another kind");
            }
            let page = walk.source.page(next).ok_or("an overflow page of it could not be read")?;
            let content = &page[4..walk.source.geometry.usable_bytes];
            let wanted = content.len().min(total - payload.len());
            payload.extend_from_slice(&content[..wanted]);
            let following = u32::from_be_bytes([page[0], page[1], page[2], page[3]]);
            let is_last = payload.len() == total;
            if is_last != (following == 0) {
                return Err("its chain of overflow pages is broken");
            }
            if is_last && page.iter().all(|byte| *byte == 0) {
                return Err("its last overflow page is nothing but zeros");
            }
            (before, next) = (next, following);
        }
        Ok(payload)
    }
}

/// How many overflow pages a cell has.
fn length(source: &Source, cell: &Cell) -> u64 {
    (cell.payload_bytes - cell.local_bytes as u64).div_ceil(source.geometry.usable_bytes as u64 - 4)
}
