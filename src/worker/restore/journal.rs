//! The journal of a restore. It is written before the restore begins, so that the next run can
//! recover the project after a kill at any instant.
//!
//! The journal lists every change in order. Until it says `decided`, recovery rolls back everything
//! in it: directories and renames. From then on a database may have its new content. If one has,
//! recovery completes the rest too ([`super::transaction`]).

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::record::{MadeDir, Record};
use crate::{
    archive::reader::MAX_TEXT_BYTES,
    error::{Code, Error, Result},
    project::{STATE_DIR, UNDO_DIR, exclude::JOURNAL_FILE},
    util::{atomic_file, regular_file},
};

/// The changes of one restore. All paths are locations, see [`super::target`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The renames are made, and the first commit may have happened. Once a database is committed,
    /// recovery completes this restore.
    pub decided: bool,
    /// Part of the names of temporary files, unique to this restore.
    pub token: String,
    /// The location where the backup was unpacked, with a trailing slash.
    pub staging: Option<String>,
    /// Directories that this user must make writable for the changes, with their original
    /// permissions.
    #[serde(default)]
    pub opened: Vec<MadeDir>,
    /// Directories that do not exist yet, parents first.
    pub made: Vec<MadeDir>,
    /// Renames, in the order in which they are made.
    pub moves: Vec<Move>,
    /// Live databases that get their new content through SQLite.
    pub swaps: Vec<Swapped>,
    /// The location that keeps the replaced files, and the record to write there.
    pub undo: Option<(String, Record)>,
    /// The location to remove when everything is done: the directory of the restore that this one
    /// undoes.
    pub retired: Option<String>,
    /// Directories to remove if they are empty at the end.
    pub emptied: Vec<String>,
    /// The graph database, if it lies outside the project.
    pub outside: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: String,
    pub to: String,
    /// Device and inode of the moved file, which identify it later.
    pub identity: (u64, u64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Swapped {
    /// The location of the new content.
    pub new: String,
    pub live: String,
    /// The location of the previous content of the live database. It exists once the new content is
    /// committed.
    pub kept: String,
    /// The location of the previous content until then. It has a separate directory that keeps no
    /// file of a project.
    pub pending: String,
    /// The digest of the new content, set when `decided` is set. Recovery puts no other content
    /// into the live database. Journals of older releases do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl Swapped {
    /// Returns the location of the copy that becomes `pending` once it is complete.
    pub fn growing(&self) -> String {
        format!("{}~", self.pending)
    }
}

/// Returns whether a restore was interrupted or is running. A host may call this function because
/// it only looks up a path and opens no file.
pub fn is_pending(state: &Path) -> bool {
    state.join(JOURNAL_FILE).exists()
}

pub fn path(root: &Path) -> PathBuf {
    root.join(STATE_DIR).join(JOURNAL_FILE)
}

/// Writes the journal durably.
pub fn write(root: &Path, intent: &Intent) -> Result<()> {
    let path = path(root);
    let json = serde_json::to_vec(intent)
        .map_err(|cause| Error::io("write", &path, io::Error::other(cause)))?;
    atomic_file::write_orders(&path, &json)
}

/// Reads the journal of an interrupted restore. Returns `KG_UNSAFE_FILE` if another user could have
/// written it, because recovery carries out its contents.
pub fn read(root: &Path) -> Result<Option<Intent>> {
    let path = path(root);
    let read = regular_file::read_orders(&path, MAX_TEXT_BYTES).map_err(|error| Error {
        message: format!(
            "An earlier restore may have been interrupted: {}",
            error.message
        ),
        ..error
    })?;
    let Some(json) = read else { return Ok(None) };
    serde_json::from_slice(&json).map(Some).map_err(|cause| {
        Error::new(
            Code::TargetInvalid,
            format!(
                "{} cannot be read: it is not the journal of an interrupted restore",
                path.display()
            ),
            format!("Look for the old files in {STATE_DIR}/{UNDO_DIR}, then remove it"),
        )
        .with_cause(cause)
    })
}

/// Removes the journal after the restore was completed or rolled back.
pub fn end(root: &Path) -> Result<()> {
    let path = path(root);
    atomic_file::remove(&path)?;
    atomic_file::sync_parent(&path)
}
