//! Waiting for a lock that another process, or another manager of this one, holds.
//!
//! `flock` belongs to the open file: a holder that is killed leaves none, and two holders in one process exclude each
//! other as two processes do.

use std::{
    fs::{File, TryLockError},
    io, thread,
    time::{Duration, Instant},
};

use crate::{
    error::Result,
    task::{POLL_INTERVAL, Phase, Task},
};

/// Locks `file` (or directory) until it is closed. `Ok(false)` where somebody else held it all the time; `failed`
/// makes the error of a file system that cannot lock.
pub fn wait(file: &File, timeout: Duration, task: &Task, failed: impl Fn(io::Error) -> crate::Error) -> Result<bool> {
    wait_for(|| file.try_lock(), timeout, task, failed)
}

/// As [`wait`], with others who only read.
pub fn wait_shared(
    file: &File,
    timeout: Duration,
    task: &Task,
    failed: impl Fn(io::Error) -> crate::Error,
) -> Result<bool> {
    wait_for(|| file.try_lock_shared(), timeout, task, failed)
}

/// This machine, as messages about locks and backups name it.
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "this host".into())
}

fn wait_for(
    attempt: impl Fn() -> std::result::Result<(), TryLockError>,
    timeout: Duration,
    task: &Task,
    failed: impl Fn(io::Error) -> crate::Error,
) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
            Err(TryLockError::WouldBlock) => {
                task.report(Phase::Waiting, 0, 0)?;
                thread::sleep(POLL_INTERVAL);
            }
        }
    }
}
