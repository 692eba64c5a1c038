//! Every code is found where there is reason for it, and a sound project gives none.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use tempfile::TempDir;

use super::{issue::Severity, *};

const SCHEMA: &str = "
    PRAGMA journal_mode = wal;
    CREATE TABLE nodes (id TEXT PRIMARY KEY, path TEXT, filename TEXT, title TEXT, type TEXT, status TEXT, content TEXT,
        frontmatter TEXT, word_count INTEGER, created_at TEXT, updated_at TEXT);
    CREATE TABLE edges (id INTEGER PRIMARY KEY, source_id TEXT NOT NULL REFERENCES nodes(id), target_id TEXT NOT NULL, type TEXT,
        weight REAL, context TEXT);
    CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
    CREATE TABLE node_tags (node_id TEXT, tag_id INTEGER, PRIMARY KEY (node_id, tag_id)) WITHOUT ROWID;
    CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT);
    CREATE VIRTUAL TABLE nodes_fts USING fts5(title, content, content='nodes', content_rowid='rowid');
    CREATE TRIGGER nodes_ai AFTER INSERT ON nodes BEGIN
        INSERT INTO nodes_fts(rowid, title, content) VALUES (new.rowid, new.title, new.content);
    END;
    CREATE INDEX by_path ON nodes(path);
    CREATE TABLE parents (id INTEGER PRIMARY KEY);
    CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parents(id), size INTEGER CHECK (size < 10));
    WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200)
    INSERT INTO nodes (id, path, title, content, frontmatter)
        SELECT 'n' || n, 'docs/' || n || '.md', 'Node ' || n, hex(zeroblob(600)) || n, '{}' FROM n;
    INSERT INTO edges (source_id, target_id) SELECT id, 'n1' FROM nodes;
    INSERT INTO tags VALUES (1, 'a');
    INSERT INTO node_tags VALUES ('n1', 1);";

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    /// A sound project: database, configuration, documents, vectors of both kinds, a key.
    fn new() -> Self {
        let fixture = Fixture { dir: tempfile::tempdir().unwrap() };
        for dir in [".kg/vectors", "docs"] {
            fs::create_dir_all(fixture.path(dir)).unwrap();
        }
        let graph = Connection::open(fixture.path(".kg/knowledge.db")).unwrap();
        graph.execute_batch(SCHEMA).unwrap();
        for number in 1..=200 {
            fixture.write(&format!("docs/{number}.md"), b"text");
        }
        fixture.write(
            ".kg/config.json",
            br#"{"database":{"path":".kg/knowledge.db"},"backup":{"enabled":true,"retention":30}}"#,
        );
        fixture.write(".kg/signing.key", b"key");
        fs::set_permissions(fixture.path(".kg/signing.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let vectors = Connection::open(fixture.path(".kg/vectors.db")).unwrap();
        let table = "CREATE TABLE embeddings (id TEXT, node_type TEXT, embedding BLOB, dimensions INTEGER, metadata TEXT, created_at, updated_at)";
        vectors.execute_batch(table).unwrap();
        let mut ids = Vec::new();
        for number in 1..=200 {
            let id = format!("n{number}");
            vectors
                .execute(
                    "INSERT INTO embeddings (id, embedding, dimensions) VALUES (?1, ?2, 2)",
                    (&id, vector(&[0.5, 1.0])),
                )
                .unwrap();
            ids.push(id);
        }
        fixture.write_index(2, &ids);
        fixture.write(".kg/vectors/model.f32", &vector(&[0.25, 1.0]).repeat(200));
        fixture
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: &[u8]) {
        fs::write(self.path(path), content).unwrap();
    }

    fn write_index(&self, dimensions: i64, ids: &[String]) {
        let index = serde_json::json!({ "model": "m", "dimensions": dimensions, "ids": ids });
        self.write(".kg/vectors/index.json", index.to_string().as_bytes());
    }

    fn graph(&self, sql: &str) {
        Connection::open(self.path(".kg/knowledge.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn vectors(&self, sql: &str) {
        Connection::open(self.path(".kg/vectors.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn check(&self) -> Report {
        self.check_as(&Subject::of(self.dir.path(), None), Scope::ALL)
    }

    /// Also sees that nothing of the project was changed.
    fn check_as(&self, subject: &Subject, scope: Scope) -> Report {
        let scratch = tempfile::tempdir().unwrap();
        let before = self.bytes();
        let conditions = Check {
            cancel: &Cancel::default(),
            gauge: &Gauge::default(),
            lock_timeout: Duration::from_secs(5),
            scratch: scratch.path(),
        };
        let report = check(subject, scope, &conditions).unwrap();
        assert_eq!(self.bytes(), before);
        report
    }

    /// Of everything that holds data: the index of a WAL is SQLite's to make.
    fn bytes(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let names = ["knowledge.db", "knowledge.db-wal", "vectors.db", "config.json"];
        let paths = names.iter().map(|name| self.path(".kg").join(name));
        paths
            .filter_map(|path| fs::read(&path).ok().filter(|bytes| !bytes.is_empty()).map(|bytes| (path, bytes)))
            .collect()
    }

    fn codes(&self) -> BTreeSet<&'static str> {
        self.check().issues.iter().map(|issue| issue.code.as_str()).collect()
    }

    /// The one issue that is found.
    fn only(&self, code: IssueCode) -> Issue {
        let issues = self.check().issues;
        assert_eq!(issues.iter().map(|issue| issue.code).collect::<Vec<_>>(), [code], "{issues:#?}");
        issues.into_iter().next().unwrap()
    }

    fn repair(&self) -> Vec<repair::Done> {
        let issues = self.check().issues;
        let actions = repair::actions_for(issues.iter().filter(|issue| issue.repairable));
        self.perform(&actions)
    }

    /// As the reader does it.
    fn perform(&self, actions: &[repair::Action]) -> Vec<repair::Done> {
        let lock_timeout = Duration::from_secs(5);
        let salvaging = |resolved: &Resolved, database: &Path, part| {
            crate::reader::apply::salvage::salvage(resolved, database, part, lock_timeout)
        };
        repair::perform(&Subject::of(self.dir.path(), None), actions, lock_timeout, &salvaging).unwrap()
    }

    fn removed(&self, database: &str) -> Vec<(String, String, String)> {
        let connection = Connection::open(self.path(database)).unwrap();
        let mut statement = connection.prepare("SELECT reason, \"table\", \"row\" FROM kg_repair_removed").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Overwrites the database, after everything was moved into the file.
    fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        self.graph("PRAGMA wal_checkpoint(TRUNCATE)");
        let path = self.path(".kg/knowledge.db");
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

type Result<T, E = rusqlite::Error> = std::result::Result<T, E>;

fn vector(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[test]
fn a_sound_project_gives_no_issue_and_is_counted() {
    let report = Fixture::new().check();
    assert_eq!(report.issues, []);
    let Checked { nodes, edges, documents, vectors, .. } = report.checked;
    assert_eq!((nodes, edges, documents, vectors, report.is_graph), (200, 200, 200, 400, true));
}

#[test]
fn an_index_that_lacks_an_entry_is_named_and_built_again() {
    let fixture = Fixture::new();
    // The entry goes from the index alone, as a fault of the disk may have it.
    fixture.graph(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX by_path ON nodes(path) WHERE 0' WHERE name = 'by_path'",
    );
    fixture.graph("UPDATE nodes SET path = 'docs/1.md' WHERE id = 'n1'; DELETE FROM nodes_fts WHERE 0");
    fixture.graph("DROP INDEX by_path; CREATE INDEX by_path ON nodes(path) WHERE id <> 'n7'");
    fixture.graph(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX by_path ON nodes(path)' WHERE name = 'by_path'",
    );
    let issues = fixture.check().issues;
    let issue = issues.iter().find(|issue| issue.code == IssueCode::IndexDamaged).unwrap();
    assert_eq!((issue.index.as_deref(), issue.table.as_deref()), (Some("by_path"), Some("nodes")));
    assert!(issue.repairable && issue.repair.as_ref().unwrap().contains("REINDEX"), "{issue:?}");
    assert!(issues.iter().any(|issue| issue.code == IssueCode::NotChecked));
    let done = fixture.repair();
    assert!(done.iter().all(|done| done.error.is_none()), "{done:?}");
    assert_eq!(fixture.codes(), BTreeSet::new());
}

#[test]
fn a_full_text_index_that_lies_is_found_and_built_again_though_integrity_check_says_ok() {
    let fixture = Fixture::new();
    fixture.graph("UPDATE nodes SET title = 'Other words' WHERE id = 'n5'");
    let connection = Connection::open(fixture.path(".kg/knowledge.db")).unwrap();
    let said: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
    let issue = fixture.only(IssueCode::FullTextDamaged);
    assert_eq!((issue.table.as_deref(), issue.repairable), (Some("nodes_fts"), true));
    fixture.repair();
    assert_eq!(fixture.codes(), BTreeSet::new());
}

#[test]
fn edges_and_tags_that_lead_nowhere_are_moved_aside_with_all_their_columns() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA foreign_keys = off;
         INSERT INTO edges (id, source_id, target_id, weight) VALUES (900, 'gone', 'n1', 0.5), (901, 'n1', 'lost', 1.5);
         INSERT INTO node_tags VALUES ('gone', 1), ('n2', 77)",
    );
    let issues = fixture.check().issues;
    let told: Vec<_> = issues.iter().map(|issue| (issue.code, issue.count, issue.rowid, issue.repairable)).collect();
    let expected = [
        (IssueCode::EdgeSource, 1, Some(900), true),
        (IssueCode::EdgeTarget, 1, Some(901), true),
        (IssueCode::TagOrphan, 2, None, true),
    ];
    assert_eq!(told, expected);
    assert_eq!(issues[1].examples, ["edge from n1 to lost"]);
    let done = fixture.repair();
    assert_eq!(done.iter().map(|done| done.rows_removed).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(fixture.codes(), BTreeSet::new());
    let removed = fixture.removed(".kg/knowledge.db");
    let (reason, table, row) = &removed[0];
    assert_eq!((reason.as_str(), table.as_str()), ("KG_ISSUE_EDGE_SOURCE", "edges"));
    assert_eq!(row, r#"{"context":null,"id":900,"source_id":"gone","target_id":"n1","type":null,"weight":0.5}"#);
    assert_eq!(removed.len(), 4);
}

#[test]
fn rows_that_mean_nothing_are_reported_and_left_alone() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA foreign_keys = off; PRAGMA ignore_check_constraints = on;
         UPDATE nodes SET frontmatter = '{' WHERE id = 'n3';
         UPDATE nodes SET path = 'docs/9.md' WHERE id = 'n8';
         INSERT INTO children VALUES (1, 5, 1), (2, NULL, 99)",
    );
    let report = fixture.check();
    let codes: Vec<_> = report.issues.iter().map(|issue| issue.code.as_str()).collect();
    // A constraint is part of the structure: with it broken, SQLite's answers about rows are still right, but nobody asks.
    assert_eq!(codes, ["KG_ISSUE_CONSTRAINT", "KG_ISSUE_NOT_CHECKED"]);
    fixture.graph("UPDATE children SET size = 1");
    let issues = fixture.check().issues;
    let told: Vec<_> =
        issues.iter().map(|issue| (issue.code.as_str(), issue.examples.join(" "), issue.repairable)).collect();
    let expected = [
        ("KG_ISSUE_FOREIGN_KEY", "row 1, to parents".to_string(), false),
        ("KG_ISSUE_FRONTMATTER", "n3".to_string(), false),
        ("KG_ISSUE_DUPLICATE_PATH", "docs/9.md (2 nodes)".to_string(), false),
        ("KG_ISSUE_DOCUMENT_UNINDEXED", "docs/8.md".to_string(), false),
    ];
    assert_eq!(told, expected);
}

#[test]
fn tables_and_triggers_of_the_host_that_are_missing_are_named() {
    let fixture = Fixture::new();
    fixture.graph("DROP TRIGGER nodes_ai; DROP TABLE metadata; DROP TABLE edges");
    let told: Vec<_> =
        fixture.check().issues.into_iter().map(|issue| (issue.code, issue.severity, issue.table.unwrap())).collect();
    let expected = [
        (IssueCode::TableMissing, Severity::Error, "edges".to_string()),
        (IssueCode::TableMissing, Severity::Warning, "metadata".to_string()),
        (IssueCode::TriggerMissing, Severity::Warning, "nodes_fts".to_string()),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_database_that_is_gone_or_none_is_an_issue_and_not_an_error() {
    let fixture = Fixture::new();
    fixture.damage(|bytes| bytes[..100].fill(0));
    assert!(fixture.codes().contains("KG_ISSUE_NOT_A_DATABASE"));
    let repairable = |issues: Vec<Issue>| issues.into_iter().filter(|issue| issue.repairable).map(|issue| issue.code);
    assert!(repairable(fixture.check().issues).eq([IssueCode::NotADatabase]));
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(fixture.path(&format!(".kg/knowledge.db{suffix}")));
    }
    assert!(fixture.codes().contains("KG_ISSUE_DATABASE_MISSING"));
    assert_eq!(repairable(fixture.check().issues).count(), 0);
}

#[test]
fn no_damage_makes_a_check_fail_hang_or_find_nothing() {
    let sound = Fixture::new();
    sound.graph("PRAGMA wal_checkpoint(TRUNCATE)");
    let length = fs::metadata(sound.path(".kg/knowledge.db")).unwrap().len() as usize;
    let mut state = 7_u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    for round in 0..40 {
        let fixture = Fixture::new();
        let (at, noise) = (4096 + random() % (length - 12_288), random() as u8 | 1);
        fixture.damage(|bytes| match round % 4 {
            0 => bytes[at..at + 4096].iter_mut().for_each(|byte| *byte = byte.wrapping_add(noise)),
            1 => bytes.truncate(at),
            2 => bytes[at / 4096 * 4096..][..16].fill(noise),
            _ => bytes.copy_within(4096..8192, at / 4096 * 4096),
        });
        let report = fixture.check();
        assert!(
            report.issues.iter().any(|issue| issue.severity == Severity::Error),
            "round {round} at {at}: {report:?}"
        );
        let quick = Scope { quick: true, ..Scope::ALL };
        fixture.check_as(&Subject::of(fixture.dir.path(), None), quick);
    }
}

/// Interior pages of a table, each of which leads a hundred times to the next: more rows than anyone can read.
#[test]
fn pages_that_lead_in_circles_end_a_check_and_are_reported() {
    const LEVELS: u32 = 6;
    let fixture = Fixture::new();
    let root = Connection::open(fixture.path(".kg/knowledge.db"))
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'nodes'", [], |row| row.get::<_, u32>(0))
        .unwrap();
    let interior = |child: u32| {
        let mut page = vec![0; 4096];
        let cells = 100_u16;
        let start = 4096 - 5 * cells;
        page[0] = 5;
        page[3..5].copy_from_slice(&cells.to_be_bytes());
        page[5..7].copy_from_slice(&start.to_be_bytes());
        page[8..12].copy_from_slice(&child.to_be_bytes());
        for cell in 0..cells {
            let at = start + 5 * cell;
            page[12 + 2 * usize::from(cell)..][..2].copy_from_slice(&at.to_be_bytes());
            page[usize::from(at)..][..4].copy_from_slice(&child.to_be_bytes());
            page[usize::from(at) + 4] = cell as u8 + 1;
        }
        page
    };
    fixture.damage(|bytes| {
        let pages = bytes.len() as u32 / 4096;
        let at = (root as usize - 1) * 4096;
        assert_eq!(bytes[at], 5, "the root of the table is an interior page");
        let leaf = u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        bytes[at..at + 4096].copy_from_slice(&interior(pages + 1));
        for level in 1..=LEVELS {
            bytes.extend(interior(if level == LEVELS { leaf } else { pages + level + 1 }));
        }
        bytes[28..32].copy_from_slice(&(pages + LEVELS).to_be_bytes());
    });
    let began = std::time::Instant::now();
    assert!(fixture.codes().contains("KG_ISSUE_DATABASE_DAMAGED"));
    let quick = Scope { quick: true, ..Scope::ALL };
    let report = fixture.check_as(&Subject::of(fixture.dir.path(), None), quick);
    assert!(report.issues.iter().any(|issue| issue.code == IssueCode::DatabaseDamaged), "{report:?}");
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_wal_of_another_database_is_recognised_and_one_that_cannot_be_read_too() {
    let fixture = Fixture::new();
    let wal = fixture.path(".kg/knowledge.db-wal");
    fixture.graph("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::write(&wal, [7; 5000]).unwrap();
    assert_eq!(fixture.only(IssueCode::WalUnreadable).path.as_deref(), Some(".kg/knowledge.db-wal"));

    // The WALs of another database, as when somebody copies one of the files: with a first page in it, and without.
    let other = tempfile::tempdir().unwrap();
    let path = other.path().join("other.db");
    let connection = Connection::open(&path).unwrap();
    let foreign = || {
        fs::copy(path.with_file_name("other.db-wal"), &wal).unwrap();
        let _ = fs::remove_file(fixture.path(".kg/knowledge.db-shm"));
        fixture.codes()
    };
    let filled = "PRAGMA journal_mode = wal; CREATE TABLE t (x);
        WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500) INSERT INTO t SELECT hex(zeroblob(300)) FROM n";
    connection.execute_batch(filled).unwrap();
    let codes = foreign();
    assert!(codes.contains("KG_ISSUE_WAL_FOREIGN") && codes.contains("KG_ISSUE_TABLE_MISSING"), "{codes:?}");
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET x = hex(randomblob(300)) WHERE rowid < 300")
        .unwrap();
    let codes = foreign();
    assert!(codes.contains("KG_ISSUE_WAL_FOREIGN") && codes.contains("KG_ISSUE_DATABASE_DAMAGED"), "{codes:?}");

    // Of another page size.
    let path = other.path().join("small.db");
    let small = Connection::open(&path).unwrap();
    small.execute_batch("PRAGMA page_size = 512; PRAGMA journal_mode = wal; CREATE TABLE t (x)").unwrap();
    fs::copy(path.with_file_name("small.db-wal"), &wal).unwrap();
    let _ = fs::remove_file(fixture.path(".kg/knowledge.db-shm"));
    assert!(fixture.codes().contains("KG_ISSUE_WAL_FOREIGN"));
}

#[test]
fn a_wal_of_another_state_of_the_database_is_recognised_and_nothing_is_repaired_beside_it() {
    for is_older in [true, false] {
        let fixture = Fixture::new();
        let path = |suffix: &str| fixture.path(&format!(".kg/knowledge.db{suffix}"));
        let aside = tempfile::tempdir().unwrap();
        let keep = |suffix: &str, name: &str| fs::copy(path(suffix), aside.path().join(name)).unwrap();
        let connection = Connection::open(path("")).unwrap();
        connection
            .execute_batch("PRAGMA foreign_keys = OFF; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 0")
            .unwrap();
        // Both change nodes and their indexes; neither changes a table's tree so that the other's pages make none.
        let changes =
            ["UPDATE nodes SET path = 'moved/' || path WHERE rowid % 3 = 0", "DELETE FROM nodes WHERE rowid % 5 = 1"];
        connection.execute_batch(changes[usize::from(!is_older)]).unwrap();
        keep("-wal", "older-wal");
        keep("", "older");
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        connection.execute_batch(changes[usize::from(is_older)]).unwrap();
        keep("-wal", "newer-wal");
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        keep("", "newer");
        drop(connection);
        let (database, wal) = if is_older { ("newer", "older-wal") } else { ("older", "newer-wal") };
        fs::copy(aside.path().join(database), path("")).unwrap();
        fs::copy(aside.path().join(wal), path("-wal")).unwrap();
        let issues = fixture.check().issues;
        let found = issues.iter().find(|issue| issue.code == IssueCode::WalForeign);
        assert!(
            found.is_some_and(|issue| issue.path.as_deref() == Some(".kg/knowledge.db-wal")),
            "{is_older}: {issues:?}"
        );
        let other = issues.iter().filter(|issue| issue.repairable && !repair::is_damage(issue));
        assert_eq!(other.filter(|issue| issue.component == Part::Database).count(), 0, "{is_older}: {issues:?}");
    }
}

#[test]
fn a_database_of_two_names_is_a_hazard() {
    let fixture = Fixture::new();
    fs::hard_link(fixture.path(".kg/knowledge.db"), fixture.path("same.db")).unwrap();
    fixture.only(IssueCode::DatabaseLinked);
}

#[test]
fn what_needs_something_that_is_not_here_is_said_to_be_unchecked() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = replace(sql, 'title, content,', 'title, content, tokenize = ''of_the_host'',') WHERE name = 'nodes_fts'",
    );
    assert!(fixture.codes().contains("KG_ISSUE_NOT_CHECKED"), "{:?}", fixture.codes());
}

#[test]
fn configuration_that_cannot_be_used_is_told_by_setting() {
    let fixture = Fixture::new();
    fixture.write(
        ".kg/config.json",
        br#"{"database":[],"backup":{"enabled":"yes","compressionLevel":12,"excludePatterns":[1],"schedule":""}}"#,
    );
    let issue = fixture.only(IssueCode::ConfigValue);
    assert_eq!((issue.count, issue.path.as_deref()), (5, Some(".kg/config.json")));
    assert_eq!(issue.examples[1], r#"`backup.enabled` is "yes", not true or false"#);
    fixture.write(".kg/config.json", b"{ not JSON");
    fixture.write(".kg/agents.json", b"[1,");
    let told: Vec<_> = fixture.check().issues.iter().map(|issue| (issue.code, issue.severity)).collect();
    assert_eq!(told, [(IssueCode::ConfigInvalid, Severity::Error), (IssueCode::ConfigInvalid, Severity::Warning)]);
}

#[test]
fn a_restore_that_was_killed_is_told_until_it_is_completed() {
    let fixture = Fixture::new();
    fixture.write(".kg/restore-journal.json", b"{}");
    fixture.only(IssueCode::RestorePending);
}

#[test]
fn documents_that_are_gone_or_have_no_node_are_named_and_a_copy_without_documents_is_fine() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.path("docs/4.md")).unwrap();
    fixture.write("docs/new.md", b"new");
    fixture.write("docs/picture.png", b"no document");
    let issues = fixture.check().issues;
    let told: Vec<_> = issues.iter().map(|issue| (issue.code, issue.severity, issue.examples.join(" "))).collect();
    let expected = [
        (IssueCode::DocumentMissing, Severity::Warning, "docs/4.md".to_string()),
        (IssueCode::DocumentUnindexed, Severity::Info, "docs/new.md".to_string()),
    ];
    assert_eq!(told, expected);
    fs::remove_dir_all(fixture.path("docs")).unwrap();
    assert_eq!(fixture.only(IssueCode::DocumentMissing).severity, Severity::Info);
}

#[test]
fn what_cannot_be_read_and_what_others_may_read_or_write_is_told() {
    let fixture = Fixture::new();
    symlink("nowhere", fixture.path(".kg/plugin-data")).unwrap();
    fixture.only(IssueCode::FileUnreadable);
    fs::remove_file(fixture.path(".kg/plugin-data")).unwrap();
    let set = |path: &str, mode| fs::set_permissions(fixture.path(path), fs::Permissions::from_mode(mode)).unwrap();
    set(".kg/knowledge.db", 0o666);
    assert_eq!(fixture.only(IssueCode::Permissions).examples, [".kg/knowledge.db"]);
    // SQLite makes a WAL with the mode of its database.
    for suffix in
        ["", "-wal", "-shm"].iter().filter(|suffix| fixture.path(&format!(".kg/knowledge.db{suffix}")).exists())
    {
        set(&format!(".kg/knowledge.db{suffix}"), 0o644);
    }
    set(".kg/signing.key", 0o640);
    assert_eq!(fixture.only(IssueCode::KeyExposed).path.as_deref(), Some(".kg/signing.key"));
    set(".kg/signing.key", 0o600);
    for harmless in ["tokenizer.bin", "secret-santa.md", "keynote"] {
        fixture.write(&format!(".kg/{harmless}"), b"text");
    }
    fixture.write(".kg/config.json", br#"{"tokenizer":"plain","storage":{"secretAccessKey":"do-not-show"}}"#);
    set(".kg/config.json", 0o644);
    let issue = fixture.only(IssueCode::KeyExposed);
    assert_eq!(issue.examples, ["storage.secretAccessKey"]);
    assert!(!format!("{issue:?}").contains("do-not-show"));
    set(".kg/config.json", 0o600);
    assert_eq!(fixture.codes(), BTreeSet::new());
}

#[test]
fn vectors_in_sqlite_are_checked_number_by_number() {
    let fixture = Fixture::new();
    fixture.vectors(
        "UPDATE embeddings SET embedding = x'00' WHERE id = 'n1';
         UPDATE embeddings SET embedding = x'0000c07f00000000' WHERE id = 'n2';
         UPDATE embeddings SET embedding = zeroblob(8) WHERE id = 'n3';
         UPDATE embeddings SET embedding = x'0000003f0000003f0000003f', dimensions = 3 WHERE id = 'n4'",
    );
    let issues = fixture.check().issues;
    let told: Vec<_> = issues.iter().map(|issue| (issue.code.as_str(), issue.examples.join(" "))).collect();
    let expected = [
        ("KG_ISSUE_VECTOR_LENGTH", "n1".to_string()),
        ("KG_ISSUE_VECTOR_DIMENSIONS", "n4 (3)".to_string()),
        ("KG_ISSUE_VECTOR_NOT_FINITE", "n2".to_string()),
        ("KG_ISSUE_VECTOR_ZERO", "n3".to_string()),
    ];
    assert_eq!(told, expected);
    assert!(issues.iter().all(|issue| issue.path.as_deref() == Some(".kg/vectors.db")));
}

#[test]
fn vectors_of_no_node_are_moved_aside_and_nodes_without_one_are_counted() {
    let fixture = Fixture::new();
    fixture.vectors("UPDATE embeddings SET id = 'gone' WHERE id = 'n9'");
    let issues = fixture.check().issues;
    let told: Vec<_> = issues.iter().map(|issue| (issue.code, issue.examples.join(" "), issue.repairable)).collect();
    let expected =
        [(IssueCode::VectorOrphan, "gone".into(), true), (IssueCode::VectorMissing, "n9".to_string(), false)];
    assert_eq!(told, expected);
    assert_eq!(fixture.repair()[0].rows_removed, 1);
    let removed = fixture.removed(".kg/vectors.db");
    assert!(removed[0].2.contains(r#""embedding":"X'0000003F0000803F'","id":"gone""#), "{removed:?}");
    fixture.only(IssueCode::VectorMissing);
}

#[test]
fn vectors_whose_ids_are_of_something_else_are_not_removed() {
    let fixture = Fixture::new();
    fixture.vectors("UPDATE embeddings SET id = 'chunk-' || id");
    assert!(!fixture.only(IssueCode::VectorOrphan).repairable);
}

#[test]
fn files_of_vectors_must_fit_their_index() {
    let fixture = Fixture::new();
    let whole = vector(&[0.25, 1.0]).repeat(200);
    fixture.write(".kg/vectors/model.f32", &whole[..whole.len() - 3]);
    let issue = fixture.only(IssueCode::VectorFile);
    assert_eq!(issue.path.as_deref(), Some(".kg/vectors/model.f32"));
    let mut odd = whole.clone();
    odd[..8].copy_from_slice(&vector(&[f32::INFINITY, 0.0]));
    odd[8..16].fill(0);
    fixture.write(".kg/vectors/model.f32", &odd);
    assert_eq!(fixture.codes(), BTreeSet::from(["KG_ISSUE_VECTOR_NOT_FINITE", "KG_ISSUE_VECTOR_ZERO"]));
    fixture.write(".kg/vectors/model.f32", &whole);
    let mut ids: Vec<String> = (1..=199).map(|number| format!("n{number}")).collect();
    ids.push("gone".into());
    fixture.write_index(2, &ids);
    let issues = fixture.check().issues;
    assert_eq!(issues[0].code, IssueCode::VectorOrphan);
    assert!(!issues[0].repairable, "a file is not rewritten");
    ids[199] = "n1".into();
    fixture.write_index(2, &ids);
    assert!(fixture.only(IssueCode::VectorIndex).message.contains("twice"));
}

#[test]
fn a_damaged_vector_store_is_of_the_vectors() {
    let fixture = Fixture::new();
    let path = fixture.path(".kg/vectors.db");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..4200].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let issues = fixture.check().issues;
    assert_eq!((issues[0].code, issues[0].component), (IssueCode::DatabaseDamaged, Part::Vectors));
}

#[test]
fn what_can_be_read_of_a_damaged_vector_store_is_saved_and_the_graph_stays_as_it_is() {
    let fixture = Fixture::new();
    let (path, graph) = (fixture.path(".kg/vectors.db"), fs::read(fixture.path(".kg/knowledge.db")).unwrap());
    let mut bytes = fs::read(&path).unwrap();
    bytes[..100].fill(0);
    fs::write(&path, &bytes).unwrap();
    let count = || -> u64 {
        let connection = Connection::open(&path).unwrap();
        connection.query_row("SELECT count(*) FROM embeddings", [], |row| row.get(0)).unwrap()
    };
    let done = fixture.repair();
    let salvage = done[0].salvage.as_ref().unwrap();
    assert_eq!((done.len(), done[0].action.part, &done[0].error), (1, Part::Vectors, &None));
    assert_eq!(fs::read(&salvage.kept).unwrap(), bytes);
    assert!(count() > 0 && salvage.report.rows_recovered == count(), "{salvage:?}");
    assert_eq!(fixture.codes(), BTreeSet::new());
    assert_eq!(fs::read(fixture.path(".kg/knowledge.db")).unwrap(), graph);
}

#[test]
fn a_damaged_database_is_salvaged_once_however_many_issues_it_has() {
    let issue = |code, table: &str| Issue::new(code, Part::Database, "", "").table(table);
    let issues = [
        issue(IssueCode::DatabaseDamaged, "nodes"),
        issue(IssueCode::DatabaseDamaged, "edges"),
        issue(IssueCode::NotADatabase, ""),
        issue(IssueCode::EdgeSource, "edges"),
        issue(IssueCode::TagOrphan, "node_tags"),
    ];
    let actions = repair::actions_for(&issues);
    assert_eq!(actions.iter().filter(|action| action.work == repair::Work::Salvage).count(), 1);
    assert_eq!(actions.len(), 3);
}

#[test]
fn a_database_is_of_the_project_above_it_or_of_none() {
    let fixture = Fixture::new();
    let of = |path: PathBuf| fixture.check_as(&Subject::at(&path), Scope::ALL).checked.project.is_some();
    assert!(of(fixture.path(".kg/knowledge.db")));
    fs::create_dir(fixture.path("elsewhere")).unwrap();
    Connection::open(fixture.path("elsewhere/other.db")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let report = fixture.check_as(&Subject::at(&fixture.path("elsewhere/other.db")), Scope::ALL);
    assert_eq!((report.checked.project, report.issues), (None, vec![]));
    assert!(fixture.check_as(&Subject::at(fixture.dir.path()), Scope::ALL).is_graph);
}

#[test]
fn a_check_in_rollback_mode_beside_a_hot_writer_waits_for_nobody() {
    let fixture = Fixture::new();
    fixture.graph("PRAGMA journal_mode = delete");
    let writer = Connection::open(fixture.path(".kg/knowledge.db")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO metadata VALUES ('a', 'b')").unwrap();
    assert_eq!(fixture.check().issues, []);
    writer.execute_batch("COMMIT").unwrap();
}

#[test]
fn an_action_that_fails_is_taken_back_and_the_others_stay() {
    let fixture = Fixture::new();
    fixture.graph("PRAGMA foreign_keys = off; INSERT INTO edges (source_id, target_id) VALUES ('gone', 'n1')");
    let action = |code, work| repair::Action { code, part: Part::Database, work };
    let actions = [
        action(IssueCode::IndexDamaged, repair::Work::Reindex { index: "no such".into() }),
        action(
            IssueCode::EdgeSource,
            repair::Work::Remove { table: "edges".into(), columns: vec!["source_id".into()] },
        ),
    ];
    let done = fixture.perform(&actions);
    assert_eq!(done.iter().map(|done| done.error.is_none()).collect::<Vec<_>>(), [false, true]);
    assert_eq!(fixture.codes(), BTreeSet::new());
}
