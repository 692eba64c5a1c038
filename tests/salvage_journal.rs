//! A killed writer leaves a rollback journal: what is salvaged is the database as it was before that transaction.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kg_backup::{
    integrity::salvage::{
        report::{LogUse, Salvaged},
        salvage,
    },
    task::Cancel,
};
use rusqlite::Connection;

/// Rows of `t` in a database, with its sum of `b`.
type Content = (i64, i64);

fn content(path: &Path) -> Content {
    let connection = Connection::open(path).unwrap();
    connection.query_row("SELECT count(*), sum(b) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// A database in the middle of a transaction that has spilled pages into the file, as a kill leaves it.
struct Killed {
    dir: tempfile::TempDir,
    before: Content,
}

impl Killed {
    fn new(mode: &str, transaction: &str) -> Killed {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live.db");
        let connection = Connection::open(&live).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size = 1024; CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER, c TEXT);
                 WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000)
                 INSERT INTO t SELECT n, n % 10, 'text of row ' || n FROM n",
            )
            .unwrap();
        let before = content(&live);
        // A cache of a few pages spills, and with each spill the journal gets one more header.
        connection.execute_batch(&format!("PRAGMA journal_mode = {mode}; PRAGMA cache_size = 10")).unwrap();
        connection.execute_batch(&format!("BEGIN; {transaction}")).unwrap();
        let killed = Killed { dir, before };
        for suffix in ["", "-journal"] {
            fs::copy(killed.path(&format!("live.db{suffix}")), killed.path(&format!("killed.db{suffix}"))).unwrap();
        }
        connection.execute_batch("ROLLBACK").unwrap();
        killed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        change(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }

    fn salvage(&self) -> (Content, Salvaged) {
        let read = || ["killed.db", "killed.db-journal"].map(|name| fs::read(self.path(name)).unwrap());
        let (before, target) = (read(), self.path("salvaged.db"));
        let _ = fs::remove_file(&target);
        let salvaged = salvage(&self.path("killed.db"), &target, &[], &Cancel::default()).unwrap();
        assert!(read() == before, "neither the database nor its journal is written");
        (content(&target), salvaged)
    }
}

const UPDATE: &str = "UPDATE t SET b = b + 1000";

#[test]
fn a_transaction_that_was_never_committed_is_taken_back() {
    for (mode, transaction) in [
        ("DELETE", UPDATE),
        ("PERSIST", UPDATE),
        ("TRUNCATE", "INSERT INTO t SELECT a + 3000, 7, c FROM t"),
        ("DELETE", "DELETE FROM t WHERE a > 10; INSERT INTO t SELECT a + 90000, 3, hex(randomblob(400)) FROM t"),
    ] {
        let killed = Killed::new(mode, transaction);
        let (content, salvaged) = killed.salvage();
        assert_eq!(content, killed.before, "{mode}, {transaction}: {salvaged:?}");
        assert_eq!((salvaged.journal, salvaged.warnings.len()), (LogUse::Applied, 0), "{salvaged:?}");
        // SQLite agrees.
        assert_eq!(self::content(&killed.path("killed.db")), killed.before);
    }
}

#[test]
fn pages_that_are_damaged_in_the_file_come_back_from_the_journal() {
    let killed = Killed::new("DELETE", UPDATE);
    // Page 1 and all others: the transaction changed each of them.
    for page in [0, 5, 20] {
        killed.change("killed.db", |bytes| bytes[page * 1024..(page + 1) * 1024].fill(0xa5));
        let (content, salvaged) = killed.salvage();
        assert_eq!((content, salvaged.journal), (killed.before, LogUse::Applied), "{salvaged:?}");
    }
}

#[test]
fn a_journal_of_a_committed_transaction_or_of_none_is_not_applied() {
    for (journal, expected) in
        [(Vec::new(), LogUse::None), (vec![0; 4096], LogUse::None), (vec![7; 4096], LogUse::Ignored)]
    {
        let killed = Killed::new("DELETE", UPDATE);
        fs::copy(killed.path("live.db"), killed.path("killed.db")).unwrap();
        fs::write(killed.path("killed.db-journal"), journal).unwrap();
        let (content, salvaged) = killed.salvage();
        assert_eq!((content, salvaged.journal), (killed.before, expected), "{salvaged:?}");
        assert_eq!(salvaged.warnings.len(), usize::from(expected == LogUse::Ignored));
    }
}

#[test]
fn the_journal_of_another_database_is_ignored_with_a_warning() {
    let killed = Killed::new("DELETE", UPDATE);
    let other = Connection::open(killed.path("other.db")).unwrap();
    other
        .execute_batch("PRAGMA page_size = 1024; CREATE TABLE u (x); BEGIN; INSERT INTO u VALUES (1); COMMIT")
        .unwrap();
    other
        .execute_batch(
            "PRAGMA cache_size = 5; BEGIN; WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 900)
             INSERT INTO u SELECT hex(randomblob(100)) FROM n",
        )
        .unwrap();
    let (live, journal) = (killed.path("live.db"), killed.path("other.db-journal"));
    fs::copy(live, killed.path("killed.db")).unwrap();
    fs::copy(journal, killed.path("killed.db-journal")).unwrap();
    // As many changes as the other has seen say nothing: this one has seen more.
    killed.change("killed.db", |bytes| bytes[24..28].copy_from_slice(&40_u32.to_be_bytes()));
    let (content, salvaged) = killed.salvage();
    assert_eq!((content, salvaged.journal), (killed.before, LogUse::Ignored), "{salvaged:?}");
    assert!(salvaged.warnings.iter().any(|warning| warning.contains("rollback journal")), "{salvaged:?}");
}

#[test]
fn a_damaged_journal_counts_up_to_the_damage_and_never_stops_a_salvage() {
    let killed = Killed::new("DELETE", UPDATE);
    let length = fs::metadata(killed.path("killed.db-journal")).unwrap().len() as usize;
    for part in 0..16 {
        killed.change("killed.db-journal", |bytes| bytes[length * part / 16 + 3] ^= 0x55);
        let ((rows, _), report) = killed.salvage();
        // The pages after the damage stay as the transaction left them: rows that it moved may be lost. One byte of a page that was
        // changed between those that the checksum covers is not noticed, by SQLite neither.
        let sql = "SELECT count(*) FROM t WHERE c = 'text of row ' || a AND b % 1000 = a % 10";
        let salvaged = Connection::open(killed.path("salvaged.db")).unwrap();
        let right: i64 = salvaged.query_row(sql, [], |row| row.get(0)).unwrap();
        assert!(rows <= killed.before.0 && right >= rows - 1, "{right} of {rows}: {report:?}");
        killed.change("killed.db-journal", |bytes| bytes[length * part / 16 + 3] ^= 0x55);
        killed.change("killed.db-journal", |bytes| bytes.truncate(length - part));
    }
}
