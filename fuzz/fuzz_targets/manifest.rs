//! Fuzzes manifests. A parsed manifest must read the same after it is written again. The sidecar of
//! an encrypted archive must name no file.
#![no_main]

use kg_backup::internals::archive::{first_format, manifest::Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(manifest) = Manifest::parse(json, "it") else {
        return;
    };
    let again = Manifest::parse(&manifest.to_json(), "it").expect("what was written");
    assert_eq!(manifest, again);
    let public = manifest.public_sidecar();
    assert!(public.file_list.is_none() && public.checksums.is_empty());
    assert!(manifest.without_archive().archive.is_none());
    if let Some(files) = first_format::file_list(json, &manifest) {
        assert!(files.databases().len() <= files.records().len());
    }
});
