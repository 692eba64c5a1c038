//! The pages of a database at one commit, while other processes write.
//!
//! In WAL mode, one read transaction pins the commit, and [`Snapshot::read_chunks`] streams the
//! pages from it. Writers continue, and nothing is copied.
//!
//! In rollback-journal mode, the same transaction would make writers fail for as long as it lasts.
//! Therefore the pages are first copied to a scratch file in one pass, and then streamed from
//! there. The stepped backup API is not used. It restarts after every commit of another process and
//! never finishes next to a busy writer.
//!
//! Not guaranteed: two databases of one project are two snapshots. They are pinned within
//! milliseconds of each other, but not at one commit.

use std::{
    fs::{self, File, Metadata},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    in_place::{self, InPlaceAccess},
    open_read_only, prepare,
    raw_copy::{self, RawCopy},
};
use crate::{
    error::{Code, Error, Result},
    util::{dir_handle, operation::CancelToken, temp_dir::PrivateDir},
};

/// The number of attempts to pin two connections to one commit. After that, a busy database gets
/// only one connection.
const TWIN_ATTEMPTS: u32 = 10;
/// Small enough that a chunk is still in the CPU core's cache when it is processed.
const PIECE_BYTES: usize = 256 * 1024;

/// One commit of a database. Dropping it ends the read transaction.
pub struct Snapshot {
    connection: Connection,
    /// The project's file, for messages. The connection may use a copy.
    path: PathBuf,
    page_size_bytes: u64,
    page_count: u64,
    /// The metadata of the file when the snapshot was pinned.
    metadata: Box<Metadata>,
    twin: Option<Connection>,
    // This must be the last field, because fields are dropped in order.
    held: ConnectionGuards,
}

/// Resources that the connections of a snapshot need while they are open.
#[derive(Default)]
pub struct ConnectionGuards {
    /// The directory of a copy.
    scratch: Option<PrivateDir>,
    /// The right to open the project's file.
    look: Option<InPlaceAccess>,
}

/// The result of taking a snapshot.
#[cfg_attr(
    windows,
    expect(clippy::large_enum_variant, reason = "there is one for each database")
)]
pub enum Capture {
    Snapshot(Snapshot),
    /// The unchanged bytes of a file that SQLite refuses, and the reason.
    Damaged(RawCopy, Error),
}

/// The conditions for taking a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    /// A directory with room for a copy of the database.
    pub scratch: &'a Path,
    /// The longest wait for a lock that another process holds.
    pub lock_timeout: Duration,
    /// Pins a second connection to the same commit, see [`Snapshot::second_connection`].
    pub with_twin: bool,
}

/// Takes a snapshot of the database at `path`, and changes nothing there.
pub fn take(path: &Path, conditions: Conditions<'_>, cancel: &CancelToken) -> Result<Capture> {
    // SQLite looks for the WAL next to the target of a symbolic link.
    let path = &dir_handle::resolve(path).map_err(|cause| Error::io("read", path, cause))?;
    // A process that opens the database during the copy keeps changing it. The database can then be
    // read in place, so the next attempt does that.
    let attempt = || {
        until(Instant::now() + conditions.lock_timeout, cancel, || {
            take_now(path, conditions, cancel)
        })
    };
    match attempt()? {
        // SQLite also reports damage if a read fails once. A damaged database is still damaged at
        // the second attempt.
        Capture::Damaged(copy, _) => {
            drop(copy);
            attempt()
        }
        taken => Ok(taken),
    }
}

fn take_now(path: &Path, conditions: Conditions<'_>, cancel: &CancelToken) -> Result<Capture> {
    let Some(look) = InPlaceAccess::at(path)? else {
        return take_copy(path, conditions);
    };
    match take_live(path, look, conditions, cancel) {
        Ok(snapshot) => Ok(Capture::Snapshot(snapshot)),
        // A hot journal needs recovery, or a directory may not be writable. SQLite can handle both
        // in a copy.
        Err(error) if error.code == Code::DatabaseUnreadable => take_copy(path, conditions),
        Err(error) => damaged(path, conditions, error),
    }
}

/// Returns the bytes of a database that SQLite reports as damaged. Passes on all other errors.
fn damaged(path: &Path, conditions: Conditions<'_>, error: Error) -> Result<Capture> {
    match error.code {
        Code::DatabaseDamaged => Ok(Capture::Damaged(
            raw_copy::copy(path, conditions.scratch)?,
            error,
        )),
        _ => Err(error),
    }
}

