//! What an archive says of itself: the guide's manifest, and what a restore needs beyond it.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Code, Error, Result, Warning},
    project::Component,
    sqlite::{check::Integrity, page_hashes::BlockHashes},
    util::limits::{bounded, bounded_map},
};

/// The format that this release writes. A reader refuses a newer major one.
pub const FORMAT_VERSION: &str = "1.0.0";
const FORMAT_MAJOR: u64 = 1;

/// The manifest's entry in the archive; last but one.
pub const MANIFEST_ENTRY: &str = "manifest.json";
/// What `sha256sum -c` reads; the last entry.
pub const CHECKSUMS_ENTRY: &str = "checksums.sha256";
/// Before the hexadecimal digest in `checksums`, as in the guide.
pub const DIGEST_PREFIX: &str = "sha256:";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// Everything below `.kg/`, as chosen by the options.
    Full,
    /// The graph database alone.
    Snapshot,
    /// What differs from an earlier backup, see `based_on`.
    Incremental,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Of the format, see [`FORMAT_VERSION`].
    pub version: String,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// When the backup began.
    pub timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub contents: Contents,
    pub stats: Stats,
    /// Entry to `sha256:` and the hexadecimal digest, for every file but the manifest and the checksums.
    #[serde(deserialize_with = "bounded_map")]
    pub checksums: BTreeMap<String, String>,
    /// One record an entry, in the order of the archive.
    #[serde(deserialize_with = "bounded")]
    pub files: Vec<FileRecord>,
    /// What was found of what `quick_check` looks for in the source databases.
    pub integrity: Integrity,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub warnings: Vec<Warning>,
    /// The backup that an incremental one rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub based_on: Option<String>,
    /// The digest of that backup's archive, with its prefix: another one of its name is none to rest on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub based_on_checksum: Option<String>,
    /// Paths of that backup that are no more.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub deleted: Vec<String>,
    /// The incremental backup that this full one was put together from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consolidated_from: Option<String>,
    /// It was made before a repair, of what was about to be repaired.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub safety_backup: bool,
    /// It lacks something of the project, or may hold half of a change; `warnings` names what.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Its graph database has 0 bytes, or no table while an earlier good backup of the project has some.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emptied: bool,
    /// In the manifest beside an encrypted archive only, see [`Manifest::public_sidecar`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Inside an encrypted archive: the public keys that it was encrypted to, sorted. None where it was by a passphrase.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub recipients: Vec<String>,
    /// How the archive is compressed: `gzip -6`. Absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// Tells projects apart that share a store: a digest of where it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    pub tool: Tool,
    /// In the manifest beside an archive only: no archive can hold its own digest.
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
            // Not told apart: any backup may have some.
            Component::Files => true,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Without directories, links, the manifest and the checksums.
    pub total_files: u64,
    /// Bytes of those files, as they are restored.
    pub total_size: u64,
    /// Beside the archive: its size. Inside it: the bytes before the manifest.
    pub compressed_size: u64,
    pub node_count: u64,
    pub edge_count: u64,
    /// Tables of the graph database, without SQLite's own. Absent if it could not be read, and in manifests of earlier releases.
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
    /// As it is in the backup that this one is based on; the archive has no entry for it.
    #[serde(rename = "base")]
    Unchanged,
    /// As the pages that differ from that backup's, see [`super::delta`].
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
    /// Of one page, in bytes.
    pub page_size: u64,
    /// How many the entry holds.
    pub changed: u64,
    /// Of the whole database, see [`crate::sqlite::page_hashes`].
    pub root: String,
}

/// How a database is told to be the same: by the blocks that it is cut into, from its first byte on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// Of each but the last, in bytes.
    pub size: u64,
    /// See [`crate::sqlite::page_hashes`].
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
    /// Its name in the archive.
    pub entry: String,
    /// Where its content is to be found; absent for an entry that holds all of it.
    #[serde(default, skip_serializing_if = "Storage::is_whole")]
    pub stored: Storage,
    /// Of the content as it is restored, hexadecimal. Where `stored` is absent, the digest of the entry says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Of a database whose entry holds pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<Pages>,
    /// Of a database, as it is restored; absent for one that SQLite could not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
    /// Where it lay, relative to the project's root, as [`crate::project::names`] writes it.
    pub path: String,
    pub component: Component,
    /// Absent for a file.
    #[serde(rename = "type", default, skip_serializing_if = "EntryKind::is_file")]
    pub kind: EntryKind,
    /// Of a link: where it points to, written like `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// A SQLite database: restored without a WAL, journal or index that another one left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub database: bool,
    /// As it is restored, in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub mtime: Timestamp,
}

impl FileRecord {
    /// The size of its entry; `None` where the archive has none.
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

/// User and group id. They stand in the tar header alone, for whoever unpacks with `tar` as root.
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
    /// In bytes.
    pub size: u64,
    /// Hexadecimal.
    pub sha256: String,
    /// Hexadecimal; see [`super::block_digest`]. Absent for an archive without blocks, and where the manifest was written again from the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl Manifest {
    /// Reads a manifest, refusing formats that this release does not know. `name` is for the message.
    pub fn parse(json: &[u8], name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: String,
        }
        let invalid = |cause: serde_json::Error| {
            Error::new(
                Code::NotABackup,
                format!("The manifest of {name} cannot be read"),
                "Use another backup: `kg diag backup --list`",
            )
            .with_cause(cause)
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
                    "{name} is of format {version}; this release reads formats up to {FORMAT_MAJOR}.x"
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

    /// As it stands inside the archive.
    pub fn without_archive(&self) -> Self {
        Manifest {
            archive: None,
            ..self.clone()
        }
    }

    /// What may stand beside the archive where that is encrypted: nothing that names or quotes what is in it.
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

    /// The paths of all databases.
    pub fn databases(&self) -> HashSet<&str> {
        self.files
            .iter()
            .filter(|record| record.database)
            .map(|record| record.path.as_str())
            .collect()
    }

    /// The digest of a file as it is restored, in hexadecimal.
    pub fn content_digest<'a>(&'a self, record: &'a FileRecord) -> Option<&'a str> {
        match record.stored {
            Storage::Full => self.digest_of(&record.entry),
            Storage::Unchanged | Storage::Delta => record.sha256.as_deref(),
        }
    }

    /// The digest that `checksums` gives for an entry, in hexadecimal.
    pub fn digest_of(&self, entry: &str) -> Option<&str> {
        self.checksums.get(entry)?.strip_prefix(DIGEST_PREFIX)
    }
}

/// The text of `checksums.sha256`, as `sha256sum` writes it. Entries come in the order of the archive.
pub fn checksums_text<'a>(digests: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (entry, digest) in digests {
        // sha256sum marks a line with a backslash when the name on it is escaped.
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
