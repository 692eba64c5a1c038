//! Lists everything that a backup describes, and compares it with the base.
//!
//! Both lists are in the same order, so one walk over them finds what is new, changed or deleted.

use std::{fs::File, io, path::Path};

use super::unreadable::Kept;
use crate::{
    archive::{
        file_record::{FileRecord, Storage},
        manifest::Contents,
    },
    error::{Error, Result},
    project::{Component, file_state::FileState},
    worker::{
        known_files::{KnownFile, KnownFiles, KnownFilesWriter, Records},
        protocol::Listed,
    },
};

pub(super) struct Listing {
    out: KnownFilesWriter<io::BufWriter<File>>,
    /// The rest of the base.
    base: Option<Records>,
    /// The next record of the base.
    next: Option<KnownFile>,
    /// What this backup keeps although its sources cannot be read.
    pub kept: Kept,
    listed: Totals,
}

#[derive(Default)]
struct Totals {
    contents: Contents,
    files: u64,
    bytes: u64,
}

/// A record of the base that comes before the next source.
pub(super) enum Passed {
    Deleted(KnownFile),
    Kept(KnownFile),
}

impl Listing {
    /// Begins a list that is written to `path`.
    pub fn new(path: &Path, base: Option<&KnownFiles>) -> Result<Self> {
        let out = File::create(path).map(io::BufWriter::new);
        let out = out.and_then(KnownFilesWriter::new);
        let mut listing = Listing {
            out: out.map_err(failed)?,
            base: base
                .map(KnownFiles::records)
                .transpose()
                .map_err(unreadable)?,
            next: None,
            kept: Kept::default(),
            listed: Totals::default(),
        };
        listing.advance()?;
        Ok(listing)
    }

    /// Returns the next record of the base, and moves on to the one after it.
    fn advance(&mut self) -> Result<Option<KnownFile>> {
        let after = self.base.as_mut().and_then(Iterator::next).transpose();
        let after = after.map_err(unreadable)?;
        let next = std::mem::replace(&mut self.next, after);
        let is_ordered = match (&next, &self.next) {
            (Some((next, _)), Some((after, _))) => next.order(after).is_lt(),
            _ => true,
        };
        if !is_ordered {
            return Err(Error::internal("The list of the base is not in order"));
        }
        Ok(next)
    }

    /// Returns the next record of the base that comes before the source at `path`, or before the
    /// end of the list.
    pub fn pass(&mut self, until: Option<(Component, &str)>) -> Result<Option<Passed>> {
        let is_before = |(record, _): &KnownFile| {
            until.is_none_or(|(component, path)| record.compare(component, path).is_lt())
        };
        if !self.next.as_ref().is_some_and(is_before) {
            return Ok(None);
        }
        let Some(known) = self.advance()? else {
            return Ok(None);
        };
        Ok(Some(if self.kept.takes(&known.0) {
            Passed::Kept(known)
        } else {
            Passed::Deleted(known)
        }))
    }

    /// Returns the record of the base at that place, if [`Listing::pass`] has returned all records
    /// before it.
    pub fn take(&mut self, component: Component, path: &str) -> Result<Option<KnownFile>> {
        let is_it = |(record, _): &KnownFile| record.compare(component, path).is_eq();
        if self.next.as_ref().is_some_and(is_it) {
            self.advance()
        } else {
            Ok(None)
        }
    }

    /// Adds the next record of this backup.
    pub fn push(&mut self, record: &FileRecord, state: Option<FileState>) -> Result<()> {
        debug_assert!(record.stored == Storage::Full && record.pages.is_none());
        let listed = &mut self.listed;
        if record.kind.is_file() {
            listed.files += 1;
            listed.bytes += record.size;
            match record.component {
                Component::Database => listed.contents.database = true,
                Component::Config => listed.contents.config = true,
                Component::Vectors => listed.contents.vectors = true,
                Component::Plugins => listed.contents.plugins = true,
                Component::Files => {}
            }
        }
        self.out.push(record, state).map_err(failed)
    }

    pub fn finish(self) -> Result<Listed> {
        let Totals {
            contents,
            files,
            bytes,
        } = self.listed;
        Ok(Listed {
            summary: self.out.finish().map_err(failed)?,
            contents,
            total_files: files,
            total_bytes: bytes,
        })
    }
}

