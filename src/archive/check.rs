//! Compares what was found in an archive with what the manifests say.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{
    gunzip::Damage,
    manifest::{CHECKSUMS_ENTRY, MANIFEST_ENTRY, Manifest, checksums_text, hex},
    read::{Contents, Problem, ProblemCode},
    seal::FileFacts,
};

/// Damaged blocks, as one problem with the entries that they hold.
pub fn damages(damages: &[Damage], contents: &mut Contents) {
    let Some(first) = damages.first() else { return };
    let affects = contents
        .entries
        .iter()
        .filter(|entry| damages.iter().any(|damage| entry.tar_range.contains(&damage.tar_offset)))
        .map(|entry| entry.name.clone())
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

/// Names, order, sizes and digests of all entries.
pub fn entries(manifest: &Manifest, contents: &mut Contents) {
    let mut problems = Vec::new();
    let mut found = HashMap::new();
    for entry in &contents.entries {
        if found.insert(entry.name.as_str(), entry).is_some() {
            problems.push(Problem::of_entry(entry.name.clone(), format!("{} is there twice", entry.name)));
        }
    }
    for record in &manifest.files {
        let name = &record.entry;
        let message = match (found.remove(name.as_str()), manifest.digest_of(name)) {
            (None, _) => format!("{name} is missing"),
            (_, None) => format!("The manifest gives no digest of {name}"),
            (Some(entry), _) if entry.size_bytes != record.size => {
                format!("{name} has {} bytes; the manifest says {}", entry.size_bytes, record.size)
            }
            (Some(entry), Some(digest)) if entry.digest != digest => {
                format!("{name} has SHA-256 {}; the manifest says {digest}", entry.digest)
            }
            _ => continue,
        };
        problems.push(Problem::of_entry(name.clone(), message));
    }
    found.retain(|name, _| ![MANIFEST_ENTRY, CHECKSUMS_ENTRY].contains(name));
    for name in found.into_keys() {
        problems.push(Problem::of_entry(name.into(), format!("{name} is not in the manifest")));
    }
    if problems.is_empty() && !is_in_order(manifest, contents) {
        let message = "The entries are not in the order of the manifest".to_string();
        problems.push(Problem::of_archive(ProblemCode::Structure, message));
    }
    let digests = contents.entries.iter().filter(|entry| entry.name != CHECKSUMS_ENTRY);
    let expected = checksums_text(digests.map(|entry| (entry.name.as_str(), entry.digest.as_str())));
    if problems.is_empty() && contents.checksums.as_deref() != Some(expected.as_bytes()) {
        problems.push(Problem::of_entry(CHECKSUMS_ENTRY.into(), "The checksums are not those of the entries".into()));
    }
    contents.problems.extend(problems);
}

fn is_in_order(manifest: &Manifest, contents: &Contents) -> bool {
    let expected = manifest.files.iter().map(|record| record.entry.as_str());
    contents.entries.iter().map(|entry| entry.name.as_str()).eq(expected.chain([MANIFEST_ENTRY, CHECKSUMS_ENTRY]))
}
