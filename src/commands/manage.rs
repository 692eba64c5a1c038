//! The verbs `delete`, `pin` and `unpin`: what a person decides about single backups.
//!
//! Each waits for the store and first finishes what killed runs left. An archive that came here without its manifest is listed
//! from then on, so whatever it rests on is known to be needed.

use std::time::Duration;

use crate::{
    commands::own_backups::own_among,
    error::{Result, Warning},
    store::{Backup, Store, StoreLock, known_stores},
    util::{operation::OperationContext, unsupported},
};

/// Removes a backup, and with `cascade` those that rest on it; the ids of what was removed.
pub fn delete(
    store: &Store,
    id: &str,
    cascade: bool,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<Vec<String>> {
    // What the sweep warns of, the next backup says: there is no backup here that could.
    let (lock, _) = lock_known(store, id, lock_timeout, context)?;
    let deleted = store.delete(&lock, id, cascade)?;
    if let (Some(home), Ok(listed)) = (store.home(), store.list()) {
        // The next backup says why, where it cannot be written down.
        let _ = known_stores::remember(home, store, own_among(listed, home).len());
    }
    Ok(deleted)
}

/// Keeps retention and deletion from a backup, until it is unpinned.
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

/// Locks the store that holds an archive of that id, and says what cannot be listed there. Where there is none, not even the directory is made.
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
    // What cannot be listed protects nothing.
    let warnings = store.clean_up(&lock, context)?;
    Ok((lock, warnings))
}
