//! Compares the fast check with SQLite on damaged databases: if a database is proven sound, SQLite
//! must find nothing either.

use std::{fs, path::Path};

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::{FastCheck, rows};
use crate::{
    sqlite::{
        forget_fulltext, format::btree::Cell, open_read_only, quoted, row_schema::RowSchema,
        snapshot::Snapshot,
    },
    util::operation::CancelToken,
};

/// Tables, indexes, overflow chains and free pages of every kind, in pages of 512 bytes.
const SAMPLE: &str = "PRAGMA page_size = 512;
    CREATE TABLE nodes (id TEXT PRIMARY KEY, size INTEGER, weight REAL NOT NULL, made DATETIME, title TEXT NOT NULL, data);
    CREATE INDEX by_title ON nodes(title, size);
    CREATE INDEX some ON nodes(size) WHERE size % 3 = 0;
    CREATE TABLE edges (id INTEGER PRIMARY KEY AUTOINCREMENT, source NOT NULL, target, UNIQUE (source, target));
    CREATE TABLE tags (name TEXT, node TEXT, weight, PRIMARY KEY (name, node)) WITHOUT ROWID;
    CREATE VIRTUAL TABLE ft USING fts5(title, content='nodes');
    WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 14)
        INSERT INTO nodes SELECT 'node ' || i, i, i / 3.0, '2026-01-' || i, hex(zeroblob(i * 4)), zeroblob(i * i * 7 % 1300) FROM n;
    INSERT INTO edges (id, source, target) SELECT size * 1000, id, 'to ' || title FROM nodes;
    INSERT INTO tags SELECT title, id, 1 FROM nodes WHERE size < 10;
    INSERT INTO ft (ft) VALUES ('rebuild');
    CREATE TABLE dropped (x); INSERT INTO dropped SELECT zeroblob(400) FROM nodes; DROP TABLE dropped;
    DELETE FROM nodes WHERE size % 5 = 2; DELETE FROM edges WHERE id % 5000 = 0;
    ALTER TABLE nodes ADD COLUMN late INTEGER;";

struct Sample {
    _dir: TempDir,
    file: std::path::PathBuf,
}

impl Sample {
    fn new(sql: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        Connection::open(&file).unwrap().execute_batch(sql).unwrap();
        Sample { _dir: dir, file }
    }

    /// Returns the tables that are left to SQLite, or `None` if everything is.
    fn left(&self) -> Option<Vec<String>> {
        left(&self.file)
    }
}

fn left(file: &Path) -> Option<Vec<String>> {
    let (ask, asked) = crossbeam_channel::unbounded();
    let snapshot = Snapshot::pin(open_read_only(file).ok()?, file).ok()?;
    let mut proof = FastCheck::begin(&snapshot, ask, &CancelToken::default()).unwrap()?;
    let look = |page: &[u8]| {
        proof.page(page, None);
        Ok(())
    };
    snapshot.pages(&CancelToken::default(), look).ok()?;
    let is_proven = proof.end();
    let mut asked: Vec<String> = asked.iter().collect();
    asked.sort();
    is_proven.then_some(asked)
}

/// Returns SQLite's result for one table, or for all.
fn said(file: &Path, table: Option<&str>) -> String {
    let said = || -> rusqlite::Result<String> {
        let connection = Connection::open(file)?;
        forget_fulltext(&connection);
        let of = table
            .map(|table| format!("({})", quoted(table)))
            .unwrap_or_default();
        connection.query_row(&format!("PRAGMA quick_check{of}"), [], |row| row.get(0))
    };
    said().unwrap_or_else(|cause| cause.to_string())
}

/// Returns whether the database is found sound, with SQLite's check of the remaining tables.
fn is_proven(file: &Path) -> bool {
    left(file).is_some_and(|tables| tables.iter().all(|table| said(file, Some(table)) == "ok"))
}

/// A copy of the sample that is damaged in one way after another.
struct Damaged {
    sample: Sample,
    bytes: Vec<u8>,
    tried: u32,
    proven: u32,
}

impl Damaged {
    fn new(sql: &str) -> Self {
        let sample = Sample::new(sql);
        let bytes = fs::read(&sample.file).unwrap();
        Damaged {
            sample,
            bytes,
            tried: 0,
            proven: 0,
        }
    }

    fn page(&self, index: usize) -> Vec<u8> {
        self.bytes[index * 512..][..512].to_vec()
    }

    fn pages(&self) -> usize {
        self.bytes.len() / 512
    }

