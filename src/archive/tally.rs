//! Compares the entries of a full archive with its list of files, in memory that does not grow with
//! their sizes and hardly with their number.
//!
//! The list follows the entries, in the same order. So one digest of all entries and one of all
//! records are equal if each entry is what its record says. A tally does not know which entry
//! differs. Then the archive is read again by [`super::verify`], which holds everything in memory.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io::{self, Write},
};

use sha2::{Digest, Sha256};

use super::{
    file_list::{FILE_LIST_ENTRY, RecordParser},
    file_record::{EntryKind, FileRecord, Storage},
    manifest::{
        CHECKSUMMED, CHECKSUMS_ENTRY, FIRST_FORMAT, MANIFEST_ENTRY, Manifest, checksum,
        checksums_line,
    },
    tar_entries::Head,
};
use crate::{
    project::{Component, names},
    system::portable::OsStrExt,
    util::digest::Sha256Digest,
};

/// The entries after those of the list, in order.
const DESCRIBING: [&str; 3] = [FILE_LIST_ENTRY, MANIFEST_ENTRY, CHECKSUMS_ENTRY];

/// Collects what identifies the entries and the records.
pub(super) struct Tally<'a> {
    entries: Sha256,
    records: Sha256,
    /// What `checksums.sha256` must contain.
    checksums: Sha256,
    /// Hashes of the names, because no name may occur twice.
    names: Vec<u64>,
    hashes: RandomState,
    list: RecordParser,
    /// Receives the text of the list.
    list_out: &'a mut dyn Write,
    /// The digests of the entries that the manifest names.
    digests: BTreeMap<&'static str, Sha256Digest>,
    /// How many of [`DESCRIBING`] were read.
    described: usize,
    graph_database: Option<String>,
    differs: bool,
}

/// What a tally found in an archive whose entries are those of its list.
pub struct Tallied {
    pub records: usize,
    /// The path of the graph database.
    pub graph_database: Option<String>,
}

impl<'a> Tally<'a> {
    pub fn new(list_out: &'a mut dyn Write) -> Self {
        Tally {
            entries: Sha256::new(),
            records: Sha256::new(),
            checksums: Sha256::new(),
            names: Vec::new(),
            hashes: RandomState::new(),
            list: RecordParser::default(),
            list_out,
            digests: BTreeMap::new(),
            described: 0,
            graph_database: None,
            differs: false,
        }
    }

    /// Receives a piece of the list.
    pub fn list(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (records, differs) = (&mut self.records, &mut self.differs);
        let graph_database = &mut self.graph_database;
        let mut names = self.names.iter().skip(self.list.count());
        self.list.push(bytes, |record| {
            let is_next = names.next() == Some(&self.hashes.hash_one(&record.entry));
            *differs |= !is_next || !add_record(records, &record);
            if record.database
                && record.component == Component::Database
                && graph_database.is_none()
            {
                *graph_database = Some(record.path);
            }
        });
        // A forged list must not fill the disk.
        if self.differs {
            return Ok(());
        }
        self.list_out.write_all(bytes)
    }

    /// Receives an entry that was read.
    pub fn entry(&mut self, head: &Head, digest: Sha256Digest) {
        let expected = DESCRIBING.get(self.described).copied();
        if expected == Some(head.name.as_str()) {
            self.describing(expected.unwrap_or_default(), head, digest);
            return;
        }
        self.differs |= self.described > 0;
        self.names.push(self.hashes.hash_one(&head.name));
        let known = CHECKSUMMED.iter().find(|name| **name == head.name);
        self.digests.extend(known.map(|name| (*name, digest)));
        let is_file = head.kind.is_file();
        let content = is_file.then_some(digest);
        add(
            &mut self.entries,
            &head.name,
            head.kind,
            head.size_bytes,
            &head.link,
            content,
        );
        if is_file {
            self.checksums.update(checksums_line(&head.name, digest));
        }
    }

    fn describing(&mut self, name: &'static str, head: &Head, digest: Sha256Digest) {
        self.described += 1;
        self.differs |= !head.kind.is_file();
        if name == CHECKSUMS_ENTRY {
            let expected = Sha256Digest::from(self.checksums.clone().finalize());
            self.differs |= expected != digest;
        } else {
            self.digests.insert(name, digest);
            self.checksums.update(checksums_line(name, digest));
        }
    }

