//! A WAL that belongs to another state than its database. It is left behind when a database of the
//! same schema replaces its own database, or it is copied from another project. SQLite replays it
//! if salts and checksums are right. Salvage applies it only if it may be the right one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use kg_backup::internals::salvage::report::{LogUse, Salvaged};
use rusqlite::Connection;

use crate::support::beside::salvage_beside;

const SCHEMA: &str = "CREATE TABLE nodes (a INTEGER PRIMARY KEY, b TEXT UNIQUE, c TEXT); CREATE INDEX by_c ON nodes (c)";

type Rows = BTreeMap<i64, (String, String)>;

fn rows(path: &Path) -> Rows {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT a, b, c FROM nodes").unwrap();
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

fn insert(connection: &Connection, from: i64, count: i64, text: &str) {
    connection
        .execute(
            "WITH RECURSIVE n(n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?1 + ?2)
             INSERT INTO nodes SELECT n, 'node ' || n, ?3 || ' of row ' || n || iif(n % 40 = 9, hex(zeroblob(1200)), '') FROM n",
            rusqlite::params![from, count, text],
        )
        .unwrap();
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch("PRAGMA page_size = 1024; PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0")
        .unwrap();
    connection
}

fn create(path: &Path) -> Connection {
    let connection = open(path);
    connection.execute_batch(SCHEMA).unwrap();
    insert(&connection, 0, 600, "text");
    checkpoint(&connection);
    connection
}

fn checkpoint(connection: &Connection) {
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

/// A database in one state and the WAL of another state, with the rows of both.
struct Mixed {
    dir: tempfile::TempDir,
    of_database: Rows,
    of_wal: Rows,
}

impl Mixed {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn salvage(&self) -> (Rows, Salvaged) {
        let (target, salvaged) = salvage_beside(self.dir.path(), "mixed.db", "-wal");
        (rows(&target), salvaged)
    }

    /// Asserts that each row is of one of the two states. One mixture is accepted because it cannot
    /// be detected: the overflow pages of a row are of the other state than its beginning. SQLite
    /// shows this mixture too.
    fn expect_none_invented(&self, name: &str) -> (Rows, Salvaged) {
        let (rows, report) = self.salvage();
        for (key, row) in &rows {
            let known = [self.of_database.get(key), self.of_wal.get(key)];
            if !known.contains(&Some(row)) {
                let may_mix = report.wal == LogUse::Applied
                    && is_mixed_of(row, known)
                    && row == &self.row_of_sqlite(*key);
                assert!(may_mix, "{name}: row {key} was in neither: {report:?}");
            }
        }
        (rows, report)
    }

    fn row_of_sqlite(&self, key: i64) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("mixed.db");
        let _ = ["", "-wal"].map(|suffix| {
            fs::copy(
                self.path(&format!("mixed.db{suffix}")),
                dir.path().join(format!("mixed.db{suffix}")),
            )
            .unwrap()
        });
        let sql = "SELECT b, c FROM nodes NOT INDEXED WHERE a = ?1";
        Connection::open(copy)
            .unwrap()
            .query_row(sql, [key], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
    }

    /// Also asserts that each row that both states have is present, or is reported as lost or set
    /// aside.
    fn expect_rows_of_either(&self, name: &str) -> Salvaged {
        let (rows, report) = self.expect_none_invented(name);
        let of_both = self
            .of_database
            .iter()
            .filter(|(key, row)| self.of_wal.get(*key) == Some(*row));
        let lost = of_both
            .filter(|(key, row)| rows.get(*key) != Some(*row))
            .count() as u64;
        let said: u64 = report
            .tables
            .iter()
            .map(|table| table.rows_lost + table.rows_aside)
            .sum();
        assert!(
            lost <= said,
            "{name}: {lost} rows are lost, {said} are said to be: {report:?}"
        );
        report
    }
}

/// Returns whether a row with overflow pages is a mixture of the two states.
fn is_mixed_of((b, c): &(String, String), known: [Option<&(String, String)>; 2]) -> bool {
    let [Some(one), Some(other)] = known else {
        return false;
    };
    let differs = |row: &(String, String)| {
        row.1
            .bytes()
            .zip(c.bytes())
            .filter(|(one, other)| one != other)
            .count()
    };
    let is_of_either = |(at, byte)| {
        [one, other]
            .iter()
            .any(|row| row.1.as_bytes().get(at) == Some(byte))
    };
    c.len() > 900
        && [&one.0, &other.0].contains(&b)
        && differs(one) > 0
        && c.as_bytes().iter().enumerate().all(is_of_either)
}

/// The state of the database. The WAL is of the other state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    Older,
    Newer,
}

/// Changes a database twice, and keeps its WAL and its file each time. Then puts the file of one
/// state next to the WAL of the other.
fn mix(changes: [&str; 2], database: Database, is_reopened: bool) -> Mixed {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let live = path("live.db");
    let mut connection = create(&live);
    let keep = |as_name: &str| {
        fs::copy(&live, path(as_name)).unwrap();
        fs::copy(path("live.db-wal"), path(&format!("{as_name}-wal"))).unwrap();
        rows(&live)
    };
    connection.execute_batch(changes[0]).unwrap();
    let earlier = keep("earlier.db");
    checkpoint(&connection);
    if is_reopened {
        drop(connection);
        connection = open(&live);
    }
    connection.execute_batch(changes[1]).unwrap();
    if database == Database::Newer {
        checkpoint(&connection);
    }
    let later = keep("later.db");
    let (file, wal, of_wal) = match database {
        Database::Newer => ("later.db", "earlier.db-wal", earlier),
        Database::Older => ("earlier.db", "later.db-wal", later),
    };
    fs::copy(path(file), path("mixed.db")).unwrap();
    fs::copy(path(wal), path("mixed.db-wal")).unwrap();
    fs::copy(path(file), path("alone.db")).unwrap();
    let of_database = rows(&path("alone.db"));
    Mixed {
        of_database,
        of_wal,
        dir,
    }
}

const GROW: &str =
    "WITH RECURSIVE n(n) AS (SELECT 10000 UNION ALL SELECT n + 1 FROM n WHERE n < 10400)
                    INSERT INTO nodes SELECT n, 'node ' || n, 'more of row ' || n FROM n";
const CHANGE: &str = "UPDATE nodes SET c = replace(c, 'text', 'next') WHERE a % 7 = 1";
const CHANGE_OTHERS: &str = "UPDATE nodes SET c = replace(c, 'of', 'by') WHERE a % 5 = 1";
const SHRINK: &str = "DELETE FROM nodes WHERE a BETWEEN 100 AND 450";
const LENGTHEN: &str = "UPDATE nodes SET c = c || hex(zeroblob(900 + a)) WHERE a % 50 = 3";
const REWRITE: &str = "UPDATE nodes SET c = replace(c, '00', '7a') WHERE length(c) > 1000";
const REPLACE: &str = "DELETE FROM nodes WHERE a BETWEEN 100 AND 450;
                       WITH RECURSIVE n(n) AS (SELECT 20000 UNION ALL SELECT n + 1 FROM n WHERE n < 20900)
                       INSERT INTO nodes SELECT n, 'node ' || n, 'new of row ' || n || iif(n % 9 = 1, hex(zeroblob(1500)), '') FROM n";
const CHANGES: [&str; 7] = [
    GROW,
    CHANGE,
    CHANGE_OTHERS,
    SHRINK,
    LENGTHEN,
    REWRITE,
    REPLACE,
];

fn all_mixtures(reopened: &[bool], mut each: impl FnMut(Mixed, &str)) {
    for first in CHANGES {
        for second in CHANGES.into_iter().filter(|second| *second != first) {
            for database in [Database::Older, Database::Newer] {
                for is_reopened in reopened.iter().copied() {
                    let name = format!(
                        "{first}, then {second}, the database {database:?}, reopened: {is_reopened}"
                    );
                    each(mix([first, second], database, is_reopened), &name);
                }
            }
        }
    }
}

#[test]
fn with_a_wal_of_another_state_every_row_is_of_one_of_the_two_and_none_is_missing_unsaid() {
    let (mut applied, mut count) = (0, 0);
    all_mixtures(&[false, true], |mixed, name| {
        let report = mixed.expect_rows_of_either(name);
        applied += u32::from(report.wal == LogUse::Applied);
        count += 1;
        assert_eq!(
            report.warnings.len(),
            usize::from(report.wal == LogUse::Ignored),
            "{name}: {report:?}"
        );
    });
    assert!(
        applied < count / 5,
        "{applied} of {count} were taken for the right one"
    );
}

#[test]
fn a_damaged_page_beside_a_wal_of_another_state_invents_no_row_either() {
    all_mixtures(&[false], |mixed, name| {
        let bytes = fs::read(mixed.path("mixed.db")).unwrap();
        for page in [7, bytes.len() / 1024 / 2] {
            let mut damaged = bytes.clone();
            damaged[page * 1024..(page + 1) * 1024].fill(0xa5);
            fs::write(mixed.path("mixed.db"), damaged).unwrap();
            mixed.expect_none_invented(&format!("{name}, page {page}"));
        }
    });
}

#[test]
fn the_wal_of_another_project_with_the_same_schema_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for change in CHANGES {
        let _ =
            ["", "-wal", "-shm"].map(|suffix| fs::remove_file(path(&format!("other.db{suffix}"))));
        let own = create(&path("own.db"));
        let expected = rows(&path("own.db"));
        let other = open(&path("other.db"));
        other.execute_batch(SCHEMA).unwrap();
        insert(&other, 5, 400, "other");
        checkpoint(&other);
        other.execute_batch(change).unwrap();
        fs::copy(path("own.db"), path("mixed.db")).unwrap();
        fs::copy(path("other.db-wal"), path("mixed.db-wal")).unwrap();
        let mixed = Mixed {
            of_database: expected.clone(),
            of_wal: rows(&path("other.db")),
            dir: tempfile::tempdir().unwrap(),
        };
        let _ = ["mixed.db", "mixed.db-wal"]
            .map(|name| fs::copy(path(name), mixed.path(name)).unwrap());
        let (found, report) = mixed.salvage();
        assert_eq!(
            (found == expected, report.wal),
            (true, LogUse::Ignored),
            "{change}: {report:?}"
        );
        drop(own);
        let _ =
            ["", "-wal", "-shm"].map(|suffix| fs::remove_file(path(&format!("own.db{suffix}"))));
    }
}

