//! A fast proof that the index of an FTS5 table is well formed, for tables where SQLite's own check
//! is slow without benefit.
//!
//! `PRAGMA quick_check` of a table whose content is elsewhere (`content='notes'`, `content=''`)
//! hashes every position of every term. It then compares the hash with nothing. This module checks
//! everything else in one walk over the same pages. The walk is as fast as reading the pages, and
//! stricter.
//!
//! This module only ever confirms. SQLite checks everything that is damaged, unusual or unknown,
//! and only its result is reported. This includes tables with their own content (for which the hash
//! matters), `contentless_delete`, a `detail` other than full, `secure-delete`, and other versions
//! of the format. So a mistake here can cost time, but it cannot cause a false alarm.
//!
//! [`definition`] reads how the table was created, and [`structure`] which segments exist.
//! [`segment`] checks one segment, and [`leaf`] reads each of its leaves in turn. They are compared
//! with the table of first terms and the [`doclist_index`] of a long list.
//!
//! The comment at the start of SQLite's `fts5_index.c` describes the format. A parser returns
//! `None` for anything that it does not understand. Functions that read the database return a
//! [`Doubt`] instead.

mod cursor;
mod definition;
mod doclist_index;
mod leaf;
mod segment;
mod structure;
#[cfg(test)]
mod tests;

use rusqlite::{Connection, Error, ErrorCode, OptionalExtension, ffi, types::ValueRef};

use crate::{
    sqlite::{holds, quoted},
    util::operation::CancelToken,
};

/// The format without `secure-delete`, which leaves pages in more forms.
const VERSION: i64 = 4;

/// Returns whether the index of the FTS5 table `table` is proven to be well formed. If it is not,
/// the caller must ask SQLite. Fails only with `SQLITE_INTERRUPT`.
pub fn is_well_formed(
    connection: &Connection,
    table: &str,
    cancel: &CancelToken,
) -> rusqlite::Result<bool> {
    match prove(&Index {
        connection,
        table,
        cancel,
    }) {
        Ok(()) => Ok(true),
        Err(Doubt::Unproven) => Ok(false),
        Err(Doubt::Interrupted(cause)) => Err(cause),
    }
}

/// The reason why there is no proof.
#[derive(Debug)]
enum Doubt {
    Unproven,
    Interrupted(Error),
}

/// SQLite reports what cannot be read.
impl From<Error> for Doubt {
    fn from(cause: Error) -> Self {
        match cause.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Doubt::Interrupted(cause),
            _ => Doubt::Unproven,
        }
    }
}

type Proof<T = ()> = Result<T, Doubt>;

fn prove(index: &Index) -> Proof {
    let sql = index.sql_of("")?;
    holds(definition::is_understood(&sql)).ok_or(Doubt::Unproven)?;
    index.assert_tables()?;
    index.assert_version()?;
    // SQLite reads the options when it prepares this statement, and reports a missing tokenizer.
    index
        .connection
        .prepare(&format!("SELECT 1 FROM {}", quoted(index.table)))?;
    let record = index.block(structure::RECORD_ID)?;
    let segments = structure::segments(&record).ok_or(Doubt::Unproven)?;
    segments
        .into_iter()
        .try_for_each(|of| segment::prove(index, of))
}

/// An FTS5 table and the tables that contain its index.
struct Index<'a> {
    connection: &'a Connection,
    table: &'a str,
    cancel: &'a CancelToken,
}

impl Index<'_> {
    /// Returns the quoted name of one of its tables.
    fn part(&self, suffix: &str) -> String {
        quoted(&format!("{}{suffix}", self.table))
    }

    /// Returns the SQL text that created the table or one of its tables.
    fn sql_of(&self, suffix: &str) -> Proof<String> {
        let name = format!("{}{suffix}", self.table);
        let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let found: Option<String> = self
            .connection
            .query_row(sql, [name], |row| row.get(0))
            .optional()?;
        found.ok_or(Doubt::Unproven)
    }

    /// Checks that its tables are as FTS5 creates them, so that SQL reads the same data as FTS5.
    fn assert_tables(&self) -> Proof {
        let made = [
            ("_data", "(id INTEGER PRIMARY KEY, block BLOB)"),
            (
                "_idx",
                "(segid, term, pgno, PRIMARY KEY(segid, term)) WITHOUT ROWID",
            ),
            ("_config", "(k PRIMARY KEY, v) WITHOUT ROWID"),
        ];
        for (suffix, columns) in made {
            holds(self.sql_of(suffix)?.ends_with(columns)).ok_or(Doubt::Unproven)?;
        }
        Ok(())
    }

    fn assert_version(&self) -> Proof {
        let mut statement = self
            .connection
            .prepare(&format!("SELECT k, v FROM {}", self.part("_config")))?;
        let mut rows = statement.query([])?;
        let mut is_known = false;
        while let Some(row) = rows.next()? {
            let key: String = row.get(0)?;
            match key.to_ascii_lowercase().as_str() {
                "version" if row.get_ref(1)? == ValueRef::Integer(VERSION) => is_known = true,
                "version" | "secure-delete" => return Err(Doubt::Unproven),
                _ => {}
            }
        }
        holds(is_known).ok_or(Doubt::Unproven)
    }

    fn block(&self, id: i64) -> Proof<Vec<u8>> {
        let sql = format!("SELECT block FROM {} WHERE id = ?1", self.part("_data"));
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row([id], |row| {
            row.get_ref(0)?
                .as_blob()
                .map(<[u8]>::to_vec)
                .map_err(Error::from)
        })?)
    }

    fn assert_wanted(&self) -> Proof {
        if self.cancel.is_cancelled() {
            let interrupted = Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None);
            return Err(Doubt::Interrupted(interrupted));
        }
        Ok(())
    }
}
