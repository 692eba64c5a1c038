//! What a project holds: where its parts lie, which of them a backup takes.
//!
//! A project is the directory that holds `.kg/`. [`Project`] itself only asks for paths (`stat`), so a host process may
//! use it, and [`names`]. [`database_path`], [`discover`] and [`same_file`] open files of the live project: only the reader may
//! call them (`src/worker`).

pub mod database_path;
pub mod discover;
pub mod exclude;
pub mod json;
pub mod names;
pub mod pattern;
pub mod same_file;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use crate::system::paths::{STAGING_PREFIX, STATE_DIR};
use crate::{
    error::{Code, Error, Result},
    system::paths::resolve,
    util::hex::hex,
};

/// The configuration, below the state directory.
pub const CONFIG_FILE: &str = "config.json";
/// What is called and run after a backup, below the state directory. It belongs to this place: no backup holds it.
pub const HOOKS_FILE: &str = "hooks.json";
/// The database where the configuration names none, relative to the root.
pub const DEFAULT_DATABASE: &str = ".kg/knowledge.db";
/// Backups where no other directory is given, below the state directory.
pub const BACKUPS_DIR: &str = "backups";
/// What backups remember for the next one, below the state directory.
pub const PAGE_CACHE_DIR: &str = "cache/backup-pages";
/// What restores replaced, below the state directory.
pub const UNDO_DIR: &str = "restore-undo";

/// The parts that a backup may hold and a restore may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// The graph database.
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
    /// The project at `root`; `KG_NO_PROJECT` where that holds no `.kg/`.
    pub fn open(root: &Path) -> Result<Self> {
        let resolved = root
            .canonicalize()
            .map_err(|cause| no_project(root).with_cause(cause))?;
        if !resolved.join(STATE_DIR).is_dir() {
            return Err(no_project(root));
        }
        Ok(Project { root: resolved })
    }

    /// The nearest directory at or above `start` that holds `.kg/`, as `git` finds its repository.
    pub fn find_root(start: &Path) -> Option<PathBuf> {
        start
            .ancestors()
            .find(|dir| dir.join(STATE_DIR).is_dir())
            .map(Path::to_path_buf)
    }

    /// Absolute, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn state_dir(&self) -> PathBuf {
        self.root.join(STATE_DIR)
    }

    /// Tells projects apart that share a store, without naming them: a digest of where the project lies.
    pub fn id(&self) -> String {
        Project::id_at(&self.root)
    }

    /// The id of a project that lies at `root`, whether there is one or not.
    pub fn id_at(root: &Path) -> String {
        use std::os::unix::ffi::OsStrExt;
        hex(&Sha256::digest(resolve(root).as_os_str().as_bytes())[..8])
    }
}

fn no_project(root: &Path) -> Error {
    Error::new(
        Code::NoProject,
        format!(
            "{} is not a knowledge-graph project: it has no {STATE_DIR} directory",
            root.display()
        ),
        "Run it inside a project, or name one with `projectRoot` (`--project` on the command line)",
    )
}
