//! Checks one segment: its leaves from first to last, the table of their first terms, and the
//! doclist indexes.

use rusqlite::{Error, Rows};

use super::{
    Doubt, Index, Proof, doclist_index::DoclistIndex, holds, leaf::LeafScan, structure::Segment,
};

pub fn prove(index: &Index, segment: Segment) -> Proof {
    let leaves = format!(
        "SELECT id, block FROM {} WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        index.part("_data")
    );
    let mut leaves = index.connection.prepare(&leaves)?;
    let mut leaves = leaves.query([
        segment.leaf_id(segment.first_page),
        segment.leaf_id(segment.last_page),
    ])?;
    let entries = format!(
        "SELECT term, pgno FROM {} WHERE segid = ?1 ORDER BY segid, term",
        index.part("_idx")
    );
    let mut entries = index.connection.prepare(&entries)?;
    let mut entries = Entries::of(entries.query([segment.id])?, segment.first_page)?;

    let mut walk = LeafScan::default();
    let mut long_list: Option<DoclistIndex> = None;
    for page in segment.first_page..=segment.last_page {
        index.assert_wanted()?;
        let row = leaves.next()?.ok_or(Doubt::Unproven)?;
        holds(row.get::<_, i64>(0)? == segment.leaf_id(page)).ok_or(Doubt::Unproven)?;
        let block = row.get_ref(1)?.as_blob().map_err(Error::from)?;
        let entry = entries.take_if_of(page)?;
        let least_term = entry.as_ref().map(|entry| entry.term.as_slice());
        let first_row = walk.leaf(block, least_term).ok_or(Doubt::Unproven)?;
        if let (Some(long_list), Some(rowid)) = (&mut long_list, first_row) {
            long_list.expect(page, rowid)?;
        }
        if let Some(entry) = entry {
            long_list.take().map_or(Ok(()), DoclistIndex::end)?;
            long_list = entry
                .has_doclist_index
                .then(|| DoclistIndex::open(index, segment, page))
                .transpose()?;
        }
    }
    walk.end().ok_or(Doubt::Unproven)?;
    long_list.map_or(Ok(()), DoclistIndex::end)?;
    entries.end()
}

/// An entry of the `_idx` table for a leaf that has terms.
struct Entry {
    page: u32,
    /// Whether the last term on the leaf has a doclist index.
    has_doclist_index: bool,
    /// A term that is not greater than the first term on the leaf, and greater than all earlier
    /// terms.
    term: Vec<u8>,
}

/// In the order of terms, which is also the order of leaves.
struct Entries<'a> {
    rows: Rows<'a>,
    next: Option<Entry>,
}

impl<'a> Entries<'a> {
    /// Skips entries of leaves that a merge has already removed. These entries may remain until the
    /// merge ends.
    fn of(rows: Rows<'a>, first_page: u32) -> Proof<Self> {
        let mut entries = Entries { rows, next: None };
        entries.advance()?;
        while entries
            .next
            .as_ref()
            .is_some_and(|entry| entry.page < first_page)
        {
            entries.advance()?;
        }
        Ok(entries)
    }

    fn take_if_of(&mut self, page: u32) -> Proof<Option<Entry>> {
        let taken = self.next.take_if(|entry| entry.page == page);
        if taken.is_some() {
            self.advance()?;
        }
        Ok(taken)
    }

    fn end(self) -> Proof {
        holds(self.next.is_none()).ok_or(Doubt::Unproven)
    }

    fn advance(&mut self) -> Proof {
        self.next = None;
        let Some(row) = self.rows.next()? else {
            return Ok(());
        };
        let term = row.get_ref(0)?.as_blob().map_err(Error::from)?.to_vec();
        let page: i64 = row.get(1)?;
        let has_doclist_index = page & 1 == 1;
        let page = u32::try_from(page >> 1).map_err(|_| Doubt::Unproven)?;
        self.next = Some(Entry {
            page,
            has_doclist_index,
            term,
        });
        Ok(())
    }
}
