//! Compares the content of an archive with its manifests.

use std::collections::HashMap;

use super::{
    block_reader::Damage,
    encryption,
    file_list::{FILE_LIST_ENTRY, FileList},
    file_record::{EntryKind, FileRecord, Storage},
    first_format,
    manifest::{CHECKSUMS_ENTRY, FIRST_FORMAT, MANIFEST_ENTRY, Manifest, checksum, checksums_line},
    report::{Contents, MAX_PROBLEMS, Problem, ProblemCode, ReadEntry},
    seal::FileFacts,
};
use crate::{project::names, system::portable::OsStrExt, util::hex::hex};

/// The smallest page of SQLite. The blocks of a database are not smaller.
const MIN_PAGE_BYTES: u64 = 512;

/// Reports damaged blocks as one problem that lists the affected entries.
pub fn damages(damages: &[Damage], contents: &mut Contents) {
    let Some(first) = damages.first() else { return };
    let mut places: Vec<u64> = damages.iter().map(|damage| damage.tar_offset).collect();
    places.sort_unstable();
    let is_damaged = |entry: &&ReadEntry| {
        let range = entry.tar_range();
        let next = places.partition_point(|place| *place < range.start);
        places.get(next).is_some_and(|place| *place < range.end)
    };
    let affected = contents
        .entries
        .iter()
        .filter(is_damaged)
        .take(MAX_PROBLEMS);
    let affects = affected.map(|entry| entry.head.name.clone()).collect();
    let more = if damages.len() > 1 {
        format!(", and {} more", damages.len() - 1)
    } else {
        String::new()
    };
    let message = format!("At byte {} {}{more}", first.offset, first.what);
    contents.problems.push(Problem {
        affects,
        ..Problem::of_archive(ProblemCode::Block, message)
    });
}

/// Checks the file against its seal and, if it is encrypted, against the authentication of age.
pub fn seal(facts: &FileFacts, contents: &mut Contents) {
    let message = match facts.cut_at {
        Some(offset) => {
            format!(
                "It cannot be decrypted from byte {offset} on: bytes after that were changed, \
                 removed or added"
            )
        }
        None if !facts.sealed => {
            "The digest at its end does not match its content: bytes were changed, removed or added"
                .to_string()
        }
        None => return,
    };
    contents
        .problems
        .push(Problem::of_archive(ProblemCode::Archive, message));
}

/// Compares the file, and the manifest and the list inside it, with the sidecar, whose text is
/// `json`.
pub fn beside(
    facts: &FileFacts,
    inside: Option<&Manifest>,
    files: &FileList,
    json: Option<&[u8]>,
    contents: &mut Contents,
) {
    let Some(json) = json else { return };
    let parsed = Manifest::parse(json, "the manifest next to the archive").ok();
    let Some((mut beside, archive)) =
        parsed.and_then(|manifest| Some((manifest.without_archive(), manifest.archive?)))
    else {
        contents
            .problems
            .push(sidecar("The manifest next to the archive cannot be read"));
        return;
    };
    if archive.size != facts.size_bytes || archive.sha256 != hex(&facts.sha256) {
        let message = format!(
            "The archive has {} bytes with SHA-256 {}; the manifest next to it says {} bytes with \
             SHA-256 {}",
            facts.size_bytes,
            hex(&facts.sha256),
            archive.size,
            archive.sha256
        );
        contents
            .problems
            .push(Problem::of_archive(ProblemCode::Archive, message));
    }
    if let Some(inside) = inside {
        let outside = facts.encrypted.then(|| inside.public_sidecar());
        let inside = outside.as_ref().unwrap_or(inside);
        // Only the first format lists the files there too.
        let is_listed = facts.encrypted
            || first_format::file_list(json, &beside).is_none_or(|listed| listed == *files);
        let expected = beside.stats.compressed_size == archive.size
            && (archive.list_offset.is_none() || archive.list_offset == inside.list_offset());
        // This field differs by design: see `Stats::compressed_size`.
        beside.stats.compressed_size = inside.stats.compressed_size;
        if !is_listed || !expected || *inside != beside {
            contents.problems.push(sidecar(
                "The manifest next to the archive differs from the manifest inside",
            ));
        }
    }
}

fn sidecar(message: &str) -> Problem {
    let remedy = "If the archive itself verifies, remove the manifest next to the archive: the \
                  next backup writes it again";
    Problem {
        remedy: remedy.into(),
        ..Problem::of_archive(ProblemCode::Sidecar, message.into())
    }
}