    fn with(&mut self, at: usize, bytes: &[u8]) {
        let mut damaged = self.bytes.clone();
        let end = (at + bytes.len()).min(damaged.len());
        damaged[at..end].copy_from_slice(&bytes[..end - at]);
        if damaged == self.bytes {
            return;
        }
        fs::write(&self.sample.file, damaged).unwrap();
        self.tried += 1;
        if is_proven(&self.sample.file) {
            self.proven += 1;
            assert_eq!(
                said(&self.sample.file, None),
                "ok",
                "{bytes:?} at {} of page {}",
                at % 512,
                at / 512 + 1
            );
        }
    }
}

#[test]
fn a_database_of_many_kinds_of_tables_is_proven_sound() {
    let sample = Sample::new(SAMPLE);
    assert_eq!(
        sample.left(),
        Some(vec!["ft_config".into(), "ft_idx".into(), "tags".into()])
    );
    assert!(is_proven(&sample.file));
    let sample = Sample::new("CREATE TABLE t (x); DROP TABLE t");
    assert_eq!(sample.left(), Some(vec![]));
}

#[test]
fn what_is_proven_after_any_change_of_a_byte_sqlite_finds_sound_too() {
    let mut damaged = Damaged::new(SAMPLE);
    for at in (0..damaged.bytes.len()).step_by(3) {
        let bit = at * 7919 / 16 % 8;
        let flipped = damaged.bytes[at] ^ (1 << bit);
        damaged.with(at, &[flipped]);
    }
    assert!(
        damaged.proven > damaged.tried / 10,
        "{} of {}",
        damaged.proven,
        damaged.tried
    );
    assert!(
        damaged.proven < damaged.tried,
        "{} of {}",
        damaged.proven,
        damaged.tried
    );
}

#[test]
fn what_is_proven_with_any_two_bytes_for_others_sqlite_finds_sound_too() {
    let mut damaged = Damaged::new(SAMPLE);
    let pages = damaged.pages();
    for at in (0..damaged.bytes.len()).step_by(3) {
        // Offsets, counts and page numbers have values of this size.
        damaged.with(at, &[[0, 1][at % 2], (at * 31 % pages.min(255)) as u8]);
    }
    assert!(damaged.proven > 0);
}

#[test]
fn what_is_proven_with_one_page_in_place_of_another_sqlite_finds_sound_too() {
    let mut damaged = Damaged::new(SAMPLE);
    for to in 0..damaged.pages() {
        for from in (to % 3..damaged.pages()).step_by(3) {
            let page = damaged.page(from);
            damaged.with(to * 512, &page);
        }
        damaged.with(to * 512, &[0; 512]);
    }
}

#[test]
fn rows_that_only_sqlite_can_judge_are_left_to_it() {
    let left = |sql: &str| Sample::new(sql).left();
    let t = || Some(vec!["t".to_string()]);
    assert_eq!(left("CREATE TABLE t (x CHECK (x > 0))"), t());
    assert_eq!(
        left("CREATE TABLE '12' (x CHECK (x > 0))"),
        Some(vec!["12".to_string()])
    );
    assert_eq!(left("CREATE TABLE t (x INTEGER) STRICT"), t());
    assert_eq!(left("CREATE TABLE t (x, y AS (x + 1))"), t());
    assert_eq!(left("CREATE TABLE t (x, y AS (x + 1) STORED)"), t());
    assert_eq!(left("CREATE TABLE t (x PRIMARY KEY) WITHOUT ROWID"), t());
    let text_as_number =
        "CREATE TABLE t (x); INSERT INTO t VALUES ('12'); PRAGMA writable_schema = 1;
        UPDATE sqlite_schema SET sql = 'CREATE TABLE t (x INTEGER)'";
    assert_eq!(left(text_as_number), t());
    let late = "CREATE TABLE t (x); INSERT INTO t VALUES (1); ALTER TABLE t ADD COLUMN y INTEGER DEFAULT 7";
    assert_eq!(left(late), t());
}

#[test]
fn values_that_their_columns_should_not_have_are_found() {
    let with = |declared: &str, value: &str| {
        let sql = format!(
            "CREATE TABLE t (x); INSERT INTO t VALUES ({value}); PRAGMA writable_schema = 1;
            UPDATE sqlite_schema SET sql = 'CREATE TABLE t (x {declared})'"
        );
        let sample = Sample::new(&sql);
        let is_sound = said(&sample.file, None) == "ok";
        assert!(
            is_sound || !is_proven(&sample.file),
            "{value} as {declared}"
        );
        (is_sound, sample.left() == Some(vec![]))
    };
    for (declared, value) in [
        ("TEXT", "1"),
        ("TEXT", "0.5"),
        ("NOT NULL", "NULL"),
        ("REAL", "'12'"),
        ("DATETIME", "' -1e5 '"),
        ("\"\"", "'12'"),
    ] {
        assert_eq!(
            with(declared, value),
            (false, false),
            "{value} as {declared}"
        );
    }
    for (declared, value) in [
        ("TEXT", "x'00'"),
        ("DATETIME", "'2026-01-01'"),
        ("REAL", "1"),
        ("INTEGER", "'one'"),
        ("", "'one'"),
        ("", "''"),
        ("REAL NOT NULL", "0.5"),
    ] {
        assert_eq!(with(declared, value), (true, true), "{value} as {declared}");
    }
}

