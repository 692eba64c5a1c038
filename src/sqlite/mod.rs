//! SQLite databases of a live project. Only the reader may call into this module (`src/worker`).
//!
//! [`snapshot`] takes the pages of a database at one commit beside any number of writers, and [`read_chunks`] reads them. [`in_place`] opens
//! a database so that nothing next to it changes. [`raw_copy`] copies a database
//! with its WAL or journal to where SQLite can recover it, or to save a damaged one as it is. [`database_lock`] tells which
//! process has a database open, and [`wal_in_use`] whether its users write to the WAL next to it. [`replace`] puts new content into a database that others have open. [`private_copy`] copies one
//! commit for checks that take their time. [`check`] asks SQLite whether a database is sound, and [`fast_check`] spares it what
//! can be told faster. [`format`] read what is in a page, [`row_schema`] tells what the rows of a table are, and [`scrub`] leaves
//! out what nothing refers to.

pub mod check;
pub mod database_lock;
pub mod fast_check;
pub mod files;
pub mod format;
pub mod in_place;
pub mod page_hashes;
pub mod private_copy;
pub mod raw_copy;
mod read_chunks;
pub mod replace;
pub mod row_schema;
pub mod scrub;
pub mod snapshot;
pub mod vfs_guard;
pub mod wal_in_use;

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::error::{Code, Error, Result};

/// How long one attempt to get a lock waits inside SQLite, before cancellation is looked at.
const BUSY_SLICE: Duration = Duration::from_millis(200);

/// Opens a database read-only, without a checkpoint when it closes. SQLite may create, change or remove `-wal` and `-shm`: a database
/// of a project that is only looked at is opened with [`in_place::InPlaceAccess`].
pub fn open_read_only(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|cause| Error::sqlite("open", path, cause))?;
    prepare(&connection, path)?;
    Ok(connection)
}

fn prepare(connection: &Connection, path: &Path) -> Result<()> {
    let prepared = || {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.busy_timeout(BUSY_SLICE)
    };
    prepared().map_err(|cause| Error::sqlite("open", path, cause))
}

/// What `read` answers; that a database is damaged only if a second reading says so too. SQLite answers a read that fails with EIO as it
/// answers damage.
pub fn confirmed<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    match read() {
        Err(error) if error.code == Code::DatabaseDamaged => read(),
        answer => answer,
    }
}

/// For parsers: nothing where the condition does not hold.
fn holds(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// A name as SQL has it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Makes `integrity_check` on this connection leave full-text indexes out, whose tables it otherwise reads as a whole: for whoever
/// checks those more strictly anyway. The connection cannot use them any more.
#[allow(unsafe_code, reason = "rusqlite has no such call")]
pub fn forget_fulltext(connection: &Connection) {
    use std::{ffi::c_char, ptr::null};
    let keep = [c"rtree", c"rtree_i32", c"fts3", c"fts4", c"sqlite_dbpage"];
    let mut keep: [*const c_char; 6] = [
        keep[0].as_ptr(),
        keep[1].as_ptr(),
        keep[2].as_ptr(),
        keep[3].as_ptr(),
        keep[4].as_ptr(),
        null(),
    ];
    // SAFETY: the handle is open for as long as `connection` is borrowed; the list outlives the call, is of C strings, and ends
    // with a null. SQLite only reads it.
    unsafe { rusqlite::ffi::sqlite3_drop_modules(connection.handle(), keep.as_mut_ptr()) };
}

/// Fails where this build's SQLite lacks `sqlite_dbpage`, which `.cargo/config.toml` asks for.
pub fn assert_capabilities() -> Result<()> {
    let has_dbpage = || -> rusqlite::Result<bool> {
        let connection = Connection::open_in_memory()?;
        connection.query_row(
            "SELECT sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')",
            [],
            |row| row.get(0),
        )
    };
    match has_dbpage() {
        Ok(true) => Ok(()),
        _ => Err(Error::new(
            Code::Internal,
            "This build's SQLite cannot read pages (ENABLE_DBPAGE_VTAB is off)",
            "Build inside the repository, so that .cargo/config.toml applies",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sqlite_reads_pages_and_is_free_of_the_wal_reset_race() {
        assert_capabilities().unwrap();
        assert!(
            rusqlite::version_number() >= 3_051_003,
            "SQLite {}",
            rusqlite::version()
        );
    }
}
