//! Who else has a database open, and keeping others out while its file is replaced.
//!
//! Every connection to a database in WAL mode holds a shared lock on the database file for as long as it is open, and
//! one in rollback mode while it reads or writes (<https://sqlite.org/lockingv3.html>). Taking a conflicting lock on the
//! same bytes fails while there is one, and keeps new ones waiting.
//!
//! Not guaranteed: a connection in rollback mode that does nothing at the moment holds no lock and is not seen.

use std::{fs::File, io, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock},
};

use super::files::LOCK_BYTE;
use crate::{
    error::{Error, Result},
    util::file_lock::is_without_locks,
};

/// The pending byte, the reserved byte and 510 shared bytes.
pub(super) const LOCK_BYTES: (u64, i64) = (LOCK_BYTE, 512);

/// A lock that another process holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForeignLock {
    /// 0 if the system does not name it.
    pub process: i32,
    pub is_shared: bool,
}

/// The first lock of another process in that range of a file; an error on a file system without locks.
pub(super) fn holder(file: &File, range: (u64, i64)) -> nix::Result<Option<ForeignLock>> {
    let mut lock = exclusive(range);
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    let is_held = lock.l_type != F_UNLCK as i16;
    Ok(is_held.then(|| ForeignLock {
        process: lock.l_pid.max(0),
        is_shared: lock.l_type == F_RDLCK as i16,
    }))
}

fn exclusive((start, length): (u64, i64)) -> flock {
    flock {
        l_type: F_WRLCK as i16,
        l_whence: SEEK_SET as i16,
        l_start: start as i64,
        l_len: length,
        l_pid: 0,
    }
}

/// Keeps connections of other processes out of a database while it lives.
///
/// Closing any descriptor of the file in this process ends it early.
pub struct Claim(#[expect(dead_code, reason = "closing it is what ends the claim")] File);

/// The process that has the database behind `file` open, which need not be writable; 0 where the system does not name it.
pub fn holder_of_database(file: &File, path: &Path) -> Result<Option<i32>> {
    match holder(file, LOCK_BYTES) {
        Ok(held) => Ok(held.map(|held| held.process)),
        Err(cause) if is_without_locks(&cause.into()) => Ok(None),
        Err(cause) => Err(Error::io("look for locks of", path, io::Error::from(cause))),
    }
}

/// Claims the database behind `file`, which must be open for writing. `Err` in the result is a process that has it open;
/// 0 where the system does not name it.
pub fn claim(file: File, path: &Path) -> Result<std::result::Result<Claim, i32>> {
    let failed = |cause: Errno| Error::io("lock", path, io::Error::from(cause));
    match fcntl(&file, FcntlArg::F_SETLK(&exclusive(LOCK_BYTES))) {
        Ok(_) => Ok(Ok(Claim(file))),
        Err(cause) if is_without_locks(&cause.into()) => Ok(Ok(Claim(file))),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(Err(holder(&file, LOCK_BYTES)
            .map_err(failed)?
            .map_or(0, |held| held.process))),
        Err(cause) => Err(failed(cause)),
    }
}
