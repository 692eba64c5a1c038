//! Replaces the content of databases that other processes may have open.
//!
//! SQLite's backup API writes the new content in one transaction of the live database
//! (<https://sqlite.org/backup.html>). Whoever has it open keeps its connection, sees the new content, and its next
//! commits are seen by all. A rename would leave them with a file that nobody else sees.
//!
//! Several databases are replaced as one: all are locked, what they hold is written away, the caller decides, and only then
//! is the first of them changed.
//!
//! Not possible where the page sizes differ or either of the two is damaged: [`is_possible`] says so.

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
    /// Holds the new content, and is nobody else's.
    pub new: &'a Path,
    /// Takes what the live database held.
    pub keep: Option<&'a File>,
}

/// Whether `live` is a sound database with content, and `new` (where there is one already) fits it. One that a killed writer
/// left half written is not: what lies beside it is kept as it is.
pub fn is_possible(live: &Path, new: Option<&Path>, lock_timeout: Duration) -> Result<bool> {
    // What speaks against it does so the next time too, unless it was a read that failed.
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
        // What lies next to it is kept as it is.
        _ if in_place::cut_off(live, live).is_some() => return Ok(false),
        // This is no dry run, so the database is about to be written. A copy would only take time and space.
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

/// Replaces the content of each live database. Until `decide` has returned, nothing was changed; `done` is called after
/// each commit, in order. The journal modes stay as they are.
pub fn replace(
    swaps: &[Swap<'_>],
    lock_timeout: Duration,
    decide: impl FnOnce() -> Result<()>,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + lock_timeout;
    // Declared first, so that these are closed last, whatever happens.
    let mut open_until_done = Vec::new();
    let mut pairs = swaps
        .iter()
        .map(|swap| Pair::open(swap, deadline))
        .collect::<Result<Vec<_>>>()?;
    let mut locked = Vec::new();
    for (pair, swap) in pairs.iter_mut().zip(swaps) {
        let failed = |cause| Error::sqlite("replace the content of", swap.live, cause);
        let backup = Backup::new(&pair.new, &mut pair.live).map_err(failed)?;
        // A step of no pages takes the write lock: what is kept is the last commit before the replacement.
        step(&backup, 0, swap.live, deadline)?;
        locked.push((backup, pair.is_wal));
    }
    for (swap, (_, is_wal)) in swaps.iter().zip(&locked) {
        match swap.keep {
            Some(keep) if *is_wal => keep_snapshot(swap.live, keep)?,
            // In rollback mode the lock keeps readers out, so the file itself is copied; closing it would drop the lock.
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
        // Others may be reading: then it is for them to do, as ever.
        let _ = pair
            .live
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
    Ok(())
}

/// What SQLite changes in the first page when it replaces the content: versions, change counter, schema cookie
/// (<https://sqlite.org/fileformat2.html#the_database_header>).
const OWN: [std::ops::Range<usize>; 4] = [18..20, 24..32, 40..44, 92..100];

/// Digest of the bytes of the database `new`, which nobody else has open, but for [`OWN`].
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

/// Whether `live` has the content of `new`: all pages, but for [`OWN`].
pub fn has_content_of(live: &Path, new: &Path, lock_timeout: Duration) -> Result<bool> {
    confirmed(|| compare(live, new, lock_timeout))
}

fn compare(live: &Path, new: &Path, lock_timeout: Duration) -> Result<bool> {
    let (cancel, deadline) = (CancelToken::default(), Instant::now() + lock_timeout);
    let mut pages = Vec::new();
    for path in [live, new] {
        // The transaction of a killed replacement is rolled back first, which only a connection that writes can do.
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

/// A live database and its new content, open.
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

/// A live database that is about to be changed. A link in its place is refused.
pub fn open_live(live: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let opened = || -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(live, flags)?;
        connection.busy_timeout(BUSY_SLICE)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        // A checkpoint of everything that was replaced would stand between the commit and the caller's note of it.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
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

/// Returns the open file of the database.
fn keep_file(live: &Path, mut keep: &File) -> Result<File> {
    let failed = |cause| Error::io("keep a copy of", live, cause);
    let mut file = dir_handle::open_file(live).map_err(failed)?;
    keep.rewind()
        .and_then(|()| io::copy(&mut file, &mut keep))
        .and_then(|_| unsupported::sync(keep, live))
        .map_err(failed)?;
    Ok(file)
}
