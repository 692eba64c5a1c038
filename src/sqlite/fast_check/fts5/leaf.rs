//! The leaves of a segment: terms in order, each with its list of rows, each row with its list of positions.
//!
//! A leaf has a header (where the first row on the leaf is, and where the content ends), the content, and where each term begins.
//! Lists go on from leaf to leaf: the rest of the positions first, then the next row, which is told in full there and not as a
//! difference. [`LeafScan`] carries over what the next leaf must begin with. Positions are counted, not read.

use super::{cursor::Cursor, holds};
use crate::sqlite::format::btree::u16_at;

const HEADER_BYTES: usize = 4;

/// Where a walk over the leaves of a segment is.
#[derive(Default)]
pub struct LeafScan {
    /// The last one; empty before the first.
    term: Vec<u8>,
    /// The last one of that term; `None` where none was seen yet.
    rowid: Option<i64>,
    /// Of the last list of positions, on the leaves to come.
    positions_left: usize,
}

impl LeafScan {
    /// Reads the next leaf. `least_term` is what the table of first terms says of it, if it has terms. Returns the first row on the
    /// leaf where that belongs to a term of a leaf before.
    pub fn leaf(&mut self, block: &[u8], least_term: Option<&[u8]>) -> Option<Option<i64>> {
        let first_row = usize::from(u16_at(block, 0)?);
        let content_end = usize::from(u16_at(block, 2)?);
        let content = block.get(..content_end)?;
        holds(content_end > HEADER_BYTES)?;
        let mut places = Places {
            left: Cursor::new(block, content_end),
            last: 0,
            content_end,
        };
        let mut end = places.next()?;
        holds((end < content_end) == least_term.is_some())?;
        let row = self.continue_list(content.get(..end)?, first_row, end == content_end)?;
        let mut unseen = least_term;
        holds(unseen.is_none_or(|least| self.term.is_empty() || least > self.term.as_slice()))?;
        while end < content_end {
            let start = end;
            end = places.next()?;
            let mut cursor = Cursor::new(content.get(..end)?, start);
            self.begin_term(&mut cursor, unseen.take())?;
            self.rows(&mut cursor, end == content_end)?;
        }
        Some(row)
    }

    /// That nothing is missing after the last leaf.
    pub fn end(&self) -> Option<()> {
        holds(self.positions_left == 0 && self.rowid.is_some())
    }

    /// What is on a leaf before its first term.
    fn continue_list(
        &mut self,
        before: &[u8],
        first_row: usize,
        is_last: bool,
    ) -> Option<Option<i64>> {
        let mut cursor = Cursor::new(before, HEADER_BYTES);
        self.continue_positions(&mut cursor)?;
        if cursor.is_at_end() {
            return holds(first_row == 0).map(|()| None);
        }
        holds(first_row == cursor.at() && !self.term.is_empty())?;
        let rowid = cursor.varint()? as i64;
        holds(self.rowid.is_none_or(|last| rowid > last))?;
        self.rowid = Some(rowid);
        self.positions(&mut cursor, is_last)?;
        self.rows(&mut cursor, is_last)?;
        Some(Some(rowid))
    }

    /// `least` is given for the first term on a leaf, which is there in full.
    fn begin_term(&mut self, cursor: &mut Cursor, least: Option<&[u8]>) -> Option<()> {
        holds(self.positions_left == 0 && (self.term.is_empty() || self.rowid.is_some()))?;
        let kept = if least.is_some() { 0 } else { cursor.size()? };
        let length = cursor.size().filter(|length| *length > 0)?;
        let suffix = cursor.take(length)?;
        holds(suffix > self.term.get(kept..)?)?;
        self.term.truncate(kept);
        self.term.extend_from_slice(suffix);
        self.rowid = None;
        holds(least.is_none_or(|least| least <= self.term.as_slice()))
    }

    /// Rows up to where the cursor ends. `is_last`: that is the end of the leaf, beyond which positions may go on.
    fn rows(&mut self, cursor: &mut Cursor, is_last: bool) -> Option<()> {
        while !cursor.is_at_end() {
            let difference = cursor.varint()? as i64;
            let rowid = match self.rowid {
                None => difference,
                Some(last) => Some(last.wrapping_add(difference)).filter(|rowid| *rowid > last)?,
            };
            self.rowid = Some(rowid);
            self.positions(cursor, is_last)?;
        }
        Some(())
    }

    fn positions(&mut self, cursor: &mut Cursor, is_last: bool) -> Option<()> {
        // The lowest bit says that the row was deleted.
        self.positions_left = cursor.size()? / 2;
        self.continue_positions(cursor)?;
        holds(self.positions_left == 0 || is_last)
    }

    fn continue_positions(&mut self, cursor: &mut Cursor) -> Option<()> {
        let here = cursor.take(self.positions_left.min(cursor.left()))?;
        self.positions_left -= here.len();
        // No position is cut in two.
        holds(here.last().is_none_or(|byte| *byte < 0x80))
    }
}

/// Where terms begin: differences, behind the content.
struct Places<'a> {
    left: Cursor<'a>,
    last: usize,
    content_end: usize,
}

impl Places<'_> {
    /// The next one; after the last, where the content ends.
    fn next(&mut self) -> Option<usize> {
        if self.left.is_at_end() {
            return Some(self.content_end);
        }
        let next = self.last.checked_add(self.left.size()?)?;
        holds(next > self.last && (HEADER_BYTES..self.content_end).contains(&next))?;
        self.last = next;
        Some(next)
    }
}
