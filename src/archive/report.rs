//! What reading an archive found.

use std::{ops::Range, path::Path};

use serde::Serialize;

use super::{manifest::Manifest, tar_entries::Head};
use crate::error::{Code, Error, Result};

/// More problems than this are counted as one.
pub(super) const MAX_PROBLEMS: usize = 100;

/// Something in or beside an archive that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub code: ProblemCode,
    pub message: String,
    /// Entries of the archive; empty where it is the archive as a whole.
    pub affects: Vec<String>,
    /// What to do.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ProblemCode {
    /// The file is not the one that was written: its size, digest or seal differs.
    #[serde(rename = "KG_PROBLEM_ARCHIVE")]
    Archive,
    /// A compressed block is damaged or cut.
    #[serde(rename = "KG_PROBLEM_BLOCK")]
    Block,
    /// The archive does not have the structure of a backup.
    #[serde(rename = "KG_PROBLEM_STRUCTURE")]
    Structure,
    /// An entry is missing, added or differs from the manifest.
    #[serde(rename = "KG_PROBLEM_ENTRY")]
    Entry,
    /// A backup that this one rests on is missing, damaged or not the one it was made from.
    #[serde(rename = "KG_PROBLEM_CHAIN")]
    Chain,
    /// The manifest beside the archive differs from the one inside or cannot be read.
    #[serde(rename = "KG_PROBLEM_SIDECAR")]
    Sidecar,
}

impl Problem {
    pub fn of_archive(code: ProblemCode, message: String) -> Self {
        let remedy =
            "Use another backup (`kg diag backup --list`) and make a new one now".to_string();
        Problem {
            code,
            message,
            affects: Vec::new(),
            remedy,
        }
    }

    pub(super) fn of_entry(entry: String, message: String) -> Self {
        let remedy =
            "Do not restore this entry from here; use another backup (`kg diag backup --list`)"
                .to_string();
        Problem {
            code: ProblemCode::Entry,
            message,
            affects: vec![entry],
            remedy,
        }
    }
}

/// What an archive is.
#[derive(Debug)]
pub struct Report {
    /// The manifest inside; `None` where it could not be read.
    pub manifest: Option<Manifest>,
    /// Empty: every byte is as it was written.
    pub problems: Vec<Problem>,
    pub size_bytes: u64,
    pub sha256: String,
    pub encrypted: bool,
}

impl Report {
    /// The manifest of a whole archive, or the first problem as an error.
    pub fn into_manifest(self, archive: &Path) -> Result<Manifest> {
        match (self.problems.into_iter().next(), self.manifest) {
            (None, Some(manifest)) => Ok(manifest),
            (problem, _) => {
                let what =
                    problem.map_or("it has no manifest".to_string(), |problem| problem.message);
                Err(Error::new(
                    Code::ChecksumMismatch,
                    format!(
                        "Checksum mismatch: {} is not what was written: {what}",
                        archive.display()
                    ),
                    "Nothing was changed; see the damage with `kg diag backup --verify` and use another backup (`--list`)",
                ))
            }
        }
    }
}

/// What was found in an archive.
#[derive(Default)]
pub(super) struct Contents {
    pub entries: Vec<ReadEntry>,
    pub manifest: Option<Vec<u8>>,
    pub checksums: Option<Vec<u8>>,
    pub problems: Vec<Problem>,
}

/// An entry as it was found.
pub(super) struct ReadEntry {
    pub head: Head,
    pub digest: [u8; 32],
}

impl ReadEntry {
    /// Its header and content in the tar.
    pub fn tar_range(&self) -> Range<u64> {
        self.head.start..self.head.end
    }
}
