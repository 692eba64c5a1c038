//! How many backups of a project each store held when it was last changed: `.kg/cache/backup-pages/stores.json`.
//!
//! A directory that held some and holds none now looks like a new one, and often is the place where a disk is not mounted. What is
//! remembered only leads to warnings: if it is missing or damaged, there are none.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Backup, Flaw, Store, Unlisted};
use crate::{
    base::CACHE,
    durable,
    error::{Warning, WarningCode},
    project::Project,
    regular,
};

const FILE: &str = "stores.json";
/// Nobody has more; what was remembered of the others is given up.
const MOST_STORES: usize = 100;

/// Of the file.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Held {
    /// The id of the project. One that was moved since finds none of its backups, wherever they are.
    project: String,
    /// By the directory.
    stores: BTreeMap<String, usize>,
}

impl Held {
    fn read(project: &Project) -> Self {
        let text = regular::open(&path(project)).and_then(|file| regular::read(&file, MAX_BYTES)).unwrap_or_default();
        let held: Held = serde_json::from_slice(&text).unwrap_or_default();
        if held.project == project.id() { held } else { Held { project: project.id(), ..Held::default() } }
    }
}

/// What is to be said if the store held backups of the project when it was last changed, and none of them is among `own` now.
pub fn emptied(project: &Project, store: &Store, own: &[Backup]) -> Option<Warning> {
    let held = Held::read(project).stores.get(&key(store)).copied().unwrap_or(0);
    // An archive that cannot be listed is there all the same.
    let is_archive = |left: &Unlisted| left.flaw != Flaw::NoArchive;
    let has_archives = || store.read().is_ok_and(|listing| listing.unlisted.iter().any(is_archive));
    if held == 0 || !own.is_empty() || has_archives() {
        return None;
    }
    let message = format!(
        "{} held {held} backups of this project at the last run, and holds none now: mount the disk or share that belongs there, or \
         name the directory that has them",
        store.dir().display()
    );
    Some(Warning::new(WarningCode::StoreEmptied, message))
}

/// The other stores that held backups of the project when they were last changed.
pub fn others(project: &Project, store: &Store) -> Vec<PathBuf> {
    let held = Held::read(project).stores.into_iter().filter(|(dir, count)| *count > 0 && *dir != key(store));
    held.map(|(dir, _)| PathBuf::from(dir)).collect()
}

/// Remembers how many backups of the project there are now. That this fails is no reason for anything else to fail.
pub fn remember(project: &Project, store: &Store, count: usize) {
    let mut held = Held::read(project);
    if held.stores.len() >= MOST_STORES {
        held.stores.clear();
    }
    if held.stores.insert(key(store), count) == Some(count) {
        return;
    }
    let path = path(project);
    let text = serde_json::to_vec_pretty(&held).unwrap_or_default();
    let Some(dir) = path.parent() else { return };
    let _ = durable::create_dirs(dir).map(|()| durable::write(&path, &text));
}

fn path(project: &Project) -> PathBuf {
    project.state_dir().join(CACHE).join(FILE)
}

fn key(store: &Store) -> String {
    store.dir().to_string_lossy().into_owned()
}
