//! The pages of a database at one commit, beside writers.
//!
//! In WAL mode one read transaction pins the commit and pages are streamed from it: writers go on, nothing is copied.
//! In rollback-journal mode the same transaction would make writers fail for as long as it lasts, so the pages are
//! first copied to a scratch file in one go and streamed from there. The stepped backup API is not used: it starts
//! again after every foreign commit and never ends beside a busy writer.
//!
//! Not guaranteed: two databases of one project are two snapshots, pinned within milliseconds of each other but not
//! at one commit.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{
    aside::{self, Aside},
    open_harmless, prepare,
};
use crate::{
    error::{Code, Error, Result},
    task::Cancel,
};

/// `quick_check` stops after this many findings.
const MAX_FINDINGS: u32 = 100;
/// SQLite calls back after this many virtual machine instructions, to see whether the task was cancelled.
const INSTRUCTIONS_PER_CALLBACK: i32 = 100_000;

/// One commit of a database. Dropping it ends the read transaction.
pub struct Snapshot {
    connection: Connection,
    /// The project's file, for messages; the connection may be to a copy.
    path: PathBuf,
    page_size_bytes: u64,
    page_count: u64,
    _scratch: Option<TempDir>,
}

/// What could be had of a database.
pub enum Taken {
    Snapshot(Snapshot),
    /// SQLite refuses the file: its bytes as they are, and why.
    Damaged(Aside, Error),
}

/// What `PRAGMA quick_check` said of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    pub status: IntegrityStatus,
    /// What is wrong, in SQLite's words; at most 100 lines a database.
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

/// Takes a snapshot of the database at `path`. `scratch` is a directory with room for a copy; `lock_timeout` bounds
/// the wait for a lock that another process holds.
pub fn take(path: &Path, scratch: &Path, lock_timeout: Duration, cancel: &Cancel) -> Result<Taken> {
    let deadline = Instant::now() + lock_timeout;
    let taken = take_live(path, scratch, deadline, cancel).or_else(|error| match error.code {
        // A hot journal needs recovery, a directory may not be writable: SQLite can do with a copy what it cannot here.
        Code::DatabaseUnreadable => take_copy(path, scratch),
        _ => Err(error),
    });
    match taken {
        Ok(snapshot) => Ok(Taken::Snapshot(snapshot)),
        Err(error) if error.code == Code::DatabaseDamaged => Ok(Taken::Damaged(aside::copy(path, scratch)?, error)),
        Err(error) => Err(error),
    }
}

fn take_live(path: &Path, scratch: &Path, deadline: Instant, cancel: &Cancel) -> Result<Snapshot> {
    let snapshot = until(deadline, cancel, || Snapshot::pin(open_harmless(path)?, path, None))?;
    if snapshot.is_wal()? { Ok(snapshot) } else { snapshot.copied_out(scratch, cancel) }
}

fn take_copy(path: &Path, scratch: &Path) -> Result<Snapshot> {
    let copy = aside::copy(path, scratch)?;
    let connection =
        Connection::open(copy.database()).map_err(|cause| Error::sqlite("recover a copy of", path, cause))?;
    prepare(&connection, path)?;
    Snapshot::pin(connection, path, Some(copy.into_dir()))
}

/// Tries again while the database is busy, until the deadline or a cancellation.
fn until<T>(deadline: Instant, cancel: &Cancel, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        cancel.check()?;
        match attempt() {
            Err(error) if error.code == Code::DatabaseBusy && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

impl Snapshot {
    /// Begins a read transaction and pins it: `BEGIN` alone pins nothing, the first read does.
    fn pin(connection: Connection, path: &Path, scratch: Option<TempDir>) -> Result<Self> {
        let pinned = || -> rusqlite::Result<(u64, u64)> {
            connection.execute_batch("BEGIN")?;
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            let page_size = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            let page_count = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            Ok((page_size, page_count))
        };
        let (page_size_bytes, page_count) = pinned().map_err(|cause| Error::sqlite("read", path, cause))?;
        Ok(Snapshot { connection, path: path.to_path_buf(), page_size_bytes, page_count, _scratch: scratch })
    }

    fn is_wal(&self) -> Result<bool> {
        let mode: String = self
            .connection
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .map_err(|cause| self.sqlite_error(cause))?;
        Ok(mode == "wal")
    }

    /// Copies the pages to a scratch file, which takes as long as the lock on the source is held.
    fn copied_out(self, scratch: &Path, cancel: &Cancel) -> Result<Self> {
        let dir = aside::scratch_dir(scratch)?;
        let copy = dir.path().join("database");
        let failed = |cause| Error::io("write", &copy, cause);
        let mut file = BufWriter::with_capacity(1 << 20, File::create_new(&copy).map_err(failed)?);
        self.pages(cancel, |page| file.write_all(page).map_err(failed))?;
        file.flush().map_err(failed)?;
        let path = self.path.clone();
        drop(self);
        Snapshot::pin(open_harmless(&copy)?, &path, Some(dir))
    }

    pub fn size_bytes(&self) -> u64 {
        self.page_size_bytes * self.page_count
    }

    /// Calls `visit` with every page, first to last. Their concatenation is the database file.
    ///
    /// The lock page at 1 GiB, which SQLite never stores, comes as zeros.
    pub fn pages(&self, cancel: &Cancel, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let failed = |cause| self.sqlite_error(cause);
        let mut statement = self.connection.prepare("SELECT data FROM sqlite_dbpage('main')").map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut visited = 0;
        while let Some(row) = rows.next().map_err(failed)? {
            let page = row.get_ref(0).map_err(failed)?.as_blob().map_err(|cause| failed(cause.into()))?;
            if page.len() as u64 != self.page_size_bytes {
                return Err(self.short(visited));
            }
            visit(page)?;
            visited += 1;
            if visited % 256 == 0 {
                cancel.check()?;
            }
        }
        if visited != self.page_count { Err(self.short(visited)) } else { Ok(()) }
    }

    fn short(&self, visited: u64) -> Error {
        Error::new(
            Code::DatabaseDamaged,
            format!("Only {visited} of {} pages of {} could be read", self.page_count, self.path.display()),
            "Check the disk, then restore the newest good backup",
        )
    }

    /// How many rows the table has; 0 where there is no such table or it cannot be read.
    pub fn count_rows(&self, table: &str) -> u64 {
        let exists = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        match self.connection.query_row(exists, [table], |row| row.get::<_, u64>(0)) {
            Ok(1) => {
                let count = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
                self.connection.query_row(&count, [], |row| row.get(0)).unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Runs `PRAGMA quick_check` on this very commit. A database that is found damaged is a result, not an error.
    pub fn quick_check(&mut self, cancel: &Cancel) -> Result<Integrity> {
        let stop = cancel.clone();
        let guarded = self.connection.progress_handler(INSTRUCTIONS_PER_CALLBACK, Some(move || stop.is_cancelled()));
        guarded.map_err(|cause| self.sqlite_error(cause))?;
        let findings = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare(&format!("PRAGMA quick_check({MAX_FINDINGS})"))?;
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

    fn sqlite_error(&self, cause: rusqlite::Error) -> Error {
        Error::sqlite("read", &self.path, cause)
    }
}