fn unreadable(cause: io::Error) -> Error {
    Error::io("read", "the list of the base".as_ref(), cause)
}

fn failed(cause: io::Error) -> Error {
    Error::io("write", "the list of files".as_ref(), cause)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        archive::{
            file_list::FileList,
            file_record::{EntryKind, Storage},
        },
        util::digest::Sha256Digest,
    };

    /// Paths whose order as text is not the order of a list.
    const PATHS: [&str; 7] = [
        ".kg/plugins/a",
        ".kg/plugins/a/b",
        ".kg/plugins/a-b",
        ".kg/plugins/a.b",
        ".kg/vectors/a",
        ".kg/a",
        ".kg/a.json",
    ];

    /// Returns the list of a project in which these files exist; equal numbers have equal content.
    fn list(project: &BTreeMap<usize, u8>) -> FileList {
        let record = |(path, content): (&usize, &u8)| {
            let path = PATHS[*path];
            FileRecord {
                path: path.to_string(),
                entry: path.replace(".kg/", ""),
                component: crate::project::entry_names::component_of(path, false),
                kind: EntryKind::File,
                target: None,
                database: false,
                size: 1,
                mode: u32::from(content % 2),
                mtime: jiff::Timestamp::UNIX_EPOCH,
                sha256: Some(Sha256Digest::of(&[content / 2])),
                blocks: None,
                stored: Storage::Full,
                pages: None,
            }
        };
        FileList::sorted(project.iter().map(record).collect())
    }

    fn records(known: &KnownFiles) -> FileList {
        let records = known.records().unwrap();
        FileList::unsorted(records.map(|known| known.unwrap().0).collect())
    }

    fn project() -> impl Strategy<Value = BTreeMap<usize, u8>> {
        prop::collection::btree_map(0..PATHS.len(), 0..4_u8, 0..PATHS.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_base_and_what_differs_from_it_make_the_new_list(before in project(), now in project()) {
            let (before, now) = (list(&before), list(&now));
            let dir = tempfile::tempdir().unwrap();
            let (path, of_base) = (dir.path().join("list"), dir.path().join("base"));
            KnownFiles::write(&before, File::create(&of_base).unwrap()).unwrap();
            let base = KnownFiles::open(&of_base, before.summary()).unwrap();
            let mut listing = Listing::new(&path, Some(&base)).unwrap();
            let mut changes = Vec::new();
            let pass = |listing: &mut Listing, changes: &mut Vec<FileRecord>, until| {
                while let Some(Passed::Deleted((record, _))) = listing.pass(until).unwrap() {
                    changes.push(FileRecord { stored: Storage::Deleted, ..record });
                }
            };
            for record in now.records() {
                pass(&mut listing, &mut changes, Some((record.component, record.path.as_str())));
                let known = listing.take(record.component, &record.path).unwrap();
                if known.is_none_or(|(known, _)| known != *record) {
                    changes.push(record.clone());
                }
                listing.push(record, None).unwrap();
            }
            pass(&mut listing, &mut changes, None);
            let listed = listing.finish().unwrap();
            prop_assert_eq!(listed.summary, now.summary());
            prop_assert_eq!(listed.total_files, now.records().len() as u64);
            let kept = KnownFiles::open(&path, listed.summary).unwrap();
            prop_assert_eq!(&records(&kept), &now);
            let changes = FileList::unsorted(changes);
            prop_assert_eq!(changes.records().is_empty(), before == now);
            prop_assert_eq!(before.after(changes).unwrap(), now);
        }
    }

    #[test]
    fn a_list_that_was_changed_anywhere_is_not_used() {
        let files = list(&[(0, 1), (3, 2), (5, 3)].into());
        let mut whole = Vec::new();
        KnownFiles::write(&files, &mut whole).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let copied = KnownFiles::copy(File::open(&path).unwrap(), io::sink());
            let copied = copied.map(|(summary, _)| summary);
            let read = KnownFiles::open(&path, files.summary());
            assert_eq!(read.is_some(), copied == Some(files.summary()));
            read.map(|known| records(&known))
        };
        assert_eq!(read(&whole), Some(files.clone()));
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            // Some bits of a frame mean nothing.
            assert!(read(&changed).is_none_or(|read| read == files), "byte {at}");
            assert_eq!(read(&whole[..at]), None, "cut at {at}");
        }
    }
}
