//! What earlier restores left: work that was interrupted, and replaced files that are too old.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{journal, lock::lock_and_recover, undo};
use crate::{
    error::{Error, Result, Warning, WarningCode},
    project::{STAGING_PREFIX, STATE_DIR, UNDO_DIR},
    system::portable::try_lock,
    util::{
        atomic_file::{self, PARTIAL_PREFIX},
        dir_handle::DirHandle,
        temp_dir::remove_tree,
    },
    worker::protocol::RecoverRequest,
};

/// Recovers killed restores and removes what they unpacked. Also removes replaced files that are
/// older than the retention of undos.
pub fn recover_interrupted(request: &RecoverRequest) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    let root = &request.target;
    let _lock = lock_and_recover(
        root,
        Duration::from_millis(request.lock_timeout_ms),
        &mut warnings,
    )?;
    let state = root.join(STATE_DIR);
    for name in undo::expired(&state, request.undo_retention_days)? {
        let dir = state.join(UNDO_DIR).join(name);
        if let Err(cause) = remove_tree(&dir) {
            let error = Error::io("remove", &dir, cause);
            warnings.push(Warning::new(
                WarningCode::Store,
                format!(
                    "{}: it is older than the retention of replaced files",
                    error.message
                ),
            ));
        }
    }
    // A directory that is not empty stays.
    let _ = DirHandle::around(&state.join(UNDO_DIR)).map(|place| place.remove_dir());
    Ok(warnings)
}

/// Returns whether [`recover_interrupted`] has anything to do. A host may call this function because it opens no
/// file of the project, only directories.
pub fn needs_recovery(state: &Path, undo_retention_days: u32) -> Result<bool> {
    Ok(journal::is_pending(state)
        || !left_behind(state)?.is_empty()
        || !undo::expired(state, undo_retention_days)?.is_empty())
}

/// Removes what killed restores left. The target must be locked.
pub(super) fn remove(state: &Path) -> Result<()> {
    left_behind(state)?.iter().try_for_each(remove_left_behind)
}

/// Returns what killed restores left: temporary files, and directories that they unpacked into. A
/// running restore holds the lock of its directory. The returned handles lock the other
/// directories.
fn left_behind(state: &Path) -> Result<Vec<(PathBuf, Option<File>)>> {
    let entries = fs::read_dir(state).map_err(|cause| Error::io("read", state, cause))?;
    let left = entries.flatten().filter_map(|entry| {
        let (name, kind) = (entry.file_name(), entry.file_type().ok()?);
        let name = name.to_str()?;
        if kind.is_file() && name.starts_with(PARTIAL_PREFIX) {
            return Some((entry.path(), None));
        }
        let dir = (kind.is_dir() && name.starts_with(STAGING_PREFIX))
            .then(|| DirHandle::open(&entry.path()).ok())??;
        let dir = dir.to_lock().ok()?;
        try_lock(&dir).ok()?;
        Some((entry.path(), Some(dir)))
    });
    Ok(left.collect())
}

fn remove_left_behind((path, lock): &(PathBuf, Option<File>)) -> Result<()> {
    match lock {
        Some(_) => remove_tree(path).map_err(|cause| Error::io("remove", path, cause)),
        None => atomic_file::remove(path),
    }
}