fn take_live(
    path: &Path,
    look: InPlaceAccess,
    conditions: Conditions<'_>,
    cancel: &CancelToken,
) -> Result<Snapshot> {
    let deadline = Instant::now() + conditions.lock_timeout;
    let mut snapshot = until(deadline, cancel, || Snapshot::pin(look.open()?, path))?;
    if !snapshot.is_wal()? {
        return snapshot.copied_out(conditions, cancel);
    }
    if conditions.with_twin {
        drop(snapshot);
        snapshot = until(deadline, cancel, || pin_pair(path, &look))?;
    }
    snapshot.held = ConnectionGuards {
        scratch: None,
        look: Some(look),
    };
    Ok(snapshot)
}

/// Pins two connections to one commit. A third connection shows whether a commit happened meanwhile
/// (<https://sqlite.org/pragma.html#pragma_data_version>). If that is so in every attempt, only one
/// connection is pinned.
fn pin_pair(path: &Path, look: &InPlaceAccess) -> Result<Snapshot> {
    let watch = look.open()?;
    let version = || -> Result<u64> {
        let version = watch.query_row("PRAGMA data_version", [], |row| row.get(0));
        version.map_err(|cause| Error::sqlite("read", path, cause))
    };
    for _ in 0..TWIN_ATTEMPTS {
        let before = version()?;
        let mut snapshot = Snapshot::pin(look.open()?, path)?;
        let twin = Snapshot::pin(look.open()?, path)?.connection;
        if version()? == before {
            snapshot.twin = Some(twin);
            return Ok(snapshot);
        }
    }
    Snapshot::pin(look.open()?, path)
}

/// Copies the database with its WAL or journal, and lets SQLite recover the copy.
fn take_copy(path: &Path, conditions: Conditions<'_>) -> Result<Capture> {
    let copy = raw_copy::copy(path, conditions.scratch)?;
    if let Some(error) = in_place::cut_off(&copy.database(), path) {
        return Ok(Capture::Damaged(copy, error));
    }
    match recovered(copy, path, conditions) {
        Ok(snapshot) => Ok(Capture::Snapshot(snapshot)),
        // SQLite may have changed this copy, so the bytes are copied again.
        Err(error) => damaged(path, conditions, error),
    }
}

fn recovered(copy: RawCopy, path: &Path, conditions: Conditions<'_>) -> Result<Snapshot> {
    copy.settle_super_journal(path)?;
    let open = || -> Result<Connection> {
        let opened = Connection::open(copy.database());
        let connection = opened.map_err(|cause| Error::sqlite("recover a copy of", path, cause))?;
        prepare(&connection, path)?;
        Ok(connection)
    };
    let mut snapshot = Snapshot::pin(open()?, path)?;
    if conditions.with_twin {
        snapshot.twin = Some(Snapshot::pin(open()?, path)?.connection);
    }
    snapshot.held = ConnectionGuards {
        scratch: Some(copy.into_dir()),
        look: None,
    };
    Ok(snapshot)
}

