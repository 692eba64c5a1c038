//! Full backups of databases of which some, all or none changed since the last one: what is taken over from the earlier archive
//! is what the project holds.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kg_backup::{
    Result,
    archive::{
        block::Compression,
        manifest::{BackupType, FileRecord, Manifest},
    },
    backup::{BackupOptions, Created, create_backup},
    project::discover::Selection,
    reader::{
        base::Base,
        client::Launch,
        protocol::{Message, SaveRequest},
        save::save,
        server::Answers,
    },
    restore::{RestoreOptions, restore},
    store::Store,
    task::{Cancel, Task},
    verify::check_backup,
};
use proptest::prelude::*;
use rusqlite::Connection;

/// From ones too small for blocks of their own to one of several blocks, and names that take a header more.
fn databases() -> Vec<(PathBuf, usize)> {
    let long = format!(".kg/plugins/{}/{}.db", "p".repeat(120), "n".repeat(120));
    let named =
        [(".kg/knowledge.db", 600_000), (".kg/vectors.db", 140_000), (".kg/plugins/p/a.db", 9000), (&long, 300_000)];
    named.into_iter().map(|(path, bytes)| (path.into(), bytes)).collect()
}

fn change(root: &Path, path: &Path, sql: &str) {
    Connection::open(root.join(path)).unwrap().execute_batch(sql).unwrap();
}

/// A project with all of them, no two of the same content.
fn project(root: &Path) {
    for (number, (path, bytes)) in databases().into_iter().enumerate() {
        fs::create_dir_all(root.join(&path).parent().unwrap()).unwrap();
        let rows = bytes / 1000;
        let sql = format!(
            "CREATE TABLE nodes (id INTEGER PRIMARY KEY, text TEXT);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
            INSERT INTO nodes SELECT i, hex(randomblob(450)) || '{number}' FROM n;"
        );
        change(root, &path, &sql);
    }
    fs::write(root.join(".kg/plugins/p/notes.txt"), "notes").unwrap();
}

/// All rows of all databases.
fn content(root: &Path) -> BTreeMap<PathBuf, Vec<(u64, String)>> {
    let rows = |path: &Path| {
        let connection = Connection::open(root.join(path)).unwrap();
        let mut statement = connection.prepare("SELECT id, text FROM nodes").unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(|row| row.unwrap()).collect()
    };
    databases().into_iter().map(|(path, _)| (path.clone(), rows(&path))).collect()
}

fn back_up(root: &Path, store: &Store, compression: Compression) -> Created {
    let options = BackupOptions { compression, ..BackupOptions::default() };
    create_backup(root, store, &Launch::Thread, &options, &Task::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_full_backup_that_takes_over_what_did_not_change_holds_the_project_by_itself(
        changes in prop::collection::vec(prop::collection::vec(any::<bool>(), 4), 1..4),
        level in prop_oneof![Just(Compression::Gzip(6)), Just(Compression::Gzip(9)), Just(Compression::Zstd(3)), Just(Compression::None)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("project");
        project(&root);
        let store = Store::at(&dir.path().join("backups")).unwrap();
        let mut last = back_up(&root, &store, level).backup;
        for (number, changed) in changes.into_iter().enumerate() {
            let is_as_it_was = !changed.contains(&true);
            for ((path, _), _) in databases().into_iter().zip(changed).filter(|(_, changed)| *changed) {
                change(&root, &path, "UPDATE nodes SET text = text || 'x' WHERE id % 5 = 3");
            }
            let next = back_up(&root, &store, level);
            if is_as_it_was && level != Compression::None {
                prop_assert!(next.reused_bytes > next.backup.size * 9 / 10, "{} of {}", next.reused_bytes, next.backup.size);
            }
            let task = Task::default();
            let lock = store.lock(BackupOptions::default().lock_timeout, &task).unwrap();
            store.delete(&lock, &last.id, false).unwrap();
            drop(lock);
            last = next.backup;
            prop_assert!(check_backup(&store, &last.id, &task).unwrap().valid);
            let target = dir.path().join(format!("restored-{number}"));
            restore(&store, &last.id, &Launch::Thread, &RestoreOptions::new(target.clone()), &task).unwrap();
            prop_assert!(content(&target) == content(&root), "after change {number}");
        }
    }
}

/// What a reader says.
#[derive(Default)]
struct Said {
    sent: Vec<FileRecord>,
    as_before: Vec<FileRecord>,
}

impl Answers for Said {
    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Entry { record, .. } => self.sent.push(record),
            Message::AsBefore { record, .. } => self.as_before.push(record),
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, _: Vec<u8>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn large_databases_that_are_as_they_were_are_not_sent_and_all_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("project");
    project(&root);
    let store = Store::at(&dir.path().join("backups")).unwrap();
    let backup = back_up(&root, &store, Compression::GZIP).backup;
    assert_eq!(backup.kind, BackupType::Full);

    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    fs::copy(root.join(".kg/cache/backup-pages").join(&backup.id), scratch.join("hashes")).unwrap();
    let beside = fs::read(format!("{}.manifest.json", backup.path.display())).unwrap();
    let manifest = Manifest::parse(&beside, &backup.id).unwrap();
    let known = scratch.join("known.json");
    Base::new(&manifest, "hashes".into(), false).write(&known).unwrap();
    let said = |from_bytes: Option<u64>, erase: bool| {
        let request = SaveRequest {
            root: root.clone(),
            selection: Selection::everything(),
            check_source: true,
            erase,
            scratch: scratch.clone(),
            known: Some(known.clone()),
            as_before_from_bytes: from_bytes,
            lock_timeout_ms: 1000,
        };
        let mut said = Said::default();
        let saved = save(&request, &mut said, &Cancel::default()).unwrap();
        assert!(saved.integrity.full_text && saved.node_count == 600, "{saved:?}");
        let paths = |records: &[FileRecord]| -> Vec<String> {
            records.iter().filter(|record| record.database).map(|record| record.path.clone()).collect()
        };
        let digests = said.as_before.iter().map(|record| (&record.sha256, manifest.content_digest(record)));
        assert!(digests.into_iter().all(|(said, kept)| kept.is_some() && said.as_deref() == kept));
        (paths(&said.as_before), paths(&said.sent))
    };
    let all: Vec<String> = databases().iter().map(|(path, _)| path.display().to_string()).collect();
    let [knowledge, vectors, small, long] = &all[..] else { unreachable!() };
    let sorted = |(mut as_before, mut sent): (Vec<String>, Vec<String>)| {
        as_before.sort();
        sent.sort();
        (as_before, sent)
    };
    let expect = |as_before: &[&String], sent: &[&String]| {
        let owned = |paths: &[&String]| paths.iter().map(|path| path.to_string()).collect();
        sorted((owned(as_before), owned(sent)))
    };
    assert_eq!(sorted(said(Some(100_000), true)), expect(&[knowledge, vectors, long], &[small]));
    assert_eq!(sorted(said(None, true)), expect(&[], &[knowledge, vectors, small, long]));
    let not_erased = sorted(said(Some(100_000), false));
    assert_eq!(
        not_erased,
        expect(&[], &[knowledge, vectors, small, long]),
        "the earlier backup lacks what a safety backup keeps"
    );
    change(&root, Path::new(vectors), "UPDATE nodes SET text = 'other' WHERE id = 70");
    assert_eq!(sorted(said(Some(100_000), true)), expect(&[knowledge, long], &[vectors, small]));
}
