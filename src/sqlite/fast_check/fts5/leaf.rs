//! The leaves of a segment: terms in order, each with its list of rows, and each row with its list
//! of positions.
//!
//! A leaf has a header, the content, and the offsets at which terms begin. The header contains the
//! offset of the first row on the leaf and the end of the content.
//!
//! A list can continue on the next leaf: first the remaining positions, then the next row. That row
//! is stored in full there, not as a difference. [`LeafScan`] keeps what the next leaf must begin
//! with. Positions are counted but not read.

use super::{cursor::Cursor, holds};
use crate::sqlite::format::btree::u16_at;

const HEADER_BYTES: usize = 4;

/// The state of a walk over the leaves of a segment.
#[derive(Default)]
pub struct LeafScan {
    /// The last term. Empty before the first one.
    term: Vec<u8>,
    /// The last row of that term. `None` if no row was read yet.
    rowid: Option<i64>,
    /// The number of bytes of the last list of positions on the following leaves.
    positions_left: usize,
}

impl LeafScan {
    /// Reads the next leaf. `least_term` is the entry of the leaf in the table of first terms, if
    /// the leaf has terms. Returns the first row on the leaf if it belongs to a term of an earlier
    /// leaf.
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

    /// Checks that nothing is missing after the last leaf.
    pub fn end(&self) -> Option<()> {
        holds(self.positions_left == 0 && self.rowid.is_some())
    }

    /// Reads the part of a leaf before its first term.
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

    /// Reads a term. `least` is given for the first term on a leaf, which is stored in full.
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

    /// Reads rows up to the end of the cursor. `is_last` means that this is the end of the leaf's
    /// content, after which positions may continue.
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
        // The lowest bit indicates that the row was deleted.
        self.positions_left = cursor.size()? / 2;
        self.continue_positions(cursor)?;
        holds(self.positions_left == 0 || is_last)
    }

    fn continue_positions(&mut self, cursor: &mut Cursor) -> Option<()> {
        let here = cursor.take(self.positions_left.min(cursor.left()))?;
        self.positions_left -= here.len();
        // No position is split between two leaves.
        holds(here.last().is_none_or(|byte| *byte < 0x80))
    }
}

/// The offsets at which terms begin, stored as differences after the content.
struct Places<'a> {
    left: Cursor<'a>,
    last: usize,
    content_end: usize,
}

impl Places<'_> {
    /// Returns the next offset. After the last one, returns the end of the content.
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
