//! Full backups of databases of which some, all or none changed since the previous backup. The data
//! reused from the earlier archive must be that of the project.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use kg_backup::internals::{
    Result,
    archive::{
        block::Compression,
        file_list::FileList,
        file_record::FileRecord,
        manifest::{BackupType, Manifest},
    },
    commands::{
        backup::{Created, create_backup},
        restore::{RestoreOptions, restore},
        verify::check_backup,
    },
    config::backup_config::BackupOptions,
    project::discover::Selection,
    sqlite::{
        check::IntegrityStatus,
        page_hashes::{PageFile, PageFileWriter},
    },
    store::{Backup, Store},
    util::{
        content_hash::{ContentHash, content_hash},
        digest::Sha256Digest,
        operation::{CancelToken, OperationContext},
    },
    worker::{
        backup::save,
        baseline::BaselineFile,
        client::WorkerMode,
        known_files::KnownFiles,
        protocol::{Message, PAGE_HASHES_FILE, ResponseSink, SaveRequest, Saved},
    },
};
use proptest::prelude::*;
use rusqlite::Connection;

/// The block size of a gzip archive.
const BLOCK_BYTES: usize = 65_536;

/// Returns databases and their sizes in bytes. They range from one too small for its own blocks to
/// one of several blocks. One has a name that needs an extra header.
fn databases() -> Vec<(PathBuf, usize)> {
    let long = format!(".kg/plugins/{}/{}.db", "p".repeat(120), "n".repeat(120));
    let named = [
        (".kg/knowledge.db", 600_000),
        (".kg/vectors.db", 140_000),
        (".kg/plugins/p/a.db", 9000),
        (&long, 300_000),
    ];
    named
        .into_iter()
        .map(|(path, bytes)| (path.into(), bytes))
        .collect()
}

fn change(root: &Path, path: &Path, sql: &str) {
    Connection::open(root.join(path))
        .unwrap()
        .execute_batch(sql)
        .unwrap();
}

/// Makes a project with all of these databases. No two have the same content.
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

/// Returns the directory with the cache of the only store.
fn page_cache(root: &Path) -> PathBuf {
    let entries = fs::read_dir(root.join(".kg/cache/backup-pages")).unwrap();
    let mut stores = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    stores.next().unwrap()
}

/// Returns all rows of all databases.
fn content(root: &Path) -> BTreeMap<PathBuf, Vec<(u64, String)>> {
    let rows = |path: &Path| {
        let connection = Connection::open(root.join(path)).unwrap();
        let mut statement = connection.prepare("SELECT id, text FROM nodes").unwrap();
        statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(|row| row.unwrap())
            .collect()
    };
    databases()
        .into_iter()
        .map(|(path, _)| (path.clone(), rows(&path)))
        .collect()
}

fn back_up(root: &Path, store: &Store, compression: Compression) -> Created {
    let options = BackupOptions {
        compression,
        ..BackupOptions::default()
    };
    create(root, store, &options)
}

