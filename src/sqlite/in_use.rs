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
    libc::{F_WRLCK, SEEK_SET, flock},
};

use super::files::LOCK_BYTE;
use crate::error::{Error, Result};

/// The pending byte, the reserved byte and 510 shared bytes.
const LOCK_BYTES_LENGTH: i64 = 512;

/// Keeps connections of other processes out of a database while it lives.
///
/// Closing any descriptor of the file in this process ends it early.
pub struct Claim(#[expect(dead_code, reason = "closing it is what ends the claim")] File);

/// Claims the database behind `file`, which must be open for writing. `Err` in the result is a process that has it open;
/// 0 where the system does not name it.
pub fn claim(file: File, path: &Path) -> Result<std::result::Result<Claim, i32>> {
    let failed = |cause: Errno| Error::io("lock", path, io::Error::from(cause));
    let mut lock = flock {
        l_type: F_WRLCK as i16,
        l_whence: SEEK_SET as i16,
        l_start: LOCK_BYTE as i64,
        l_len: LOCK_BYTES_LENGTH,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
        // A file system without locks: nobody holds one.
        Ok(_) | Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Ok(Claim(file))),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            fcntl(&file, FcntlArg::F_GETLK(&mut lock)).map_err(failed)?;
            Ok(Err(lock.l_pid.max(0)))
        }
        Err(cause) => Err(failed(cause)),
    }
}
