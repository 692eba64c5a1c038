//! A position in bytes that cannot move beyond their end.

use crate::sqlite::format::btree::varint;

#[derive(Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Cursor { bytes, at }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub fn is_at_end(&self) -> bool {
        self.left() == 0
    }

    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    #[inline]
    pub fn varint(&mut self) -> Option<u64> {
        let rest = self.bytes.get(self.at..)?;
        // Nearly all varints have one byte.
        let (value, length) = match rest.first()? {
            byte if *byte < 0x80 => (u64::from(*byte), 1),
            _ => varint(rest)?,
        };
        self.at += length;
        Some(value)
    }

    /// Reads a varint of 31 bits. FTS5 ignores the other bits of a varint that it reads as a size.
    #[inline]
    pub fn size(&mut self) -> Option<usize> {
        let value = self.varint()?;
        (value <= 0x7fff_ffff).then_some(value as usize)
    }
}
