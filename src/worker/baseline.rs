//! The baseline of a backup: what its base has, or the newest backup if this one is full.
//!
//! The client passes the baseline to the worker in files because it can be larger than a frame.

use std::{collections::HashMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::known_files::KnownFiles;
use crate::{
    archive::{
        file_list::FileListSummary,
        file_record::{Blocks, FileRecord},
        manifest::Manifest,
    },
    error::{Error, Result, WarningCode},
    sqlite::{
        check::{Depth, IntegrityStatus},
        page_hashes::{BlockHashes, DatabaseHashes, PageFile},
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaselineFile {
    databases: Vec<FileRecord>,
    /// The name of a [`PageFile`] of the databases, in the same directory.
    page_hashes: String,
    /// The [`KnownFiles`] of the base in the same directory, if the backup is incremental.
    known_files: Option<(String, FileListSummary)>,
    /// The check of the databases in the baseline found nothing, not even rows that a later backup
    /// would have to warn about again.
    sound: bool,
    /// The check also read full-text indexes.
    full_text: bool,
}

impl BaselineFile {
    /// Describes a backup for the next one. `databases` are the records of its databases.
    pub fn new(manifest: &Manifest, databases: Vec<FileRecord>, page_hashes: &str) -> Self {
        let warns_of_rows = manifest
            .warnings
            .iter()
            .any(|warning| warning.code == WarningCode::Constraint);
        BaselineFile {
            databases,
            page_hashes: page_hashes.to_string(),
            known_files: None,
            sound: manifest.integrity.status == IntegrityStatus::Ok && !warns_of_rows,
            full_text: manifest.integrity.full_text,
        }
    }

    /// Adds the list of files. What has not changed since is left out of the backup then.
    pub fn with_known_files(self, name: &str, expected: FileListSummary) -> Self {
        BaselineFile {
            known_files: Some((name.to_string(), expected)),
            ..self
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec(self)
            .map_err(|cause| Error::io("write", path, io::Error::other(cause)))?;
        fs::write(path, json).map_err(|cause| Error::io("write", path, cause))
    }
}

/// Returns whether the hashes can be those of the database that `record` describes. Nothing else
/// protects them.
fn are_of(hashes: &DatabaseHashes, record: &FileRecord) -> bool {
    let blocks = &hashes.blocks;
    blocks.block_bytes == 0 || record.blocks.as_deref() == Some(&Blocks::from(blocks))
}

/// A baseline that was opened for lookups.
#[derive(Debug)]
pub struct Baseline {
    databases: HashMap<String, FileRecord>,
    page_hashes: PageFile,
    /// `None` if the backup leaves nothing out.
    known_files: Option<KnownFiles>,
    sound: Option<Depth>,
}

impl Baseline {
    pub fn read(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(|cause| Error::io("read", path, cause))?;
        let wrong = || Error::internal("The data of the base backup cannot be read");
        let base: BaselineFile =
            serde_json::from_slice(&json).map_err(|cause| wrong().with_cause(cause))?;
        let open = |name: &str| {
            let path = path.with_file_name(name);
            fs::File::open(&path).map_err(|cause| Error::io("read", &path, cause))
        };
        let mut page_hashes = PageFile::open(open(&base.page_hashes)?)
            .map_err(|cause| Error::io("read", path, cause))?
            .ok_or_else(wrong)?;
        let known_files = match base.known_files {
            Some((name, expected)) => {
                Some(KnownFiles::open(&path.with_file_name(name), expected).ok_or_else(wrong)?)
            }
            None => None,
        };
        let databases = base.databases.into_iter();
        let databases: HashMap<_, _> = databases
            .map(|record| (record.path.clone(), record))
            .collect();
        page_hashes.databases.retain(|path, hashes| {
            let record = databases.get(path);
            record.is_some_and(|record| are_of(hashes, record))
        });
        let depth = if base.full_text {
            Depth::All
        } else {
            Depth::Structure
        };
        let is_enough = depth == Depth::All || known_files.is_some();
        Ok(Baseline {
            databases,
            page_hashes,
            known_files,
            sound: (base.sound && is_enough).then_some(depth),
        })
    }

    /// Returns the files of the base, if the backup leaves out what has not changed since.
    pub fn known_files(&self) -> Option<&KnownFiles> {
        self.known_files.as_ref()
    }

    /// Returns how far the databases of the baseline were checked, or `None` if the check found a
    /// problem. For a full backup, only a check that included full-text indexes counts.
    pub fn sound(&self) -> Option<Depth> {
        self.sound
    }

    /// Returns the page hashes of the database at `path` in the baseline.
    pub fn hashes(&self, path: &str) -> Option<&DatabaseHashes> {
        self.page_hashes.databases.get(path)
    }

    /// Returns the record of the database at `path`.
    pub fn database(&self, path: &str) -> Option<&FileRecord> {
        self.databases.get(path)
    }

    /// Returns the record of the database at `path` if it consists of these blocks.
    pub fn same_database(&self, path: &str, blocks: &BlockHashes) -> Option<&FileRecord> {
        let own = self.database(path)?.blocks.as_deref()?;
        (*own == Blocks::from(blocks)).then_some(self.database(path)?)
    }

    /// Returns whether a database in the baseline has the size and time of `record` and can be
    /// compared by blocks of `block_bytes`.
    pub fn looks_like(&self, record: &FileRecord, block_bytes: usize) -> bool {
        let looks = |base: &FileRecord| {
            let block_size = base.blocks.as_ref().map(|blocks| blocks.size);
            (base.size, base.mtime) == (record.size, record.mtime)
                && block_size == Some(block_bytes as u64)
        };
        self.hashes(&record.path).is_some() && self.database(&record.path).is_some_and(looks)
    }
}