    /// Returns the result if the entries, the list and the manifest match in every respect.
    pub fn finish(mut self, manifest: &Manifest) -> Option<Tallied> {
        self.names.sort_unstable();
        let is_twice = self.names.windows(2).any(|names| names[0] == names[1]);
        let is_full = manifest.format != FIRST_FORMAT
            && manifest.based_on.is_none()
            && manifest.based_on_checksum.is_none();
        let entries = self.entries.finalize() == self.records.finalize();
        let is_whole = !self.differs && !is_twice && self.described == DESCRIBING.len();
        let records = self.list.finish().ok()?;
        let digests = &self.digests;
        let list = manifest.file_list.is_some_and(|expected| {
            expected.records == records as u64
                && digests.get(FILE_LIST_ENTRY) == Some(&expected.sha256)
        });
        let mut checksums = manifest.checksums.iter();
        let checksums = checksums.all(|(name, expected)| {
            let digest = digests.get(name.as_str()).copied();
            digest.map(checksum).as_ref() == Some(expected)
        });
        (is_full && entries && is_whole && list && checksums).then_some(Tallied {
            records,
            graph_database: self.graph_database,
        })
    }
}

/// Adds a record. Returns `false` if no full archive has such a record.
fn add_record(hasher: &mut Sha256, record: &FileRecord) -> bool {
    let is_file = record.kind.is_file();
    let target = record.target.as_deref().and_then(names::decode);
    let link = match (record.kind, &target) {
        (EntryKind::Link, Some(target)) => target.as_os_str().as_bytes(),
        (EntryKind::Link, None) => return false,
        _ => &[],
    };
    add(
        hasher,
        &record.entry,
        record.kind,
        record.size,
        link,
        record.sha256,
    );
    record.stored == Storage::Full && record.pages.is_none() && is_file == record.sha256.is_some()
}

