//! A killed writer leaves a rollback journal. Salvage returns the database as it was before that
//! transaction.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kg_backup::internals::salvage::report::{LogUse, Salvaged};
use rusqlite::Connection;

use crate::support::beside::salvage_beside;

const PAGE: usize = 1024;

/// The number of rows of `t` in a database, and its sum of `b`.
type Content = (i64, i64);

fn content(path: &Path) -> Content {
    let connection = Connection::open(path).unwrap();
    connection
        .query_row("SELECT count(*), sum(b) FROM t", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap()
}

/// A database in the middle of a transaction that has spilled pages into the file, as a killed
/// writer leaves it.
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
        // With a cache of a few pages SQLite spills, and each spill adds a header to the journal.
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = {mode}; PRAGMA cache_size = 10"
            ))
            .unwrap();
        connection
            .execute_batch(&format!("BEGIN; {transaction}"))
            .unwrap();
        let killed = Killed { dir, before };
        for suffix in ["", "-journal"] {
            fs::copy(
                killed.path(&format!("live.db{suffix}")),
                killed.path(&format!("killed.db{suffix}")),
            )
            .unwrap();
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
        let (target, salvaged) = salvage_beside(self.dir.path(), "killed.db", "-journal");
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
        (
            "DELETE",
            "DELETE FROM t WHERE a > 10; INSERT INTO t SELECT a + 90000, 3, hex(randomblob(400)) FROM t",
        ),
    ] {
        let killed = Killed::new(mode, transaction);
        let (content, salvaged) = killed.salvage();
        assert_eq!(
            content, killed.before,
            "{mode}, {transaction}: {salvaged:?}"
        );
        assert_eq!(
            (salvaged.journal, salvaged.warnings.len()),
            (LogUse::Applied, 0),
            "{salvaged:?}"
        );
        // SQLite rolls back to the same content.
        assert_eq!(self::content(&killed.path("killed.db")), killed.before);
    }
}

#[test]
fn pages_that_are_damaged_in_the_file_come_back_from_the_journal() {
    let killed = Killed::new("DELETE", UPDATE);
    // Page 1 and two others. The transaction changed each of them.
    for page in [0, 5, 20] {
        killed.change("killed.db", |bytes| {
            bytes[page * 1024..(page + 1) * 1024].fill(0xa5)
        });
        let (content, salvaged) = killed.salvage();
        assert_eq!(
            (content, salvaged.journal),
            (killed.before, LogUse::Applied),
            "{salvaged:?}"
        );
    }
}

#[test]
fn a_journal_of_a_committed_transaction_or_of_none_is_not_applied() {
    for (journal, expected) in [
        (Vec::new(), LogUse::None),
        (vec![0; 4096], LogUse::None),
        (vec![7; 4096], LogUse::Ignored),
    ] {
        let killed = Killed::new("DELETE", UPDATE);
        fs::copy(killed.path("live.db"), killed.path("killed.db")).unwrap();
        fs::write(killed.path("killed.db-journal"), journal).unwrap();
        let (content, salvaged) = killed.salvage();
        assert_eq!(
            (content, salvaged.journal),
            (killed.before, expected),
            "{salvaged:?}"
        );
        assert_eq!(
            salvaged.warnings.len(),
            usize::from(expected == LogUse::Ignored)
        );
    }
}

#[test]
fn the_journal_of_another_database_is_ignored_with_a_warning() {
    let killed = Killed::new("DELETE", UPDATE);
    let other = Connection::open(killed.path("other.db")).unwrap();
    other
        .execute_batch(
            "PRAGMA page_size = 1024; CREATE TABLE u (x); BEGIN; INSERT INTO u VALUES (1); COMMIT",
        )
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
    // An equal change counter would prove nothing, so this database gets a higher one than the
    // other.
    killed.change("killed.db", |bytes| {
        bytes[24..28].copy_from_slice(&40_u32.to_be_bytes())
    });
    let (content, salvaged) = killed.salvage();
    assert_eq!(
        (content, salvaged.journal),
        (killed.before, LogUse::Ignored),
        "{salvaged:?}"
    );
    assert!(
        salvaged
            .warnings
            .iter()
            .any(|warning| warning.contains("rollback journal")),
        "{salvaged:?}"
    );
}

