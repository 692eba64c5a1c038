//! A fast proof that a database is sound, from the pages of a pass that reads them anyway.
//!
//! ```text
//! before the pass: schema ─▶ interior pages of all trees, freelist ─▶ expected role of each page
//! for each page: does it match its role? ─▶ cells, rows, keys; where overflow chains begin
//! after the pass: chains; every page used once; as many index entries as table rows
//! ```
//!
//! `PRAGMA quick_check` reads every page a second time and checks the same properties. If it is not
//! certain that SQLite would find nothing, there is no proof, and SQLite is asked. SQLite checks
//! everything if the pages are not as expected, and otherwise only single tables.
//!
//! So a mistake here can cost time, but it cannot cause a false alarm. Conversely, nothing here is
//! less strict than SQLite's check. The tests damage a database in tens of thousands of ways and
//! compare both results.
//!
//! [`schema`] determines the trees and the form of their rows, [`trees`] assigns pages to trees,
//! and [`rows`] checks records. The check needs 4 bytes of memory for each page, and 8 more for
//! each leaf of a table.
//!
//! Not proven, but left to SQLite:
//!
//! - databases with a pointer map (`auto_vacuum`) or reserved bytes
//! - databases with virtual tables other than full-text indexes
//! - tables with `CHECK`, generated columns, `STRICT` or `WITHOUT ROWID`

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

/// A proof in progress.
pub struct FastCheck {
    schema: Schema,
    trees: Trees,
    ask: Sender<String>,
    is_refuted: bool,
}

/// The reason why there is no proof.
enum Inconclusive {
    Unproven,
    Aborted(Error),
}

/// SQLite reports what cannot be read.
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

/// Requests that SQLite check the rows of a table.
fn defer_to_sqlite(ask: &Sender<String>, table: &Table) {
    // The receiver is gone if the backup has already failed.
    let _ = ask.send(table.name.clone());
}

impl FastCheck {
    /// Reads what the pages are compared with. Sends the name of each table whose rows SQLite must
    /// check to `ask`, as soon as that is known. Returns `None` if SQLite must check everything.
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

    /// Checks the next page. All pages must be passed in order. `read` is the parsed page, if the
    /// caller has already parsed it.
    pub fn page(&mut self, page: &[u8], read: Option<Page>) {
        if !self.is_refuted {
            self.is_refuted = self.look_at(page, read).is_none();
        }
    }

    /// Returns `None` if the page is not as expected.
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

    /// Returns whether the database is sound, provided that SQLite finds the tables sound that were
    /// sent to `ask`.
    pub fn end(self) -> bool {
        !self.is_refuted && self.trees.end(&self.schema).is_some()
    }
}
