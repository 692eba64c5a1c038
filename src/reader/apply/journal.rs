//! What a restore is about to do, written down before it begins, so that a kill at any instant leaves a project that the
//! next run makes whole again.
//!
//! The journal lists every change in order. Until it says `decided`, everything in it can be taken back: directories
//! and renames. From then on the rest can be done again: the content of live databases, the record for undo. Both ways
//! look at what is there, so both can be killed and begun again.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::undo::Record;
use crate::{
    durable,
    error::{Code, Error, Result},
    project::{STATE_DIR, UNDO_DIR, exclude::JOURNAL_FILE},
};

/// All places are locations, see [`super::target`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The renames are made: whatever happens now, this restore is carried to its end.
    pub decided: bool,
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
    pub outside: Option<std::path::PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeDir {
    pub at: String,
    /// Permission bits; the usual ones where absent.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: Option<(i64, i64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: String,
    pub to: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Swapped {
    /// Holds the new content.
    pub new: String,
    pub live: String,
    /// Gets what the live database held; there once the new content is committed.
    pub kept: String,
}

impl Swapped {
    /// What becomes `kept`, until the commit.
    pub fn before(&self) -> String {
        format!("{}-before", self.kept)
    }
}

/// Whether a restore was interrupted, or is at work. Asks for a path only, so a host may call it.
pub fn is_pending(state: &Path) -> bool {
    state.join(JOURNAL_FILE).exists()
}

/// Writes the journal, durably.
pub fn write(root: &Path, intent: &Intent) -> Result<()> {
    let path = root.join(STATE_DIR).join(JOURNAL_FILE);
    let json = serde_json::to_vec(intent).map_err(|cause| Error::io("write", &path, io::Error::other(cause)))?;
    durable::write(&path, &json)
}

/// The journal of an interrupted restore.
pub fn read(root: &Path) -> Result<Option<Intent>> {
    let path = root.join(STATE_DIR).join(JOURNAL_FILE);
    let json = match fs::read(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|cause| Error::io("read", &path, cause))?,
    };
    serde_json::from_slice(&json).map(Some).map_err(|cause| {
        Error::new(
            Code::TargetInvalid,
            format!("{} cannot be read: it is not what an interrupted restore left", path.display()),
            format!("Look for the old files in {STATE_DIR}/{UNDO_DIR}, then remove it"),
        )
        .with_cause(cause)
    })
}

/// The restore is complete, or was taken back.
pub fn end(root: &Path) -> Result<()> {
    let path = root.join(STATE_DIR).join(JOURNAL_FILE);
    durable::remove(&path)?;
    durable::sync_parent(&path)
}