fn create(root: &Path, store: &Store, options: &BackupOptions) -> Created {
    let context = OperationContext::default();
    create_backup(root, store, &WorkerMode::InProcess, options, &context).unwrap()
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
            let context = OperationContext::default();
            let lock = store.lock(BackupOptions::default().lock_timeout, &context).unwrap();
            store.delete(&lock, &last.id, false).unwrap();
            drop(lock);
            last = next.backup;
            prop_assert!(check_backup(&store, &last.id, false, &context).unwrap().valid);
            let target = dir.path().join(format!("restored-{number}"));
            restore(&store, &last.id, &WorkerMode::InProcess, &RestoreOptions::new(target.clone()), &context).unwrap();
            prop_assert!(content(&target) == content(&root), "after change {number}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_holds_the_project_whatever_changed_and_however_each_member_is_compressed(
        steps in prop::collection::vec(
            (
                prop::collection::vec(0..4_u8, 4),
                any::<bool>(),
                prop_oneof![Just(Compression::Gzip(1)), Just(Compression::Zstd(3)), Just(Compression::None)],
            ),
            1..5,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("project");
        project(&root);
        let store = Store::at(&dir.path().join("backups")).unwrap();
        let context = OperationContext::default();
        back_up(&root, &store, Compression::GZIP);
        for (number, (changes, loses_cache, compression)) in steps.into_iter().enumerate() {
            for ((path, _), changed) in databases().into_iter().zip(changes) {
                let sql = match changed {
                    0 => continue,
                    1 => "UPDATE nodes SET text = text || 'x' WHERE id = 3",
                    2 => "UPDATE nodes SET text = hex(randomblob(450))",
                    _ => "DELETE FROM nodes WHERE id % 9 = 4; VACUUM",
                };
                change(&root, &path, sql);
            }
            if loses_cache {
                fs::remove_dir_all(root.join(".kg/cache")).unwrap();
            }
            let options = BackupOptions { kind: BackupType::Incremental, compression, ..BackupOptions::default() };
            let last = create(&root, &store, &options).backup;
            prop_assert_eq!(last.kind, BackupType::Incremental);
            prop_assert!(check_backup(&store, &last.id, false, &context).unwrap().valid);
            let target = dir.path().join(format!("restored-{number}"));
            restore(&store, &last.id, &WorkerMode::InProcess, &RestoreOptions::new(target.clone()), &context).unwrap();
            prop_assert!(content(&target) == content(&root), "after step {number}");
        }
    }
}

/// What the worker sends about databases, by their paths.
#[derive(Default)]
struct Said {
    path: String,
    /// For each database, the number of bytes sent and the number of blocks named by their hashes
    /// alone.
    content: BTreeMap<String, (usize, usize)>,
    digests: BTreeMap<String, Sha256Digest>,
    told: BTreeSet<ContentHash>,
}

impl ResponseSink for Said {
    fn message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Database { record, .. } => {
                self.path = record.path;
                self.content.insert(self.path.clone(), (0, 0));
            }
            Message::Same { blocks } => {
                self.content.get_mut(&self.path).unwrap().1 += blocks.len();
                self.told.extend(blocks);
            }
            Message::DatabaseEnd { sha256, .. } => {
                self.digests.insert(std::mem::take(&mut self.path), sha256);
            }
            _ => {}
        }
        Ok(())
    }

    fn data(&mut self, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<()> {
        assert_eq!(content_hash(&block), hash);
        self.content.get_mut(&self.path).unwrap().0 += block.len();
        Ok(())
    }
}

/// A project, and the results of its backup.
struct Before {
    _dir: tempfile::TempDir,
    root: PathBuf,
    scratch: PathBuf,
    known: PathBuf,
    manifest: Manifest,
    files: FileList,
}

impl Before {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (root, scratch) = (dir.path().join("project"), dir.path().join("scratch"));
        project(&root);
        let store = Store::at(&dir.path().join("backups")).unwrap();
        let backup = back_up(&root, &store, Compression::GZIP).backup;
        fs::create_dir(&scratch).unwrap();
        let cache = page_cache(&root);
        fs::copy(cache.join(&backup.id), scratch.join("hashes")).unwrap();
        let files = cache.join(format!("{}.files", backup.id));
        fs::copy(&files, scratch.join("files")).unwrap();
        let beside =
            fs::read(format!("{}.manifest.json", backup.archive.path().display())).unwrap();
        let manifest = Manifest::parse(&beside, &backup.id).unwrap();
        let known = scratch.join("known.json");
        let files = KnownFiles::open(&files, manifest.file_list.unwrap()).unwrap();
        let records = files.records().unwrap().map(|known| known.unwrap().0);
        let before = Before {
            _dir: dir,
            root,
            scratch,
            known,
            manifest,
            files: FileList::unsorted(records.collect()),
        };
        before.leave_out(false);
        before
    }

    fn databases(&self) -> Vec<FileRecord> {
        let records = self.files.records().iter();
        records.filter(|record| record.database).cloned().collect()
    }

    /// Sets whether the next save is incremental.
    fn leave_out(&self, leave_out: bool) {
        self.leave_out_of(self.databases(), leave_out);
    }

    fn leave_out_of(&self, databases: Vec<FileRecord>, leave_out: bool) {
        let mut baseline = BaselineFile::new(&self.manifest, databases, "hashes");
        if leave_out {
            baseline = baseline.with_known_files("files", self.manifest.file_list.unwrap());
        }
        baseline.write(&self.known).unwrap();
    }

    fn save(&self, block_bytes: usize, takes_over: bool, erase: bool) -> (Said, Saved) {
        let request = SaveRequest {
            root: self.root.clone(),
            selection: Selection::everything(),
            check_source: true,
            erase,
            scratch: self.scratch.clone(),
            known: Some(self.known.clone()),
            block_bytes,
            takes_over,
            force_read: false,
            lock_timeout_ms: 1000,
        };
        let mut said = Said::default();
        let saved = save(&request, &mut said, &CancelToken::default()).unwrap();
        assert_eq!(saved.integrity.status, IntegrityStatus::Ok, "{saved:?}");
        let blocks = self
            .hashes()
            .databases
            .into_values()
            .flat_map(|hashes| hashes.blocks.hashes);
        assert!(
            said.told.is_subset(&blocks.collect()),
            "the earlier archive has every block that is told of"
        );
        (said, saved)
    }

    /// Returns the hashes of the baseline.
    fn hashes(&self) -> PageFile {
        self.hashes_in("hashes")
    }

    fn hashes_in(&self, name: &str) -> PageFile {
        let file = fs::File::open(self.scratch.join(name)).unwrap();
        PageFile::open(file).unwrap().unwrap()
    }

    fn digest(&self, path: &str) -> Sha256Digest {
        let record = &self.files.records()[self.files.find(path).unwrap()];
        record.sha256.unwrap()
    }
}

