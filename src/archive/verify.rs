//! Compares the content of an archive with its manifests.

use std::{collections::HashMap, os::unix::ffi::OsStrExt, path::Path};

use super::{
    block_reader::Damage,
    encryption,
    manifest::{
        CHECKSUMS_ENTRY, EntryKind, FileRecord, MANIFEST_ENTRY, Manifest, Storage, checksums_text,
    },
    report::{Contents, MAX_PROBLEMS, Problem, ProblemCode, ReadEntry},
    seal::FileFacts,
};
use crate::{project::names, util::hex::hex};

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

/// Compares the file and the manifest inside it with the sidecar, whose text is `beside`.
pub fn beside(
    facts: &FileFacts,
    inside: Option<&Manifest>,
    beside: Option<&[u8]>,
    contents: &mut Contents,
) {
    let Some(beside) = beside else { return };
    let parsed = Manifest::parse(beside, "the manifest next to the archive").ok();
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
        // This field differs by design: see `Stats::compressed_size`.
        let expected = beside.stats.compressed_size == archive.size;
        beside.stats.compressed_size = inside.stats.compressed_size;
        if !expected || *inside != beside {
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
pub fn name(path: &Path, facts: &FileFacts, contents: &mut Contents) {
    let is_named = path
        .file_name()
        .is_some_and(|name| encryption::is_named(&name.to_string_lossy()));
    if is_named && !facts.encrypted {
        let message = "Its name says that it is encrypted, but it is not".to_string();
        contents
            .problems
            .push(Problem::of_archive(ProblemCode::Archive, message));
    }
}

/// Checks the names, order, kinds, sizes and digests of all entries.
pub fn entries(manifest: &Manifest, contents: &mut Contents) {
    let mut problems = Problems::default();
    let mut found = HashMap::with_capacity(contents.entries.len());
    for entry in &contents.entries {
        if found.insert(entry.head.name.as_str(), entry).is_some() {
            problems.add(&entry.head.name, "is present twice");
        }
    }
    let rests_on_another = manifest.based_on.is_some() && manifest.based_on_checksum.is_some();
    for record in manifest
        .files
        .iter()
        .filter(|record| !is_plausible(record, rests_on_another))
    {
        problems.add(
            &record.entry,
            "has a description that is not valid in a backup",
        );
    }
    for record in manifest
        .files
        .iter()
        .filter(|record| record.stored != Storage::Unchanged)
    {
        match found.remove(record.entry.as_str()) {
            Some(entry) => difference(manifest, record, entry)
                .iter()
                .for_each(|what| problems.add(&record.entry, what)),
            None => problems.add(&record.entry, "is missing"),
        }
    }
    found.retain(|name, _| ![MANIFEST_ENTRY, CHECKSUMS_ENTRY].contains(name));
    found
        .into_keys()
        .for_each(|name| problems.add(name, "is not in the manifest"));
    if problems.list.is_empty() {
        problems.list.extend(checksums(manifest, contents));
    }
    contents.problems.extend(problems.finish());
}

/// Returns whether a record has exactly the fields that its kind of storage needs.
fn is_plausible(record: &FileRecord, rests_on_another: bool) -> bool {
    let is_file = record.kind.is_file();
    match (record.stored, &record.pages) {
        (Storage::Full, pages) => pages.is_none() && record.sha256.is_none(),
        (Storage::Unchanged, pages) => {
            rests_on_another && pages.is_none() && is_file == record.sha256.is_some()
        }
        (Storage::Delta, Some(pages)) => {
            let is_whole = pages.page_size > 0 && record.size.is_multiple_of(pages.page_size);
            rests_on_another && is_file && record.database && record.sha256.is_some() && is_whole
        }
        (Storage::Delta, None) => false,
    }
}

/// Checks the order of the entries and the content of `checksums.sha256`.
fn checksums(manifest: &Manifest, contents: &Contents) -> Option<Problem> {
    if !is_in_order(manifest, contents) {
        let message = "The entries are not in the order of the manifest".to_string();
        return Some(Problem::of_archive(ProblemCode::Structure, message));
    }
    let files = contents
        .entries
        .iter()
        .filter(|entry| entry.head.kind.is_file());
    let digests: Vec<_> = files
        .map(|entry| (entry.head.name.as_str(), hex(&entry.digest)))
        .collect();
    let digests = digests.iter().filter(|(name, _)| *name != CHECKSUMS_ENTRY);
    let expected = checksums_text(digests.map(|(name, digest)| (*name, digest.as_str())));
    (contents.checksums.as_deref() != Some(expected.as_bytes())).then(|| {
        Problem::of_entry(
            CHECKSUMS_ENTRY.into(),
            "The checksums do not match the entries".into(),
        )
    })
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
fn difference(
    manifest: &Manifest,
    record: &FileRecord,
    ReadEntry { head, digest }: &ReadEntry,
) -> Option<String> {
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
        EntryKind::File => match (manifest.digest_of(&record.entry), hex(digest)) {
            (None, _) => Some("has no digest in the manifest".into()),
            (Some(expected), digest) if digest != expected => Some(format!(
                "has SHA-256 {digest}; the manifest says {expected}"
            )),
            _ => None,
        },
    }
}

fn is_in_order(manifest: &Manifest, contents: &Contents) -> bool {
    let in_tar = manifest
        .files
        .iter()
        .filter(|record| record.stored != Storage::Unchanged);
    let expected = in_tar.map(|record| record.entry.as_str());
    let found = contents
        .entries
        .iter()
        .map(|entry| entry.head.name.as_str());
    found.eq(expected.chain([MANIFEST_ENTRY, CHECKSUMS_ENTRY]))
}
