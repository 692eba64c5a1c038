//! Who else has a database open.
//!
//! Every connection to a database in WAL mode holds a shared lock on the database file for as long as it is open, and
//! one in rollback mode while it reads or writes (<https://sqlite.org/lockingv3.html>). Asking for a conflicting lock,
//! without taking it, names a process that holds one.
//!
//! Not guaranteed: a connection in rollback mode that does nothing at the moment holds no lock and is not seen.

use std::{fs::File, io, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc::{F_UNLCK, F_WRLCK, SEEK_SET, flock},
};

use crate::error::{Error, Result};

/// SQLite's lock bytes: the pending byte, the reserved byte and 510 shared bytes.
const LOCK_BYTES_START: i64 = 0x4000_0000;
const LOCK_BYTES_LENGTH: i64 = 512;

/// The id of another process that holds a lock on the database, if any; 0 where the system does not name it.
///
/// Opens and closes the file, which drops the locks that this process itself holds on it.
pub fn holder(database: &Path) -> Result<Option<i32>> {
    let failed = |cause: io::Error| Error::io("look at the locks of", database, cause);
    let file = match File::open(database) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed(cause)),
    };
    let mut lock = flock {
        l_type: F_WRLCK as i16,
        l_whence: SEEK_SET as i16,
        l_start: LOCK_BYTES_START,
        l_len: LOCK_BYTES_LENGTH,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_GETLK(&mut lock)) {
        Ok(_) if lock.l_type == F_UNLCK as i16 => Ok(None),
        Ok(_) => Ok(Some(lock.l_pid.max(0))),
        // A file system without locks: nobody holds one.
        Err(Errno::ENOLCK | Errno::ENOSYS) => Ok(None),
        Err(cause) => Err(failed(cause.into())),
    }
}
