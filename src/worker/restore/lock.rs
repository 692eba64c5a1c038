//! The lock of a target: a restore excludes other restores, and backups of the same project.

use std::{fs::File, path::Path, time::Duration};

use super::{
    journal, leftovers,
    recovery::{Recovered, recover},
    target::Target,
};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    project::STATE_DIR,
    system::{file_id::FileId, holders},
    util::{
        dir_handle::DirHandle,
        file_lock,
        operation::{CancelToken, OperationContext},
    },
};

/// Locks the directory itself, which leaves no lock file. Only one process at a time changes a
/// target. `KG_TARGET_LOCKED` if the lock is not available in time.
pub fn lock_target(state: &Path, timeout: Duration, context: &OperationContext) -> Result<File> {
    let failed = |cause| Error::io("lock", state, cause);
    let dir = DirHandle::open(state)
        .and_then(|dir| dir.to_lock())
        .map_err(failed)?;
    if file_lock::wait(&dir, timeout, context, failed)? {
        return Ok(dir);
    }
    Err(locked(
        state,
        "a restore into it or a backup of it is running",
    ))
}

/// Keeps restores out while a project is read, because a mix of old and new files is not a
/// consistent state. `KG_TARGET_LOCKED` if the lock is not available in time.
pub fn lock_against_restores(
    state: &Path,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<File> {
    let failed = |cause| Error::io("lock", state, cause);
    let dir = DirHandle::open(state)
        .and_then(|dir| dir.to_lock())
        .map_err(failed)?;
    if file_lock::wait_shared(
        &dir,
        timeout,
        &OperationContext::new(cancel.clone(), None),
        failed,
    )? {
        return Ok(dir);
    }
    Err(locked(state, "a restore into it is running"))
}

fn locked(state: &Path, who: &str) -> Error {
    let holder = FileId::at(state).ok().and_then(holders::of_flock);
    let holder = holder.map_or(String::new(), |process| {
        format!(" ({})", holders::name(process))
    });
    let message = format!("{} is in use: {who}{holder}", state.display());
    Error::locked(Code::TargetLocked, message)
}

/// Locks the target and recovers killed restores.
pub fn lock_and_recover(
    root: &Path,
    lock_timeout: Duration,
    warnings: &mut Vec<Warning>,
) -> Result<File> {
    let state = root.join(STATE_DIR);
    let lock = lock_target(&state, lock_timeout, &OperationContext::default())?;
    if journal::is_pending(&state)
        && let Some(recovered) = recover(&mut Target::open(root)?, root, lock_timeout)?
    {
        let Recovered {
            completed,
            warnings: seen,
        } = recovered;
        let what = if completed {
            "completed"
        } else {
            "rolled back"
        };
        let message =
            format!("An earlier restore into this project was interrupted and has been {what}");
        warnings.push(Warning::new(WarningCode::Recovered, message));
        warnings.extend(seen);
    }
    leftovers::remove(&state)?;
    Ok(lock)
}
