//! The result of reading an archive.

use std::ops::Range;

use serde::Serialize;

use super::{
    errors::checksum_mismatch,
    file_list::{FileList, ListParser},
    manifest::Manifest,
    tar_entries::Head,
    verify::ChecksumsCheck,
};
use crate::{error::Result, place::Archive, util::digest::Sha256Digest};

/// Maximum number of problems listed separately. The others are counted in one problem.
pub(super) const MAX_PROBLEMS: usize = 100;

/// A difference between what was written and the archive or its sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub code: ProblemCode,
    pub message: String,
    /// Affected entries of the archive; empty if the problem concerns the archive as a whole.
    pub affects: Vec<String>,
    /// What the user can do.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ProblemCode {
    /// The size, digest or seal of the file differs from what was written.
    #[serde(rename = "KG_PROBLEM_ARCHIVE")]
    Archive,
    /// A compressed block is damaged or truncated.
    #[serde(rename = "KG_PROBLEM_BLOCK")]
    Block,
    /// The archive does not have the structure of a backup.
    #[serde(rename = "KG_PROBLEM_STRUCTURE")]
    Structure,
    /// An entry is missing, added or differs from the manifest.
    #[serde(rename = "KG_PROBLEM_ENTRY")]
    Entry,
    /// A backup that this one depends on is missing, damaged or not its actual base.
    #[serde(rename = "KG_PROBLEM_CHAIN")]
    Chain,
    /// The sidecar differs from the manifest inside the archive or cannot be read.
    #[serde(rename = "KG_PROBLEM_SIDECAR")]
    Sidecar,
}

impl Problem {
    pub fn of_archive(code: ProblemCode, message: String) -> Self {
        let remedy = "Use another backup (`kg diag list`) and make a new one now".to_string();
        Problem {
            code,
            message,
            affects: Vec::new(),
            remedy,
        }
    }

    pub(super) fn of_entry(entry: String, message: String) -> Self {
        let remedy =
            "Do not restore this entry from here; use another backup (`kg diag list`)".to_string();
        Problem {
            code: ProblemCode::Entry,
            message,
            affects: vec![entry],
            remedy,
        }
    }
}

/// The facts about an archive, and the problems found in it.
#[derive(Debug)]
pub struct Report {
    /// The manifest inside the archive; `None` if it could not be read.
    pub manifest: Option<Manifest>,
    /// The list inside the archive; empty if it could not be read.
    pub files: FileList,
    /// Empty if every byte is as it was written.
    pub problems: Vec<Problem>,
    pub size_bytes: u64,
    pub sha256: String,
    pub encrypted: bool,
}

impl Report {
    /// Returns the manifest and the list of an intact archive. Otherwise it returns the first
    /// problem as an error (`KG_CHECKSUM_MISMATCH`).
    pub fn intact(self, archive: &Archive) -> Result<(Manifest, FileList)> {
        match (self.problems.into_iter().next(), self.manifest) {
            (None, Some(manifest)) => Ok((manifest, self.files)),
            (problem, _) => {
                let what =
                    problem.map_or("it has no manifest".to_string(), |problem| problem.message);
                Err(checksum_mismatch(format_args!(
                    "{archive} is not what was written: {what}"
                )))
            }
        }
    }
}

/// What was read from an archive, and the problems found so far.
#[derive(Default)]
pub(super) struct Contents {
    pub entries: Vec<ReadEntry>,
    pub list: Option<ListParser>,
    pub manifest: Option<Vec<u8>>,
    pub checksums: Option<ChecksumsCheck>,
    pub problems: Vec<Problem>,
}

/// An entry that was read, with the digest of its content.
pub(super) struct ReadEntry {
    pub head: Head,
    pub digest: Sha256Digest,
}

impl ReadEntry {
    /// Returns the range of its headers and content in the tar.
    pub fn tar_range(&self) -> Range<u64> {
        self.head.start..self.head.end
    }
}