#[test]
fn databases_that_only_sqlite_can_judge_are_left_to_it() {
    assert_eq!(
        Sample::new("PRAGMA auto_vacuum = full; CREATE TABLE t (x)").left(),
        None
    );
    assert_eq!(
        Sample::new("CREATE VIRTUAL TABLE t USING rtree(id, a, b)").left(),
        None
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(left(file.path()), None, "a database without a page");
}

#[test]
fn a_schema_that_sqlite_may_read_in_another_way_is_left_to_it() {
    let with = |sql: &str| {
        let made = "CREATE TABLE t (x UNIQUE, y); CREATE INDEX i ON t (y); CREATE TABLE u (x)";
        let sample = Sample::new(&format!("{made}; PRAGMA writable_schema = 1; {sql}"));
        (sample.left(), said(&sample.file, None) == "ok")
    };
    assert_eq!(with(""), (Some(vec![]), true));
    let u = "(SELECT rootpage FROM sqlite_schema WHERE name = 'u')";
    for sql in [
        &format!(
            "INSERT INTO sqlite_schema VALUES ('index', 'sqlite_autoindex_t_1', 't', {u}, NULL)"
        ),
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON t (y COLLATE icu)' WHERE name = 'i'",
        "DELETE FROM sqlite_schema WHERE name = 'sqlite_autoindex_t_1'",
    ] {
        assert_eq!(with(sql), (None, false), "{sql}");
    }
    for sql in [
        "INSERT INTO sqlite_schema SELECT 'table', 'T', 'T', rootpage, 'CREATE TABLE IF NOT EXISTS T (x)' FROM sqlite_schema WHERE name = 'u'",
        "UPDATE sqlite_schema SET sql = 'CREATE VIRTUAL TABLE u USING fts5(x)' WHERE name = 'u'",
        "UPDATE sqlite_schema SET type = 'Table' WHERE name = 'u'",
        "CREATE VIRTUAL TABLE pragma_index_list USING fts5(name, origin, partial)",
        "CREATE VIRTUAL TABLE places USING rtree(id, fts5a, fts5b)",
    ] {
        assert_eq!(with(sql), (None, true), "{sql}");
    }
}

#[test]
fn a_record_without_a_value_is_no_row() {
    let cell = |bytes: &[u8]| Cell {
        child: 0,
        rowid: 1,
        payload_bytes: bytes.len() as u64,
        local_start: 0,
        local_bytes: bytes.len(),
        overflow: 0,
    };
    let is_plain =
        |bytes: &[u8]| rows::is_plain(bytes, &cell(bytes), &RowSchema::of_schema(), true);
    assert!(is_plain(&[2, 0]));
    assert!(
        !is_plain(&[0x80, 2]),
        "a header of two bytes, which are its length"
    );
    assert!(!is_plain(&[1]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_sqlite_makes_of_a_database_is_proven_sound(
        page_size in prop::sample::select(vec![512_u32, 1024, 4096, 65_536]),
        encoding in prop::sample::select(vec!["UTF-8", "UTF-16le"]),
        changes in prop::collection::vec((0_u32..6, 0_u32..50, prop::sample::select(vec![3, 40, 400, 9000])), 1..80),
    ) {
        let changes = changes.into_iter().map(|(what, id, length)| match what {
            0..3 => format!("INSERT OR REPLACE INTO notes VALUES ({}, 'name {id}', {length} / 7.0, hex(zeroblob({length} / 2)));", id * id),
            3 => format!("DELETE FROM notes WHERE id > {};", id * id),
            4 => format!("INSERT OR REPLACE INTO tags VALUES ({id} % 7, 'tag {id}', hex(zeroblob({length} / 2)));"),
            _ => format!("UPDATE notes SET data = zeroblob({length}) WHERE id % 50 = {id};"),
        });
        let sample = Sample::new(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA encoding = '{encoding}';
            CREATE TABLE notes (id INTEGER PRIMARY KEY, name TEXT NOT NULL, share NUMERIC, data TEXT); CREATE INDEX by_name ON notes(name, data);
            CREATE TABLE tags (a INTEGER, b TEXT, c TEXT, PRIMARY KEY (a, b)); {}", changes.collect::<String>()));
        prop_assert_eq!(sample.left(), Some(vec![]));
    }
}
