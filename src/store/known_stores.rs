//! How many backups of a project each store held when it was last changed: `.kg/cache/backup-pages/stores.json`.
//!
//! A directory that held some and holds none now looks like a new one, and often is the place where a disk is not mounted. What is
//! remembered only leads to warnings: if it is missing, there are none, and if it cannot be read, they say so.

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Backup, Flaw, Store, Unlisted};
use crate::{
    error::{Error, Result, Warning, WarningCode, plain},
    project::{PAGE_CACHE_DIR, Project},
    util::{atomic_file, regular_file},
};

const FILE: &str = "stores.json";
/// Nobody has more; what was remembered of the others is given up.
const MOST_STORES: usize = 100;

/// Of the file.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Default, Serialize, Deserialize)]
struct KnownStores {
    /// The id of the project. One that was moved since finds none of its backups, wherever they are.
    project: String,
    /// By the directory.
    stores: BTreeMap<String, usize>,
}

impl KnownStores {
    fn read(project: &Project) -> io::Result<Self> {
        let text = match regular_file::open(&path(project)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Ok(KnownStores::none(project));
            }
            opened => regular_file::read(&opened?, MAX_BYTES)?,
        };
        let held: KnownStores = serde_json::from_slice(&text)?;
        Ok(if held.project == project.id() {
            held
        } else {
            KnownStores::none(project)
        })
    }

    fn none(project: &Project) -> Self {
        KnownStores {
            project: project.id(),
            ..KnownStores::default()
        }
    }
}

/// What is to be said if the store held backups of the project when it was last changed, and none of them is among `own` now:
/// `KG_WARN_STORE_EMPTIED`, or `KG_WARN_STORE` if whether it did cannot be told.
pub fn emptied(project: &Project, store: &Store, own: &[Backup]) -> Option<Warning> {
    let held =
        KnownStores::read(project).map(|held| held.stores.get(&key(store)).copied().unwrap_or(0));
    // An archive that cannot be listed is there all the same.
    let is_archive = |left: &Unlisted| left.flaw != Flaw::NoArchive;
    let has_archives = || {
        store
            .read()
            .is_ok_and(|listing| listing.unlisted.iter().any(is_archive))
    };
    if matches!(held, Ok(0)) || !own.is_empty() || has_archives() {
        return None;
    }
    let dir = store.dir().display();
    Some(match held {
        Ok(held) => {
            let message = format!(
                "{dir} held {held} backups of this project at the last run, and holds none now: mount the disk or share that belongs there, \
                 or name the directory that has them"
            );
            Warning::new(WarningCode::StoreEmptied, message)
        }
        Err(cause) => {
            let (file, why) = (path(project), plain(&cause));
            let message = format!(
                "{dir} holds no backup of this project, and whether it ever did cannot be told, for {} cannot be read: {why}",
                file.display()
            );
            Warning::new(WarningCode::Store, message)
        }
    })
}

/// Another store that held backups of the project when it was last changed. `KG_IO` or `KG_PERMISSION_DENIED` if that cannot be read.
pub fn other(project: &Project, store: &Store) -> Result<Option<PathBuf>> {
    let held =
        KnownStores::read(project).map_err(|cause| Error::io("read", &path(project), cause))?;
    let mut others = held
        .stores
        .into_iter()
        .filter(|(dir, count)| *count > 0 && *dir != key(store));
    Ok(others.next().map(|(dir, _)| PathBuf::from(dir)))
}

/// Remembers how many backups of the project there are now. That this fails is a warning.
pub fn remember(project: &Project, store: &Store, count: usize) -> Option<Warning> {
    let error = write(project, store, count).err()?;
    let message = format!(
        "How many backups there are could not be written down: {}",
        error.message
    );
    Some(Warning::new(WarningCode::Store, message))
}

fn write(project: &Project, store: &Store, count: usize) -> Result<()> {
    let path = path(project);
    let mut held = match KnownStores::read(project) {
        // There is nothing in it to lose.
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => KnownStores::none(project),
        held => held.map_err(|cause| Error::io("read", &path, cause))?,
    };
    if held.stores.len() >= MOST_STORES {
        held.stores.clear();
    }
    if held.stores.insert(key(store), count) == Some(count) {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&held).unwrap_or_default();
    let dir = path.parent().unwrap_or(&path);
    atomic_file::create_dirs(dir).map_err(|cause| Error::io("create", dir, cause))?;
    atomic_file::write_shared(&path, &text)
}

fn path(project: &Project) -> PathBuf {
    project.state_dir().join(PAGE_CACHE_DIR).join(FILE)
}

fn key(store: &Store) -> String {
    store.dir().to_string_lossy().into_owned()
}
