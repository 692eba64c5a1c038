//! Waits for a lock that another process, or another manager in this process, holds.
//!
//! A `flock` belongs to the open file. A killed process therefore leaves no lock, and two holders
//! in one process exclude each other just as two processes do.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::Result,
    system::{mounts, portable, refusal::has_no_locks, user},
    util::{
        dir_handle,
        operation::{OperationContext, POLL_INTERVAL, Phase},
    },
};

/// Locks `file`, which may be a directory, until it is closed. Returns `Ok(false)` if another
/// holder kept the lock for the whole timeout. `failed` creates the error if the file system cannot
/// lock.
pub fn wait(
    file: &File,
    timeout: Duration,
    context: &OperationContext,
    failed: impl Fn(io::Error) -> crate::Error,
) -> Result<bool> {
    wait_for(file, || portable::try_lock(file), timeout, context, failed)
}

/// Works like [`wait`], but shares the lock with other readers.
pub fn wait_shared(
    file: &File,
    timeout: Duration,
    context: &OperationContext,
    failed: impl Fn(io::Error) -> crate::Error,
) -> Result<bool> {
    wait_for(
        file,
        || portable::try_lock_shared(file),
        timeout,
        context,
        failed,
    )
}

/// Returns the name of this machine for messages about locks and backups.
pub fn host_name() -> String {
    user::host_name().unwrap_or_else(|| "this host".into())
}

/// Returns the error for a lock on `path` that the system refused.
pub fn refused(path: &Path, cause: io::Error) -> crate::Error {
    let is_without = has_no_locks(&cause);
    explained(crate::Error::io("lock", path, cause), is_without, path)
}

/// Adds a remedy for file systems without locks. There is no fallback, because two processes that
/// cannot exclude each other must not both write.
fn explained(error: crate::Error, is_without_locks: bool, path: &Path) -> crate::Error {
    if !is_without_locks {
        return error;
    }
    crate::Error {
        message: format!("{}: the file system ({}) does not support locks", error.message, mounts::file_system(path)),
        remedy: "Mount it with locks (NFS: start the lock service, or mount with `local_lock=flock` if one machine uses it), or \
                 use a directory on another file system"
            .into(),
        ..error
    }
}

fn wait_for(
    file: &File,
    attempt: impl Fn() -> std::result::Result<(), TryLockError>,
    timeout: Duration,
    context: &OperationContext,
    failed: impl Fn(io::Error) -> crate::Error,
) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(cause)) => {
                let path = dir_handle::held_path(file, Path::new(""));
                let path = path.read_link().unwrap_or(path);
                let is_without = has_no_locks(&cause);
                return Err(explained(failed(cause), is_without, &path));
            }
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
            Err(TryLockError::WouldBlock) => {
                context.report(Phase::Waiting, 0, 0)?;
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}