/// Retries while the database is busy, until the deadline or a cancellation.
pub(super) fn until<T>(
    deadline: Instant,
    cancel: &CancelToken,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    loop {
        cancel.check()?;
        match attempt() {
            Err(error) if error.code == Code::DatabaseBusy && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

impl Snapshot {
    /// Begins a read transaction and pins it with a first read, because `BEGIN` alone pins nothing.
    pub fn pin(connection: Connection, path: &Path) -> Result<Self> {
        let pinned = || -> rusqlite::Result<(u64, u64)> {
            connection.execute_batch("BEGIN")?;
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            let page_size = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            let page_count = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            Ok((page_size, page_count))
        };
        let metadata = fs::metadata(path).map_err(|cause| Error::io("read", path, cause))?;
        let (page_size_bytes, page_count) =
            pinned().map_err(|cause| Error::sqlite("read", path, cause))?;
        Ok(Snapshot {
            connection,
            path: path.to_path_buf(),
            page_size_bytes,
            page_count,
            metadata: Box::new(metadata),
            twin: None,
            held: ConnectionGuards::default(),
        })
    }

    /// Pins the state that SQLite would read at `path` without recovery, and changes nothing there.
    pub(super) fn look(path: &Path) -> Result<Self> {
        let Some(look) = InPlaceAccess::at(path)? else {
            let copy = raw_copy::copy(path, &std::env::temp_dir())?;
            let mut snapshot = Snapshot::pin(open_read_only(&copy.database())?, path)?;
            snapshot.held.scratch = Some(copy.into_dir());
            return Ok(snapshot);
        };
        let mut snapshot = Snapshot::pin(look.open()?, path)?;
        snapshot.held.look = Some(look);
        Ok(snapshot)
    }

    fn is_wal(&self) -> Result<bool> {
        let mode: String = self
            .connection
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .map_err(|cause| self.sqlite_error(cause))?;
        Ok(mode == "wal")
    }

    /// Copies the pages to a scratch file. The lock on the source is held during the copy.
    fn copied_out(self, conditions: Conditions<'_>, cancel: &CancelToken) -> Result<Self> {
        let dir = raw_copy::scratch_dir(conditions.scratch)?;
        let copy = dir.path().join("database");
        let failed = |cause| Error::io("write", &copy, cause);
        let mut file = BufWriter::with_capacity(1 << 20, File::create_new(&copy).map_err(failed)?);
        self.pages(cancel, |page| file.write_all(page).map_err(failed))?;
        file.flush().map_err(failed)?;
        let path = self.path.clone();
        drop(self);
        let mut snapshot = Snapshot::pin(open_read_only(&copy)?, &path)?;
        if conditions.with_twin {
            snapshot.twin = Some(Snapshot::pin(open_read_only(&copy)?, &path)?.connection);
        }
        snapshot.held.scratch = Some(dir);
        Ok(snapshot)
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub fn page_size_bytes(&self) -> u64 {
        self.page_size_bytes
    }

    pub fn size_bytes(&self) -> u64 {
        self.page_size_bytes * self.page_count
    }

    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Calls `visit` with every page in order, using [`Snapshot::read_chunks`].
    pub fn pages(
        &self,
        cancel: &CancelToken,
        mut visit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let page_bytes = self.page_size_bytes as usize;
        self.read_chunks(PIECE_BYTES, cancel, |_, piece| {
            piece.chunks(page_bytes).try_for_each(&mut visit)
        })
    }

    /// Calls `visit` with each of the pages in `numbers`, which count from 1. Returns
    /// `KG_DATABASE_DAMAGED` if a page cannot be read.
    pub fn pages_of(
        &self,
        numbers: &[u64],
        cancel: &CancelToken,
        mut visit: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let failed = |cause| self.sqlite_error(cause);
        let sql = "SELECT data FROM sqlite_dbpage('main') WHERE pgno = ?1";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        for (visited, number) in numbers.iter().enumerate() {
            let mut rows = statement.query([*number]).map_err(failed)?;
            let row = rows
                .next()
                .map_err(failed)?
                .ok_or_else(|| self.lacks(*number))?;
            let page = row
                .get_ref(0)
                .map_err(failed)?
                .as_blob()
                .map_err(|cause| failed(cause.into()))?;
            if page.len() as u64 != self.page_size_bytes {
                return Err(self.lacks(*number));
            }
            visit(*number, page)?;
            if visited % 256 == 0 {
                cancel.check()?;
            }
        }
        Ok(())
    }

    fn lacks(&self, number: u64) -> Error {
        Error::new(
            Code::DatabaseDamaged,
            format!(
                "Page {number} of {} pages of {} could not be read",
                self.page_count,
                self.path.display()
            ),
            "Check the disk, then restore the newest good backup",
        )
    }

    /// Returns the second connection at the same commit, for checks that run while pages are read.
    /// It exists only if it was requested and writers left enough time between two commits.
    pub fn second_connection(&mut self) -> Option<Connection> {
        self.twin.take()
    }

    /// Returns the connection for a check after the pages are read, and the guards to be dropped
    /// after the connection. In a `let` pattern the last variable is dropped first, so the
    /// connection comes last.
    pub fn into_connection(self) -> (ConnectionGuards, Connection) {
        (self.held, self.connection)
    }

    /// Returns the scratch file with a copy of the database, if there is one and it has no WAL.
    pub(super) fn copied_file(&self) -> Result<Option<PathBuf>> {
        let file = self.connection.path().map(PathBuf::from);
        Ok(if self.held.scratch.is_some() && !self.is_wal()? {
            file
        } else {
            None
        })
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn sqlite_error(&self, cause: rusqlite::Error) -> Error {
        Error::sqlite("read", &self.path, cause)
    }
}
