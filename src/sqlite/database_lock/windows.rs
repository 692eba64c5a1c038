//! Windows does not tell who holds a lock. So the range is locked for a moment, first exclusively
//! and then shared. A process that tries to lock it at that moment tries again, as SQLite does.
//!
//! Locks belong to a handle here: a connection of this process counts as another process.

use std::{fs::File, io, os::windows::io::AsRawHandle};

use windows_sys::Win32::{
    Foundation::ERROR_LOCK_VIOLATION,
    Storage::FileSystem::{
        LOCK_FILE_FLAGS, LOCKFILE_EXCLUSIVE_LOCK, LOCKFILE_FAIL_IMMEDIATELY, LockFileEx,
        UnlockFileEx,
    },
    System::IO::{OVERLAPPED, OVERLAPPED_0, OVERLAPPED_0_0},
};

use super::ForeignLock;

pub fn holder(file: &File, range: (u64, i64)) -> io::Result<Option<ForeignLock>> {
    for (flags, is_held) in [(LOCKFILE_EXCLUSIVE_LOCK, None), (0, Some(true))] {
        if lock(file, range, flags)? {
            unlock(file, range)?;
            return Ok(is_held.map(|is_shared| ForeignLock {
                process: 0,
                is_shared,
            }));
        }
    }
    Ok(Some(ForeignLock {
        process: 0,
        is_shared: false,
    }))
}

/// Locks the range. Returns `false` if another handle has a lock in it.
pub fn try_lock(file: &File, range: (u64, i64)) -> io::Result<bool> {
    lock(file, range, LOCKFILE_EXCLUSIVE_LOCK)
}

#[allow(unsafe_code, reason = "std locks only whole files")]
fn lock(file: &File, (start, length): (u64, i64), flags: LOCK_FILE_FLAGS) -> io::Result<bool> {
    let mut at = overlapped(start);
    // SAFETY: the handle is open, and the range is in `at`.
    let locked = unsafe {
        LockFileEx(
            file.as_raw_handle(),
            flags | LOCKFILE_FAIL_IMMEDIATELY,
            0,
            length as u32,
            (length as u64 >> 32) as u32,
            &mut at,
        )
    };
    if locked != 0 {
        return Ok(true);
    }
    let cause = io::Error::last_os_error();
    if cause.raw_os_error() == Some(ERROR_LOCK_VIOLATION as i32) {
        Ok(false)
    } else {
        Err(cause)
    }
}

#[allow(unsafe_code, reason = "std locks only whole files")]
fn unlock(file: &File, (start, length): (u64, i64)) -> io::Result<()> {
    let mut at = overlapped(start);
    // SAFETY: as in `lock`.
    let unlocked = unsafe {
        UnlockFileEx(
            file.as_raw_handle(),
            0,
            length as u32,
            (length as u64 >> 32) as u32,
            &mut at,
        )
    };
    if unlocked != 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn overlapped(start: u64) -> OVERLAPPED {
    OVERLAPPED {
        Anonymous: OVERLAPPED_0 {
            Anonymous: OVERLAPPED_0_0 {
                Offset: start as u32,
                OffsetHigh: (start >> 32) as u32,
            },
        },
        ..OVERLAPPED::default()
    }
}
