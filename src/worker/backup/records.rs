//! Describes what is saved, for the manifest.

use std::fs::Metadata;

use crate::{
    archive::file_record::{EntryKind, FileRecord, Owner, Storage},
    project::{
        discover::{Source, SourceKind},
        file_state::modified,
    },
    system::portable::MetadataExt,
};

/// Returns the user and the group of a file.
pub(super) fn owner(found: &Metadata) -> Owner {
    (found.uid(), found.gid())
}

/// Returns the record of a source that is saved in full.
pub(super) fn record(source: &Source, found: &Metadata, size: u64) -> FileRecord {
    FileRecord {
        entry: source.entry(),
        stored: Storage::Full,
        sha256: None,
        pages: None,
        blocks: None,
        path: source.path.clone(),
        component: source.component,
        kind: match source.kind {
            SourceKind::Database | SourceKind::File => EntryKind::File,
            SourceKind::Directory => EntryKind::Directory,
            SourceKind::Link(_) => EntryKind::Link,
        },
        target: match &source.kind {
            SourceKind::Link(target) => Some(target.clone()),
            _ => None,
        },
        database: source.is_database(),
        size,
        mode: found.mode() & 0o7777,
        mtime: modified(found),
    }
}
