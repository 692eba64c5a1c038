//! The result of a salvage.

use serde::{Deserialize, Serialize};

/// Maximum number of unreadable pages that a report lists.
pub const MAX_NAMED_PAGES: usize = 100;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Salvaged {
    pub page_size_bytes: u64,
    /// Number of pages of the source, including those of its WAL.
    pub page_count: u64,
    /// Whether the header could be trusted. If not, the user version, application id and journal
    /// mode are defaults.
    pub header_readable: bool,
    /// Whether all of the schema could be read.
    pub schema_readable: bool,
    pub wal: LogUse,
    /// How the rollback journal of an uncommitted transaction was used.
    pub journal: LogUse,
    pub tables: Vec<TableReport>,
    /// Number of rows in all tables, without those in `lost_and_found`.
    pub rows_recovered: u64,
    /// Number of rows that are not in their table. Includes the rows in `lost_and_found`, even
    /// those of no known table.
    #[serde(default)]
    pub rows_lost: u64,
    pub unreadable_pages: UnreadablePages,
    /// Objects of the schema except the tables that were recreated.
    pub objects: Vec<ObjectReport>,
    pub lost_and_found: Option<LostAndFoundReport>,
    /// Number of pages with old content, of deleted rows or earlier versions, that were not
    /// recovered.
    pub leftover_pages: u64,
    /// Sentences for a person to read.
    pub warnings: Vec<String>,
}

impl Salvaged {
    /// Returns whether no row was recovered, neither in a table nor in `lost_and_found`.
    pub(super) fn has_no_rows(&self) -> bool {
        self.tables.iter().all(|table| table.rows_recovered == 0) && self.lost_and_found.is_none()
    }

    /// Computes the totals over all tables. A row outside its own table is lost to the host, so
    /// rows in `lost_and_found` count as lost.
    pub(super) fn count(&mut self) {
        let mut aside = 0;
        for table in self.tables.iter_mut().filter(|table| table.rows_aside > 0) {
            aside += table.rows_aside;
            table.rows_lost += table.rows_aside;
            if table.rows_lost_by == LostBy::Nothing {
                table.rows_lost_by = LostBy::Aside;
            }
        }
        let of_no_table = self
            .lost_and_found
            .as_ref()
            .map_or(0, |found| found.rows.saturating_sub(aside));
        self.rows_recovered = self.tables.iter().map(|table| table.rows_recovered).sum();
        self.rows_lost = self.tables.iter().map(|table| table.rows_lost).sum::<u64>() + of_no_table;
    }

    /// Returns whether every row is in its table again and every object of the schema exists.
    pub fn is_complete(&self) -> bool {
        self.rows_lost == 0 && self.objects.iter().all(|object| object.failed.is_none())
    }
}

/// How salvage used a log next to the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogUse {
    /// There was no log, or it held nothing that counts.
    #[default]
    None,
    Applied,
    /// The log is damaged or belongs to another database; a warning says why.
    Ignored,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableReport {
    pub name: String,
    pub rows_recovered: u64,
    /// Number of rows that are known or estimated to be lost, including those in `lost_and_found`.
    /// The field `rows_lost_by` says how the number was obtained.
    pub rows_lost: u64,
    pub rows_lost_by: LostBy,
    /// Number of rows whose overflow pages are damaged. SQLite reads random bytes from them, or
    /// nothing.
    #[serde(default)]
    pub rows_broken: u64,
    /// Number of rows of this table that were put into `lost_and_found`.
    pub rows_aside: u64,
    /// Number of pages that should belong to this table but could not be read.
    pub pages_lost: u64,
    /// Number of leaf pages without a parent that were found to belong to this table.
    pub pages_reassigned: u64,
}

/// How the number of lost rows was obtained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LostBy {
    /// Nothing is missing from the table.
    #[default]
    Nothing,
    /// Only rows that were put into `lost_and_found` are missing.
    Aside,
    /// An undamaged index lists this many rows that the table does not have.
    Index,
    /// A damaged index lists this many missing rows; there may be more.
    AtLeast,
    /// An estimate. It counts unreadable cells, and for each lost page as many rows as the others
    /// hold on average. The rows of lost pages are limited to the keys that fit into the gaps.
    Estimate,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadablePages {
    pub count: u64,
    /// The first 100 pages.
    pub first: Vec<UnreadablePage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadablePage {
    /// Page number, starting at 1.
    pub page: u32,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReport {
    /// `table`, `index`, `view`, `trigger` or `virtual table`.
    pub kind: String,
    pub name: String,
    /// Why the object is missing or lacks its content; `None` if it was recreated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The table for rows that could not be assigned to a table with certainty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LostAndFoundReport {
    pub table: String,
    pub rows: u64,
}
