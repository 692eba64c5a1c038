//! What a restore is about to do, written down before it begins, so that a kill at any instant leaves a project that the
//! next run makes whole again.
//!
//! The journal lists every change in order. Until it says `decided`, everything in it is taken back: directories and
//! renames. From then on a database may have its new content; if one has, the rest is done too ([`super::transaction`]).

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

/// All places are locations, see [`super::target`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The renames are made, and the first commit may be: once one is, this restore is carried to its end.
    pub decided: bool,
    /// Part of the names of temporary files: no other restore has the same.
    pub token: String,
    /// Where the backup was unpacked, with a slash.
    pub staging: Option<String>,
    /// Directories that this user must make writable for the changes, with the permissions that they get back.
    #[serde(default)]
    pub opened: Vec<MadeDir>,
    /// Directories that do not exist yet, parents first.
    pub made: Vec<MadeDir>,
    /// In order.
    pub moves: Vec<Move>,
    /// Live databases that get their new content through SQLite.
    pub swaps: Vec<Swapped>,
    /// Where what is replaced is kept, and what is to be written there.
    pub undo: Option<(String, Record)>,
    /// What goes when all is done: the directory of the restore that this one undoes.
    pub retired: Option<String>,
    /// Directories that go if nothing is in them by then.
    pub emptied: Vec<String>,
    /// The graph database, where it lies outside the project.
    pub outside: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: String,
    pub to: String,
    /// Device and inode of what is moved, by which it is known again.
    pub identity: (u64, u64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Swapped {
    /// Holds the new content.
    pub new: String,
    pub live: String,
    /// Gets what the live database held; there once the new content is committed.
    pub kept: String,
    /// What becomes `kept`, until then: in a directory of its own, where nothing of a project is kept.
    pub pending: String,
    /// Digest of the new content, once it is decided: a recovery puts nothing else into the live database. Absent in journals of
    /// older releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl Swapped {
    /// What becomes `pending`, until it is whole.
    pub fn growing(&self) -> String {
        format!("{}~", self.pending)
    }
}

/// Whether a restore was interrupted, or is at work. Asks for a path only, so a host may call it.
pub fn is_pending(state: &Path) -> bool {
    state.join(JOURNAL_FILE).exists()
}

pub fn path(root: &Path) -> PathBuf {
    root.join(STATE_DIR).join(JOURNAL_FILE)
}

/// Writes the journal, durably.
pub fn write(root: &Path, intent: &Intent) -> Result<()> {
    let path = path(root);
    let json = serde_json::to_vec(intent)
        .map_err(|cause| Error::io("write", &path, io::Error::other(cause)))?;
    atomic_file::write_orders(&path, &json)
}

/// The journal of an interrupted restore. `KG_UNSAFE_FILE` if another user could have written it: what it says is carried out.
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
                "{} cannot be read: it is not what an interrupted restore left",
                path.display()
            ),
            format!("Look for the old files in {STATE_DIR}/{UNDO_DIR}, then remove it"),
        )
        .with_cause(cause)
    })
}

/// The restore is complete, or was taken back.
pub fn end(root: &Path) -> Result<()> {
    let path = path(root);
    atomic_file::remove(&path)?;
    atomic_file::sync_parent(&path)
}
