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
    util::digest::Sha256Digest,
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

/// A baseline that was read into memory for lookups.
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
        let page_hashes = PageFile::read(open(&base.page_hashes)?)
            .map_err(|cause| Error::io("read", path, cause))?
            .ok_or_else(wrong)?;
        let known_files = match base.known_files {
            Some((name, expected)) => {
                Some(KnownFiles::open(&path.with_file_name(name), expected).ok_or_else(wrong)?)
            }
            None => None,
        };
        let databases = base.databases.into_iter();
        let depth = if base.full_text {
            Depth::All
        } else {
            Depth::Structure
        };
        let is_enough = depth == Depth::All || known_files.is_some();
        Ok(Baseline {
            databases: databases
                .map(|record| (record.path.clone(), record))
                .collect(),
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
        self.databases.get(path)?;
        self.page_hashes.databases.get(path)
    }

    /// Returns whether the baseline has a database with the same path, size and digest.
    pub fn has(&self, path: &str, size: u64, sha256: Option<Sha256Digest>) -> bool {
        let has = |record: &FileRecord| record.size == size && record.sha256 == sha256;
        sha256.is_some() && self.databases.get(path).is_some_and(has)
    }

    /// Returns the SHA-256 of a database in the baseline if it consists of these blocks. The stored
    /// page hashes must contain the same digest as the list of files, because nothing else protects
    /// them.
    pub fn digest(&self, path: &str, size: u64, blocks: &BlockHashes) -> Option<Sha256Digest> {
        let same = |record: &&FileRecord| {
            record.size == size && record.blocks.as_deref() == Some(&Blocks::from(blocks))
        };
        let digest = self.databases.get(path).filter(same)?.sha256;
        let kept = self.hashes(path)?.sha256;
        digest.filter(|digest| kept == Some(*digest))
    }

    /// Returns whether a database in the baseline has the size and time of `record` and can be
    /// compared by blocks of `block_bytes`.
    pub fn looks_like(&self, record: &FileRecord, block_bytes: usize) -> bool {
        let looks = |base: &FileRecord| (base.size, base.mtime) == (record.size, record.mtime);
        let has_blocks = |base: &FileRecord| {
            let blocks = base.blocks.as_ref();
            blocks.is_some_and(|blocks| blocks.size == block_bytes as u64)
        };
        let is_told = self
            .hashes(&record.path)
            .is_some_and(|hashes| hashes.sha256.is_some());
        let base = self.databases.get(&record.path);
        is_told && base.is_some_and(|base| looks(base) && has_blocks(base))
    }
}
