//! Detects which other process has a database open, and keeps others out while its file is
//! replaced.
//!
//! Every connection to a database in WAL mode holds a shared lock on the database file for as long
//! as it is open. A connection in rollback mode holds one while it reads or writes
//! (<https://sqlite.org/lockingv3.html>). A conflicting lock on the same bytes cannot be taken
//! while such a lock exists. Once taken, it keeps new connections waiting.
//!
//! Not guaranteed: an idle connection in rollback mode holds no lock and is not detected.

use std::{fs::File, io, path::Path};

use super::files::LOCK_BYTE;
use crate::{
    error::{Error, Result},
    system::refusal::has_no_locks,
};

#[cfg_attr(unix, path = "database_lock/unix.rs")]
#[cfg_attr(windows, path = "database_lock/windows.rs")]
mod os;

/// The pending byte, the reserved byte and 510 shared bytes, as offset and length.
pub(super) const LOCK_BYTES: (u64, i64) = (LOCK_BYTE, 512);

/// A lock that another process holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForeignLock {
    /// 0 if the system does not name the process.
    pub process: i32,
    pub is_shared: bool,
}

/// Returns the first lock of another process in that range of a file. Returns an error on a file
/// system without locks.
pub(super) fn holder(file: &File, range: (u64, i64)) -> io::Result<Option<ForeignLock>> {
    os::holder(file, range)
}

/// Keeps connections of other processes out of a database while this value exists.
///
/// The claim ends early if this process closes any descriptor of the file.
pub struct Claim(#[expect(dead_code, reason = "closing it is what ends the claim")] File);

/// Returns the process that has the database behind `file` open, or 0 if the system does not name
/// it. `file` need not be open for writing. Returns `None` on a file system without locks.
pub fn holder_of_database(file: &File, path: &Path) -> Result<Option<i32>> {
    match holder(file, LOCK_BYTES) {
        Ok(held) => Ok(held.map(|held| held.process)),
        Err(cause) if has_no_locks(&cause) => Ok(None),
        Err(cause) => Err(Error::io("look for locks of", path, cause)),
    }
}

/// Claims the database behind `file`, which must be open for writing. The inner `Err` is the
/// process that has it open, or 0 if the system does not name it. On a file system without locks,
/// the claim succeeds but does not keep other connections out.
pub fn claim(file: File, path: &Path) -> Result<std::result::Result<Claim, i32>> {
    let failed = |cause| Error::io("lock", path, cause);
    match os::try_lock(&file, LOCK_BYTES) {
        Ok(true) => Ok(Ok(Claim(file))),
        Ok(false) => Ok(Err(holder(&file, LOCK_BYTES)
            .map_err(failed)?
            .map_or(0, |held| held.process))),
        Err(cause) if has_no_locks(&cause) => Ok(Ok(Claim(file))),
        Err(cause) => Err(failed(cause)),
    }
}
