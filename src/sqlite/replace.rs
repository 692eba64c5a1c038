//! Replaces the content of a database that other processes may have open.
//!
//! SQLite's backup API writes the new content in one transaction of the live database
//! (<https://sqlite.org/backup.html>). Whoever has it open keeps its connection, sees the new content, and its next
//! commits are seen by all. A rename would leave them with a file that nobody else sees.
//!
//! Not possible where the page sizes differ or either of the two is damaged: [`is_possible`] says so.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::{
    BUSY_SLICE,
    check::{IntegrityStatus, quick_check},
    open_harmless,
    snapshot::{Snapshot, until},
};
use crate::{
    error::{Code, Error, Result},
    task::Cancel,
};

/// Whether `live` is a sound database with content, and `staged` (where there is one already) fits it.
pub fn is_possible(live: &Path, staged: Option<&Path>, lock_timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + lock_timeout;
    let cancel = Cancel::default();
    let pinned = |path: &Path| until(deadline, &cancel, || Snapshot::pin(open_harmless(path)?, path));
    let snapshot = match pinned(live) {
        Ok(snapshot) if snapshot.size_bytes() > 0 => snapshot,
        Err(error) if error.code == Code::DatabaseBusy => return Err(error),
        _ => return Ok(false),
    };
    let fits = match staged.map(pinned) {
        None => true,
        Some(Ok(staged)) => staged.size_bytes() > 0 && staged.page_size_bytes() == snapshot.page_size_bytes(),
        Some(Err(_)) => false,
    };
    let (connection, _scratch) = snapshot.into_connection();
    Ok(fits && quick_check(connection, &cancel)?.status == IntegrityStatus::Ok)
}

/// Replaces the content of `live` by that of `staged`, and writes what it was to `keep`. The journal mode stays as it is.
pub fn replace(live: &Path, staged: &Path, keep: &Path, lock_timeout: Duration) -> Result<()> {
    let failed = |cause| Error::sqlite("replace the content of", live, cause);
    let deadline = Instant::now() + lock_timeout;
    let (mut destination, mode) = until(deadline, &Cancel::default(), || open_live(live).map_err(failed))?;
    let source = Connection::open(staged).map_err(failed)?;
    let source_mode = if mode == "wal" { "wal" } else { "delete" };
    source.query_row(&format!("PRAGMA journal_mode = {source_mode}"), [], |_| Ok(())).map_err(failed)?;

    let backup = Backup::new(&source, &mut destination).map_err(failed)?;
    // A step of no pages takes the write lock: what is kept is the last commit before the replacement.
    step(&backup, 0, live, deadline)?;
    // In rollback mode the lock keeps readers out, so the file itself is copied; closing it would drop the lock.
    let _open_until_done =
        if mode == "wal" { keep_snapshot(live, keep).map(|()| None)? } else { keep_file(live, keep).map(Some)? };
    step(&backup, -1, live, deadline)
}

/// The live database and its journal mode.
fn open_live(live: &Path) -> rusqlite::Result<(Connection, String)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(live, flags)?;
    connection.busy_timeout(BUSY_SLICE)?;
    let mode = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    Ok((connection, mode))
}

fn step(backup: &Backup<'_, '_>, pages: i32, live: &Path, deadline: Instant) -> Result<()> {
    until(deadline, &Cancel::default(), || {
        match backup.step(pages).map_err(|cause| Error::sqlite("replace the content of", live, cause))? {
            StepResult::Busy | StepResult::Locked => Err(Error::new(
                Code::DatabaseBusy,
                format!("{} is locked by another process that is writing it", live.display()),
                "Nothing was changed; let that process end its transaction, then run it again",
            )),
            _ => Ok(()),
        }
    })
}

fn keep_snapshot(live: &Path, keep: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", keep, cause);
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(keep).map_err(failed)?);
    Snapshot::pin(open_harmless(live)?, live)?
        .pages(&Cancel::default(), |page| file.write_all(page).map_err(failed))?;
    file.into_inner().map_err(|cause| failed(cause.into_error()))?.sync_all().map_err(failed)
}

/// Returns the open file of the database.
fn keep_file(live: &Path, keep: &Path) -> Result<File> {
    let failed = |cause| Error::io("write", keep, cause);
    let mut file = File::open(live).map_err(|cause| Error::io("read", live, cause))?;
    let mut copy = File::create_new(keep).map_err(failed)?;
    io::copy(&mut file, &mut copy).and_then(|_| copy.sync_all()).map_err(failed)?;
    Ok(file)
}
