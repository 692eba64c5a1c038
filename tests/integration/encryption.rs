//! What opens an encrypted archive, which error is returned if nothing does, and what a forged
//! archive can consume.

use std::{fs, io::Write, path::PathBuf};

use age::{secrecy::SecretString, x25519};
use kg_backup::internals::{
    archive::{
        block::Compression,
        block_writer::{Encoder, Sink},
        encryption::{Keyring, Keys, write::Encrypting},
        reader::{Discard, read_archive},
        report::Report,
    },
    commands::backup::create_backup,
    config::backup_config::BackupOptions,
    error::{Code, Error},
    place::Archive,
    store::{Backup, Store, manifest_beside},
    util::operation::{OperationContext, Phase},
    worker::client::WorkerMode,
};
use proptest::prelude::*;
use tempfile::TempDir;

fn passphrase(text: &str) -> Keys {
    Keys::of(Keyring::of_passphrase(SecretString::from(text.to_string())))
}

fn identity() -> (Keys, x25519::Recipient) {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public();
    (
        Keys::of(Keyring {
            identities: vec![identity],
            ..Keyring::default()
        }),
        recipient,
    )
}

fn project() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("project");
    fs::create_dir_all(root.join(".kg")).unwrap();
    fs::write(root.join(".kg/knowledge.db"), "").unwrap();
    (dir, root)
}

fn backup(keys: &Keys) -> (TempDir, Backup) {
    let (dir, root) = project();
    let store = Store::at(&dir.path().join("backups"))
        .unwrap()
        .with_keys(keys.clone())
        .encrypting(true);
    let made = create_backup(
        &root,
        &store,
        &WorkerMode::InProcess,
        &BackupOptions::default(),
        &OperationContext::default(),
    )
    .unwrap();
    (dir, made.backup)
}

fn read(path: &std::path::Path, keys: &Keys, beside: Option<&[u8]>) -> Result<Report, Error> {
    read_archive(
        &Archive::at(path),
        keys,
        beside,
        &mut Discard,
        &OperationContext::default(),
        Phase::Verifying,
    )
}

#[test]
fn another_key_is_told_from_a_changed_file_where_the_manifest_is_beside_it() {
    let (right, _) = identity();
    let (wrong, _) = identity();
    let (_dir, made) = backup(&right);
    let beside = manifest_beside(&made.archive).unwrap().unwrap();
    assert_eq!(
        read(&made.archive.path(), &right, Some(&beside))
            .unwrap()
            .problems,
        []
    );
    for beside in [Some(beside.as_slice()), None] {
        assert_eq!(
            read(&made.archive.path(), &wrong, beside).unwrap_err().code,
            Code::KeyWrong
        );
        assert_eq!(
            read(&made.archive.path(), &passphrase("any"), beside)
                .unwrap_err()
                .code,
            Code::KeyNeeded
        );
        assert_eq!(
            read(&made.archive.path(), &Keys::default(), beside)
                .unwrap_err()
                .code,
            Code::KeyNeeded
        );
    }
    // Change each byte of the header. What wraps the key then looks like another key.
    let whole = fs::read(made.archive.path()).unwrap();
    let end = whole.windows(4).position(|bytes| bytes == b"--- ").unwrap();
    for at in 0..end + 40 {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(made.archive.path(), changed).unwrap();
        let report = read(&made.archive.path(), &right, Some(&beside)).unwrap();
        assert!(!report.problems.is_empty(), "byte {at}");
    }
}

#[test]
fn a_passphrase_opens_what_it_made_and_no_other_does() {
    let keys = passphrase("correct horse");
    let (_dir, made) = backup(&keys);
    assert_eq!(
        read(&made.archive.path(), &keys, None).unwrap().problems,
        []
    );
    let error = read(&made.archive.path(), &passphrase("correct horse "), None).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::KeyWrong, "The passphrase does not open this backup")
    );
}

