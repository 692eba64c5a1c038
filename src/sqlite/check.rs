//! What SQLite says of the health of a snapshot.

use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    limits::bounded,
    task::Cancel,
};

/// `quick_check` stops after this many findings.
const MAX_FINDINGS: u32 = 100;
/// SQLite calls back after this many virtual machine instructions, to see whether the task was cancelled.
const INSTRUCTIONS_PER_CALLBACK: i32 = 100_000;

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
    let stop = cancel.clone();
    let findings = || -> rusqlite::Result<Vec<String>> {
        connection.progress_handler(INSTRUCTIONS_PER_CALLBACK, Some(move || stop.is_cancelled()))?;
        let mut statement = connection.prepare(&format!("PRAGMA quick_check({MAX_FINDINGS})"))?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    let messages = match findings() {
        Ok(lines) if lines == ["ok"] => Vec::new(),
        Ok(lines) => lines,
        Err(cause) if cause.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            return Err(Error::aborted());
        }
        Err(cause) => vec![format!("quick_check could not finish: {cause}")],
    };
    let status = if messages.is_empty() { IntegrityStatus::Ok } else { IntegrityStatus::Failed };
    Ok(Integrity { status, messages })
}
