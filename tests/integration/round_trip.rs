//! Files come out of an archive as they went in, whatever their names and lengths.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use kg_backup::internals::{
    archive::{block::Compression, manifest::BackupType},
    commands::{
        backup::create_backup,
        restore::{RestoreOptions, restore},
        verify::check_backup,
    },
    config::backup_config::BackupOptions,
    project::names,
    store::Store,
    util::operation::OperationContext,
    worker::client::WorkerMode,
};
use proptest::prelude::*;
use rusqlite::Connection;

/// Returns names of any bytes that a file system accepts, more often text than not. Excludes names
/// that lead out of a directory on some system.
fn name() -> impl Strategy<Value = OsString> {
    let text = "[a-zA-Z0-9 äß漢._\\\\'\"\n%~-]{1,40}".prop_map(OsString::from);
    let bytes = prop::collection::vec(
        any::<u8>().prop_filter("ends a name", |byte| !matches!(byte, 0 | b'/')),
        1..40,
    );
    prop_oneof![3 => text, 1 => bytes.prop_map(OsString::from_vec)].prop_filter(
        "leads out",
        |name| {
            name != "."
                && !name
                    .as_bytes()
                    .split(|byte| *byte == b'\\')
                    .any(|part| part == b"..")
        },
    )
}

/// Returns contents of sizes at which something changes: empty, a tar block, a compressed block.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let block = Compression::GZIP.block_bytes();
    let size = prop_oneof![Just(0), 1..2000_usize, Just(512), block - 2..block + 2];
    (size, any::<u64>(), any::<bool>()).prop_map(|(size, seed, random)| {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if random {
                (state >> 33) as u8
            } else {
                b'a' + ((state >> 60) as u8) % 4
            }
        };
        (0..size).map(|_| next()).collect()
    })
}

fn files_below(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = names::encode(Path::new(path.file_name().unwrap()));
        if path.is_dir() {
            found.extend(
                files_below(&path)
                    .into_iter()
                    .map(|(below, content)| (format!("{name}/{below}"), content)),
            );
        } else {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restore_gives_back_every_file(
        plugins in prop::collection::btree_map(name(), content(), 0..6),
        others in prop::collection::btree_map(name(), content(), 0..4),
        level in prop_oneof![
            Just(Compression::None),
            (1..=9_u8).prop_map(Compression::Gzip),
            (1..=9_u8).prop_map(Compression::Zstd)
        ],
        page_size in prop_oneof![Just(512_u32), Just(4096), Just(65536)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (root, target) = (dir.path().join("project"), dir.path().join("restored"));
        fs::create_dir_all(root.join(".kg/plugins/p")).unwrap();
        fs::create_dir_all(root.join(".kg/others")).unwrap();
        for (name, content) in &plugins {
            fs::write(root.join(".kg/plugins/p").join(name), content).unwrap();
        }
        for (name, content) in &others {
            fs::write(root.join(".kg/others").join(name), content).unwrap();
        }
        let connection = Connection::open(root.join(".kg/knowledge.db")).unwrap();
        connection.execute_batch(&format!("PRAGMA page_size = {page_size}; CREATE TABLE nodes (id); INSERT INTO nodes VALUES (1)")).unwrap();
        drop(connection);

        let store = Store::at(&dir.path().join("backups")).unwrap();
        let context = OperationContext::default();
        let options = BackupOptions { compression: level, ..BackupOptions::default() };
        let backup = create_backup(&root, &store, &WorkerMode::InProcess, &options, &context).unwrap().backup;
        prop_assert_eq!(&backup.warnings, &vec![]);
        prop_assert!(check_backup(&store, &backup.id, false, &context).unwrap().valid);
        restore(&store, &backup.id, &WorkerMode::InProcess, &RestoreOptions::new(target.clone()), &context).unwrap();

        let count: u64 = Connection::open(target.join(".kg/knowledge.db")).unwrap()
            .query_row("SELECT count(*) FROM nodes", [], |row| row.get(0)).unwrap();
        prop_assert_eq!(count, 1);
        let without_database = |dir: &Path| {
            let mut files = files_below(dir);
            files.retain(|name, _| !name.starts_with(".kg/knowledge.db") && !name.starts_with(".kg/cache/"));
            files
        };
        prop_assert_eq!(without_database(&target), without_database(&root));

        // Remove some files, change others, and save the changes in an incremental backup.
        for (number, name) in plugins.keys().enumerate() {
            let file = root.join(".kg/plugins/p").join(name);
            match number % 3 {
                0 => fs::remove_file(&file).unwrap(),
                1 => fs::write(&file, b"other").unwrap(),
                _ => {}
            }
        }
        Connection::open(root.join(".kg/knowledge.db")).unwrap().execute_batch("INSERT INTO nodes VALUES (2)").unwrap();
        let options = BackupOptions { kind: BackupType::Incremental, ..options };
        let second = create_backup(&root, &store, &WorkerMode::InProcess, &options, &context).unwrap().backup;
        prop_assert_eq!(second.based_on.as_ref(), Some(&backup.id));
        prop_assert!(check_backup(&store, &second.id, false, &context).unwrap().valid);
        let again = dir.path().join("again");
        restore(&store, &second.id, &WorkerMode::InProcess, &RestoreOptions::new(again.clone()), &context).unwrap();
        prop_assert_eq!(without_database(&again), without_database(&root));
        let count: u64 = Connection::open(again.join(".kg/knowledge.db")).unwrap()
            .query_row("SELECT count(*) FROM nodes", [], |row| row.get(0)).unwrap();
        prop_assert_eq!(count, 2);

        // A full backup reuses data of the first one, but does not depend on it.
        let options = BackupOptions { kind: BackupType::Full, ..options };
        let third = create_backup(&root, &store, &WorkerMode::InProcess, &options, &context).unwrap().backup;
        let lock = store.lock(options.lock_timeout, &context).unwrap();
        store.delete(&lock, &backup.id, true).unwrap();
        drop(lock);
        prop_assert!(check_backup(&store, &third.id, false, &context).unwrap().valid);
        let alone = dir.path().join("alone");
        restore(&store, &third.id, &WorkerMode::InProcess, &RestoreOptions::new(alone.clone()), &context).unwrap();
        prop_assert_eq!(without_database(&alone), without_database(&root));
    }
}
