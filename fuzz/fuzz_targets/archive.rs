//! Fuzzes the content of an archive under a valid seal. Checking and unpacking must agree, and
//! unpacking must write only into its target directory.
#![no_main]

use std::fs;

use kg_backup::internals::{
    archive::{
        encryption::Keys,
        extract::Unpacking,
        reader::{Discard, Unpack, read_archive},
        seal::Container,
    },
    place::Archive,
    util::operation::{OperationContext, Phase},
};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|content: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let (archive, into) = (dir.path().join("archive"), dir.path().join("into"));
    fs::create_dir(&into).expect("a directory");
    let seal = Container::of(content).seal(&Sha256::digest(content).into());
    fs::write(&archive, [content, &seal].concat()).expect("a file");
    let read = |unpack: &mut dyn Unpack| {
        read_archive(
            &Archive::at(&archive),
            &Keys::default(),
            None,
            unpack,
            &OperationContext::default(),
            Phase::Verifying,
        )
    };
    let checked = read(&mut Discard);
    if let Ok(unpacked) = read(&mut Unpacking::new(Some(&into), None, None)) {
        let checked = checked.expect("what can be unpacked can be checked");
        assert_eq!(
            (checked.sha256, checked.manifest),
            (unpacked.sha256, unpacked.manifest)
        );
    }
    let names = |dir| {
        fs::read_dir(dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
    };
    assert_eq!(names(dir.path()).count(), 2);
    assert!(names(&into).all(|name| {
        name.to_str()
            .is_some_and(|name| name.parse::<u64>().is_ok())
    }));
});
