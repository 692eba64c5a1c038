//! Replaces the content of databases that other processes may have open.
//!
//! SQLite's backup API writes the new content in one transaction of the live database
//! (<https://sqlite.org/backup.html>). Processes that have it open keep their connections and see
//! the new content. All other processes see their next commits. A rename would leave them with a
//! file that no other process sees.
//!
//! Several databases are replaced as one. All are locked first, their current content is saved, and
//! the caller decides. Only then is the first of them changed.
//!
//! A replacement is not possible if the page sizes differ or if one of the two databases is
//! damaged. [`is_possible`] checks this.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
    config::DbConfig,
};
use sha2::{Digest, Sha256};

use super::{
    BUSY_SLICE,
    check::quick_check,
    confirmed,
    in_place::{self, InPlaceAccess},
    open_read_only,
    snapshot::{Snapshot, until},
};
use crate::{
    error::{Code, Error, Result},
    util::{dir_handle, hex::hex, operation::CancelToken, unsupported},
};

/// One database to replace.
pub struct Swap<'a> {
    pub live: &'a Path,
    /// The database with the new content, which no other process uses.
    pub new: &'a Path,
    /// Receives the previous content of the live database.
    pub keep: Option<&'a File>,
}

/// Returns whether `live` is a sound database with content, and whether `new`, if given, fits it. A
/// database that a killed writer left half written is not sound; the files next to it are kept
/// unchanged.
pub fn is_possible(live: &Path, new: Option<&Path>, lock_timeout: Duration) -> Result<bool> {
    // A second attempt gives the same answer, unless the first one failed because of a read error.
    Ok(seems_possible(live, new, lock_timeout)? || seems_possible(live, new, lock_timeout)?)
}

fn seems_possible(live: &Path, new: Option<&Path>, lock_timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + lock_timeout;
    let cancel = CancelToken::default();
    let pinned = |path: &Path| {
        until(deadline, &cancel, || {
            Snapshot::pin(open_read_only(path)?, path)
        })
    };
    let seen = match InPlaceAccess::at(live)? {
        // The files next to it are kept unchanged.
        _ if in_place::cut_off(live, live).is_some() => return Ok(false),
        // This is not a dry run, so the database is about to be written. A copy would only cost
        // time and space.
        None if new.is_some() => pinned(live),
        _ => until(deadline, &cancel, || Snapshot::look(live)),
    };
    let snapshot = match seen {
        Ok(snapshot) if snapshot.size_bytes() > 0 => snapshot,
        Err(error) if error.code == Code::DatabaseBusy => return Err(error),
        _ => return Ok(false),
    };
    let fits = match new.map(pinned) {
        None => true,
        Some(Ok(new)) => {
            new.size_bytes() > 0 && new.page_size_bytes() == snapshot.page_size_bytes()
        }
        Some(Err(_)) => false,
    };
    let (_held, mut connection) = snapshot.into_connection();
    Ok(fits && quick_check(&mut connection, &cancel)?.is_sound())
}

