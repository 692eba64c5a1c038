//! Lists everything that a backup describes, and compares it with the base.
//!
//! Both lists are in the same order, so one walk over them finds what is new, changed or deleted.

use std::{collections::HashSet, fs::File, io, path::Path};

use crate::{
    archive::{
        file_record::{FileRecord, Storage},
        manifest::Contents,
    },
    error::{Error, Result},
    project::{Component, file_state::FileState},
    worker::{
        known_files::{KnownFiles, KnownFilesWriter},
        protocol::Listed,
    },
};

pub(super) struct Listing<'a> {
    out: KnownFilesWriter<io::BufWriter<File>>,
    base: Option<&'a KnownFiles>,
    /// The next record of the base.
    next: usize,
    /// The records of the base that this backup keeps although their sources cannot be read.
    kept: HashSet<usize>,
    listed: Totals,
}

#[derive(Default)]
struct Totals {
    contents: Contents,
    files: u64,
    bytes: u64,
}

/// A record of the base, and the state in which its file was read.
pub(super) type KnownFile<'a> = (&'a FileRecord, Option<FileState>);

/// A record of the base that comes before the next source.
pub(super) enum Passed<'a> {
    Deleted(KnownFile<'a>),
    Kept(KnownFile<'a>),
}

impl<'a> Listing<'a> {
    /// Begins a list that is written to `path`.
    pub fn new(path: &Path, base: Option<&'a KnownFiles>) -> Result<Self> {
        let out = File::create(path).map(io::BufWriter::new);
        let out = out.and_then(KnownFilesWriter::new);
        Ok(Listing {
            out: out.map_err(failed)?,
            base,
            next: 0,
            kept: HashSet::new(),
            listed: Totals::default(),
        })
    }

    /// Keeps records of the base, by their indexes.
    pub fn keep(&mut self, indexes: impl IntoIterator<Item = usize>) {
        self.kept.extend(indexes);
    }

    /// Returns the next record of the base that comes before the source at `path`, or before the
    /// end of the list.
    pub fn pass(&mut self, until: Option<(Component, &str)>) -> Option<Passed<'a>> {
        let base = self.base?;
        let record = base.files.records().get(self.next)?;
        if until.is_some_and(|(component, path)| record.compare(component, path).is_ge()) {
            return None;
        }
        let index = self.next;
        self.next += 1;
        let known = (record, base.states[index]);
        Some(if self.kept.contains(&index) {
            Passed::Kept(known)
        } else {
            Passed::Deleted(known)
        })
    }

    /// Returns the record of the base at that place, if [`Listing::pass`] has returned all records
    /// before it.
    pub fn take(&mut self, component: Component, path: &str) -> Option<KnownFile<'a>> {
        let base = self.base?;
        let record = base.files.records().get(self.next)?;
        if record.compare(component, path).is_ne() {
            return None;
        }
        self.next += 1;
        Some((record, base.states[self.next - 1]))
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

    fn known(files: &FileList) -> KnownFiles {
        let mut kept = tempfile::tempfile().unwrap();
        KnownFiles::write(files, &kept).unwrap();
        io::Seek::rewind(&mut kept).unwrap();
        KnownFiles::read(kept, files.summary()).unwrap()
    }

    fn project() -> impl Strategy<Value = BTreeMap<usize, u8>> {
        prop::collection::btree_map(0..PATHS.len(), 0..4_u8, 0..PATHS.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_base_and_what_differs_from_it_make_the_new_list(before in project(), now in project()) {
            let (before, now) = (list(&before), list(&now));
            let base = known(&before);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("list");
            let mut listing = Listing::new(&path, Some(&base)).unwrap();
            let mut changes = Vec::new();
            let pass = |listing: &mut Listing<'_>, changes: &mut Vec<FileRecord>, until| {
                while let Some(Passed::Deleted((record, _))) = listing.pass(until) {
                    changes.push(FileRecord { stored: Storage::Deleted, ..record.clone() });
                }
            };
            for record in now.records() {
                pass(&mut listing, &mut changes, Some((record.component, record.path.as_str())));
                let known = listing.take(record.component, &record.path);
                if known.is_none_or(|(known, _)| known != record) {
                    changes.push(record.clone());
                }
                listing.push(record, None).unwrap();
            }
            pass(&mut listing, &mut changes, None);
            let listed = listing.finish().unwrap();
            prop_assert_eq!(listed.summary, now.summary());
            prop_assert_eq!(listed.total_files, now.records().len() as u64);
            let kept = KnownFiles::read(File::open(&path).unwrap(), listed.summary).unwrap();
            prop_assert_eq!(&kept.files, &now);
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
        let read = |bytes: &[u8]| {
            let mut kept = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut kept, bytes).unwrap();
            io::Seek::rewind(&mut kept).unwrap();
            let mut copy = Vec::new();
            let copied = KnownFiles::copy(kept.try_clone().unwrap(), &mut copy);
            io::Seek::rewind(&mut kept).unwrap();
            let read = KnownFiles::read(kept, files.summary()).map(|known| known.files);
            assert_eq!(read.is_some(), copied == Some(files.summary()));
            read
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
