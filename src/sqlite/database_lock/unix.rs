use std::{fs::File, io};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, flock},
};

use super::ForeignLock;

pub fn holder(file: &File, range: (u64, i64)) -> io::Result<Option<ForeignLock>> {
    let mut lock = exclusive(range);
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    let is_held = lock.l_type != F_UNLCK as i16;
    Ok(is_held.then(|| ForeignLock {
        process: lock.l_pid.max(0),
        is_shared: lock.l_type == F_RDLCK as i16,
    }))
}

/// Locks the range. Returns `false` if another process has a lock in it.
pub fn try_lock(file: &File, range: (u64, i64)) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_SETLK(&exclusive(range))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
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
