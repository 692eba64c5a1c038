//! Tests of a database that is missing, damaged, or next to files that do not belong to it.

use super::*;

#[test]
fn a_database_that_is_gone_or_none_is_an_issue_and_not_an_error() {
    let fixture = Fixture::new();
    fixture.damage(|bytes| bytes[..100].fill(0));
    assert!(fixture.codes().contains("KG_ISSUE_NOT_A_DATABASE"));
    let repairable = |issues: Vec<Issue>| {
        issues
            .into_iter()
            .filter(|issue| issue.repairable)
            .map(|issue| issue.code)
    };
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
            0 => bytes[at..at + 4096]
                .iter_mut()
                .for_each(|byte| *byte = byte.wrapping_add(noise)),
            1 => bytes.truncate(at),
            2 => bytes[at / 4096 * 4096..][..16].fill(noise),
            _ => bytes.copy_within(4096..8192, at / 4096 * 4096),
        });
        let report = fixture.check();
        assert!(
            report
                .issues
                .iter()
                .any(|issue| issue.severity == Severity::Error),
            "round {round} at {at}: {report:?}"
        );
        let quick = Scope {
            quick: true,
            ..Scope::ALL
        };
        fixture.check_as(&CheckTarget::of(fixture.dir.path(), None), quick);
    }
}

/// Each of these interior pages leads to the next one a hundred times, which gives more rows than
/// any check can read.
#[test]
fn pages_that_lead_in_circles_end_a_check_and_are_reported() {
    const LEVELS: u32 = 6;
    let fixture = Fixture::new();
    let root = Connection::open(fixture.path(".kg/knowledge.db"))
        .unwrap()
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'nodes'",
            [],
            |row| row.get::<_, u32>(0),
        )
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
            bytes.extend(interior(if level == LEVELS {
                leaf
            } else {
                pages + level + 1
            }));
        }
        bytes[28..32].copy_from_slice(&(pages + LEVELS).to_be_bytes());
    });
    let began = std::time::Instant::now();
    assert!(fixture.codes().contains("KG_ISSUE_DATABASE_DAMAGED"));
    let quick = Scope {
        quick: true,
        ..Scope::ALL
    };
    let report = fixture.check_as(&CheckTarget::of(fixture.dir.path(), None), quick);
    assert!(
        report
            .issues
            .iter()
            .any(|issue| issue.code == IssueCode::DatabaseDamaged),
        "{report:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[test]
fn a_wal_of_another_database_is_recognised_and_one_that_cannot_be_read_too() {
    let fixture = Fixture::new();
    let wal = fixture.path(".kg/knowledge.db-wal");
    fixture.graph("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::write(&wal, [7; 5000]).unwrap();
    assert_eq!(
        fixture.only(IssueCode::WalUnreadable).path.as_deref(),
        Some(".kg/knowledge.db-wal")
    );

    // WALs of another database, with and without page 1, as if a user copied only one of the files.
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
    assert!(
        codes.contains("KG_ISSUE_WAL_FOREIGN") && codes.contains("KG_ISSUE_TABLE_MISSING"),
        "{codes:?}"
    );
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET x = hex(randomblob(300)) WHERE rowid < 300")
        .unwrap();
    let codes = foreign();
    assert!(
        codes.contains("KG_ISSUE_WAL_FOREIGN") && codes.contains("KG_ISSUE_DATABASE_DAMAGED"),
        "{codes:?}"
    );

    // A WAL with another page size.
    let path = other.path().join("small.db");
    let small = Connection::open(&path).unwrap();
    small
        .execute_batch("PRAGMA page_size = 512; PRAGMA journal_mode = wal; CREATE TABLE t (x)")
        .unwrap();
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
        let keep =
            |suffix: &str, name: &str| fs::copy(path(suffix), aside.path().join(name)).unwrap();
        let connection = Connection::open(path("")).unwrap();
        connection
            .execute_batch("PRAGMA foreign_keys = OFF; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 0")
            .unwrap();
        // Both changes affect nodes and their indexes, but the pages of both together still form
        // valid trees.
        let changes = [
            "UPDATE nodes SET path = 'moved/' || path WHERE rowid % 3 = 0",
            "DELETE FROM nodes WHERE rowid % 5 = 1",
        ];
        connection
            .execute_batch(changes[usize::from(!is_older)])
            .unwrap();
        keep("-wal", "older-wal");
        keep("", "older");
        connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        connection
            .execute_batch(changes[usize::from(is_older)])
            .unwrap();
        keep("-wal", "newer-wal");
        connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        keep("", "newer");
        drop(connection);
        let (database, wal) = if is_older {
            ("newer", "older-wal")
        } else {
            ("older", "newer-wal")
        };
        fs::copy(aside.path().join(database), path("")).unwrap();
        fs::copy(aside.path().join(wal), path("-wal")).unwrap();
        let issues = fixture.check().issues;
        let found = issues
            .iter()
            .find(|issue| issue.code == IssueCode::WalForeign);
        assert!(
            found.is_some_and(|issue| issue.path.as_deref() == Some(".kg/knowledge.db-wal")),
            "{is_older}: {issues:?}"
        );
        let other = issues
            .iter()
            .filter(|issue| issue.repairable && !repair::is_damage(issue));
        assert_eq!(
            other
                .filter(|issue| issue.component == Part::Database)
                .count(),
            0,
            "{is_older}: {issues:?}"
        );
    }
}

#[test]
fn a_database_of_two_names_is_a_hazard() {
    let fixture = Fixture::new();
    fs::hard_link(
        fixture.path(".kg/knowledge.db"),
        fixture.path(".kg/same.db"),
    )
    .unwrap();
    fixture.only(IssueCode::DatabaseLinked);
    // A name outside the project may belong to another project.
    fs::rename(fixture.path(".kg/same.db"), fixture.path("same.db")).unwrap();
    let codes = [IssueCode::DatabaseLinked, IssueCode::DatabaseOutside].map(IssueCode::as_str);
    assert_eq!(fixture.codes(), codes.into());
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
    assert_eq!(
        actions
            .iter()
            .filter(|action| action.work == repair::Work::Salvage)
            .count(),
        1
    );
    assert_eq!(actions.len(), 3);
}

#[test]
fn a_check_in_rollback_mode_beside_a_hot_writer_waits_for_nobody() {
    let fixture = Fixture::new();
    fixture.graph("PRAGMA journal_mode = delete");
    let writer = Connection::open(fixture.path(".kg/knowledge.db")).unwrap();
    writer
        .execute_batch("BEGIN IMMEDIATE; INSERT INTO metadata VALUES ('a', 'b')")
        .unwrap();
    assert_eq!(fixture.check().issues, []);
    writer.execute_batch("COMMIT").unwrap();
}
