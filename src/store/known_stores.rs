//! How many backups of a project each store had at its last change, in
//! `.kg/cache/backup-pages/stores.json`.
//!
//! A directory that had backups and is now empty looks like a new store. Often it is the mount
//! point of a disk that is not mounted. The record is used for warnings and for finding another
//! store. If the file is missing, there are no warnings; if it cannot be read, the warning says so.

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Backup, Flaw, Store, Unlisted};
use crate::{
    error::{Error, Result, Warning, WarningCode, plain},
    project::{PAGE_CACHE_DIR, Project, identity::path_digest},
    util::{atomic_file, regular_file, wording},
};

const FILE: &str = "stores.json";
/// The maximum number of stores to remember. If it is reached, the counts of the other stores are
/// discarded.
const MOST_STORES: usize = 100;

/// The size limit of the file.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Default, Serialize, Deserialize)]
struct KnownStores {
    /// Digest of the path of the project. After a move, the counts are ignored.
    project: String,
    /// The number of backups by store directory.
    stores: BTreeMap<String, usize>,
    /// The store into which the last backup was made. Copies do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<String>,
}

impl KnownStores {
    fn read(project: &Project) -> io::Result<Self> {
        let Some(text) = regular_file::read_unlinked(&path(project), MAX_BYTES)? else {
            return Ok(KnownStores::none(project));
        };
        let held: KnownStores = serde_json::from_slice(&text)?;
        Ok(if held.project == path_digest(project.root()) {
            held
        } else {
            KnownStores::none(project)
        })
    }

    fn none(project: &Project) -> Self {
        KnownStores {
            project: path_digest(project.root()),
            ..KnownStores::default()
        }
    }
}

/// Returns a warning if the store had backups of the project at its last change and now has none.
/// It has none if `own` is empty and there is no unlisted archive. The code is
/// `KG_WARN_STORE_EMPTIED`, or `KG_WARN_STORE` if the earlier count cannot be read.
pub fn emptied(project: &Project, store: &Store, own: &[Backup]) -> Option<Warning> {
    let held =
        KnownStores::read(project).map(|held| held.stores.get(&key(store)).copied().unwrap_or(0));
    // An archive that cannot be listed still exists.
    let is_archive = |left: &Unlisted| left.flaw != Flaw::NoArchive;
    let has_archives = || {
        store
            .read()
            .is_ok_and(|listing| listing.unlisted.iter().any(is_archive))
    };
    // A project with a new id no longer owns the backups that it counted before.
    let here = path_digest(project.root());
    let is_of_path = |backup: &Backup| backup.origin.as_ref().is_some_and(|of| of.path == here);
    let has_earlier = || {
        store
            .read()
            .is_ok_and(|listing| listing.backups.iter().any(is_of_path))
    };
    if matches!(held, Ok(0)) || !own.is_empty() || has_archives() || has_earlier() {
        return None;
    }
    let dir = store.dir().display();
    Some(match held {
        Ok(held) => {
            let what_to_do = match store.directory() {
                Some(_) => {
                    "mount the disk or share that belongs there, or name the directory that \
                     contains them"
                }
                None => "look into the bucket, or name the URL that contains them",
            };
            let message = format!(
                "{dir} contained {} of this project at the last run, but contains none now: \
                 {what_to_do}",
                wording::count(held, "backup")
            );
            Warning::new(WarningCode::StoreEmptied, message)
        }
        Err(cause) => {
            let (file, why) = (path(project), plain(&cause));
            let message = format!(
                "{dir} contains no backup of this project, and whether it ever did cannot be \
                 determined because {} cannot be read: {why}",
                file.display()
            );
            Warning::new(WarningCode::Store, message)
        }
    })
}

/// Returns the store with the last backup of the project if it is another one and has backups.
/// `KG_IO` or `KG_PERMISSION_DENIED` if the record cannot be read.
pub fn other(project: &Project, store: &Store) -> Result<Option<PathBuf>> {
    let held =
        KnownStores::read(project).map_err(|cause| Error::io("read", &path(project), cause))?;
    let has_backups = |dir: &String| held.stores.get(dir).is_some_and(|count| *count > 0);
    let last = held.last.as_ref().filter(|dir| **dir != key(store));
    Ok(last.filter(|dir| has_backups(dir)).map(PathBuf::from))
}

/// Records the number of backups of the project after a new one. A failure is only a warning.
pub fn remember_new(project: &Project, store: &Store, count: usize) -> Option<Warning> {
    warning(write(project, store, count, true))
}

/// Records the number of backups of the project after another change. A failure is only a warning.
pub fn remember(project: &Project, store: &Store, count: usize) -> Option<Warning> {
    warning(write(project, store, count, false))
}

fn warning(written: Result<()>) -> Option<Warning> {
    let error = written.err()?;
    let message = format!(
        "The number of backups could not be recorded: {}",
        error.message
    );
    Some(Warning::new(WarningCode::Store, message))
}

fn write(project: &Project, store: &Store, count: usize, is_new: bool) -> Result<()> {
    let path = path(project);
    let mut held = match KnownStores::read(project) {
        // An invalid file contains nothing worth keeping.
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => KnownStores::none(project),
        held => held.map_err(|cause| Error::io("read", &path, cause))?,
    };
    if held.stores.len() >= MOST_STORES && !held.stores.contains_key(&key(store)) {
        held.stores.clear();
    }
    let is_last = !is_new || held.last.replace(key(store)) == Some(key(store));
    if held.stores.insert(key(store), count) == Some(count) && is_last {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&held).unwrap_or_default();
    let dir = path.parent().unwrap_or(&path);
    atomic_file::create_unversioned_dirs(dir).map_err(|cause| Error::io("create", dir, cause))?;
    atomic_file::write_shared(&path, &text)
}

fn path(project: &Project) -> PathBuf {
    project.state_dir().join(PAGE_CACHE_DIR).join(FILE)
}

fn key(store: &Store) -> String {
    store.dir().to_string_lossy().into_owned()
}
