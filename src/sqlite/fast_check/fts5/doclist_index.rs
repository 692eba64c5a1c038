//! The index of a list of rows that spans many leaves. It contains the first row of each leaf.
//!
//! Its pages form a tree. Each page begins with a flag (whether there is a page above), the number
//! of a page below, and the first row of that page. For each following page below, it contains the
//! difference to the first row of that page, or a zero if that page has none.
//!
//! The lowest pages of the tree refer to leaves. The first page of each height contains the number
//! of the leaf with the term.

use super::{Doubt, Index, Proof, cursor::Cursor, holds, structure::Segment};

const MAX_HEIGHT: u32 = 32;

pub struct DoclistIndex<'a> {
    index: &'a Index<'a>,
    segment: Segment,
    /// From the lowest page up.
    pages: Vec<Page>,
    is_at_end: bool,
}

impl<'a> DoclistIndex<'a> {
    /// Opens the index of the last term on the leaf `leaf`.
    pub fn open(index: &'a Index<'a>, segment: Segment, leaf: u32) -> Proof<Self> {
        let mut pages: Vec<Page> = Vec::new();
        for height in 0..MAX_HEIGHT {
            let page = Page::read(index.block(segment.doclist_index_id(height, leaf))?)
                .ok_or(Doubt::Unproven)?;
            let below = pages.last();
            let leads_here =
                below.is_none_or(|below| page.below == leaf && page.rowid == below.rowid);
            holds(leads_here).ok_or(Doubt::Unproven)?;
            let is_top = !page.has_above;
            pages.push(page);
            if is_top {
                return Ok(DoclistIndex {
                    index,
                    segment,
                    pages,
                    is_at_end: false,
                });
            }
        }
        Err(Doubt::Unproven)
    }

    /// Checks that this leaf is the next one with a row, and that its first row is `rowid`.
    pub fn expect(&mut self, leaf: u32, rowid: i64) -> Proof {
        let is_next = self
            .pages
            .first()
            .is_some_and(|page| (page.below, page.rowid) == (leaf, rowid));
        holds(is_next && !self.is_at_end).ok_or(Doubt::Unproven)?;
        self.is_at_end = !self.advance(0)?;
        Ok(())
    }

    /// Checks that there are no more rows.
    pub fn end(self) -> Proof {
        holds(self.is_at_end).ok_or(Doubt::Unproven)
    }

    /// Moves to the next entry at this height. Returns `false` at the end.
    fn advance(&mut self, height: u32) -> Proof<bool> {
        let at = height as usize;
        let Some(page) = self.pages.get_mut(at) else {
            return Ok(false);
        };
        if page.advance().ok_or(Doubt::Unproven)? {
            return Ok(true);
        }
        if !self.advance(height + 1)? {
            return Ok(false);
        }
        let above = self.pages.get(at + 1).ok_or(Doubt::Unproven)?;
        let next = Page::read(
            self.index
                .block(self.segment.doclist_index_id(height, above.below))?,
        );
        let next = next
            .filter(|page| page.has_above && page.rowid == above.rowid)
            .ok_or(Doubt::Unproven)?;
        *self.pages.get_mut(at).ok_or(Doubt::Unproven)? = next;
        Ok(true)
    }
}

struct Page {
    block: Vec<u8>,
    /// The position after the entry from which `below` and `rowid` come.
    at: usize,
    has_above: bool,
    below: u32,
    rowid: i64,
}

impl Page {
    fn read(block: Vec<u8>) -> Option<Self> {
        let mut cursor = Cursor::new(&block, 0);
        let flag = cursor.take(1)?.first().copied().filter(|flag| *flag <= 1)?;
        let below = u32::try_from(cursor.size()?).ok()?;
        let rowid = cursor.varint()? as i64;
        let at = cursor.at();
        Some(Page {
            block,
            at,
            has_above: flag == 1,
            below,
            rowid,
        })
    }

    /// Moves to the next page below that has a row. Returns `false` at the end.
    fn advance(&mut self) -> Option<bool> {
        let without = self
            .block
            .get(self.at..)?
            .iter()
            .take_while(|byte| **byte == 0)
            .count();
        let mut cursor = Cursor::new(&self.block, self.at + without);
        if cursor.is_at_end() {
            return Some(false);
        }
        self.rowid = self.rowid.wrapping_add(cursor.varint()? as i64);
        self.below = self
            .below
            .checked_add(u32::try_from(without).ok()?)?
            .checked_add(1)?;
        self.at = cursor.at();
        Some(true)
    }
}
