//! The description inside an archive: the manifest of the guide, and what a restore needs in
//! addition.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::errors::not_a_backup;
use crate::{
    error::{Code, Error, Result, Warning},
    project::Component,
    sqlite::{check::Integrity, page_hashes::BlockHashes},
    util::limits::{bounded, bounded_map},
};

/// The format that this release writes. A release refuses archives with a newer major version.
pub const FORMAT_VERSION: &str = "1.0.0";
const FORMAT_MAJOR: u64 = 1;

/// Name of the manifest's entry, the last but one in the archive.
pub const MANIFEST_ENTRY: &str = "manifest.json";
/// Name of the entry that `sha256sum -c` reads, the last one in the archive.
pub const CHECKSUMS_ENTRY: &str = "checksums.sha256";
/// Prefix of the hexadecimal digests in `checksums`, as in the guide.
pub const DIGEST_PREFIX: &str = "sha256:";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// Everything below `.kg/` that the options select.
    Full,
    /// Only the graph database.
    Snapshot,
    /// The differences from an earlier backup, see [`Manifest::based_on`].
    Incremental,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the format, see [`FORMAT_VERSION`].
    pub version: String,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// Time at which the backup began.
    pub timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub contents: Contents,
    pub stats: Stats,
    /// Maps each file entry, except the manifest and the checksums, to `sha256:` and its
    /// hexadecimal digest.
    #[serde(deserialize_with = "bounded_map")]
    pub checksums: BTreeMap<String, String>,
    /// One record per entry, in the order of the archive. An item that has not changed since the
    /// base has a record but no entry.
    #[serde(deserialize_with = "bounded")]
    pub files: Vec<FileRecord>,
    /// Result of the integrity check of the source databases, which looks for what `quick_check`
    /// finds.
    pub integrity: Integrity,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub warnings: Vec<Warning>,
    /// The base of an incremental backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub based_on: Option<String>,
    /// Digest of the base's archive, with its prefix. A different archive with the same name cannot
    /// be the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub based_on_checksum: Option<String>,
    /// Paths of the base that no longer exist.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub deleted: Vec<String>,
    /// The incremental backup that this full backup was consolidated from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consolidated_from: Option<String>,
    /// The backup was made before a repair, of the data that was about to be repaired.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub safety_backup: bool,
    /// The backup lacks a part of the project, or may contain half of a change. `warnings` has the
    /// details.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// The graph database has 0 bytes, or has no table although an earlier good backup of the
    /// project has some.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emptied: bool,
    /// Set only in the sidecar of an encrypted archive, see [`Manifest::public_sidecar`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Set only inside an encrypted archive: the public keys that it was encrypted to, sorted. The
    /// list is empty if the archive was encrypted with a passphrase.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub recipients: Vec<String>,
    /// Compression of the archive, such as `gzip -6`. Absent if it is not compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// Digest of the project's location, which distinguishes projects that share a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    pub tool: Tool,
    /// Set only in a sidecar, because an archive cannot contain its own digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveRecord>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub database: bool,
    pub config: bool,
    pub vectors: bool,
    pub plugins: bool,
}