/// Returns the offset in the image of a page of a byte of the journal. Returns `None` if the byte
/// is in no such image.
fn place_in_page(journal: &[u8], at: usize) -> Option<usize> {
    let word = |at: usize| u32::from_be_bytes(journal[at..at + 4].try_into().unwrap()) as usize;
    let mut header = 0;
    while header + 28 <= journal.len() {
        let (records, sector) = (word(header + 8), word(header + 20));
        let mut record = header + sector;
        for _ in 0..records.min(journal.len() / PAGE) {
            if (record + 4..record + 4 + PAGE).contains(&at) {
                return Some(at - record - 4);
            }
            record += PAGE + 8;
        }
        header = record.next_multiple_of(sector);
    }
    None
}

/// Returns whether the checksum of a record covers this byte. It covers one byte in 200, counted
/// from the end of the page.
fn is_in_checksum(place: usize) -> bool {
    (PAGE - place).is_multiple_of(200)
}

#[test]
fn a_damaged_journal_counts_up_to_the_damage_and_never_stops_a_salvage() {
    let killed = Killed::new("DELETE", UPDATE);
    let intact = fs::read(killed.path("killed.db-journal")).unwrap();
    let mut seen = [0, 0];
    let places = (0..16).map(|part| (intact.len() * part / 16 + 3, part));
    // The last byte that the checksum covers, for each of some records. The first record begins
    // after the first sector.
    let checked = (0..8).map(|record| (512 + 4 + record * (PAGE + 8) + PAGE - 200, 0));
    for (at, cut) in places.chain(checked) {
        killed.change("killed.db-journal", |bytes| {
            bytes.clone_from(&intact);
            bytes[at] ^= 0x55;
            bytes.truncate(intact.len() - cut);
        });
        let ((rows, _), report) = killed.salvage();
        // The pages after the damage stay as the transaction left them, so rows that it moved may
        // be lost.
        let salvaged = Connection::open(killed.path("salvaged.db")).unwrap();
        let sql = "SELECT a, c FROM t WHERE NOT (c = 'text of row ' || a AND b % 1000 = a % 10)";
        let mut statement = salvaged.prepare(sql).unwrap();
        let wrong = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        let wrong: Vec<(i64, String)> = wrong.map(Result::unwrap).collect();
        assert!(
            rows <= killed.before.0 && wrong.len() <= 1,
            "byte {at}: {wrong:?} of {rows}: {report:?}"
        );
        let place = place_in_page(&intact, at);
        seen[usize::from(place.is_some_and(is_in_checksum))] += 1;
        let said = report.tables[0].rows_lost + report.tables[0].rows_aside;
        let is_warned = report
            .warnings
            .iter()
            .any(|warning| warning.contains("journal"));
        assert!(
            rows + said as i64 >= killed.before.0 || is_warned,
            "byte {at}: {rows} rows, {report:?}"
        );
        assert!(
            is_warned || !place.is_some_and(is_in_checksum),
            "byte {at}: {report:?}"
        );
        // Neither salvage nor SQLite detects one change: a byte inside a value, on the image of a
        // page, that no checksum covers.
        if let Some((key, text)) = wrong.first() {
            let mut right = format!("text of row {key}").into_bytes();
            let changed = right
                .iter()
                .zip(text.as_bytes())
                .position(|(right, is)| right != is)
                .unwrap();
            assert_eq!(
                &intact[at - changed..][..right.len()],
                right,
                "byte {at} is in that text"
            );
            right[changed] ^= 0x55;
            assert_eq!(right, text.as_bytes(), "and nothing else of it is changed");
            assert_eq!(place.map(is_in_checksum), Some(false), "byte {at}");
        }
    }
    assert!(
        seen[0] >= 10 && seen[1] >= 8,
        "bytes outside and inside of checksums: {seen:?}"
    );
}
