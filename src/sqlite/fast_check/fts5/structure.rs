//! The record that lists the segments of an index and the pages that contain them.

use std::collections::HashSet;

use super::{cursor::Cursor, holds};

pub const RECORD_ID: i64 = 10;

/// Limits of the format.
const MAX_LEVELS: usize = 2000;
const MAX_SEGMENTS: usize = 2000;
const MAX_SEGMENT_ID: usize = 0xffff;
const MAX_PAGE: usize = 0x7fff_ff00;
/// The size of a number that changes with the configuration. If tombstones are in use, a mark
/// follows that is not a valid number of levels.
const COOKIE_BYTES: usize = 4;

const PAGE_BITS: u32 = 31;
const HEIGHT_BITS: u32 = 5;

/// A separate sorted index. A query merges all segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub id: u32,
    pub first_page: u32,
    pub last_page: u32,
}

impl Segment {
    /// Returns the row id of a leaf.
    pub fn leaf_id(self, page: u32) -> i64 {
        i64::from(self.id) << (PAGE_BITS + HEIGHT_BITS + 1) | i64::from(page)
    }

    /// Returns the row id of a page of a doclist index. `height` must be less than 32.
    pub fn doclist_index_id(self, height: u32, page: u32) -> i64 {
        self.leaf_id(page) | 1 << (PAGE_BITS + HEIGHT_BITS) | i64::from(height) << PAGE_BITS
    }
}

/// Returns all segments that have pages. A merge in progress leaves segments without pages.
pub fn segments(record: &[u8]) -> Option<Vec<Segment>> {
    let mut cursor = Cursor::new(record, COOKIE_BYTES);
    let levels = cursor.size().filter(|count| *count <= MAX_LEVELS)?;
    let total = cursor.size().filter(|count| *count <= MAX_SEGMENTS)?;
    let _writes = cursor.varint()?;
    let mut segments = Vec::new();
    let mut were_merging = 0;
    for _ in 0..levels {
        let merging = cursor.size()?;
        let count = cursor.size()?;
        holds(merging <= count && count <= total - segments.len())?;
        // A merge writes to the level above, so that level must not be empty.
        holds(were_merging == 0 || count > 0)?;
        were_merging = merging;
        for _ in 0..count {
            segments.push(segment(&mut cursor)?);
        }
    }
    holds(were_merging == 0 && segments.len() == total && cursor.is_at_end())?;
    let ids: HashSet<u32> = segments.iter().map(|segment| segment.id).collect();
    holds(ids.len() == segments.len())?;
    segments.retain(|segment| segment.first_page > 0);
    Some(segments)
}

fn segment(cursor: &mut Cursor) -> Option<Segment> {
    let id = cursor
        .size()
        .filter(|id| (1..=MAX_SEGMENT_ID).contains(id))?;
    let first = cursor.size()?;
    let last = cursor.size().filter(|last| *last <= MAX_PAGE)?;
    holds(first <= last && (first == 0) == (last == 0))?;
    Some(Segment {
        id: id as u32,
        first_page: first as u32,
        last_page: last as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_read_and_none_that_contradicts_itself() {
        let cookie = [0, 0, 0, 9];
        let read = |rest: &[u8]| segments(&[&cookie[..], rest].concat());
        assert_eq!(read(&[0, 0, 0]), Some(vec![]));
        let one = Segment {
            id: 5,
            first_page: 1,
            last_page: 300,
        };
        assert_eq!(
            read(&[2, 2, 1, 0, 0, 0, 2, 5, 1, 0x82, 0x2c, 6, 0, 0]),
            Some(vec![one])
        );
        assert_eq!(
            one.doclist_index_id(1, 7),
            (5 << 37) + (1 << 36) + (1 << 31) + 7
        );
        let wrong: [&[u8]; 9] = [
            &[2, 1, 1, 0, 0, 0, 2, 5, 1, 9, 6, 1, 1],
            &[2, 3, 1, 0, 0, 0, 2, 5, 1, 9, 6, 1, 1],
            &[1, 1, 1, 0, 1, 5, 2, 1],
            &[1, 1, 1, 0, 1, 0, 1, 1],
            &[1, 1, 1, 1, 1, 5, 1, 1],
            &[2, 1, 1, 1, 1, 5, 1, 1, 0, 0],
            &[1, 2, 1, 0, 2, 5, 1, 1, 5, 2, 2],
            &[1, 1, 1, 0, 1, 5, 1, 1, 0],
            &[0xff, 0, 0, 1, 0, 0, 0],
        ];
        assert!(wrong.into_iter().all(|rest| read(rest).is_none()));
        assert_eq!(segments(&[0, 0]), None);
    }
}