impl Contents {
    pub fn has(&self, component: Component) -> bool {
        match component {
            Component::Database => self.database,
            Component::Config => self.config,
            Component::Vectors => self.vectors,
            Component::Plugins => self.plugins,
            // These files have no flag of their own, so any backup may contain some.
            Component::Files => true,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Number of files, without directories, links, the manifest and the checksums.
    pub total_files: u64,
    /// Size of those files in bytes, as they are restored.
    pub total_size: u64,
    /// In a sidecar, the size of the archive. Inside the archive, the number of bytes before the
    /// manifest.
    pub compressed_size: u64,
    pub node_count: u64,
    pub edge_count: u64,
    /// Number of tables in the graph database, without SQLite's own. Absent if it could not be
    /// read, and in manifests of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_count: Option<u64>,
}

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
}

impl Storage {
    fn is_whole(&self) -> bool {
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
    /// Name of the entry in the archive.
    pub entry: String,
    /// How the content is stored. Absent if the entry holds all of it.
    #[serde(default, skip_serializing_if = "Storage::is_whole")]
    pub stored: Storage,
    /// Hexadecimal digest of the content as it is restored. Absent if `stored` is absent, because
    /// the digest of the entry is then the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Set for a database whose entry holds pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Pages>,
    /// Blocks of a database as it is restored. Absent if SQLite could not read the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
    /// Original path relative to the project's root, as [`crate::project::names`] writes it.
    pub path: String,
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
}

impl FileRecord {
    /// Returns the size of the entry, or `None` if the archive has no entry for this record.
    pub fn entry_size(&self) -> Option<u64> {
        match (self.stored, &self.pages) {
            (Storage::Full, _) => Some(self.size),
            (Storage::Unchanged, _) | (Storage::Delta, None) => None,
            (Storage::Delta, Some(pages)) => {
                Some(super::delta::size_bytes(pages.page_size, pages.changed))
            }
        }
    }
}

/// User id and group id. They are stored only in the tar header, for users who unpack with `tar` as
/// root.
pub type Owner = (u32, u32);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    pub name: String,
    pub version: String,
}

impl Tool {
    pub fn this() -> Self {
        Tool {
            name: env!("CARGO_PKG_NAME").to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        }
    }
}

/// The archive as a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRecord {
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Hexadecimal digest of the file.
    pub sha256: String,
    /// Root of the blocks in hexadecimal, see [`super::block_digest`]. Absent for an archive
    /// without blocks, for an encrypted archive, and if the sidecar was rebuilt from the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl Manifest {
    /// Parses a manifest. `name` is used in messages. Fails with `KG_FORMAT_NEWER` if the format is
    /// unknown to this release, and with `KG_NOT_A_BACKUP` if the manifest is not valid.
    pub fn parse(json: &[u8], name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: String,
        }
        let invalid = |cause: serde_json::Error| {
            not_a_backup(format!("The manifest of {name} cannot be read")).with_cause(cause)
        };
        let Versioned { version } = serde_json::from_slice(json).map_err(invalid)?;
        let major = version
            .split('.')
            .next()
            .and_then(|major| major.parse::<u64>().ok());
        if major.is_none_or(|major| major > FORMAT_MAJOR) {
            return Err(Error::new(
                Code::FormatNewer,
                format!(
                    "{name} has format {version}; this release reads formats up to {FORMAT_MAJOR}.x"
                ),
                "Update @weavelogic/knowledge-graph-agent, or unpack a full backup with `tar -xzf`",
            ));
        }
        serde_json::from_slice(json).map_err(invalid)
    }

    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self)
            .unwrap_or_else(|_| unreachable!("a manifest has no map with odd keys"));
        json.push(b'\n');
        json
    }

    /// Returns the manifest as it is inside the archive.
    pub fn without_archive(&self) -> Self {
        Manifest {
            archive: None,
            ..self.clone()
        }
    }

    /// Returns the sidecar for an encrypted archive, which does not name or quote anything inside
    /// it.
    pub fn public_sidecar(&self) -> Self {
        Manifest {
            encrypted: true,
            description: None,
            checksums: BTreeMap::new(),
            files: Vec::new(),
            integrity: Integrity {
                messages: Vec::new(),
                not_checked: Vec::new(),
                ..self.integrity.clone()
            },
            warnings: Vec::new(),
            deleted: Vec::new(),
            recipients: Vec::new(),
            ..self.clone()
        }
    }

    /// Returns the paths of all databases.
    pub fn databases(&self) -> HashSet<&str> {
        self.files
            .iter()
            .filter(|record| record.database)
            .map(|record| record.path.as_str())
            .collect()
    }

    /// Returns the hexadecimal digest of a file as it is restored.
    pub fn content_digest<'a>(&'a self, record: &'a FileRecord) -> Option<&'a str> {
        match record.stored {
            Storage::Full => self.digest_of(&record.entry),
            Storage::Unchanged | Storage::Delta => record.sha256.as_deref(),
        }
    }

    /// Returns the hexadecimal digest that `checksums` gives for an entry.
    pub fn digest_of(&self, entry: &str) -> Option<&str> {
        self.checksums.get(entry)?.strip_prefix(DIGEST_PREFIX)
    }
}

/// Returns the text of `checksums.sha256`, in the format of `sha256sum`. `digests` must be in the
/// order of the archive.
pub fn checksums_text<'a>(digests: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (entry, digest) in digests {
        // `sha256sum` starts a line with a backslash if it escapes the name on that line.
        if entry.contains(['\\', '\n', '\r']) {
            let escaped = entry
                .replace('\\', "\\\\")
                .replace('\n', "\\n")
                .replace('\r', "\\r");
            text.push_str(&format!("\\{digest}  {escaped}\n"));
        } else {
            text.push_str(&format!("{digest}  {entry}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_major_format_is_refused_before_anything_else_is_read() {
        let error =
            Manifest::parse(br#"{"version":"2.0.0","files":"of another shape"}"#, "a").unwrap_err();
        assert_eq!(error.code, Code::FormatNewer);
        let error = Manifest::parse(br#"{"version":"1.7.0"}"#, "a").unwrap_err();
        assert_eq!(error.code, Code::NotABackup);
        assert_eq!(
            Manifest::parse(b"{}", "a").unwrap_err().code,
            Code::NotABackup
        );
    }

    #[test]
    fn names_with_backslashes_and_line_ends_are_escaped_as_sha256sum_does() {
        assert_eq!(
            checksums_text([("a b", "00"), ("c\\d\ne", "11")]),
            "00  a b\n\\11  c\\\\d\\ne\n"
        );
    }
}
