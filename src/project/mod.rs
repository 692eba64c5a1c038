//! Describes a project: where its parts are, and which of them a backup saves.
//!
//! A project is the directory that contains `.kg/`. [`Project`] only queries paths (`stat`), so a
//! host process may use it, and also [`names`] and [`entry_names`]. [`database_path`], [`discover`] and [`same_file`]
//! open files of the live project, so only the worker may call them (`src/worker`).

pub mod database_path;
pub mod discover;
pub mod entry_names;
pub mod exclude;
pub mod file_state;
pub mod identity;
pub mod json;
pub mod names;
pub mod pattern;
pub mod same_file;
pub mod source_list;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::identity::Identity;
use crate::error::{Code, Error, Result};
pub use crate::system::paths::{STAGING_PREFIX, STATE_DIR};

/// The configuration, below the state directory.
pub const CONFIG_FILE: &str = "config.json";
/// Webhooks and commands that run after a backup, below the state directory. The file belongs to
/// this location, so no backup contains it.
pub const HOOKS_FILE: &str = "hooks.json";
/// Path of the database relative to the root, if the configuration does not name one.
pub const DEFAULT_DATABASE: &str = ".kg/knowledge.db";
/// Default directory for backups, below the state directory.
pub const BACKUPS_DIR: &str = "backups";
/// Data that a backup stores for the next one, below the state directory.
pub const PAGE_CACHE_DIR: &str = "cache/backup-pages";
/// Files that restores replaced, below the state directory.
pub const UNDO_DIR: &str = "restore-undo";

/// The parts that a backup may contain and a restore can select.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    Database,
    /// `config.json` and the other JSON files directly below `.kg/`.
    Config,
    /// `.kg/vectors/`, `.kg/vectors.db`, `.kg/reasoning-bank/`.
    Vectors,
    /// `.kg/plugins/`.
    Plugins,
    /// Everything else below `.kg/`.
    Files,
}

/// An existing project.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// Opens the project at `root`. Fails with `KG_NO_PROJECT` if `root` does not contain `.kg/`.
    pub fn open(root: &Path) -> Result<Self> {
        let resolved =
            dunce::canonicalize(root).map_err(|cause| no_project(root).with_cause(cause))?;
        if !resolved.join(STATE_DIR).is_dir() {
            return Err(no_project(root));
        }
        Ok(Project { root: resolved })
    }

    /// Returns the nearest directory at or above `start` that contains `.kg/`, just as `git` finds
    /// its repository.
    pub fn find_root(start: &Path) -> Option<PathBuf> {
        start
            .ancestors()
            .find(|dir| dir.join(STATE_DIR).is_dir())
            .map(Path::to_path_buf)
    }

    /// Returns the root, an absolute path without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn state_dir(&self) -> PathBuf {
        self.root.join(STATE_DIR)
    }

    /// Reads the id of the project.
    pub fn identity(&self) -> Identity {
        Identity::at(&self.root)
    }
}

/// Describes a damaged database whose repair has no project to keep the replaced content in.
pub fn without_project(database: &Path) -> Error {
    Error::new(
        Code::NoProject,
        format!(
            "{} belongs to no project that could keep the replaced database",
            database.display()
        ),
        "Nothing was changed; copy it into a project, as .kg/knowledge.db, and repair it there",
    )
}

fn no_project(root: &Path) -> Error {
    Error::new(
        Code::NoProject,
        format!(
            "{} is not a knowledge-graph project: it has no {STATE_DIR} directory",
            root.display()
        ),
        "Run it inside a project, or name one with `projectRoot`",
    )
}
