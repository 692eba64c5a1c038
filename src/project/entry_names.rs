//! The names of archive entries, and the component that each path belongs to.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    path::Path,
};

use super::{CONFIG_FILE, Component, names};

/// The names of entries that are in use. Only their hashes are kept, so a name may in rare cases
/// seem to be in use.
#[derive(Default)]
pub struct EntryNames {
    hasher: RandomState,
    taken: HashSet<u64>,
}

impl EntryNames {
    /// Takes a name, with `~2`, `~3`, … if it is in use, and returns it.
    pub fn take(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        let mut number = 2;
        while !self.taken.insert(self.hasher.hash_one(&name)) {
            name = format!("{wanted}~{number}");
            number += 1;
        }
        name
    }
}

/// Name of the graph database's entry in every archive.
pub const DATABASE_ENTRY: &str = "database.sqlite";

/// Returns the component of the item at `path`, which must not be the graph database.
pub fn component_of(path: &str, is_dir: bool) -> Component {
    let below = path.strip_prefix(".kg/").unwrap_or(path);
    match below.split('/').next().unwrap_or(below) {
        "vectors" | "vectors.db" | "vectors.db-wal" | "vectors.db-shm" | "vectors.db-journal"
        | "reasoning-bank" => Component::Vectors,
        "plugins" => Component::Plugins,
        name if name == below && !is_dir && name.ends_with(".json") => Component::Config,
        _ => Component::Files,
    }
}

/// Returns the name of the archive entry: `config.json`, `config/…`, `vectors/…`, `plugins/…` or
/// `files/…`. A UTF-8 name is used unchanged.
pub fn entry_name(path: &str, component: Component) -> String {
    let decoded = names::decode(path);
    let path = decoded.as_deref().and_then(Path::to_str).unwrap_or(path);
    let below = path.strip_prefix(".kg/").unwrap_or(path);
    match component {
        Component::Database => DATABASE_ENTRY.to_string(),
        Component::Config if below == CONFIG_FILE => CONFIG_FILE.to_string(),
        Component::Config => format!("config/{below}"),
        Component::Vectors if below == "vectors" => below.to_string(),
        Component::Vectors => format!(
            "vectors/{}",
            below.strip_prefix("vectors/").unwrap_or(below)
        ),
        Component::Plugins => below.to_string(),
        Component::Files => format!("files/{below}"),
    }
}
