//! A proof that a database is sound, from the pages of one pass that reads them anyway.
//!
//! ```text
//! before the pass: schema ─▶ interior pages of all trees, list of free pages ─▶ what each page must be
//! each page that comes by: is it that? ─▶ its cells, rows, keys; where its overflow chains begin
//! after it: the chains, every page used once, as many entries in an index as rows in its table
//! ```
//!
//! `PRAGMA quick_check` reads every page again by itself, and looks at the same things. Wherever it is not certain that SQLite would find nothing,
//! there is no proof, and SQLite is asked: about all of it where the pages themselves are not as they should be, else about single tables. So a mistake
//! here can cost time but raises no alarm. The other way, nothing here is less strict than SQLite's check: the tests damage a database in tens of thousands of
//! ways and ask both.
//!
//! [`schema`] knows which trees there are and what their rows are like, [`trees`] which pages they are of, and [`rows`] looks at records.
//! Memory: 4 bytes a page, and 8 for each leaf of a table.
//!
//! Not proven, but left to SQLite: databases with a pointer map (`auto_vacuum`), or reserved bytes, and those that have virtual tables
//! other than full-text indexes; tables with `CHECK`, generated columns, `STRICT` or `WITHOUT ROWID`.

pub mod accounting;
pub mod fts5;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod trees;

use crossbeam_channel::Sender;

use self::{
    schema::{Schema, Table},
    trees::{Seen, Trees},
};
use super::snapshot::Snapshot;
use crate::{
    error::{Code, Error, Result},
    sqlite::format::btree::Page,
    util::operation::CancelToken,
};

/// A proof under way.
pub struct FastCheck {
    schema: Schema,
    trees: Trees,
    ask: Sender<String>,
    is_refuted: bool,
}

/// Why there is no proof.
enum Inconclusive {
    Unproven,
    Aborted(Error),
}

/// What cannot be read is SQLite's to report.
impl From<Error> for Inconclusive {
    fn from(error: Error) -> Self {
        if error.code == Code::Aborted {
            Inconclusive::Aborted(error)
        } else {
            Inconclusive::Unproven
        }
    }
}

impl From<rusqlite::Error> for Inconclusive {
    fn from(_: rusqlite::Error) -> Self {
        Inconclusive::Unproven
    }
}

type CheckResult<T = ()> = std::result::Result<T, Inconclusive>;

fn must(condition: bool) -> CheckResult {
    if condition {
        Ok(())
    } else {
        Err(Inconclusive::Unproven)
    }
}

/// Has SQLite asked about the rows of a table.
fn defer_to_sqlite(ask: &Sender<String>, table: &Table) {
    // Nobody listens where the backup has failed already.
    let _ = ask.send(table.name.clone());
}

impl FastCheck {
    /// Reads what pages are to be compared with. Each table whose rows SQLite is to be asked about is sent to `ask`, as soon as that is known.
    /// `None` where SQLite is to be asked about everything.
    pub fn begin(
        snapshot: &Snapshot,
        ask: Sender<String>,
        cancel: &CancelToken,
    ) -> Result<Option<FastCheck>> {
        let begun = || {
            let schema = Schema::read(snapshot.connection(), cancel)?;
            let trees = Trees::read(snapshot, &schema, cancel)?;
            let left = schema.tables.iter().filter(|table| table.shape.is_none());
            left.for_each(|table| defer_to_sqlite(&ask, table));
            Ok(FastCheck {
                schema,
                trees,
                ask,
                is_refuted: false,
            })
        };
        match begun() {
            Ok(proof) => Ok(Some(proof)),
            Err(Inconclusive::Unproven) => Ok(None),
            Err(Inconclusive::Aborted(error)) => Err(error),
        }
    }

    /// Looks at the next page; all of them must come, in order. `read` is what is in it, where somebody has read that already.
    pub fn page(&mut self, page: &[u8], read: Option<Page>) {
        if !self.is_refuted {
            self.is_refuted = self.look_at(page, read).is_none();
        }
    }

    /// `None` where the page is not what it must be.
    fn look_at(&mut self, bytes: &[u8], read: Option<Page>) -> Option<()> {
        if let Seen::Rows(table, page) = self.trees.page(bytes, read)?
            && let table = &mut self.schema.tables[table]
            && let Some(shape) = &table.shape
            && !page
                .cells
                .iter()
                .all(|cell| rows::is_plain(bytes, cell, shape, self.schema.is_utf8))
        {
            table.shape = None;
            defer_to_sqlite(&self.ask, table);
        }
        Some(())
    }

    /// Whether the database is sound, if SQLite finds the tables so that it was to be asked about.
    pub fn end(self) -> bool {
        !self.is_refuted && self.trees.end(&self.schema).is_some()
    }
}