/// Reports an archive whose name says that it is encrypted although it is not. Somebody may have
/// put it in the place of the encrypted one.
pub fn name(name: &str, facts: &FileFacts, contents: &mut Contents) {
    if encryption::is_named(name) && !facts.encrypted {
        let message = "Its name says that it is encrypted, but it is not".to_string();
        contents
            .problems
            .push(Problem::of_archive(ProblemCode::Archive, message));
    }
}

/// Checks the names, order, kinds, sizes and digests of all entries.
pub fn entries(manifest: &Manifest, files: &FileList, contents: &mut Contents) {
    let mut problems = Problems::default();
    let mut found = HashMap::with_capacity(contents.entries.len());
    for entry in &contents.entries {
        if found.insert(entry.head.name.as_str(), entry).is_some() {
            problems.add(&entry.head.name, "is present twice");
        }
    }
    let rests_on_another = manifest.based_on.is_some() && manifest.based_on_checksum.is_some();
    let is_odd = |record: &&FileRecord| !is_plausible(record, rests_on_another);
    for record in files.records().iter().filter(is_odd) {
        problems.add(
            &record.entry,
            "has a description that is not valid in a backup",
        );
    }
    for record in stored(files) {
        match found.remove(record.entry.as_str()) {
            Some(entry) => difference(record, entry)
                .iter()
                .for_each(|what| problems.add(&record.entry, what)),
            None => problems.add(&record.entry, "is missing"),
        }
    }
    let describing = describing(manifest);
    found.retain(|name, _| !describing.contains(name));
    found
        .into_keys()
        .for_each(|name| problems.add(name, "is not in the manifest"));
    if problems.list.is_empty() {
        problems.list.extend(order(manifest, files, contents));
        problems.list.extend(summary(manifest, files, contents));
        let checksums = contents.checksums.take().unwrap_or_default();
        problems.list.extend(checksums.finish(&contents.entries));
    }
    contents.problems.extend(problems.finish());
}

/// Returns the records that have an entry in the archive.
fn stored(files: &FileList) -> impl Iterator<Item = &FileRecord> {
    let records = files.records().iter();
    records.filter(|record| record.entry_size().is_some())
}

/// Returns the entries after those of the list, in order.
fn describing(manifest: &Manifest) -> &'static [&'static str] {
    const ENTRIES: [&str; 3] = [FILE_LIST_ENTRY, MANIFEST_ENTRY, CHECKSUMS_ENTRY];
    if manifest.format == FIRST_FORMAT {
        &ENTRIES[1..]
    } else {
        &ENTRIES
    }
}

/// Returns whether a record has exactly the fields that its kind of storage needs.
fn is_plausible(record: &FileRecord, rests_on_another: bool) -> bool {
    let is_file = record.kind.is_file();
    let blocks = record.blocks.as_deref();
    if blocks.is_some_and(|blocks| blocks.size < MIN_PAGE_BYTES) {
        return false;
    }
    match (record.stored, &record.pages) {
        // The digest of a file is compared with its entry.
        (Storage::Full, pages) => pages.is_none() && (is_file || record.sha256.is_none()),
        (Storage::Unchanged | Storage::Deleted, pages) => {
            rests_on_another && pages.is_none() && is_file == record.has_content()
        }
        (Storage::Delta, Some(pages)) => {
            let is_whole = pages.page_size > 0 && record.size.is_multiple_of(pages.page_size);
            rests_on_another && is_file && record.database && record.has_content() && is_whole
        }
        (Storage::Delta, None) => false,
    }
}

fn order(manifest: &Manifest, files: &FileList, contents: &Contents) -> Option<Problem> {
    let expected = stored(files).map(|record| record.entry.as_str());
    let expected = expected.chain(describing(manifest).iter().copied());
    let found = contents
        .entries
        .iter()
        .map(|entry| entry.head.name.as_str());
    let message = "The entries are not in the order of the manifest".to_string();
    (!found.eq(expected)).then(|| Problem::of_archive(ProblemCode::Structure, message))
}

