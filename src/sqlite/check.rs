//! What SQLite says of the health of a snapshot.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};

use super::{forget_fulltext, fulltext, quoted};
use crate::{
    error::{Code, Error, Result},
    limits::bounded,
    task::Cancel,
};

/// `quick_check` stops after this many findings.
const MAX_FINDINGS: u32 = 100;
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
pub fn quick_check(mut connection: Connection, depth: Depth, cancel: &Cancel) -> Result<Integrity> {
    if depth == Depth::Structure {
        forget_fulltext(&connection);
    }
    let integrity = quick_check_on(&mut connection, cancel)?;
    Ok(Integrity { full_text: depth == Depth::All, ..integrity })
}

/// As [`quick_check`] of all, for a connection that is used again.
pub fn quick_check_on(connection: &mut Connection, cancel: &Cancel) -> Result<Integrity> {
    findings(connection, |_| Ok(vec![format!("PRAGMA quick_check({MAX_FINDINGS})")]), cancel).map(Integrity::of)
}

/// The same, on two connections at one commit beside each other: all of every full-text index is read, which can take longer than
/// everything else together.
pub fn quick_check_on_two(
    [structure, mut fulltext]: [Connection; 2],
    depth: Depth,
    cancel: &Cancel,
) -> Result<Integrity> {
    if depth == Depth::Structure {
        return quick_check(structure, depth, cancel);
    }
    let (structure, fulltext) = thread::scope(|threads| {
        let beside =
            threads.spawn(|| findings(&mut fulltext, |connection| fulltext_checks(connection, cancel), cancel));
        (quick_check(structure, Depth::Structure, cancel), beside.join())
    });
    let panicked = |_| Err(Error::new(Code::Internal, "The check of full-text indexes panicked", "Please report this"));
    let mut messages = structure?.messages;
    messages.extend(fulltext.unwrap_or_else(panicked)?);
    Ok(Integrity::of(messages))
}

/// A check of each FTS5 table alone that is not plainly well formed. What cannot be read here is found by the check of everything else.
fn fulltext_checks(connection: &Connection, cancel: &Cancel) -> rusqlite::Result<Vec<String>> {
    let named = r#"SELECT name FROM sqlite_schema
                   WHERE type = 'table' AND rootpage = 0 AND sql LIKE '%using%fts5%'"#;
    let tables: Vec<String> =
        connection.prepare(named)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut pragmas = Vec::new();
    for table in tables {
        if !fulltext::is_well_formed(connection, &table, cancel)? {
            pragmas.push(format!("PRAGMA quick_check({})", quoted(&table)));
        }
    }
    Ok(pragmas)
}

/// What the pragmas say that `pragmas` names; nothing where all is well.
fn findings(
    connection: &mut Connection,
    pragmas: impl FnOnce(&Connection) -> rusqlite::Result<Vec<String>>,
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
    fn of(messages: Vec<String>) -> Self {
        let status = if messages.is_empty() { IntegrityStatus::Ok } else { IntegrityStatus::Failed };
        Integrity { status, messages, full_text: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(file: &std::path::Path, sql: &str) -> Integrity {
        let connection = Connection::open(file).unwrap();
        connection.execute_batch(sql).unwrap();
        drop(connection);
        let open = || Connection::open(file).unwrap();
        let one = quick_check(open(), Depth::All, &Cancel::default()).unwrap();
        let two = quick_check_on_two([open(), open()], Depth::All, &Cancel::default()).unwrap();
        assert_eq!(one.status, two.status, "{one:?}, {two:?}");
        two
    }

    #[test]
    fn two_connections_find_together_what_one_finds() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let made = r#"CREATE TABLE t (id INTEGER PRIMARY KEY, x NOT NULL); CREATE VIRTUAL TABLE "my ""index""" USING fts5(x);
            INSERT INTO t VALUES (1, 'one'); INSERT INTO "my ""index""" VALUES ('one two three');"#;
        assert_eq!(damaged(&file, made).status, IntegrityStatus::Ok);
        let lost = r#"DELETE FROM "my ""index""_data" WHERE id > 10"#;
        let found = damaged(&file, lost);
        let open = || Connection::open(&file).unwrap();
        let structure = quick_check_on_two([open(), open()], Depth::Structure, &Cancel::default()).unwrap();
        assert_eq!((structure.status, structure.full_text, found.full_text), (IntegrityStatus::Ok, false, true));
        assert!(found.messages.iter().any(|message| message.contains("index")), "{found:?}");
        let null = "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = replace(sql, ', x NOT NULL', ', x NOT NULL, y NOT NULL') WHERE name = 't'";
        let found = damaged(&file, null);
        assert!(found.messages.iter().any(|message| message.contains("NULL")), "{found:?}");
    }
}
