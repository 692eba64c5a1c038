//! The commands `delete`, `pin` and `unpin`, which change one backup.
//!
//! Each command waits for the lock of the store, and first cleans up after killed runs. The cleanup
//! also lists archives that were copied here without a sidecar. Only then is it known which
//! backups they depend on.

use std::time::Duration;

use crate::{
    commands::own_backups::own_among,
    error::{Result, Warning},
    store::{Backup, Store, StoreLock, known_stores},
    util::{operation::OperationContext, unsupported},
};

/// Removes a backup, and with `cascade` also those that depend on it. Returns the removed ids.
pub fn delete(
    store: &Store,
    id: &str,
    cascade: bool,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<Vec<String>> {
    // The result has no warnings. The next backup repeats those of the cleanup.
    let (lock, _) = lock_known(store, id, lock_timeout, context)?;
    let deleted = store.delete(&lock, id, cascade)?;
    if let (Some(home), Ok(listed)) = (store.home(), store.list()) {
        // If the count cannot be recorded, the next backup warns.
        let _ = known_stores::remember(home, store, own_among(listed, home).len());
        store.keep_sidecars();
    }
    Ok(deleted)
}

/// Protects a backup from retention and deletion until it is unpinned.
pub fn pin(
    store: &Store,
    id: &str,
    reason: Option<String>,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<Backup> {
    let (lock, warnings) = lock_known(store, id, lock_timeout, context)?;
    let pinned = store.pin(&lock, id, reason)?;
    Ok(pinned
        .with_warnings(warnings)
        .with_warnings(unsupported::warnings(&[store.dir()])))
}

/// Removes the pin of a backup.
pub fn unpin(
    store: &Store,
    id: &str,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<Backup> {
    let (lock, warnings) = lock_known(store, id, lock_timeout, context)?;
    let unpinned = store.unpin(&lock, id)?;
    Ok(unpinned
        .with_warnings(warnings)
        .with_warnings(unsupported::warnings(&[store.dir()])))
}

/// Locks the store and cleans it up. Returns the lock, and a warning for each archive that cannot
/// be listed.
///
/// If the store contains no archive with that id, fails without creating the directory.
pub fn lock_known(
    store: &Store,
    id: &str,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<(StoreLock, Vec<Warning>)> {
    if store.archive_of(id, None).is_none() {
        store.get(id)?;
    }
    let lock = store.lock(lock_timeout, context)?;
    // An archive that cannot be listed does not protect the backups that it depends on.
    let warnings = store.clean_up(&lock, true, context)?;
    Ok((lock, warnings))
}
