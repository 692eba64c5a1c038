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
    pub unreadable_pages: UnreadablePages,
    /// Everything of the schema but the tables that were recreated.
    pub objects: Vec<ObjectReport>,
    pub lost_and_found: Option<LostAndFoundReport>,
    /// Pages with old content, of deleted rows or earlier versions, that were left where they are.
    pub leftover_pages: u64,
    /// Sentences for a person.
    pub warnings: Vec<String>,
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
    /// Rows that are known or supposed to be lost; `rows_lost_by` says which.
    pub rows_lost: u64,
    pub rows_lost_by: LostBy,
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
