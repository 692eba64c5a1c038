//! The description inside an archive: the manifest of the guide, and what this tool needs in
//! addition. Its size does not grow with the number of files, see [`super::file_list`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{errors::not_a_backup, file_list::FileListSummary};
use crate::{
    error::{Code, Error, Result, Warning},
    objects::Version,
    project::{CONFIG_FILE, Component, entry_names::DATABASE_ENTRY, identity::Origin},
    sqlite::check::Integrity,
    util::{
        digest::Sha256Digest,
        limits::{bounded, bounded_map},
    },
};

/// The version of the guide's manifest. A release refuses archives with a newer major version.
pub const MANIFEST_VERSION: &str = "1.0.0";
const MANIFEST_MAJOR: u64 = 1;
/// The format of the archives that this release writes. A release refuses a newer one.
pub const FORMAT: u64 = 2;
/// The format in which the manifest itself lists the files, see [`super::first_format`].
pub const FIRST_FORMAT: u64 = 1;

/// Name of the manifest's entry, the last but one in the archive.
pub const MANIFEST_ENTRY: &str = "manifest.json";
/// Name of the entry that `sha256sum -c` reads, the last one in the archive.
pub const CHECKSUMS_ENTRY: &str = "checksums.sha256";
/// The entries whose digests are in the manifest too, as in the guide.
pub const CHECKSUMMED: [&str; 2] = [DATABASE_ENTRY, CONFIG_FILE];
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
    /// Version of the manifest, see [`MANIFEST_VERSION`].
    pub version: String,
    /// Format of the archive, see [`FORMAT`].
    #[serde(default = "first_format", skip_serializing_if = "is_first_format")]
    pub format: u64,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// Time at which the backup began.
    pub timestamp: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub contents: Contents,
    pub stats: Stats,
    /// `sha256:` and the hexadecimal digests of [`CHECKSUMMED`], as far as the archive has them.
    /// Those of all entries are in [`CHECKSUMS_ENTRY`].
    #[serde(deserialize_with = "bounded_map")]
    pub checksums: BTreeMap<String, String>,
    /// The list of everything that a restore of this backup puts back. Absent in the first format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<FileListSummary>,
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
    /// The id of the project, see [`Origin::project`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Digest of the path of the project. Absent in manifests of earlier releases, whose `project`
    /// has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_path: Option<String>,
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
    /// list of files.
    pub compressed_size: u64,
    pub node_count: u64,
    pub edge_count: u64,
    /// Number of tables in the graph database, without SQLite's own. Absent if it could not be
    /// read, and in manifests of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_count: Option<u64>,
}

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
#[serde(rename_all = "camelCase")]
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
    /// Offset of the block that begins with the list of files. Absent in the first format and for an
    /// encrypted archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list_offset: Option<u64>,
    /// The version of the archive in an object store. Absent in a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Version>,
}

impl Manifest {
    /// Parses a manifest. `name` is used in messages. Fails with `KG_FORMAT_NEWER` if the format is
    /// unknown to this release, and with `KG_NOT_A_BACKUP` if the manifest is not valid.
    pub fn parse(json: &[u8], name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: String,
            #[serde(default = "first_format")]
            format: u64,
        }
        let invalid = |cause: serde_json::Error| {
            not_a_backup(format!("The manifest of {name} cannot be read")).with_cause(cause)
        };
        let Versioned { version, format } = serde_json::from_slice(json).map_err(invalid)?;
        let newer = |what: String| {
            Err(Error::new(
                Code::FormatNewer,
                format!("{name} has {what}"),
                "Update @weavelogic/knowledge-graph-agent, or unpack a full backup with `tar -xzf`",
            ))
        };
        let major = version.split('.').next();
        let major = major.and_then(|major| major.parse::<u64>().ok());
        if major.is_none_or(|major| major > MANIFEST_MAJOR) {
            return newer(format!(
                "a manifest of version {version}; this release reads versions up to \
                 {MANIFEST_MAJOR}.x"
            ));
        }
        if format > FORMAT {
            return newer(format!(
                "format {format}; this release reads formats up to {FORMAT}"
            ));
        }
        let mut manifest: Manifest = serde_json::from_slice(json).map_err(invalid)?;
        // The first format has the digest of every entry here.
        manifest
            .checksums
            .retain(|entry, _| CHECKSUMMED.contains(&entry.as_str()));
        Ok(manifest)
    }

    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self)
            .unwrap_or_else(|_| unreachable!("a manifest has no map with odd keys"));
        json.push(b'\n');
        json
    }

    /// Returns the project that the backup was made of.
    pub fn origin(&self) -> Option<Origin> {
        let project = self.project.clone()?;
        let is_legacy = self.project_path.is_none();
        let path = self.project_path.clone().unwrap_or_else(|| project.clone());
        Some(Origin {
            project,
            path,
            is_legacy,
        })
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
            file_list: None,
            integrity: Integrity {
                messages: Vec::new(),
                not_checked: Vec::new(),
                ..self.integrity.clone()
            },
            warnings: Vec::new(),
            recipients: Vec::new(),
            // The offset is that in the decrypted archive.
            archive: self.archive.clone().map(|archive| ArchiveRecord {
                list_offset: None,
                ..archive
            }),
            ..self.clone()
        }
    }

    /// Returns the offset of the block that begins with the list of files, for the manifest inside
    /// an archive: everything before the manifest and that list has this size.
    pub fn list_offset(&self) -> Option<u64> {
        (self.format != FIRST_FORMAT).then_some(self.stats.compressed_size)
    }
}

/// Returns a line of `checksums.sha256`, in the format of `sha256sum`.
pub fn checksums_line(entry: &str, digest: Sha256Digest) -> String {
    // `sha256sum` starts a line with a backslash if it escapes the name on that line.
    if entry.contains(['\\', '\n', '\r']) {
        let escaped = entry
            .replace('\\', "\\\\")
            .replace('\n', "\\n")
            .replace('\r', "\\r");
        format!("\\{digest}  {escaped}\n")
    } else {
        format!("{digest}  {entry}\n")
    }
}

/// Returns the value of a digest in `checksums`.
pub fn checksum(digest: Sha256Digest) -> String {
    format!("{DIGEST_PREFIX}{digest}")
}

fn first_format() -> u64 {
    FIRST_FORMAT
}

fn is_first_format(format: &u64) -> bool {
    *format == FIRST_FORMAT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_refused_before_anything_else_is_read() {
        let parse = |json: &str| Manifest::parse(json.as_bytes(), "a").unwrap_err().code;
        for newer in [r#""version":"2.0.0""#, r#""version":"1.0.0","format":3"#] {
            let json = format!("{{{newer},\"stats\":\"of another shape\"}}");
            assert_eq!(parse(&json), Code::FormatNewer, "{newer}");
        }
        for broken in [
            r#"{"version":"1.7.0"}"#,
            r#"{"version":"1.0.0","format":-1}"#,
            "{}",
        ] {
            assert_eq!(parse(broken), Code::NotABackup, "{broken}");
        }
    }

    #[test]
    fn names_with_backslashes_and_line_ends_are_escaped_as_sha256sum_does() {
        let digest = Sha256Digest::of(b"");
        assert_eq!(checksums_line("a b", digest), format!("{digest}  a b\n"));
        assert_eq!(
            checksums_line("c\\d\ne", digest),
            format!("\\{digest}  c\\\\d\\ne\n")
        );
    }
}