#[test]
fn the_wal_of_the_state_that_the_database_is_in_is_always_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let live = path("live.db");
    let mut writers = [create(&live), open(&live), open(&live)];
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut taken = 0;
    for step in 0..300_i64 {
        let writer = random(3) as usize;
        match random(9) {
            0 => insert(
                &writers[writer],
                1_000 + step * 100,
                random(80) as i64 + 1,
                "text",
            ),
            1 => drop(
                writers[writer].execute("DELETE FROM nodes WHERE a % 97 = ?1", [random(97) as i64]),
            ),
            // An open read transaction keeps the end of the WAL from being checkpointed.
            2 => {
                let reader = open(&live);
                reader
                    .execute_batch("BEGIN; SELECT count(*) FROM nodes")
                    .unwrap();
                writers[writer].execute_batch(CHANGE_OTHERS).unwrap();
                writers[writer]
                    .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
                    .unwrap();
            }
            3 if random(3) == 0 => checkpoint(&writers[writer]),
            4 => writers[writer]
                .query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))
                .unwrap(),
            5 if random(5) == 0 => writers[writer].execute_batch("VACUUM").unwrap(),
            6 => writers[writer] = open(&live),
            7 => writers[writer].execute_batch(REWRITE).unwrap(),
            _ => drop(writers[writer].execute(
                "UPDATE nodes SET c = c || 'x' WHERE a % 31 = ?1",
                [random(31) as i64],
            )),
        }
        let expected = rows(&live);
        let mixed = Mixed {
            of_database: expected.clone(),
            of_wal: expected.clone(),
            dir: tempfile::tempdir().unwrap(),
        };
        let _ = ["", "-wal"].map(|suffix| {
            fs::copy(
                path(&format!("live.db{suffix}")),
                mixed.path(&format!("mixed.db{suffix}")),
            )
            .unwrap()
        });
        let (found, report) = mixed.salvage();
        assert!(
            found == expected && report.wal != LogUse::Ignored,
            "step {step}: {report:?}"
        );
        taken += u64::from(report.wal == LogUse::Applied);
    }
    assert!(taken > 100, "{taken} WALs were looked at");
}