/// Compares the manifest with the list and with the entries whose digests it has. The list of an
/// incremental backup is only a part; [`crate::store::chain`] compares the whole.
fn summary(manifest: &Manifest, files: &FileList, contents: &Contents) -> Option<Problem> {
    let digest_of = |name: &str| {
        let mut entries = contents.entries.iter();
        Some(entries.find(|entry| entry.head.name == name)?.digest)
    };
    let is_same = match manifest.file_list {
        None => manifest.format == FIRST_FORMAT,
        Some(_) if manifest.based_on.is_some() => true,
        Some(expected) => {
            let is_complete = expected.records == files.records().len() as u64;
            is_complete && digest_of(FILE_LIST_ENTRY) == Some(expected.sha256)
        }
    };
    let message = "The list of files is not the one that the manifest describes".to_string();
    if !is_same {
        return Some(Problem::of_archive(ProblemCode::Structure, message));
    }
    let mut checksums = manifest.checksums.iter();
    let differs = |(name, expected): &(&String, &String)| {
        digest_of(name).map(checksum).as_ref() != Some(*expected)
    };
    let (name, _) = checksums.find(differs)?;
    let message = format!("{name} does not have the checksum that the manifest says");
    Some(Problem::of_entry(name.clone(), message))
}

/// Compares `checksums.sha256` with the entries before it, line by line.
#[derive(Default)]
pub struct ChecksumsCheck {
    /// The beginning of the next line.
    rest: Vec<u8>,
    /// The first entry whose line has not been read.
    next: usize,
    is_wrong: bool,
}

impl ChecksumsCheck {
    pub fn push(&mut self, bytes: &[u8], entries: &[ReadEntry]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.is_wrong {
                return;
            }
            self.rest.extend_from_slice(piece);
            let expected = next_file(entries, self.next).map(|(next, entry)| {
                let line = checksums_line(&entry.head.name, entry.digest);
                (next, line.into_bytes())
            });
            match expected {
                Some((next, line)) if line == self.rest => {
                    self.next = next + 1;
                    self.rest.clear();
                }
                Some((_, line)) if line.starts_with(&self.rest) => {}
                _ => self.is_wrong = true,
            }
        }
    }

    /// Compares the end. `entries` are all entries; the last one holds the checksums.
    fn finish(self, entries: &[ReadEntry]) -> Option<Problem> {
        let before = entries.split_last().map_or(entries, |(_, before)| before);
        let is_whole = self.rest.is_empty() && next_file(before, self.next).is_none();
        (self.is_wrong || !is_whole).then(|| {
            Problem::of_entry(
                CHECKSUMS_ENTRY.into(),
                "The checksums do not match the entries".into(),
            )
        })
    }
}

/// Returns the first file from the entry with that index on.
fn next_file(entries: &[ReadEntry], from: usize) -> Option<(usize, &ReadEntry)> {
    let mut entries = entries.iter().enumerate().skip(from);
    entries.find(|(_, entry)| entry.head.kind.is_file())
}

/// Keeps the first problems of entries and counts the others.
#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
    more: usize,
}

impl Problems {
    fn add(&mut self, entry: &str, what: &str) {
        if self.list.len() < MAX_PROBLEMS {
            self.list
                .push(Problem::of_entry(entry.into(), format!("{entry} {what}")));
        } else {
            self.more += 1;
        }
    }

    fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            let message = format!(
                "{} more entries are missing, added or different from the manifest",
                self.more
            );
            self.list
                .push(Problem::of_archive(ProblemCode::Entry, message));
        }
        self.list
    }
}

/// Describes how an entry differs from its record.
fn difference(record: &FileRecord, ReadEntry { head, digest }: &ReadEntry) -> Option<String> {
    if head.kind != record.kind {
        return Some("is not of the type that the manifest says".into());
    }
    let expected = record.entry_size().unwrap_or_default();
    if head.size_bytes != expected {
        return Some(format!(
            "has {} bytes; the manifest says {expected}",
            head.size_bytes
        ));
    }
    match record.kind {
        EntryKind::Directory => None,
        EntryKind::Link => {
            let target = record.target.as_deref().and_then(names::decode);
            let is_same = target.is_some_and(|target| target.as_os_str().as_bytes() == head.link);
            (!is_same).then(|| "points to another target than the manifest says".into())
        }
        // The digest of changed pages is only in the checksums.
        EntryKind::File if record.stored == Storage::Delta => None,
        EntryKind::File => match record.sha256 {
            None => Some("has no digest in the manifest".into()),
            Some(expected) => (*digest != expected)
                .then(|| format!("has SHA-256 {digest}; the manifest says {expected}")),
        },
    }
}
