//! Removes backups from an object store, where nothing can be renamed.
//!
//! A tombstone, an empty object, says that a backup is to be removed. It is written first and
//! removed last. A backup with a tombstone is not listed, and the next run finishes its removal.
//!
//! If the service refuses to remove the backup, the tombstone gets a content, which makes it void:
//! whoever may not remove objects may still write them.

use std::collections::HashSet;

use super::names::{MANIFEST_SUFFIX, id_of_archive};
use crate::{
    error::{Code, Error, Result},
    place::{Archive, ObjectPlace, Place},
};

/// The content of a tombstone that has no effect.
const VOID: &[u8] = b"void\n";
const TOMBSTONE_PREFIX: &str = ".kg-deleted-";

/// Removes an archive and its sidecar.
pub(super) fn remove(objects: &ObjectPlace, archive: &Archive) -> Result<()> {
    let tombstone = format!("{TOMBSTONE_PREFIX}{}", archive.name());
    objects.put(&tombstone, b"")?;
    if let Err(error) = objects.remove(&format!("{}{MANIFEST_SUFFIX}", archive.name())) {
        // The backup is whole, so it must stay listed.
        objects.put(&tombstone, VOID)?;
        return Err(error);
    }
    objects.remove(archive.name())?;
    if objects.client().find(archive.name())?.is_some() {
        // Some services report success for an object that they keep.
        objects.put(&tombstone, VOID)?;
        objects.forget_listing();
        return Err(kept(archive));
    }
    objects.remove(&tombstone)
}

fn kept(archive: &Archive) -> Error {
    let path = archive.path();
    Error::new(
        Code::StoreDenied,
        format!(
            "The service reported that it deleted {}, but it keeps it",
            path.display()
        ),
        "Look for a lock or a rule of the bucket that keeps objects, then run it again",
    )
}

/// Finishes the removals that killed runs began. Returns the errors.
pub(super) fn finish_removals(objects: &ObjectPlace) -> Result<Vec<Error>> {
    let place = Place::Objects(objects.clone());
    let doomed = doomed(objects, &objects.names()?)?.into_iter();
    let removed = doomed.map(|name| remove(objects, &place.archive(&name)));
    Ok(removed.filter_map(Result::err).collect())
}

/// Returns the names of all objects except those of backups that have a tombstone.
pub(super) fn living(objects: &ObjectPlace) -> Result<Vec<String>> {
    let names = objects.names()?;
    let doomed = doomed(objects, &names)?;
    let is_living = |name: &String| {
        let archive = name.strip_suffix(MANIFEST_SUFFIX).unwrap_or(name);
        !doomed.contains(archive)
    };
    Ok(names.into_iter().filter(is_living).collect())
}

/// Returns whether an archive has a tombstone.
pub(super) fn is_doomed(objects: &ObjectPlace, archive: &str) -> Result<bool> {
    let found = objects.find(&format!("{TOMBSTONE_PREFIX}{archive}"))?;
    Ok(found.is_some_and(|object| object.size_bytes == 0))
}

/// Returns the names of the archives that have a tombstone.
fn doomed(objects: &ObjectPlace, names: &[String]) -> Result<HashSet<String>> {
    let mut doomed = HashSet::new();
    for name in names {
        let archive = name.strip_prefix(TOMBSTONE_PREFIX);
        let archive = archive.filter(|archive| id_of_archive(archive).is_some());
        if let Some(archive) = archive
            && is_doomed(objects, archive)?
        {
            doomed.insert(archive.to_string());
        }
    }
    Ok(doomed)
}
