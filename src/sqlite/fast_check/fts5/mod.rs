//! A fast proof that the index of an FTS5 table is well formed, where SQLite's own check is slow for nothing.
//!
//! `PRAGMA quick_check` of a table whose content is elsewhere (`content='notes'`, `content=''`) hashes every position of every term,
//! and compares the hash with nothing. What else it looks at is found here by one walk over the same pages, at the speed of reading
//! them, and more strictly.
//!
//! This only ever says yes. Whatever is damaged, unusual or unknown is left to SQLite, whose word is what is reported: content of
//! its own (then the hash counts), `contentless_delete`, other `detail` than full, `secure-delete`, another version of the format.
//! So a mistake here can cost time but raises no alarm.
//!
//! [`definition`] reads how the table was made, [`structure`] which segments there are, and [`segment`] goes through one: each leaf
//! in turn, read by [`leaf`], beside the table of first terms and the [`doclist_index`] of a long list. The format is described at
//! the head of SQLite's `fts5_index.c`. What a parser does not understand is `None`; with a database it is a [`Doubt`].

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

/// The format without `secure-delete`, which leaves pages in more shapes.
const VERSION: i64 = 4;

/// Whether the index of the FTS5 table `table` of `connection` was proven to be well formed. Where not, ask SQLite.
/// Fails only with `SQLITE_INTERRUPT`.
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

/// Why there is no proof.
#[derive(Debug)]
enum Doubt {
    Unproven,
    Interrupted(Error),
}

/// What cannot be read is SQLite's to report.
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
    // SQLite reads the options by this, and finds a tokenizer that it does not have.
    index
        .connection
        .prepare(&format!("SELECT 1 FROM {}", quoted(index.table)))?;
    let record = index.block(structure::RECORD_ID)?;
    let segments = structure::segments(&record).ok_or(Doubt::Unproven)?;
    segments
        .into_iter()
        .try_for_each(|of| segment::prove(index, of))
}

/// An FTS5 table and the tables that it keeps its index in.
struct Index<'a> {
    connection: &'a Connection,
    table: &'a str,
    cancel: &'a CancelToken,
}

impl Index<'_> {
    /// The name of one of its tables, for SQL.
    fn part(&self, suffix: &str) -> String {
        quoted(&format!("{}{suffix}", self.table))
    }

    /// How the table, or one of its tables, was made.
    fn sql_of(&self, suffix: &str) -> Proof<String> {
        let name = format!("{}{suffix}", self.table);
        let sql = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let found: Option<String> = self
            .connection
            .query_row(sql, [name], |row| row.get(0))
            .optional()?;
        found.ok_or(Doubt::Unproven)
    }

    /// That its tables are as FTS5 makes them, so that reading them with SQL is what FTS5 does.
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
