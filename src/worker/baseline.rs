//! The baseline of a backup: the files of its base, or of the newest backup if it is a full backup.
//!
//! The client passes the baseline to the worker in a file because it can be larger than a frame.

use std::{collections::HashMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    archive::manifest::{Blocks, FileRecord, Manifest, Storage},
    error::{Error, Result, WarningCode},
    sqlite::{
        check::{Depth, IntegrityStatus},
        page_hashes::{BlockHashes, DatabaseHashes, PageFile},
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaselineFile {
    files: Vec<FileRecord>,
    /// The name of a [`PageFile`] of the databases in the baseline, in the same directory.
    page_hashes: String,
    /// The check of the databases in the baseline found nothing, not even rows that a later backup
    /// would have to warn about again.
    sound: bool,
    /// The check also read full-text indexes.
    full_text: bool,
    /// Skips entries that have not changed since the base, because the backup is incremental.
    leave_out: bool,
}

impl BaselineFile {
    /// Describes the files of `manifest`, each with the digest of its content.
    pub fn new(manifest: &Manifest, page_hashes: String, leave_out: bool) -> Self {
        let described = |record: &FileRecord| FileRecord {
            sha256: manifest.content_digest(record).map(str::to_string),
            stored: Storage::Full,
            pages: None,
            ..record.clone()
        };
        let warns_of_rows = manifest
            .warnings
            .iter()
            .any(|warning| warning.code == WarningCode::Constraint);
        BaselineFile {
            files: manifest.files.iter().map(described).collect(),
            page_hashes,
            sound: manifest.integrity.status == IntegrityStatus::Ok && !warns_of_rows,
            full_text: manifest.integrity.full_text,
            leave_out,
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
    files: HashMap<String, FileRecord>,
    databases: PageFile,
    sound: Option<Depth>,
    leave_out: bool,
}

impl Baseline {
    pub fn read(path: &Path) -> Result<Self> {
        let json = fs::read(path).map_err(|cause| Error::io("read", path, cause))?;
        let wrong = || Error::internal("The data of the base backup cannot be read");
        let base: BaselineFile =
            serde_json::from_slice(&json).map_err(|cause| wrong().with_cause(cause))?;
        let hashes = path.with_file_name(&base.page_hashes);
        let read = fs::File::open(&hashes).and_then(PageFile::read);
        let databases = read
            .map_err(|cause| Error::io("read", &hashes, cause))?
            .ok_or_else(wrong)?;
        let files = base
            .files
            .into_iter()
            .map(|record| (record.path.clone(), record))
            .collect();
        let depth = if base.full_text {
            Depth::All
        } else {
            Depth::Structure
        };
        let is_enough = depth == Depth::All || base.leave_out;
        let sound = (base.sound && is_enough).then_some(depth);
        Ok(Baseline {
            files,
            databases,
            sound,
            leave_out: base.leave_out,
        })
    }

    /// Returns whether the backup skips entries that have not changed since the base.
    pub fn leaves_out(&self) -> bool {
        self.leave_out
    }

    /// Returns how far the databases of the baseline were checked, or `None` if the check found a
    /// problem. For a full backup, only a check that included full-text indexes counts.
    pub fn sound(&self) -> Option<Depth> {
        self.sound
    }

    /// Returns the page hashes of the database at `path` in the baseline.
    pub fn hashes(&self, path: &str) -> Option<&DatabaseHashes> {
        self.file(path)?;
        self.databases.databases.get(path)
    }

    /// Returns whether the baseline has a file with the same path, size and digest.
    pub fn has(&self, path: &str, size: u64, sha256: &str) -> bool {
        self.file(path)
            .is_some_and(|record| record.size == size && record.sha256.as_deref() == Some(sha256))
    }

    /// Returns the SHA-256 (hexadecimal) of a database in the baseline if it consists of these
    /// blocks. The stored page hashes must contain the same digest as the manifest, because nothing
    /// else protects them.
    pub fn digest(&self, path: &str, size: u64, blocks: &BlockHashes) -> Option<&str> {
        let same = |record: &&FileRecord| {
            record.size == size && record.blocks == Some(Blocks::from(blocks))
        };
        let digest = self.file(path).filter(same)?.sha256.as_deref();
        digest.filter(|digest| {
            self.hashes(path)
                .is_some_and(|hashes| hashes.sha256 == *digest)
        })
    }

    /// Returns whether the baseline has the same directory or link as `record`.
    pub fn has_node(&self, record: &FileRecord) -> bool {
        self.files.get(&record.path) == Some(record)
    }

    /// Returns whether a database in the baseline has the size and time of `record` and can be
    /// compared by blocks of `block_bytes`.
    pub fn looks_like(&self, record: &FileRecord, block_bytes: usize) -> bool {
        let looks = |base: &FileRecord| (base.size, base.mtime) == (record.size, record.mtime);
        let has_blocks = |base: &FileRecord| {
            base.blocks
                .as_ref()
                .is_some_and(|blocks| blocks.size == block_bytes as u64)
        };
        let is_told = self
            .hashes(&record.path)
            .is_some_and(|hashes| !hashes.sha256.is_empty());
        is_told
            && self
                .file(&record.path)
                .is_some_and(|base| looks(base) && has_blocks(base))
    }

    /// Returns the file, directory or link at `path` in the baseline.
    pub fn at(&self, path: &str) -> Option<&FileRecord> {
        self.files.get(path)
    }

    /// Returns all entries below a directory in the baseline, sorted by path.
    pub fn below(&self, path: &str) -> Vec<&FileRecord> {
        let is_below = |found: &str| {
            found
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        let mut found: Vec<&FileRecord> = self
            .files
            .values()
            .filter(|record| is_below(&record.path))
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    /// Returns the size of a file in the baseline, in bytes.
    pub fn size(&self, path: &str) -> Option<u64> {
        self.file(path).map(|record| record.size)
    }

    fn file(&self, path: &str) -> Option<&FileRecord> {
        self.files.get(path).filter(|record| record.kind.is_file())
    }
}
