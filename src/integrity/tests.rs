//! Tests that each fault leads to its code, and that a sound project leads to none.

mod damage;
mod files;
mod rows;
mod vectors;

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
    /// Creates a sound project with a database, configuration, documents, both kinds of vectors,
    /// and a key.
    fn new() -> Self {
        let fixture = Fixture {
            dir: tempfile::tempdir().unwrap(),
        };
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
        fs::set_permissions(
            fixture.path(".kg/signing.key"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
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
        Connection::open(self.path(".kg/knowledge.db"))
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }

    fn vectors(&self, sql: &str) {
        Connection::open(self.path(".kg/vectors.db"))
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }

    fn check(&self) -> Report {
        self.check_as(&CheckTarget::of(self.dir.path(), None), Scope::ALL)
    }

    /// Runs a check, and asserts that it changes nothing in the project.
    fn check_as(&self, subject: &CheckTarget, scope: Scope) -> Report {
        let scratch = tempfile::tempdir().unwrap();
        let before = self.bytes();
        let conditions = Check {
            cancel: &CancelToken::default(),
            progress: &ByteProgress::default(),
            lock_timeout: Duration::from_secs(5),
            scratch: scratch.path(),
        };
        let report = check(subject, scope, &conditions).unwrap();
        assert_eq!(self.bytes(), before);
        report
    }

    /// Reads all files that hold data. The index of a WAL is excluded because SQLite recreates it.
    fn bytes(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let names = [
            "knowledge.db",
            "knowledge.db-wal",
            "vectors.db",
            "config.json",
        ];
        let paths = names.iter().map(|name| self.path(".kg").join(name));
        paths
            .filter_map(|path| {
                fs::read(&path)
                    .ok()
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| (path, bytes))
            })
            .collect()
    }

    fn codes(&self) -> BTreeSet<&'static str> {
        self.check()
            .issues
            .iter()
            .map(|issue| issue.code.as_str())
            .collect()
    }

    /// Returns the only issue that a check finds.
    fn only(&self, code: IssueCode) -> Issue {
        let issues = self.check().issues;
        assert_eq!(
            issues.iter().map(|issue| issue.code).collect::<Vec<_>>(),
            [code],
            "{issues:#?}"
        );
        issues.into_iter().next().unwrap()
    }

    fn repair(&self) -> Vec<repair::Done> {
        let issues = self.check().issues;
        let actions = repair::actions_for(issues.iter().filter(|issue| issue.repairable));
        self.perform(&actions)
    }

    /// Performs actions as the worker does.
    fn perform(&self, actions: &[repair::Action]) -> Vec<repair::Done> {
        let lock_timeout = Duration::from_secs(5);
        let salvaging = |resolved: &Resolved, database: &Path, part| {
            crate::worker::restore::salvage::salvage(resolved, database, part, lock_timeout)
        };
        repair::perform(
            &CheckTarget::of(self.dir.path(), None),
            actions,
            lock_timeout,
            &salvaging,
        )
        .unwrap()
    }

    fn removed(&self, database: &str) -> Vec<(String, String, String)> {
        let connection = Connection::open(self.path(database)).unwrap();
        let mut statement = connection
            .prepare("SELECT reason, \"table\", \"row\" FROM kg_repair_removed")
            .unwrap();
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Changes the bytes of the database after a checkpoint moved everything into the file.
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
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}
