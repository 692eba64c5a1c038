//! Tests with indexes of every form that FTS5 writes. [`damage`] tests damaged ones.

mod damage;

use std::path::PathBuf;

use rusqlite::{Connection, params};
use tempfile::TempDir;

use super::is_well_formed;
use crate::{
    sqlite::{check::full_text, quoted},
    util::operation::CancelToken,
};

/// A database with a table `notes` and its index.
struct Sample {
    _dir: TempDir,
    file: PathBuf,
    writer: Connection,
}

const TRIGGERS: &str = "
    CREATE TRIGGER added AFTER INSERT ON notes BEGIN
        INSERT INTO ft (rowid, title, body) VALUES (new.id, new.title, new.body); END;
    CREATE TRIGGER removed AFTER DELETE ON notes BEGIN
        INSERT INTO ft (ft, rowid, title, body) VALUES ('delete', old.id, old.title, old.body); END;
    CREATE TRIGGER changed AFTER UPDATE ON notes BEGIN
        INSERT INTO ft (ft, rowid, title, body) VALUES ('delete', old.id, old.title, old.body);
        INSERT INTO ft (rowid, title, body) VALUES (new.id, new.title, new.body); END;";

/// Words with very different frequencies, which are the same each time.
const ADD_NOTES: &str = "
    WITH RECURSIVE n (value) AS (SELECT 0 UNION ALL SELECT value + 1 FROM n LIMIT ?2)
    INSERT INTO notes SELECT ?1 + value, 'note ' || value,
        format('all %x %x w%d über%d', value * 7919 % 65521, value % 50, value % 7, value) FROM n";

impl Sample {
    fn new(options: &str, page_bytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let writer = Connection::open(&file).unwrap();
        writer.set_prepared_statement_cache_capacity(64);
        let made = format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
             CREATE TABLE notes (id INTEGER PRIMARY KEY, title, body);
             CREATE VIRTUAL TABLE ft USING fts5(title, body{options}); {TRIGGERS}
             INSERT INTO ft (ft, rank) VALUES ('pgsz', {page_bytes});"
        );
        writer.execute_batch(&made).unwrap();
        Sample {
            _dir: dir,
            file,
            writer,
        }
    }

    fn external(page_bytes: u32) -> Self {
        Sample::new(", content='notes', content_rowid='id'", page_bytes)
    }

    fn add(self, first: i64, count: i64) -> Self {
        self.writer
            .prepare_cached(ADD_NOTES)
            .unwrap()
            .execute([first, count])
            .unwrap();
        self
    }

    fn run(self, sql: &str) -> Self {
        self.writer.execute_batch(sql).unwrap();
        self
    }

    /// Returns whether the fast check proves the index, and whether SQLite finds it sound.
    fn judge(&self) -> (bool, bool) {
        let reader = Connection::open(&self.file).unwrap();
        let ours = is_well_formed(&reader, "ft", &CancelToken::default()).unwrap();
        let said = reader.query_row(r#"PRAGMA quick_check("ft")"#, [], |row| {
            row.get::<_, String>(0)
        });
        (ours, said.is_ok_and(|said| said == "ok"))
    }

    fn count(&self, of: &str) -> i64 {
        self.writer
            .query_row(&format!("SELECT count(*) FROM {of}"), [], |row| row.get(0))
            .unwrap()
    }

    fn ids(&self, of: &str) -> Vec<i64> {
        let mut statement = self.writer.prepare(of).unwrap();
        statement
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    fn block(&self, id: i64) -> Vec<u8> {
        self.writer
            .prepare_cached("SELECT block FROM ft_data WHERE id = ?1")
            .unwrap()
            .query_row([id], |row| row.get(0))
            .unwrap()
    }

    fn set_block(&self, id: i64, block: &[u8]) {
        let mut statement = self
            .writer
            .prepare_cached("UPDATE ft_data SET block = ?2 WHERE id = ?1")
            .unwrap();
        statement.execute(params![id, block]).unwrap();
    }
}

const IS_DOCLIST_INDEX: &str = "id >> 36 & 1";

