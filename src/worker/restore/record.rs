//! The record of a restore, which makes it possible to undo the restore.

use std::{io, path::Path, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    json_list,
    texts::{MoreTexts, TextId, Texts},
};
use crate::{error::Result, util::atomic_file};

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
    pub files: Touches,
    /// Directories that were created, parents first.
    pub made: Vec<MadeDir>,
    /// Directories that were removed, parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<MadeDir>,
    /// The graph database, if it lies outside the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<std::path::PathBuf>,
    /// The id that the restore gave the project. An undo takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought_id: Option<String>,
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

/// A list of [`Touched`], in little memory.
#[derive(Debug, Clone, Default)]
pub struct Touches {
    texts: MoreTexts,
    rows: Vec<TouchedRow>,
}

/// The numbers of the texts of a [`Touched`].
#[derive(Debug, Clone, Copy)]
pub struct TouchedRow {
    pub path: TextId,
    pub kept: Option<TextId>,
    pub database: bool,
}

impl Touches {
    /// Creates an empty list with room for `count` rows, which may use these texts.
    pub fn after(texts: Arc<Texts>, count: usize) -> Self {
        Touches {
            texts: MoreTexts::after(texts),
            rows: Vec::with_capacity(count),
        }
    }

    pub fn text(&mut self, text: &str) -> Result<TextId> {
        self.texts.push(text)
    }

    pub fn push(&mut self, row: TouchedRow) {
        self.rows.push(row);
    }

    fn add(&mut self, touched: &Touched) -> Result<()> {
        let path = self.text(&touched.path)?;
        let kept = match touched.kept.as_deref() {
            Some(kept) if kept == touched.path => Some(path),
            Some(kept) => Some(self.text(kept)?),
            None => None,
        };
        let database = touched.database;
        self.push(TouchedRow {
            path,
            kept,
            database,
        });
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = Touched> + '_ {
        self.rows.iter().map(|row| Touched {
            path: self.texts.get(row.path).to_string(),
            kept: row.kept.map(|kept| self.texts.get(kept).to_string()),
            database: row.database,
        })
    }

    /// Returns the rows, and the path of one.
    pub fn rows(&self) -> impl Iterator<Item = (&TouchedRow, &str)> + '_ {
        let rows = self.rows.iter();
        rows.map(|row| (row, self.texts.get(row.path)))
    }

    /// Returns the texts and the rows that refer to them.
    pub fn into_parts(self) -> Result<(Arc<Texts>, Vec<TouchedRow>)> {
        Ok((self.texts.into_shared()?, self.rows))
    }
}

impl Serialize for Touches {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Touches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json_list::collect(deserializer, "a list of files", Touches::add)
    }
}

impl Record {
    pub fn new(of: String, files: Touches) -> Self {
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
            brought_id: None,
        }
    }

    /// Writes the record into the directory of the kept files, and a file that keeps all of it out
    /// of a git repository.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let ignore = dir.join(atomic_file::GITIGNORE);
        if !ignore.exists() {
            atomic_file::write(&ignore, b"*\n")?;
        }
        let path = dir.join(RECORD_FILE);
        atomic_file::write_orders(&path, |out| {
            serde_json::to_writer_pretty(out, self).map_err(io::Error::from)
        })
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
