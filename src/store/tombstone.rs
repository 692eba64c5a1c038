//! Removes backups from an object store, where nothing can be renamed.
//!
//! A tombstone, a small object, says that a backup is to be removed. It is written first and
//! removed last. A backup with a tombstone is not listed, and the next run finishes its removal.

use std::collections::HashSet;

use super::names::{MANIFEST_SUFFIX, id_of_archive};
use crate::{
    error::{Error, Result},
    place::{Archive, ObjectPlace, Place},
};

const TOMBSTONE_PREFIX: &str = ".kg-deleted-";

/// Removes an archive and its sidecar.
pub(super) fn remove(objects: &ObjectPlace, archive: &Archive) -> Result<()> {
    let tombstone = format!("{TOMBSTONE_PREFIX}{}", archive.name());
    // If it exists, an earlier run was killed.
    objects.create(&tombstone, Vec::new())?;
    objects.remove(&format!("{}{MANIFEST_SUFFIX}", archive.name()))?;
    objects.remove(archive.name())?;
    objects.remove(&tombstone)
}

/// Finishes the removals that killed runs began. Returns the errors.
pub(super) fn finish_removals(objects: &ObjectPlace) -> Result<Vec<Error>> {
    let names = objects.names()?;
    let doomed = names.iter().filter_map(|name| archive_of(name));
    let place = Place::Objects(objects.clone());
    let removed = doomed.map(|name| remove(objects, &place.archive(name)));
    Ok(removed.filter_map(Result::err).collect())
}

/// Returns the names of all files except those of backups that have a tombstone.
pub(super) fn living(names: Vec<String>) -> Vec<String> {
    let doomed: HashSet<String> = names
        .iter()
        .filter_map(|name| archive_of(name).map(str::to_string))
        .collect();
    let is_living = |name: &String| {
        let archive = name.strip_suffix(MANIFEST_SUFFIX).unwrap_or(name);
        !doomed.contains(archive)
    };
    names.into_iter().filter(is_living).collect()
}

/// Returns the name of the archive that a tombstone of that name is for.
pub(super) fn archive_of(name: &str) -> Option<&str> {
    name.strip_prefix(TOMBSTONE_PREFIX)
        .filter(|archive| id_of_archive(archive).is_some())
}
