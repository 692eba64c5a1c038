//! The records of a backup: one for each saved file, directory or link.

use std::{borrow::Cow, cmp::Ordering};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    project::{Component, names::path_order},
    sqlite::page_hashes::BlockHashes,
    util::digest::Sha256Digest,
};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    #[default]
    File,
    Directory,
    /// A symbolic link.
    Link,
}

impl EntryKind {
    pub fn is_file(&self) -> bool {
        *self == EntryKind::File
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Storage {
    #[default]
    #[serde(rename = "whole")]
    Full,
    /// The file is as in the base, and the archive has no entry for it.
    #[serde(rename = "base")]
    Unchanged,
    /// The entry holds the pages that differ from the base, see [`super::delta`].
    #[serde(rename = "pages")]
    Delta,
    /// The base has the file, and this backup does not.
    #[serde(rename = "deleted")]
    Deleted,
}

impl Storage {
    fn is_full(&self) -> bool {
        *self == Storage::Full
    }
}

/// The pages that an entry holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pages {
    /// Size of a page in bytes.
    pub page_size: u64,
    /// Number of pages that the entry holds.
    pub changed: u64,
    /// Root of the whole database, see [`crate::sqlite::page_hashes`].
    pub root: String,
}

/// Identifies the content of a database by the hashes of its blocks, which are counted from its
/// first byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Size in bytes of each block except the last.
    pub size: u64,
    /// Root of the blocks, see [`crate::sqlite::page_hashes`].
    pub root: String,
}

impl From<&BlockHashes> for Blocks {
    fn from(hashes: &BlockHashes) -> Self {
        Blocks {
            size: hashes.block_bytes,
            root: hashes.root(),
        }
    }
}

/// One saved file, directory or link. Only a file has a size and a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileRecord {
    /// Original path relative to the project's root, as [`crate::project::names`] writes it.
    pub path: String,
    /// Name of the entry in the archive.
    pub entry: String,
    pub component: Component,
    /// Absent for a file.
    #[serde(rename = "type", default, skip_serializing_if = "EntryKind::is_file")]
    pub kind: EntryKind,
    /// Target of a link, written like `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The file is a SQLite database. It is restored without the WAL, journal or index of another
    /// database.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub database: bool,
    /// Size in bytes as it is restored.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub mtime: Timestamp,
    /// Digest of a file as it is restored. Absent for a database of which a backup stored pages:
    /// `blocks` identifies its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256Digest>,
    /// Blocks of a database as it is restored. Absent if SQLite could not read the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Box<Blocks>>,
    /// How the archive stores the content. Absent if its entry holds all of it.
    #[serde(default, skip_serializing_if = "Storage::is_full")]
    pub stored: Storage,
    /// Set for a database whose entry holds pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Box<Pages>>,
}

impl FileRecord {
    /// Returns the size of the entry, or `None` if the archive has no entry for this record.
    pub fn entry_size(&self) -> Option<u64> {
        match (self.stored, &self.pages) {
            (Storage::Full, _) => Some(self.size),
            (Storage::Unchanged | Storage::Deleted, _) | (Storage::Delta, None) => None,
            (Storage::Delta, Some(pages)) => {
                Some(super::delta::size_bytes(pages.page_size, pages.changed))
            }
        }
    }

    /// Returns whether the record identifies the content of a file.
    pub fn has_content(&self) -> bool {
        self.sha256.is_some() || self.blocks.is_some()
    }

    /// Returns whether both are of the same kind, and files are known to have the same content.
    pub fn has_content_of(&self, other: &FileRecord) -> bool {
        self.kind == other.kind
            && match (self.sha256, other.sha256) {
                (Some(own), Some(other)) => own == other,
                _ if self.kind.is_file() => self.blocks.is_some() && self.blocks == other.blocks,
                _ => true,
            }
    }

    /// Returns the record without how an archive stores the content.
    pub fn state(&self) -> Cow<'_, FileRecord> {
        if self.stored == Storage::Full && self.pages.is_none() {
            return Cow::Borrowed(self);
        }
        Cow::Owned(FileRecord {
            stored: Storage::Full,
            pages: None,
            ..self.clone()
        })
    }

    pub fn into_state(self) -> FileRecord {
        FileRecord {
            stored: Storage::Full,
            pages: None,
            ..self
        }
    }

    /// Compares the places of two records in a list.
    pub fn order(&self, other: &FileRecord) -> Ordering {
        self.compare(other.component, &other.path)
    }

    /// Compares the place of the record with that of a component and path: by component, then by
    /// path.
    pub fn compare(&self, component: Component, path: &str) -> Ordering {
        let components = self.component.cmp(&component);
        components.then_with(|| path_order(&self.path, path))
    }
}

/// User id and group id. They are stored only in the tar header, for users who unpack with `tar` as
/// root.
pub type Owner = (u32, u32);
