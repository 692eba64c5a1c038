//! What a backup compares with: the files of the one that it rests on, or for a full one, of the newest.
//!
//! The client writes it to a file, for it can be longer than a frame; the reader reads it.

use std::{collections::HashMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    archive::manifest::{Blocks, FileRecord, Manifest, Storage},
    error::{Code, Error, Result, WarningCode},
    sqlite::{
        check::{Depth, IntegrityStatus},
        page_hashes::{BlockHashes, DatabaseHashes, PageFile},
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaselineFile {
    files: Vec<FileRecord>,
    /// The name of a [`PageFile`] of its databases, in the same directory.
    page_hashes: String,
    /// The check of its databases found nothing, not even rows that a later backup has to warn of again.
    sound: bool,
    /// The check read full-text indexes too.
    full_text: bool,
    /// What is as it was there is left out: the backup is incremental.
    leave_out: bool,
}

impl BaselineFile {
    /// The files that `manifest` describes, each with the digest of its content.
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

/// A base, ready to be asked.
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
        let wrong = || {
            Error::new(
                Code::Internal,
                "What the backup rests on cannot be read",
                "Please report this",
            )
        };
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

    /// Whether the backup leaves out what is as it was there.
    pub fn leaves_out(&self) -> bool {
        self.leave_out
    }

    /// How far its databases were checked, if nothing was wrong. For a backup that leaves nothing out only a check of all counts.
    pub fn sound(&self) -> Option<Depth> {
        self.sound
    }

    /// Of the database that is at `path` in the base.
    pub fn hashes(&self, path: &str) -> Option<&DatabaseHashes> {
        self.file(path)?;
        self.databases.databases.get(path)
    }

    /// Whether a file of that content would be the same there.
    pub fn has(&self, path: &str, size: u64, sha256: &str) -> bool {
        self.file(path)
            .is_some_and(|record| record.size == size && record.sha256.as_deref() == Some(sha256))
    }

    /// The SHA-256, hexadecimal, of a database there, if it is of these blocks. What is kept of its pages must say the same as the manifest, which
    /// nothing else guards.
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

    /// Whether the directory or link of `record` is the same there.
    pub fn has_node(&self, record: &FileRecord) -> bool {
        self.files.get(&record.path) == Some(record)
    }

    /// Whether a database there has the size and the time of `record`, and it can be told by blocks of that size whether it is the same.
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

    /// What lies at a path there: a file, directory or link.
    pub fn at(&self, path: &str) -> Option<&FileRecord> {
        self.files.get(path)
    }

    /// All that lies below a directory there, in the order of its paths.
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

    /// The size of a file there.
    pub fn size(&self, path: &str) -> Option<u64> {
        self.file(path).map(|record| record.size)
    }

    fn file(&self, path: &str) -> Option<&FileRecord> {
        self.files.get(path).filter(|record| record.kind.is_file())
    }
}
