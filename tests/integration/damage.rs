//! Every byte of an archive matters. Each changed byte, and each length to which the archive can be
//! cut, is detected.

use std::{fs, path::Path};

use age::x25519;
use kg_backup::internals::{
    archive::{
        block::Compression,
        encryption::{Keyring, Keys},
        reader::{Discard, read_archive},
    },
    commands::backup::create_backup,
    config::backup_config::BackupOptions,
    place::Archive,
    store::Store,
    util::operation::{OperationContext, Phase},
    worker::client::WorkerMode,
};
use rusqlite::Connection;
use tempfile::TempDir;

/// Makes a small archive in a temporary directory, encrypted if there are `keys`. Returns the
/// directory and the bytes of the archive.
fn small_archive(compression: Compression, keys: Option<&Keys>) -> (TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("project");
    fs::create_dir_all(root.join(".kg")).unwrap();
    let connection = Connection::open(root.join(".kg/knowledge.db")).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 512; CREATE TABLE nodes (id TEXT); INSERT INTO nodes VALUES ('a')",
        )
        .unwrap();
    drop(connection);
    fs::write(root.join(".kg/config.json"), "{}").unwrap();
    let store = Store::at(&dir.path().join("backups")).unwrap();
    let store = keys.map_or(store.clone(), |keys| {
        store.with_keys(keys.clone()).encrypting(true)
    });
    let options = BackupOptions {
        compression,
        ..BackupOptions::default()
    };
    let backup = create_backup(
        &root,
        &store,
        &WorkerMode::InProcess,
        &options,
        &OperationContext::default(),
    )
    .unwrap();
    let bytes = fs::read(backup.backup.archive.path()).unwrap();
    (dir, bytes)
}

fn is_whole(path: &Path, bytes: &[u8], keys: &Keys) -> bool {
    fs::write(path, bytes).unwrap();
    match read_archive(
        &Archive::at(path),
        keys,
        None,
        &mut Discard,
        &OperationContext::default(),
        Phase::Verifying,
    ) {
        Ok(report) => report.problems.is_empty() && report.manifest.is_some(),
        Err(_) => false,
    }
}

fn assert_every_byte_matters(compression: Compression, keys: Option<&Keys>) {
    let (dir, whole) = small_archive(compression, keys);
    let path = dir.path().join("changed");
    let none = Keys::default();
    let is_whole = |path: &Path, bytes: &[u8]| is_whole(path, bytes, keys.unwrap_or(&none));
    assert!(is_whole(&path, &whole));
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(
            !is_whole(&path, &changed),
            "a changed byte {at} of {} went unnoticed",
            whole.len()
        );
    }
    for length in 0..whole.len() {
        assert!(
            !is_whole(&path, &whole[..length]),
            "a cut to {length} of {} went unnoticed",
            whole.len()
        );
    }
    for added in [&b"\0"[..], &[0; 512], &whole] {
        assert!(
            !is_whole(&path, &[&whole, added].concat()),
            "{} added bytes went unnoticed",
            added.len()
        );
    }
}

#[test]
fn of_a_compressed_archive() {
    assert_every_byte_matters(Compression::Gzip(6), None);
}

#[test]
fn of_an_archive_of_zstd() {
    assert_every_byte_matters(Compression::Zstd(3), None);
}

#[test]
fn of_a_plain_archive() {
    assert_every_byte_matters(Compression::None, None);
}

#[test]
fn of_an_encrypted_archive() {
    let identities = vec![x25519::Identity::generate()];
    let keys = Keys::of(Keyring {
        identities,
        ..Keyring::default()
    });
    assert_every_byte_matters(Compression::Gzip(6), Some(&keys));
}
