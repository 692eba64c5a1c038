//! What SQLite says of the health of a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};

use crate::{error::Result, limits::bounded, task::Cancel};

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
pub struct Integrity {
    pub status: IntegrityStatus,
    /// What is wrong, in SQLite's words; at most 100 lines a database.
    #[serde(deserialize_with = "bounded")]
    pub messages: Vec<String>,
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
pub fn quick_check(mut connection: Connection, cancel: &Cancel) -> Result<Integrity> {
    quick_check_on(&mut connection, cancel)
}

/// As [`quick_check`], for a connection that is used again.
pub fn quick_check_on(connection: &mut Connection, cancel: &Cancel) -> Result<Integrity> {
    let stop = cancel.clone();
    let findings = || -> rusqlite::Result<Vec<String>> {
        let size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let size = connection.query_row(size, [], |row| row.get(0))?;
        bound(connection, size, move || stop.is_cancelled())?;
        let mut statement = connection.prepare(&format!("PRAGMA quick_check({MAX_FINDINGS})"))?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    let messages = match findings() {
        Ok(lines) if lines == ["ok"] => Vec::new(),
        Ok(lines) => lines,
        Err(cause) if cause.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            cancel.check()?;
            vec!["quick_check could not finish: pages lead in a circle".to_string()]
        }
        Err(cause) => vec![format!("quick_check could not finish: {cause}")],
    };
    let status = if messages.is_empty() { IntegrityStatus::Ok } else { IntegrityStatus::Failed };
    Ok(Integrity { status, messages })
}