/// Adds an entry or a record. Each part has a length, so that no two entries give the same bytes.
fn add(
    hasher: &mut Sha256,
    name: &str,
    kind: EntryKind,
    size_bytes: u64,
    link: &[u8],
    content: Option<Sha256Digest>,
) {
    for text in [name.as_bytes(), link] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.update(size_bytes.to_le_bytes());
    hasher.update([kind as u8, u8::from(content.is_some())]);
    if let Some(content) = content {
        hasher.update(content.0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::archive::file_list::FileListSummary;

    const MANIFEST: &str = r#"{"version":"1.0.0","format":2,"id":"backup-20240115-020000","type":"full",
        "timestamp":"2024-01-15T02:00:00Z","contents":{"database":false,"config":false,"vectors":false,
        "plugins":false},"stats":{"totalFiles":0,"totalSize":0,"compressedSize":0,"nodeCount":0,
        "edgeCount":0},"checksums":{},"integrity":{"status":"ok","messages":[]},
        "tool":{"name":"a","version":"1"}}"#;

    /// An entry as the tar has it, and its line of the list.
    fn entry(name: &str, kind: EntryKind) -> (Head, Value) {
        let (digest, is_file) = (Sha256Digest::of(name.as_bytes()), kind.is_file());
        let link = if kind == EntryKind::Link { "to" } else { "" };
        let head = Head {
            name: name.into(),
            kind,
            link: link.into(),
            size_bytes: if is_file { 7 } else { 0 },
            owner: (0, 0),
            start: 0,
            end: 0,
        };
        let mut line = json!({ "path": format!(".kg/{name}"), "entry": name, "component": "files",
            "type": kind, "size": head.size_bytes, "mode": 0o644, "mtime": "2024-01-15T02:00:00Z" });
        if is_file {
            line["sha256"] = json!(digest);
        }
        if kind == EntryKind::Link {
            line["target"] = json!(link);
        }
        (head, line)
    }

    fn genuine() -> Vec<(Head, Value)> {
        let kinds = [
            ("a", EntryKind::Directory),
            ("a/b", EntryKind::File),
            ("a/c", EntryKind::Link),
            ("d", EntryKind::File),
        ];
        kinds.map(|(name, kind)| entry(name, kind)).into()
    }

    /// Tallies these entries. `checksums` is what `checksums.sha256` contains.
    fn tally(
        heads: &[Head],
        lines: &[Value],
        checksums: impl Fn(String) -> String,
        change: impl FnOnce(&mut Manifest),
    ) -> Option<Tallied> {
        let mut list_out = Vec::new();
        let mut tally = Tally::new(&mut list_out);
        let mut sums = String::new();
        for head in heads {
            let digest = Sha256Digest::of(head.name.as_bytes());
            tally.entry(head, digest);
            if head.kind.is_file() {
                sums += &checksums_line(&head.name, digest);
            }
        }
        let list: String = lines.iter().map(|line| format!("{line}\n")).collect();
        tally.list(list.as_bytes()).unwrap();
        let mut manifest = Manifest::parse(MANIFEST.as_bytes(), "a backup").unwrap();
        manifest.file_list = Some(FileListSummary {
            records: lines.len() as u64,
            sha256: Sha256Digest::of(list.as_bytes()),
        });
        change(&mut manifest);
        for (name, digest) in [
            (FILE_LIST_ENTRY, Sha256Digest::of(list.as_bytes())),
            (MANIFEST_ENTRY, Sha256Digest::of(b"manifest")),
        ] {
            sums += &checksums_line(name, digest);
            tally.entry(&entry(name, EntryKind::File).0, digest);
        }
        let sums = Sha256Digest::of(checksums(sums).as_bytes());
        tally.entry(&entry(CHECKSUMS_ENTRY, EntryKind::File).0, sums);
        let tallied = tally.finish(&manifest);
        if tallied.is_some() {
            assert_eq!(list_out, list.as_bytes());
        }
        tallied
    }

    fn tally_of(entries: Vec<(Head, Value)>) -> Option<Tallied> {
        let (heads, lines): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        tally(&heads, &lines, |sums| sums, |_| {})
    }

    #[test]
    fn entries_that_are_those_of_the_list_are_accepted() {
        assert_eq!(tally_of(genuine()).unwrap().records, 4);
        assert_eq!(tally_of(Vec::new()).unwrap().records, 0);
    }

    #[test]
    fn any_difference_between_entries_and_list_is_noticed() {
        type Change = fn(&mut Vec<(Head, Value)>);
        let changes: [(&str, Change); 14] = [
            ("name", |all| all[1].0.name.push('x')),
            ("kind", |all| all[1].0.kind = EntryKind::Directory),
            ("size", |all| all[1].0.size_bytes += 1),
            ("link", |all| all[2].0.link.push(b'x')),
            ("digest", |all| {
                all[1].1["sha256"] = json!(Sha256Digest::of(b""));
            }),
            ("digest is missing", |all| {
                all[1].1.as_object_mut().unwrap().remove("sha256");
            }),
            ("digest of a directory", |all| {
                all[0].1["sha256"] = json!(Sha256Digest::of(b""));
            }),
            ("not stored", |all| all[1].1["stored"] = json!("base")),
            ("deleted", |all| all[1].1["stored"] = json!("deleted")),
            ("pages", |all| {
                all[1].1["pages"] = json!({ "pageSize": 512, "changed": 0, "root": "" });
            }),
            ("link without target", |all| {
                all[2].1.as_object_mut().unwrap().remove("target");
            }),
            ("order", |all| {
                let (one, other) = (all[1].1.clone(), all[3].1.clone());
                (all[1].1, all[3].1) = (other, one);
            }),
            ("order of the list", |all| all.swap(1, 3)),
            ("name twice", |all| {
                let (head, mut line) = entry("d", EntryKind::File);
                line["path"] = json!(".kg/e");
                all.push((head, line));
            }),
        ];
        for (what, change) in changes {
            let mut entries = genuine();
            change(&mut entries);
            assert!(tally_of(entries).is_none(), "{what}");
        }
    }

    #[test]
    fn added_and_missing_entries_and_lines_are_noticed() {
        let (heads, lines): (Vec<_>, Vec<_>) = genuine().into_iter().unzip();
        let (same, nothing) = (|sums| sums, |_: &mut Manifest| {});
        assert!(tally(&heads[..3], &lines, same, nothing).is_none());
        assert!(tally(&heads, &lines[..3], same, nothing).is_none());
        let after = [FILE_LIST_ENTRY, "e"].map(|name| entry(name, EntryKind::File).0);
        let more: Vec<Head> = genuine()
            .into_iter()
            .map(|(head, _)| head)
            .chain(after)
            .collect();
        assert!(tally(&more, &lines, same, nothing).is_none());
    }

    #[test]
    fn a_manifest_or_checksums_of_other_entries_are_noticed() {
        let changes: [fn(&mut Manifest); 5] = [
            |manifest| manifest.file_list = None,
            |manifest| {
                if let Some(list) = &mut manifest.file_list {
                    list.records += 1;
                }
            },
            |manifest| {
                if let Some(list) = &mut manifest.file_list {
                    list.sha256 = Sha256Digest::of(b"");
                }
            },
            |manifest| manifest.based_on = Some("backup-20240115-020000".into()),
            |manifest| {
                let digest = checksum(Sha256Digest::of(b""));
                manifest.checksums.insert(CHECKSUMMED[1].into(), digest);
            },
        ];
        let (heads, lines): (Vec<_>, Vec<_>) = genuine().into_iter().unzip();
        for (number, change) in changes.into_iter().enumerate() {
            let found = tally(&heads, &lines, |sums| sums, change);
            assert!(found.is_none(), "{number}");
        }
        let found = tally(&heads, &lines, |sums| sums + "x", |_| {});
        assert!(found.is_none());
    }
}
