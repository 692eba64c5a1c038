//! The list of files in manifests of the first format.
//!
//! There the manifest itself lists everything, even in an incremental backup, and `checksums` has
//! the digest of every entry. Nothing writes that format any more.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    file_list::FileList,
    file_record::{FileRecord, Storage},
    manifest::{DIGEST_PREFIX, FIRST_FORMAT, Manifest},
};
use crate::util::limits::{bounded, bounded_map};

#[derive(Deserialize)]
struct Listed {
    #[serde(deserialize_with = "bounded_map")]
    checksums: BTreeMap<String, String>,
    #[serde(deserialize_with = "bounded")]
    files: Vec<FileRecord>,
}

/// Returns the list in the text of `manifest`, in the order of the archive. `None` if the manifest
/// has another format, or no valid list.
pub fn file_list(json: &[u8], manifest: &Manifest) -> Option<FileList> {
    if manifest.format != FIRST_FORMAT {
        return None;
    }
    let Listed { checksums, files } = serde_json::from_slice(json).ok()?;
    let digest_of = |entry: &str| {
        let digest = checksums.get(entry)?.strip_prefix(DIGEST_PREFIX)?;
        digest.parse().ok()
    };
    let complete = |record: FileRecord| FileRecord {
        sha256: match record.stored {
            Storage::Full if record.kind.is_file() => digest_of(&record.entry),
            _ => record.sha256,
        },
        ..record
    };
    let records = files.into_iter().map(complete).collect();
    Some(FileList::unsorted(records))
}