#[test]
fn of_large_databases_only_the_blocks_that_changed_are_sent_and_the_digest_is_that_of_the_whole() {
    let before = Before::new();
    let paths: Vec<String> = databases()
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    let [knowledge, vectors, small, long] = &paths[..] else {
        unreachable!()
    };
    let (said, saved) = before.save(BLOCK_BYTES, true, true);
    assert!(
        saved.integrity.full_text && saved.node_count == 600,
        "{saved:?}"
    );
    for path in [knowledge, vectors, long] {
        assert!(
            matches!(said.content[path], (0, 2..)),
            "{path}: {:?}",
            said.content[path]
        );
    }
    assert!(
        matches!(said.content[small], (1.., 0)),
        "it shares a block with other files"
    );
    assert!(
        paths
            .iter()
            .all(|path| said.digests[path] == before.digest(path))
    );

    // Size and time stay the same. Only the content differs.
    let file = fs::File::options()
        .write(true)
        .open(before.root.join(vectors))
        .unwrap();
    let then = file.metadata().unwrap();
    change(
        &before.root,
        Path::new(vectors),
        "UPDATE nodes SET text = hex(randomblob(450)) || '1' WHERE id = 70",
    );
    file.set_modified(then.modified().unwrap()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), then.len());
    let (said, _) = before.save(BLOCK_BYTES, true, true);
    let (sent, told) = said.content[vectors];
    assert!(
        sent > 0 && told > 0 && sent < then.len() as usize,
        "{sent}, {told}"
    );
    assert_eq!(said.content[knowledge].0, 0);
    let (plain, _) = before.save(BLOCK_BYTES, false, true);
    assert!(
        plain
            .content
            .values()
            .all(|(sent, told)| *sent > 0 && *told == 0),
        "no earlier archive is at hand"
    );
    assert_eq!(said.digests, plain.digests);
    assert_ne!(said.digests[vectors], before.digest(vectors));
}

#[test]
fn blocks_of_another_size_are_not_told_of_and_those_that_are_not_erased_only_if_they_are_the_same()
{
    let before = Before::new();
    let knowledge = ".kg/knowledge.db";
    let (said, _) = before.save(BLOCK_BYTES / 2, true, true);
    assert!(
        said.content
            .values()
            .all(|(sent, told)| *sent > 0 && *told == 0),
        "the earlier archive has no such block"
    );
    change(
        &before.root,
        Path::new(knowledge),
        "DELETE FROM nodes WHERE id % 5 > 0",
    );
    let (erased, _) = before.save(BLOCK_BYTES, true, true);
    let (kept, _) = before.save(BLOCK_BYTES, true, false);
    assert!(kept.content[knowledge].0 > 0);
    assert_ne!(
        kept.digests[knowledge], erased.digests[knowledge],
        "what was deleted is still there"
    );
}

