//! Compares what was found in an archive with what the manifests say.

use std::{collections::HashMap, os::unix::ffi::OsStrExt};

use serde_json::{Value, json};

use super::{
    gunzip::Damage,
    manifest::{CHECKSUMS_ENTRY, EntryKind, FileRecord, MANIFEST_ENTRY, Manifest, checksums_text, hex},
    read::{Contents, Found, Problem, ProblemCode},
    seal::FileFacts,
};
use crate::project::names;

/// Damaged blocks, as one problem with the entries that they hold.
pub fn damages(damages: &[Damage], contents: &mut Contents) {
    let Some(first) = damages.first() else { return };
    let affects = contents
        .entries
        .iter()
        .filter(|entry| damages.iter().any(|damage| entry.tar_range().contains(&damage.tar_offset)))
        .map(|entry| entry.head.name.clone())
        .collect();
    let more = if damages.len() > 1 { format!(", and {} more", damages.len() - 1) } else { String::new() };
    let message = format!("At byte {} {}{more}", first.offset, first.what);
    contents.problems.push(Problem { affects, ..Problem::of_archive(ProblemCode::Block, message) });
}

/// The file against its seal and against the manifest beside it, whose text is `beside`.
pub fn file(facts: &FileFacts, beside: Option<&[u8]>, contents: &mut Contents) {
    if !facts.sealed {
        let message = "The digest at its end is not that of its content: bytes were changed, cut or added".to_string();
        contents.problems.push(Problem::of_archive(ProblemCode::Archive, message));
    }
    let Some(beside) = beside else { return };
    let Ok(mut beside) = serde_json::from_slice::<Value>(beside) else {
        contents.problems.push(sidecar("The manifest beside the archive cannot be read"));
        return;
    };
    // Whatever else it is, indexing a value that is no object gives null.
    let archive = beside.as_object_mut().and_then(|manifest| manifest.remove("archive")).unwrap_or_default();
    if archive["size"] != facts.size_bytes || archive["sha256"] != hex(&facts.sha256) {
        let message = format!(
            "The archive has {} bytes of SHA-256 {}; the manifest beside it says {} bytes of SHA-256 {}",
            facts.size_bytes,
            hex(&facts.sha256),
            archive["size"],
            archive["sha256"].as_str().unwrap_or("none")
        );
        contents.problems.push(Problem::of_archive(ProblemCode::Archive, message));
    }
    let inside = contents.manifest.as_deref().and_then(|json| serde_json::from_slice::<Value>(json).ok());
    if let Some(mut inside) = inside {
        // The one field that differs by its nature: see `Stats::compressed_size`.
        if let Some(size) = inside.pointer_mut("/stats/compressedSize") {
            *size = json!(facts.size_bytes);
        }
        if inside != beside {
            contents.problems.push(sidecar("The manifest beside the archive is not the one inside"));
        }
    }
}

fn sidecar(message: &str) -> Problem {
    let remedy =
        "Remove the manifest beside the archive if the archive itself verifies: the next backup writes it anew";
    Problem { remedy: remedy.into(), ..Problem::of_archive(ProblemCode::Sidecar, message.into()) }
}

/// Names, order, kinds, sizes and digests of all entries.
pub fn entries(manifest: &Manifest, contents: &mut Contents) {
    let mut problems = Vec::new();
    let mut found = HashMap::new();
    for entry in &contents.entries {
        let name = entry.head.name.as_str();
        if found.insert(name, entry).is_some() {
            problems.push(Problem::of_entry(name.into(), format!("{name} is there twice")));
        }
    }
    for record in &manifest.files {
        let problem = match found.remove(record.entry.as_str()) {
            Some(entry) => difference(manifest, record, entry),
            None => Some("is missing".to_string()),
        };
        let name = &record.entry;
        problems.extend(problem.map(|what| Problem::of_entry(name.clone(), format!("{name} {what}"))));
    }
    found.retain(|name, _| ![MANIFEST_ENTRY, CHECKSUMS_ENTRY].contains(name));
    for name in found.into_keys() {
        problems.push(Problem::of_entry(name.into(), format!("{name} is not in the manifest")));
    }
    if problems.is_empty() && !is_in_order(manifest, contents) {
        let message = "The entries are not in the order of the manifest".to_string();
        problems.push(Problem::of_archive(ProblemCode::Structure, message));
    }
    let files = contents.entries.iter().filter(|entry| entry.head.kind.is_file());
    let digests: Vec<_> = files.map(|entry| (entry.head.name.as_str(), hex(&entry.digest))).collect();
    let digests = digests.iter().filter(|(name, _)| *name != CHECKSUMS_ENTRY);
    let expected = checksums_text(digests.map(|(name, digest)| (*name, digest.as_str())));
    if problems.is_empty() && contents.checksums.as_deref() != Some(expected.as_bytes()) {
        problems.push(Problem::of_entry(CHECKSUMS_ENTRY.into(), "The checksums are not those of the entries".into()));
    }
    contents.problems.extend(problems);
}

/// How an entry differs from its record.
fn difference(manifest: &Manifest, record: &FileRecord, Found { head, digest }: &Found) -> Option<String> {
    if head.kind != record.kind {
        return Some("is not of the type that the manifest says".into());
    }
    if head.size_bytes != record.size {
        return Some(format!("has {} bytes; the manifest says {}", head.size_bytes, record.size));
    }
    match record.kind {
        EntryKind::Directory => None,
        EntryKind::Link => {
            let target = record.target.as_deref().and_then(names::decode);
            let is_same = target.is_some_and(|target| target.as_os_str().as_bytes() == head.link);
            (!is_same).then(|| "points elsewhere than the manifest says".into())
        }
        EntryKind::File => match (manifest.digest_of(&record.entry), hex(digest)) {
            (None, _) => Some("has no digest in the manifest".into()),
            (Some(expected), digest) if digest != expected => {
                Some(format!("has SHA-256 {digest}; the manifest says {expected}"))
            }
            _ => None,
        },
    }
}

fn is_in_order(manifest: &Manifest, contents: &Contents) -> bool {
    let expected = manifest.files.iter().map(|record| record.entry.as_str());
    let found = contents.entries.iter().map(|entry| entry.head.name.as_str());
    found.eq(expected.chain([MANIFEST_ENTRY, CHECKSUMS_ENTRY]))
}
