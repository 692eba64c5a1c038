//! What came of a salvage.

use serde::{Deserialize, Serialize};

/// No more pages than this are named one by one.
pub const MAX_NAMED_PAGES: usize = 100;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Salvaged {
    pub page_size_bytes: u64,
    /// Pages of the source, those of its WAL included.
    pub page_count: u64,
    /// Whether the header could be believed. Without it the user version, application id and journal mode are defaults.
    pub header_readable: bool,
    /// Whether the schema was there as a whole.
    pub schema_readable: bool,
    pub wal: LogUse,
    /// The rollback journal of a transaction that was never committed.
    pub journal: LogUse,
    pub tables: Vec<TableReport>,
    /// Over all tables, without what was put aside.
    pub rows_recovered: u64,
    /// Rows that are in no table of theirs: those of all tables, and what is in `lost_and_found` of no known table.
    #[serde(default)]
    pub rows_lost: u64,
    pub unreadable_pages: UnreadablePages,
    /// Everything of the schema but the tables that were recreated.
    pub objects: Vec<ObjectReport>,
    pub lost_and_found: Option<LostAndFoundReport>,
    /// Pages with old content, of deleted rows or earlier versions, that were left where they are.
    pub leftover_pages: u64,
    /// Sentences for a person.
    pub warnings: Vec<String>,
}

impl Salvaged {
    /// Adds up what the tables have. A row that is not in its own table again is lost to the host.
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

    /// Whether every row is in its table again, and every object of the schema is there.
    pub fn is_complete(&self) -> bool {
        self.rows_lost == 0 && self.objects.iter().all(|object| object.failed.is_none())
    }
}

/// What became of a log beside the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogUse {
    /// There was none, or nothing in it that counts.
    #[default]
    None,
    Applied,
    /// It is damaged or of another database; a warning says why.
    Ignored,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableReport {
    pub name: String,
    pub rows_recovered: u64,
    /// Rows that are known or supposed to be lost, those in `lost_and_found` among them; `rows_lost_by` says which.
    pub rows_lost: u64,
    pub rows_lost_by: LostBy,
    /// Rows whose overflow pages are damaged: SQLite reads noise from them, or nothing.
    #[serde(default)]
    pub rows_broken: u64,
    /// Rows of this table that were put into `lost_and_found`.
    pub rows_aside: u64,
    /// Pages that were to be parts of this table, but could not be read.
    pub pages_lost: u64,
    /// Leaf pages that had lost their parent, and were found to belong here.
    pub pages_reassigned: u64,
}

/// How the number of lost rows came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LostBy {
    /// Nothing of the table is missing.
    #[default]
    Nothing,
    /// Just those that were put into `lost_and_found`.
    Aside,
    /// An index that is whole names so many rows that are not there.
    Index,
    /// A damaged index names so many; there may be more.
    AtLeast,
    /// Cells that could not be read, and for each lost page as many rows as the others hold on average, but no more than fit between
    /// the keys around the gaps.
    Estimate,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadablePages {
    pub count: u64,
    /// The first 100.
    pub first: Vec<UnreadablePage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadablePage {
    /// Counts from 1.
    pub page: u32,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReport {
    /// `table`, `index`, `view`, `trigger` or `virtual table`.
    pub kind: String,
    pub name: String,
    /// Why it is not there, or not with its content; `None` where it was recreated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The table for rows that could not be given to a table with certainty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LostAndFoundReport {
    pub table: String,
    pub rows: u64,
}
