//! SQLite databases of a live project. Only the worker (`src/worker`) may open live databases
//! through this module. The command `kg` may also do so, because no host runs in its process.
//!
//! [`snapshot`] takes the pages of a database at one commit while other processes write, and
//! [`read_chunks`] reads them. [`in_place`] opens a database without changing anything next to it.
//! [`raw_copy`] copies a database with its WAL or journal, so that SQLite can recover the copy or a
//! damaged file can be saved unchanged.
//!
//! [`database_lock`] reports which process has a database open. [`wal_in_use`] reports whether its
//! users write to the WAL next to it. [`replace`] puts new content into a database that others have
//! open. [`private_copy`] copies one commit for long checks.
//!
//! [`check`] asks SQLite whether a database is sound, and [`fast_check`] proves faster what it can.
//! [`format`] reads the contents of a page, and [`row_schema`] describes the rows of a table.
//! [`scrub`] clears bytes that nothing refers to.

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
pub mod wal_start;

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use crate::error::{Code, Error, Result};

/// The time that SQLite waits for a lock in one attempt, before the caller checks for cancellation.
const BUSY_SLICE: Duration = Duration::from_millis(200);

/// Opens a database read-only and disables the checkpoint on close. SQLite may still create, change
/// or remove `-wal` and `-shm`. To inspect a database of a project, use
/// [`in_place::InPlaceAccess`].
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

/// Returns the result of `read`, and reports damage only if a second attempt reports it too. SQLite
/// reports a read that fails with EIO as damage.
pub fn confirmed<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    match read() {
        Err(error) if error.code == Code::DatabaseDamaged => read(),
        answer => answer,
    }
}

/// Returns `None` if the condition does not hold. Parsers use this with `?`.
fn holds(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// Returns a name as a quoted SQL identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Makes `integrity_check` on this connection skip full-text indexes, whose tables it otherwise
/// reads in full. Use this if the caller checks those indexes more strictly. The connection cannot
/// use them afterwards.
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
    // SAFETY: the handle is open for as long as `connection` is borrowed. The list outlives the
    // call, contains C strings and ends with a null pointer. SQLite only reads it.
    unsafe { rusqlite::ffi::sqlite3_drop_modules(connection.handle(), keep.as_mut_ptr()) };
}

/// Checks that this build's SQLite has `sqlite_dbpage`, which `.cargo/config.toml` enables. Returns
/// `KG_INTERNAL` if it does not.
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
