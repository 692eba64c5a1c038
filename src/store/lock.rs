//! The lock that limits a store to one writer.
//!
//! In a directory, the lock is an operating-system lock on a file (see
//! [`crate::util::file_lock`]); in an object store, it is a [`Lease`]. The holder writes its name into the file, so that a process that
//! waits in vain can report it.

use std::{
    fs::{File, TryLockError},
    io::{self, Seek, Write},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;

use super::{lease::Lease, names::LOCK_FILE};
use crate::{
    error::{Code, Error, Result},
    system::{file_id::FileId, holders, portable, user},
    util::{
        atomic_file,
        file_lock::{self, host_name},
        operation::OperationContext,
        ownership::{self, Shared},
        regular_file,
    },
};

/// The size limit of the holder's name.
const MAX_BYTES: u64 = 4096;

/// The lock on a store, held until it is dropped.
#[derive(Debug)]
pub enum StoreLock {
    File { _lock: FileLock },
    Lease(Lease),
}

/// The lock on a directory.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
    _shared: Option<Shared>,
}

impl StoreLock {
    /// Returns when this process took the lock, by the clock of the service. `None` in a directory.
    pub(super) fn taken_at(&self) -> Option<Timestamp> {
        match self {
            StoreLock::File { .. } => None,
            StoreLock::Lease(lease) => Some(lease.taken_at()),
        }
    }

    /// Returns whether a killed run may have left uploads, which no listing shows.
    pub(super) fn follows_a_kill(&self) -> bool {
        match self {
            StoreLock::File { .. } => false,
            StoreLock::Lease(lease) => lease.follows_a_kill(),
        }
    }

    /// Works like [`StoreLock::assert_held`], and always asks the service.
    pub(super) fn renew(&self) -> Result<()> {
        match self {
            StoreLock::File { .. } => Ok(()),
            StoreLock::Lease(lease) => lease.renew(),
        }
    }

    /// Fails with `KG_STORE_LOCKED` if another process took the lock meanwhile.
    pub(super) fn assert_held(&self) -> Result<()> {
        match self {
            StoreLock::File { .. } => Ok(()),
            StoreLock::Lease(lease) => lease.assert_held(),
        }
    }
}

impl FileLock {
    pub fn acquire(
        dir: &Path,
        shared: Option<Shared>,
        timeout: Duration,
        context: &OperationContext,
    ) -> Result<Self> {
        let path = dir.join(LOCK_FILE);
        let failed = |cause| Error::io("lock", &path, cause);
        let mut file = atomic_file::open_lock(&path)?;
        // The file contains no secret, and the owner of the directory must be able to lock it.
        ownership::inherit(&path);
        if !file_lock::wait(&file, timeout, context, failed)? {
            return Err(held(dir, &mut file, timeout));
        }
        let holder = format!(
            "process {} on {} since {}\n",
            std::process::id(),
            host_name(),
            Timestamp::now()
        );
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(failed)?;
        Ok(FileLock {
            _file: file,
            _shared: shared,
        })
    }
}

/// Returns why this user could not lock the store at `dir`, judging by permissions only. Does not
/// take the lock.
pub fn refusal(dir: &Path) -> Option<Error> {
    let path = dir.join(LOCK_FILE);
    let refused = user::may_change(&path)
        .err()
        .filter(|cause| cause.kind() != io::ErrorKind::NotFound)?;
    Some(Error::io("lock", &path, refused))
}

/// Returns whether a process writes to the store at `dir`, as far as can be determined.
pub fn is_held(dir: &Path) -> bool {
    let tried =
        regular_file::open(&dir.join(LOCK_FILE)).map(|file| portable::try_lock_shared(&file));
    matches!(tried, Ok(Err(TryLockError::WouldBlock)))
}

fn held(dir: &Path, file: &mut File, waited: Duration) -> Error {
    // The name is only used in the message. The holder may be writing it at this moment.
    let text = file
        .rewind()
        .and_then(|()| regular_file::read(file, MAX_BYTES))
        .unwrap_or_default();
    let holder = String::from_utf8_lossy(&text);
    let holder = holder.trim();
    let own = holder
        .strip_prefix("process ")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let said = if holder.is_empty() {
        "another process"
    } else {
        holder
    };
    let holder = holders::with_own_name(FileId::of(file).ok(), own, said);
    Error::locked(
        Code::StoreLocked,
        format!(
            "{} is in use by {holder}; waited {} s",
            dir.display(),
            waited.as_secs_f32()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_of_the_same_process_is_told_who_holds_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let acquire = || {
            FileLock::acquire(
                dir.path(),
                None,
                Duration::ZERO,
                &OperationContext::default(),
            )
        };
        let first = acquire().unwrap();
        let error = acquire().unwrap_err();
        assert_eq!(error.code, Code::StoreLocked);
        assert!(
            error
                .message
                .contains(&format!("process {}", std::process::id())),
            "{}",
            error.message
        );
        assert!(is_held(dir.path()));
        drop(first);
        assert!(!is_held(dir.path()));
        acquire().unwrap();
    }
}
