//! Restricts what SQLite may do to files. These functions stand between SQLite and the operating
//! system.
//!
//! - While a database is only read in place ([`ReadOnly`]), SQLite sees a read-only file system.
//! - A link that belongs to another user and leads to a file that is not that user's is never
//!   followed ([`crate::util::dir_handle`]). SQLite itself resolves links, then opens and removes
//!   files by the resolved names.

use std::{cell::Cell, ffi::CStr, ptr::null, sync::OnceLock};

use rusqlite::ffi;

use crate::error::{Error, Result};

#[cfg_attr(unix, path = "vfs_guard/unix.rs")]
#[cfg_attr(windows, path = "vfs_guard/windows.rs")]
mod os;

thread_local! {
    static IS_READ_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Prevents SQLite from changing files on this thread while this value exists.
pub struct ReadOnly;

impl ReadOnly {
    pub fn begin() -> Result<ReadOnly> {
        watch()?;
        IS_READ_ONLY.set(true);
        Ok(ReadOnly)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        IS_READ_ONLY.set(false);
    }
}

/// Installs these functions between SQLite and the operating system for the rest of the process.
/// Returns `KG_INTERNAL` if that fails.
pub fn watch() -> Result<()> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    if *INSTALLED.get_or_init(install) {
        return Ok(());
    }
    let message = "This build cannot watch the system calls of SQLite";
    Err(Error::internal(message))
}

/// A system call as SQLite keeps it: it casts the pointer back before it calls it.
type Call = unsafe extern "C" fn();

/// Replaces system calls of SQLite's default VFS with `xSetSystemCall`
/// (<https://sqlite.org/c3ref/vfs.html>).
#[allow(unsafe_code, reason = "rusqlite has no such call")]
fn install() -> bool {
    let calls: Vec<(&CStr, Call)> = os::calls();
    // SAFETY: SQLite initialises itself and returns its default VFS, which lives as long as the
    // process.
    let vfs = unsafe {
        ffi::sqlite3_initialize();
        ffi::sqlite3_vfs_find(null())
    };
    // SAFETY: the pointer is null or that VFS, and the field exists from version 3 on.
    let set = unsafe { vfs.as_ref() }
        .filter(|vfs| vfs.iVersion >= 3)
        .and_then(|vfs| vfs.xSetSystemCall);
    // SAFETY: the names are C strings, and the functions live as long as the process.
    set.is_some_and(|set| {
        calls
            .iter()
            .all(|(name, call)| unsafe { set(vfs, name.as_ptr(), Some(*call)) } == 0)
    })
}

/// Returns whether this thread may not change files.
fn is_read_only() -> bool {
    IS_READ_ONLY.get()
}
