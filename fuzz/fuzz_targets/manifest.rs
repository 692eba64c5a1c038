//! Fuzzes manifests. A parsed manifest must read the same after it is written again. The sidecar of
//! an encrypted archive must name no file.
#![no_main]

use kg_backup::internals::archive::{
    filter::EntryFilter,
    manifest::{Manifest, checksums_text},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(manifest) = Manifest::parse(json, "it") else {
        return;
    };
    let again = Manifest::parse(&manifest.to_json(), "it").expect("what was written");
    assert_eq!(manifest, again);
    assert!(
        manifest.public_sidecar().files.is_empty() && manifest.without_archive().archive.is_none()
    );
    for record in &manifest.files {
        let _ = (record.entry_size(), manifest.content_digest(record));
    }
    assert!(EntryFilter::default().select(&manifest).len() <= manifest.files.len());
    let _ = checksums_text(
        manifest
            .checksums
            .iter()
            .map(|(entry, digest)| (entry.as_str(), digest.as_str())),
    );
});