/// Replaces the content of each live database. Nothing is changed until `decide` has returned.
/// `done` is called after each commit, in order. The journal modes do not change.
pub fn replace(
    swaps: &[Swap<'_>],
    lock_timeout: Duration,
    decide: impl FnOnce() -> Result<()>,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + lock_timeout;
    // Declared first, so that these files are closed last, even after an error.
    let mut open_until_done = Vec::new();
    let mut pairs = swaps
        .iter()
        .map(|swap| Pair::open(swap, deadline))
        .collect::<Result<Vec<_>>>()?;
    let mut locked = Vec::new();
    for (pair, swap) in pairs.iter_mut().zip(swaps) {
        let failed = |cause| Error::sqlite("replace the content of", swap.live, cause);
        let backup = Backup::new(&pair.new, &mut pair.live).map_err(failed)?;
        // A step of zero pages takes the write lock, so the saved content is the last commit before
        // the replacement.
        step(&backup, 0, swap.live, deadline)?;
        locked.push((backup, pair.is_wal));
    }
    for (swap, (_, is_wal)) in swaps.iter().zip(&locked) {
        match swap.keep {
            Some(keep) if *is_wal => keep_snapshot(swap.live, keep)?,
            // In rollback mode the lock keeps readers out, so the file itself is copied. Closing
            // the file would drop the lock.
            Some(keep) => open_until_done.push(keep_file(swap.live, keep)?),
            None => {}
        }
    }
    decide()?;
    for (number, (swap, (backup, _))) in swaps.iter().zip(&locked).enumerate() {
        step(backup, -1, swap.live, deadline)?;
        done(number)?;
    }
    drop(locked);
    for pair in pairs.iter().filter(|pair| pair.is_wal) {
        // If other processes are reading, the checkpoint is left to them, as in normal operation.
        let _ = pair
            .live
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
    Ok(())
}

/// The bytes of the first page that SQLite changes when it replaces the content: versions, change
/// counter, schema cookie (<https://sqlite.org/fileformat2.html#the_database_header>).
const OWN: [std::ops::Range<usize>; 4] = [18..20, 24..32, 40..44, 92..100];

/// Returns a digest of the bytes of the database `new`, without those in [`OWN`]. No other process
/// may have it open.
pub fn content_digest(new: &Path) -> Result<String> {
    const PIECE_BYTES: usize = 1 << 20;
    let failed = |cause| Error::io("read", new, cause);
    let mut file = dir_handle::open_file(new).map_err(failed)?;
    let mut hasher = Sha256::new();
    let (mut piece, mut is_first) = (vec![0; PIECE_BYTES], true);
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        if std::mem::take(&mut is_first) && read >= OWN[3].end {
            OWN.into_iter().for_each(|range| piece[range].fill(0));
        }
        hasher.update(&piece[..read]);
    }
}

/// Returns whether `live` has the content of `new`: all pages, without the bytes in [`OWN`].
pub fn has_content_of(live: &Path, new: &Path, lock_timeout: Duration) -> Result<bool> {
    confirmed(|| compare(live, new, lock_timeout))
}

fn compare(live: &Path, new: &Path, lock_timeout: Duration) -> Result<bool> {
    let (cancel, deadline) = (CancelToken::default(), Instant::now() + lock_timeout);
    let mut pages = Vec::new();
    for path in [live, new] {
        // SQLite must first roll back the transaction of a killed replacement, which only a
        // writable connection can do.
        let pinned = until(deadline, &cancel, || {
            Snapshot::pin(open_read_only(path)?, path)
        });
        let snapshot = match pinned {
            Err(error) if error.code == Code::DatabaseUnreadable => {
                until(deadline, &cancel, || Snapshot::pin(open_live(path)?, path))?
            }
            pinned => pinned?,
        };
        let mut hasher = Sha256::new();
        let mut is_first = true;
        snapshot.pages(&cancel, |page| {
            let mut page = page.to_vec();
            if std::mem::take(&mut is_first) {
                OWN.into_iter().for_each(|range| page[range].fill(0));
            }
            hasher.update(&page);
            Ok(())
        })?;
        pages.push(hasher.finalize());
    }
    Ok(pages[0] == pages[1])
}

/// Open connections to a live database and its new content.
struct Pair {
    live: Connection,
    new: Connection,
    is_wal: bool,
}

impl Pair {
    fn open(swap: &Swap<'_>, deadline: Instant) -> Result<Self> {
        let failed = |cause| Error::sqlite("replace the content of", swap.live, cause);
        let live = until(deadline, &CancelToken::default(), || open_live(swap.live))?;
        let mode: String = until(deadline, &CancelToken::default(), || {
            live.query_row("PRAGMA journal_mode", [], |row| row.get(0))
                .map_err(failed)
        })?;
        let is_wal = mode == "wal";
        let new = Connection::open(swap.new).map_err(failed)?;
        let mode = if is_wal { "wal" } else { "delete" };
        new.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))
            .map_err(failed)?;
        Ok(Pair { live, new, is_wal })
    }
}

/// Opens a live database that is about to be changed. Refuses a symbolic link in its place.
pub fn open_live(live: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let opened = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(live, flags)?;
        connection.busy_timeout(BUSY_SLICE)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        // A checkpoint of all replaced content would come between the commit and the caller's
        // record of it.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // On macOS, `fsync` leaves data in the cache of the disk. Other systems ignore these.
        connection.pragma_update(None, "fullfsync", true)?;
        connection.pragma_update(None, "checkpoint_fullfsync", true)?;
        Ok(connection)
    };
    opened().map_err(|cause| Error::sqlite("open", live, cause))
}

fn step(backup: &Backup<'_, '_>, pages: i32, live: &Path, deadline: Instant) -> Result<()> {
    until(deadline, &CancelToken::default(), || {
        match backup
            .step(pages)
            .map_err(|cause| Error::sqlite("replace the content of", live, cause))?
        {
            StepResult::Busy | StepResult::Locked => Err(Error::busy(
                "replace the content of",
                live,
                "database is locked",
            )),
            _ => Ok(()),
        }
    })
}

fn keep_snapshot(live: &Path, keep: &File) -> Result<()> {
    let failed = |cause| Error::io("keep a copy of", live, cause);
    confirmed(|| {
        (&mut &*keep)
            .rewind()
            .and_then(|()| keep.set_len(0))
            .map_err(failed)?;
        let mut out = BufWriter::with_capacity(1 << 20, keep);
        let snapshot = Snapshot::pin(open_read_only(live)?, live)?;
        snapshot.pages(&CancelToken::default(), |page| {
            out.write_all(page).map_err(failed)
        })?;
        out.flush().map_err(failed)
    })?;
    unsupported::sync(keep, live).map_err(failed)
}

/// Copies the file of a live database to `keep` and returns the open file of the database.
fn keep_file(live: &Path, mut keep: &File) -> Result<File> {
    let failed = |cause| Error::io("keep a copy of", live, cause);
    let mut file = dir_handle::open_file(live).map_err(failed)?;
    keep.rewind()
        .and_then(|()| io::copy(&mut file, &mut keep))
        .and_then(|_| unsupported::sync(keep, live))
        .map_err(failed)?;
    Ok(file)
}