#[test]
fn hashes_of_other_content_make_no_wrong_backup() {
    let before = Before::new();
    let (vectors, long) = (
        databases()[1].0.display().to_string(),
        databases()[3].0.display().to_string(),
    );
    // The hashes are valid in themselves, but those of the two databases are swapped.
    let right = before.hashes();
    let mut swapped = Vec::new();
    let mut wrong = PageFileWriter::new(&mut swapped, "").unwrap();
    for (path, hashes) in &right.databases {
        let named = match path {
            path if *path == vectors => &long,
            path if *path == long => &vectors,
            path => path,
        };
        wrong.copy_database(named, hashes).unwrap();
    }
    wrong.finish().unwrap();
    // `right` still reads the file of that name.
    fs::remove_file(before.scratch.join("hashes")).unwrap();
    fs::write(before.scratch.join("hashes"), swapped).unwrap();
    let (said, _) = before.save(BLOCK_BYTES, true, true);
    for path in [&vectors, &long] {
        assert!(said.content[path].0 > 0);
        assert_eq!(said.digests[path], before.digest(path));
    }
    let of = |file: &PageFile| -> Vec<_> {
        let databases = file.databases.iter();
        databases
            .map(|(path, hashes)| {
                let mut pages = hashes.pages();
                let pages: Vec<ContentHash> = pages.take(usize::MAX).unwrap().collect();
                (path.clone(), pages, hashes.blocks.clone())
            })
            .collect()
    };
    assert!(of(&before.hashes_in(PAGE_HASHES_FILE)) == of(&right));
}

#[test]
fn an_incremental_backup_leaves_out_no_database_of_which_only_the_hashes_are_the_same() {
    let before = Before::new();
    let vectors = databases()[1].0.display().to_string();
    change(
        &before.root,
        Path::new(&vectors),
        "UPDATE nodes SET text = 'other' WHERE id = 70",
    );
    let (changed, _) = before.save(BLOCK_BYTES, false, true);
    before.leave_out(true);
    let (said, _) = before.save(BLOCK_BYTES, false, true);
    assert!(
        said.content.is_empty(),
        "pages are sent: {:?}",
        said.content
    );
    // Use these hashes as those of the base.
    fs::copy(
        before.scratch.join(PAGE_HASHES_FILE),
        before.scratch.join("hashes"),
    )
    .unwrap();
    let (said, _) = before.save(BLOCK_BYTES, false, true);
    assert_eq!(said.content.keys().collect::<Vec<_>>(), [&vectors]);
    assert_eq!(said.digests[&vectors], changed.digests[&vectors]);
}

#[test]
fn of_a_database_that_became_shorter_no_block_is_told_of_that_ends_earlier_now() {
    let before = Before::new();
    let knowledge = ".kg/knowledge.db";
    for rows in (300..600).step_by(37) {
        change(
            &before.root,
            Path::new(knowledge),
            &format!("DELETE FROM nodes WHERE id > {}; VACUUM", 900 - rows),
        );
        let (said, _) = before.save(BLOCK_BYTES, true, true);
        assert!(said.content[knowledge].0 > 0);
    }
}

#[test]
fn a_digest_that_rotted_in_the_cached_list_of_the_last_archive_gets_into_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("project");
    project(&root);
    let store = Store::at(&dir.path().join("backups")).unwrap();
    let digests = |backup: &Backup| {
        let context = OperationContext::default();
        let checked = check_backup(&store, &backup.id, true, &context).unwrap();
        assert!(checked.valid);
        let files = checked.files.unwrap().into_iter();
        let databases = files.filter(|record| record.database);
        databases
            .map(|record| record.sha256.unwrap())
            .collect::<Vec<_>>()
    };
    let mut last = back_up(&root, &store, Compression::GZIP).backup;
    let right = digests(&last);
    for kind in [BackupType::Full, BackupType::Incremental] {
        let cached = page_cache(&root).join(format!("{}.files", last.id));
        let list = zstd::decode_all(fs::File::open(&cached).unwrap()).unwrap();
        let list = String::from_utf8(list).unwrap();
        let rotten = list.replace(&right[0].to_string(), &Sha256Digest::of(b"rot").to_string());
        assert_ne!(list, rotten);
        fs::write(&cached, zstd::encode_all(rotten.as_bytes(), 1).unwrap()).unwrap();
        let options = BackupOptions {
            kind,
            ..BackupOptions::default()
        };
        last = create(&root, &store, &options).backup;
        assert_eq!((last.kind, digests(&last)), (kind, right.clone()));
    }
}
