//! What SQLite says of the health of a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};

use super::{forget_fulltext, fulltext, quoted};
use crate::{error::Result, limits::bounded, task::Cancel};

/// `quick_check` stops after this many findings.
const MAX_FINDINGS: usize = 100;
/// SQLite calls back after this many virtual machine instructions, to see whether the task was cancelled.
const INSTRUCTIONS_PER_CALLBACK: i32 = 100_000;
/// A check of a sound database takes a fraction of this many instructions; damaged pages can lead in a circle.
const LEAST_INSTRUCTIONS: u64 = 200_000_000;
const INSTRUCTIONS_PER_BYTE: u64 = 50;

/// Ends what `connection` does (with `SQLITE_INTERRUPT`) when `must_end` says so, or when all that was done on it is more than
/// checks of a sound database of that size can take.
pub fn bound(
    connection: &mut Connection,
    size_bytes: u64,
    must_end: impl Fn() -> bool + Send + 'static,
) -> rusqlite::Result<()> {
    let instructions = LEAST_INSTRUCTIONS + size_bytes.saturating_mul(INSTRUCTIONS_PER_BYTE);
    let left = AtomicU64::new(instructions / INSTRUCTIONS_PER_CALLBACK as u64);
    let is_spent = move || {
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        must_end() || before.is_err()
    };
    connection.progress_handler(INSTRUCTIONS_PER_CALLBACK, Some(is_spent))
}

/// What `PRAGMA quick_check` said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Integrity {
    pub status: IntegrityStatus,
    /// What is wrong, in SQLite's words; at most 100 lines a database.
    #[serde(deserialize_with = "bounded")]
    pub messages: Vec<String>,
    /// Full-text indexes were read through too, see [`Depth`]. Earlier releases always did.
    #[serde(default = "yes")]
    pub full_text: bool,
}

fn yes() -> bool {
    true
}

/// How much of a database is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every page, table and index, the tables of full-text indexes among them, but not whether what those hold is an index.
    Structure,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntegrityStatus {
    Ok,
    Failed,
    /// The check was turned off.
    Skipped,
}

/// Runs `PRAGMA quick_check` in the read transaction of `connection`. Damage is a result, not an error.
pub fn quick_check(connection: &mut Connection, cancel: &Cancel) -> Result<Integrity> {
    let all = |_: &Connection| Ok([format!("PRAGMA quick_check({MAX_FINDINGS})")]);
    findings(connection, all, cancel).map(|messages| Integrity::of(messages, Depth::All))
}

/// What `quick_check` finds in everything but full-text indexes. The connection cannot use those any more.
pub fn structure(connection: &mut Connection, cancel: &Cancel) -> Result<Vec<String>> {
    forget_fulltext(connection);
    Ok(quick_check(connection, cancel)?.messages)
}

/// What it finds in these tables alone.
pub fn tables(
    connection: &mut Connection,
    names: impl IntoIterator<Item = String>,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    findings(connection, |_| Ok(names.into_iter().map(|name| of_table(&name))), cancel)
}

fn of_table(name: &str) -> String {
    format!("PRAGMA quick_check({})", quoted(name))
}

/// What it finds in full-text indexes, all of each. That can take longer than everything else together, so those that are plainly well formed are
/// not asked about. What cannot be read here is found by the check of everything else.
pub fn full_text(connection: &mut Connection, cancel: &Cancel) -> Result<Vec<String>> {
    findings(connection, |connection| full_text_pragmas(connection, cancel), cancel)
}

fn full_text_pragmas(connection: &Connection, cancel: &Cancel) -> rusqlite::Result<Vec<String>> {
    let named = r#"SELECT name FROM sqlite_schema
                   WHERE type = 'table' AND rootpage = 0 AND sql LIKE '%using%fts5%'"#;
    let tables: Vec<String> =
        connection.prepare(named)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut pragmas = Vec::new();
    for table in tables {
        if !fulltext::is_well_formed(connection, &table, cancel)? {
            pragmas.push(of_table(&table));
        }
    }
    Ok(pragmas)
}

/// What the pragmas say that `pragmas` names; nothing where all is well.
fn findings<P: IntoIterator<Item = String>>(
    connection: &mut Connection,
    pragmas: impl FnOnce(&Connection) -> rusqlite::Result<P>,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    let stop = cancel.clone();
    let found = || -> rusqlite::Result<Vec<String>> {
        let size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let size = connection.query_row(size, [], |row| row.get(0))?;
        bound(connection, size, move || stop.is_cancelled())?;
        let mut lines = Vec::new();
        for pragma in pragmas(connection)? {
            let mut statement = connection.prepare(&pragma)?;
            let said: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            lines.extend(said.into_iter().filter(|line| line != "ok"));
        }
        Ok(lines)
    };
    match found() {
        Err(cause) if cause.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            cancel.check()?;
            Ok(vec!["quick_check could not finish: pages lead in a circle".to_string()])
        }
        Err(cause) => Ok(vec![format!("quick_check could not finish: {cause}")]),
        lines => Ok(lines.unwrap_or_default()),
    }
}

impl Integrity {
    /// What was found in a database that was read so far.
    pub fn of(mut messages: Vec<String>, depth: Depth) -> Self {
        messages.truncate(MAX_FINDINGS);
        let status = if messages.is_empty() { IntegrityStatus::Ok } else { IntegrityStatus::Failed };
        Integrity { status, messages, full_text: depth == Depth::All }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What SQLite finds at once, and what is found one after the other.
    fn found(file: &std::path::Path) -> (Integrity, [Vec<String>; 2]) {
        let (open, cancel) = (|| Connection::open(file).unwrap(), Cancel::default());
        let parts = [full_text(&mut open(), &cancel).unwrap(), structure(&mut open(), &cancel).unwrap()];
        let all = quick_check(&mut open(), &cancel).unwrap();
        assert_eq!(all.status == IntegrityStatus::Ok, parts.concat().is_empty(), "{all:?}, {parts:?}");
        (all, parts)
    }

    #[test]
    fn the_checks_of_parts_find_together_what_the_whole_one_finds() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let run = |sql: &str| Connection::open(&file).unwrap().execute_batch(sql).unwrap();
        run(r#"CREATE TABLE t (id INTEGER PRIMARY KEY, x NOT NULL); CREATE VIRTUAL TABLE "my ""index""" USING fts5(x);
            INSERT INTO t VALUES (1, 'one'); INSERT INTO "my ""index""" VALUES ('one two three');"#);
        assert_eq!(found(&file).0.status, IntegrityStatus::Ok);
        run(r#"DELETE FROM "my ""index""_data" WHERE id > 10"#);
        let (all, [full_text, structure]) = found(&file);
        assert_eq!((all.messages, structure), (full_text.clone(), vec![]));
        assert!(full_text[0].contains("index"), "{full_text:?}");
        run(
            "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = replace(sql, ', x NOT NULL', ', x NOT NULL, y NOT NULL') WHERE name = 't'",
        );
        let (_, [_, structure]) = found(&file);
        assert_eq!(structure, ["NULL value in t.y"]);
        let of = |table: &str| tables(&mut Connection::open(&file).unwrap(), [table.to_string()], &Cancel::default());
        assert_eq!((of("t").unwrap(), of(r#"my "index"_data"#).unwrap()), (structure, vec![]));
    }
}
