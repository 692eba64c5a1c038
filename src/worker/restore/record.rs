//! The record of a restore, which makes it possible to undo the restore.

use std::{io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    util::atomic_file,
};

pub const RECORD_FILE: &str = "undo.json";
pub const RECORD_VERSION: u32 = 1;

/// The changes that a restore or undo made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub version: u32,
    /// The restored backup. For an undo, the backup whose restore it undid.
    pub of: String,
    pub at: Timestamp,
    /// This is the record of an undo. An undo of an undo counts as a restore again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undo: bool,
    pub files: Vec<Touched>,
    /// Directories that were created, parents first.
    pub made: Vec<MadeDir>,
    /// Directories that were removed, parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<MadeDir>,
    /// The graph database, if it lies outside the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<std::path::PathBuf>,
}

/// A file that was replaced or added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// The location in the project.
    pub path: String,
    /// The previous file, below the directory of the record; `None` if there was no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub database: bool,
}

impl Record {
    pub fn new(of: String, files: Vec<Touched>) -> Self {
        let (at, version) = (Timestamp::now(), RECORD_VERSION);
        Record {
            version,
            of,
            at,
            undo: false,
            files,
            made: Vec::new(),
            taken: Vec::new(),
            outside: None,
        }
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(RECORD_FILE);
        let json = serde_json::to_vec_pretty(self)
            .map_err(|cause| Error::io("write", &path, io::Error::other(cause)))?;
        atomic_file::write_orders(&path, &json)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MadeDir {
    pub at: String,
    /// Permission bits; `None` means the usual ones.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: Option<(i64, i64)>,
}