#[test]
fn sound_indexes_of_every_shape_are_proven() {
    let in_steps = |mut sample: Sample| {
        for step in 0..60 {
            sample = sample.add(step * 100, 100);
        }
        sample
    };
    let long_words =
        "INSERT INTO notes SELECT 100 + value, printf('%.*c', value * 97, 'x'), printf('%.*c%d', 3000, 'y', value)
        FROM (SELECT id AS value FROM notes LIMIT 90)";
    let no_automerge = "INSERT INTO ft (ft, rank) VALUES ('automerge', 0);";
    let merge_on = "INSERT INTO ft (ft, rank) VALUES ('merge', -3); INSERT INTO ft (ft, rank) VALUES ('merge', 5);";
    let optimize = "INSERT INTO ft (ft) VALUES ('optimize')";
    let change = "DELETE FROM notes WHERE id % 3 = 0; UPDATE notes SET body = 'other ' || body WHERE id % 5 = 1;";
    let samples = [
        ("empty", Sample::external(4050)),
        ("one row", Sample::external(4050).add(1, 1)),
        ("many segments", in_steps(Sample::external(1000))),
        ("small pages", in_steps(Sample::external(64))),
        ("optimized", in_steps(Sample::external(4050)).run(optimize)),
        (
            "optimized small pages",
            in_steps(Sample::external(64)).run(optimize),
        ),
        ("changed", in_steps(Sample::external(500)).run(change)),
        (
            "changed and optimized",
            in_steps(Sample::external(100)).run(change).run(optimize),
        ),
        (
            "emptied",
            Sample::external(4050)
                .add(1, 500)
                .run("DELETE FROM notes")
                .run(optimize),
        ),
        (
            "merge under way",
            in_steps(Sample::external(64).run(no_automerge))
                .run(merge_on)
                .run(merge_on),
        ),
        (
            "prefixes",
            in_steps(Sample::new(
                ", content='notes', content_rowid='id', prefix='2 3'",
                200,
            )),
        ),
        (
            "no sizes",
            Sample::new(
                ", content=notes, content_rowid=id, columnsize=0, detail=full",
                300,
            )
            .add(1, 3000),
        ),
        (
            "trigrams",
            Sample::new(
                ", content=notes, content_rowid=id, tokenize=\"trigram\"",
                4050,
            )
            .add(1, 2000),
        ),
        (
            "no content",
            Sample::new(", content=''", 4050).add(1, 2000).run(change),
        ),
        (
            "long words",
            Sample::external(4050).add(1, 90).run(long_words),
        ),
        ("a common word", Sample::external(4050).add(1, 30_000)),
        (
            "a common word, small pages",
            Sample::external(50).add(1, 20_000),
        ),
        ("negative numbers", Sample::external(64).add(-6000, 9000)),
        (
            "extreme numbers",
            Sample::external(64)
                .add(i64::MIN, 500)
                .add(-200, 500)
                .add(i64::MAX - 999, 999)
                .run(optimize),
        ),
    ];
    for (name, sample) in &samples {
        assert_eq!(sample.judge(), (true, true), "{name}");
    }
    let sample = |wanted| &samples.iter().find(|(name, _)| *name == wanted).unwrap().1;
    assert!(sample("many segments").count("(SELECT DISTINCT segid FROM ft_idx)") > 3);
    let height = |sample: &Sample| {
        sample.count(&format!(
            "(SELECT DISTINCT id >> 31 & 31 FROM ft_data WHERE {IS_DOCLIST_INDEX})"
        ))
    };
    assert_eq!(height(sample("a common word")), 1);
    assert!(height(sample("a common word, small pages")) >= 2);
    let trimmed =
        "ft_idx WHERE NOT EXISTS (SELECT 1 FROM ft_data WHERE id = segid << 37 | pgno >> 1)";
    assert!(sample("merge under way").count(trimmed) > 0);
}

#[test]
fn what_is_not_understood_is_left_to_sqlite() {
    let secure =
        "INSERT INTO ft (ft, rank) VALUES ('secure-delete', 1); DELETE FROM notes WHERE id % 2;";
    let no_triggers = "DROP TRIGGER removed; DROP TRIGGER changed;";
    let samples = [
        ("own content", Sample::new("", 4050).run(no_triggers)),
        (
            "contentless_delete",
            Sample::new(", content='', contentless_delete=1", 4050),
        ),
        (
            "detail=none",
            Sample::new(", content='notes', content_rowid='id', detail=none", 4050),
        ),
        (
            "detail=column",
            Sample::new(", content='notes', content_rowid='id', detail=column", 4050),
        ),
    ];
    for (name, sample) in samples {
        assert_eq!(sample.add(1, 1000).judge(), (false, true), "{name}");
    }
    assert_eq!(
        Sample::external(4050).add(1, 1000).run(secure).judge(),
        (false, true)
    );
    assert_eq!(
        Sample::external(4050)
            .run("UPDATE ft_config SET v = 3 WHERE k = 'version'")
            .judge(),
        (false, false)
    );
    let connection = Connection::open_in_memory().unwrap();
    assert!(!is_well_formed(&connection, "none", &CancelToken::default()).unwrap());
}

#[test]
fn a_renamed_table_with_quotes_in_its_name_is_proven() {
    let sample = Sample::external(64)
        .add(1, 300)
        .run(r#"ALTER TABLE ft RENAME TO "my ""in'dex" "#);
    let reader = Connection::open(&sample.file).unwrap();
    let name = r#"my "in'dex"#;
    let said = reader.query_row(
        &format!("PRAGMA quick_check({})", quoted(name)),
        [],
        |row| row.get::<_, String>(0),
    );
    assert_eq!(said.unwrap(), "ok");
    assert!(is_well_formed(&reader, name, &CancelToken::default()).unwrap());
}

#[test]
fn a_proof_ends_when_it_is_cancelled() {
    let sample = Sample::external(64).add(1, 300);
    let cancel = CancelToken::default();
    cancel.cancel();
    let ended =
        is_well_formed(&Connection::open(&sample.file).unwrap(), "ft", &cancel).unwrap_err();
    assert_eq!(
        ended.sqlite_error_code(),
        Some(rusqlite::ErrorCode::OperationInterrupted)
    );
}

#[test]
fn damage_is_reported_in_the_words_of_sqlite() {
    let sample = Sample::external(64).add(1, 300);
    let open = || Connection::open(&sample.file).unwrap();
    let check = || {
        full_text(&mut open(), &CancelToken::default())
            .unwrap()
            .damage
    };
    assert_eq!(check(), Vec::<String>::new());
    sample
        .writer
        .execute(
            "DELETE FROM ft_data WHERE id = (SELECT max(id) FROM ft_data)",
            [],
        )
        .unwrap();
    let said = open()
        .query_row(r#"PRAGMA quick_check("ft")"#, [], |row| {
            row.get::<_, String>(0)
        })
        .unwrap();
    assert_eq!(check(), [said]);
}