#[test]
fn a_forged_header_takes_neither_memory_nor_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forged.enc.tar.gz");
    let stanza = "-> X25519 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
    let endless = format!("age-encryption.org/v1\n{}", stanza.repeat(100_000));
    let salt = "AAAAAAAAAAAAAAAAAAAAAA";
    let body = "A".repeat(43);
    let mac = format!("--- {body}\n");
    let work = format!("age-encryption.org/v1\n-> scrypt {salt} 21\n{body}\n{mac}0123456789abcdef");
    let none = "age-encryption.org/v1\nwhat is this\n".to_string();
    let (keys, _) = identity();
    for (forged, keys) in [
        (&endless, &keys),
        (&work, &passphrase("any")),
        (&none, &keys),
    ] {
        fs::write(&path, forged).unwrap();
        let report = read(&path, keys, None).unwrap();
        assert!(
            report.manifest.is_none() && report.encrypted,
            "{:.40}",
            forged
        );
        assert!(
            report.problems[0]
                .message
                .starts_with("It is encrypted, and "),
            "{:?}",
            report.problems
        );
    }
}

#[test]
fn nothing_is_begun_where_nothing_can_be_encrypted() {
    let (dir, root) = project();
    let recipients = (0..129).map(|_| identity().1).collect();
    let many = Keyring {
        recipients,
        ..Keyring::default()
    };
    for (keys, code) in [
        (Keys::default(), Code::KeyNeeded),
        (Keys::of(many), Code::InvalidOption),
    ] {
        let store = Store::at(&dir.path().join("backups"))
            .unwrap()
            .with_keys(keys)
            .encrypting(true);
        let made = create_backup(
            &root,
            &store,
            &WorkerMode::InProcess,
            &BackupOptions::default(),
            &OperationContext::default(),
        );
        assert_eq!(made.unwrap_err().code, code);
        assert!(!store.dir().exists());
    }
}

#[derive(Clone, Default)]
struct Memory(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Sink for Memory {}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_archive_of_any_length_is_what_age_decrypts_and_its_digest_is_of_the_file(
        // Sizes around the pieces that age encrypts and the blocks of an archive.
        pieces in 0..5_usize, more in -70..70_i64, compression in prop_oneof![Just(Compression::None), Just(Compression::GZIP)],
    ) {
        let size = (pieces as i64 * 65_536 + more).max(0) as usize;
        let content: Vec<u8> = (0..size).map(|n| (n * n % 251) as u8).collect();
        let identity = x25519::Identity::generate();
        let keys = Keys::of(Keyring { recipients: vec![identity.to_public()], ..Keyring::default() });
        let file = Memory::default();
        let mut encoder = Encoder::new(Box::new(Encrypting::new(file.clone(), &keys).unwrap()), compression, None).unwrap();
        encoder.write_all(&content).unwrap();
        let written = encoder.finish().unwrap();
        let bytes = file.0.lock().unwrap().clone();
        prop_assert_eq!((written.file.size_bytes, written.root), (bytes.len() as u64, None));
        let digest: [u8; 32] = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(&bytes)).into();
        prop_assert_eq!(written.file.sha256, digest);
        let mut archive = age::decrypt(&identity, &bytes).unwrap();
        if compression == Compression::None {
            archive.truncate(archive.len() - 512);
            prop_assert_eq!(archive, content);
        } else {
            let mut inflated = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(archive.as_slice()), &mut inflated).unwrap();
            prop_assert_eq!(inflated, content);
        }
    }
}

#[test]
fn a_call_that_is_cancelled_while_a_changed_archive_is_read_is_aborted() {
    let (right, _) = identity();
    let (wrong, _) = identity();
    let (_dir, made) = backup(&right);
    let beside = manifest_beside(&made.archive).unwrap().unwrap();
    let context = OperationContext::default();
    context.cancel.cancel();
    let error = read_archive(
        &made.archive,
        &wrong,
        Some(&beside),
        &mut Discard,
        &context,
        Phase::Verifying,
    )
    .unwrap_err();
    assert_eq!(error.code, Code::Aborted);
}

#[test]
fn as_many_recipients_as_are_allowed_can_be_read() {
    let (own, recipient) = identity();
    let recipients: Vec<_> = (0..127).map(|_| identity().1).chain([recipient]).collect();
    let (_dir, made) = backup(&Keys::of(Keyring {
        recipients,
        ..Keyring::default()
    }));
    assert_eq!(read(&made.archive.path(), &own, None).unwrap().problems, []);
}

#[test]
fn secrets_are_in_no_debug_text() {
    let ring = Keyring::of_passphrase("hunter2".to_string().into());
    let store = Store::at(&PathBuf::from("/tmp"))
        .unwrap()
        .with_keys(Keys::of(ring.clone()));
    assert!(!format!("{ring:?} {store:?}").contains("hunter2"));
}
