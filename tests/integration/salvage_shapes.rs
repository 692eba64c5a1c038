//! Shapes of the file format other than plain tables, and lists of pages that form a cycle. Salvage
//! returns the rows unchanged.

use std::{collections::BTreeMap, fs, path::Path};

use kg_backup::internals::{
    salvage::{
        report::{LostBy, Salvaged},
        salvage,
    },
    util::operation::CancelToken,
};
use rusqlite::{Connection, types::Value};

use crate::support::{Intact, SCHEMA, TABLES, Variant, all_rows, build, damage::judge};

const PAGE: usize = 1024;

fn rows(connection: &Connection, sql: &str) -> Vec<Vec<Value>> {
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement
        .query_map([], |row| {
            (0..columns).map(|column| row.get(column)).collect()
        })
        .unwrap();
    rows.map(Result::unwrap).collect()
}

/// Makes a database and changes its bytes. Returns what `query` finds in it before and after a
/// salvage.
fn before_and_after(
    sql: &str,
    query: &str,
    damage: impl FnOnce(&Path, &mut [u8]),
) -> (Vec<Vec<Value>>, Vec<Vec<Value>>) {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (
        dir.path().join("damaged.db"),
        dir.path().join("salvaged.db"),
    );
    let connection = Connection::open(&source).unwrap();
    connection
        .execute_batch(&format!("PRAGMA page_size = {PAGE}; {sql}"))
        .unwrap();
    let before = rows(&connection, query);
    drop(connection);
    let mut bytes = fs::read(&source).unwrap();
    damage(&source, &mut bytes);
    fs::write(&source, bytes).unwrap();
    salvage(&source, &target, &[], &CancelToken::default()).unwrap();
    let connection = Connection::open(&target).unwrap();
    assert_eq!(
        rows(&connection, "PRAGMA integrity_check"),
        [[Value::Text("ok".into())]]
    );
    (before, rows(&connection, query))
}

fn without_header(_: &Path, bytes: &mut [u8]) {
    bytes[..100].fill(0);
}

const NUMBERS: &str =
    "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 400)";

#[test]
fn rows_from_before_a_column_was_added_have_its_default() {
    let sql = format!(
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT);
         {NUMBERS} INSERT INTO t SELECT n, 'row ' || n FROM n;
         ALTER TABLE t ADD COLUMN c TEXT DEFAULT 'then';
         ALTER TABLE t ADD COLUMN d INTEGER NOT NULL DEFAULT 7;
         ALTER TABLE t ADD COLUMN e;
         INSERT INTO t VALUES (1000, 'new', 'now', 8, 1.5), (1001, 'new', NULL, 9, x'00ff')"
    );
    let (before, after) = before_and_after(
        &sql,
        "SELECT a, b, c, d, e, typeof(d) FROM t ORDER BY a",
        without_header,
    );
    assert_eq!(before.len(), 402);
    assert_eq!(after, before);
}

#[test]
fn generated_columns_are_computed_again_and_the_others_keep_their_values() {
    let sql = format!(
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER, c AS (b * 2) VIRTUAL, d TEXT, e AS (d || b) STORED, f REAL);
         CREATE INDEX by_c ON t (c);
         {NUMBERS} INSERT INTO t (a, b, d, f) SELECT n, n % 7, 'text ' || n, n FROM n"
    );
    let (before, after) = before_and_after(
        &sql,
        "SELECT a, b, c, d, e, f, typeof(f) FROM t ORDER BY a",
        without_header,
    );
    assert_eq!(before.len(), 400);
    assert_eq!(after, before);
}

#[test]
fn a_table_without_rowids_loses_the_rows_of_a_lost_page_and_no_other() {
    let sql = format!(
        "CREATE TABLE t (a TEXT, b INTEGER, c BLOB, PRIMARY KEY (b DESC, a)) WITHOUT ROWID;
         {NUMBERS} INSERT INTO t SELECT 'key ' || (n % 13), n, zeroblob(n % 90) FROM n"
    );
    for kind in ["leaf", "internal"] {
        let mut on_page = 0;
        let (before, after) = before_and_after(
            &sql,
            "SELECT * FROM t ORDER BY b, a",
            |path, bytes| {
                let connection = Connection::open(path).unwrap();
                // A page other than the root, if there is one.
                let query = "SELECT pageno, ncell FROM dbstat WHERE name = 't' AND pagetype = ?1 AND path <> '/'
                         ORDER BY path LIMIT 1 OFFSET 1";
                let found =
                    connection.query_row(query, [kind], |row| Ok((row.get(0)?, row.get(1)?)));
                let (page, cells): (usize, usize) = match found {
                    Ok(found) => found,
                    Err(rusqlite::Error::QueryReturnedNoRows) if kind == "internal" => {
                        let root =
                            "SELECT pageno, ncell FROM dbstat WHERE name = 't' AND path = '/'";
                        connection
                            .query_row(root, [], |row| Ok((row.get(0)?, row.get(1)?)))
                            .unwrap()
                    }
                    Err(error) => panic!("{error}"),
                };
                on_page = cells;
                bytes[(page - 1) * PAGE..page * PAGE].fill(0xa5);
            },
        );
        assert!(on_page > 0 && before.len() == 400);
        assert!(
            after.iter().all(|row| before.contains(row)),
            "{kind}: a row that was not there"
        );
        assert_eq!(after.len(), before.len() - on_page, "{kind}");
    }
}

#[test]
fn rows_that_a_table_without_rowids_lost_are_counted_by_an_index_of_it() {
    // The key fields of an index are at its end, among its own columns, or have another collation
    // there.
    for (key, index) in [
        ("b DESC, a", "d"),
        ("a, b", "d, b"),
        ("b", "b COLLATE NOCASE, d"),
        ("b COLLATE NOCASE, a DESC", "a, d DESC"),
        ("f", "d, f"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (
            dir.path().join("damaged.db"),
            dir.path().join("salvaged.db"),
        );
        let connection = Connection::open(&source).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {PAGE};
                 CREATE TABLE t (a INTEGER, b TEXT, c BLOB, d TEXT, f REAL, PRIMARY KEY ({key})) WITHOUT ROWID;
                 CREATE INDEX by_d ON t ({index});
                 {NUMBERS} INSERT INTO t SELECT n % 13, 'Key ' || n, zeroblob(n % 90), 'd' || n % 7, n / 2.0 FROM n"
            ))
            .unwrap();
        let query = "SELECT pageno, ncell FROM dbstat WHERE name = 't' AND pagetype = 'leaf' ORDER BY path LIMIT 2 OFFSET 3";
        let pages = rows(&connection, query);
        drop(connection);
        let mut bytes = fs::read(&source).unwrap();
        let mut on_pages = 0;
        for page in &pages {
            let [Value::Integer(page), Value::Integer(cells)] = page[..] else {
                panic!("{page:?}")
            };
            bytes[(page as usize - 1) * PAGE..page as usize * PAGE].fill(0xa5);
            on_pages += cells as u64;
        }
        fs::write(&source, bytes).unwrap();
        let report = salvage(&source, &target, &[], &CancelToken::default()).unwrap();
        let table = &report.tables[0];
        let told = (table.rows_recovered, table.rows_lost, table.rows_lost_by);
        assert_eq!(
            told,
            (400 - on_pages, on_pages, LostBy::Index),
            "{key}, {index}"
        );
    }
}

/// Returns SQL that makes two tables of the same columns with `lengths` rows.
fn twins(lengths: [usize; 2]) -> String {
    let fill = |table: &str, length: usize| {
        format!(
            "CREATE TABLE {table} (a INTEGER PRIMARY KEY, b TEXT);
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {length})
             INSERT INTO {table} SELECT n, 'the text of row ' || n FROM n;"
        )
    };
    fill("one", lengths[0]) + &fill("other", lengths[1])
}

#[test]
fn a_table_and_its_copy_come_back_both_however_short_they_are() {
    for lengths in [
        [1, 1],
        [20, 20],
        [60, 60],
        [100, 100],
        [400, 400],
        [60, 400],
        [90, 34],
        [1000, 200],
    ] {
        for table in ["one", "other"] {
            let query = format!("SELECT * FROM {table} ORDER BY a");
            let (before, after) = before_and_after(&twins(lengths), &query, without_header);
            assert_eq!(after, before, "{lengths:?}, {table}");
        }
    }
}

#[test]
fn a_page_over_one_of_a_table_of_the_same_columns_is_not_taken_for_a_copy() {
    // Other rows with the same keys, so that the page fits there too.
    let sql = twins([400, 400])
        + "UPDATE other SET b = 'the wish of row ' || a; DELETE FROM other WHERE a > 60";
    for (from, over) in [(1, 1), (0, 1), (2, 0), (3, 1)] {
        let query = "SELECT 'one', * FROM one UNION ALL SELECT 'other', * FROM other";
        let (before, after) = before_and_after(&sql, query, |path, bytes| {
            let connection = Connection::open(path).unwrap();
            let leaf = |table: &str, number: usize| {
                let sql = "SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf' ORDER BY path LIMIT 1 OFFSET ?2";
                let page: usize = connection
                    .query_row(sql, rusqlite::params![table, number], |row| row.get(0))
                    .unwrap();
                (page - 1) * PAGE
            };
            let (from, over) = (leaf("one", from), leaf("other", over));
            bytes.copy_within(from..from + PAGE, over);
        });
        assert!(
            after.iter().all(|row| before.contains(row)),
            "{from} over {over}: a row that was not there"
        );
    }
}

fn intact() -> Intact {
    let dir = tempfile::tempdir().unwrap();
    build(
        &dir.path().join("intact.db"),
        Variant::new(PAGE, "UTF-8", false),
        150,
    )
}

/// Salvages these bytes. Returns the rows and the report.
fn salvaged(bytes: &[u8]) -> (BTreeMap<&'static str, Vec<crate::support::Row>>, Salvaged) {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (
        dir.path().join("damaged.db"),
        dir.path().join("salvaged.db"),
    );
    fs::write(&source, bytes).unwrap();
    let salvaged = salvage(&source, &target, SCHEMA, &CancelToken::default()).unwrap();
    (all_rows(&Connection::open(&target).unwrap()), salvaged)
}

#[test]
fn overflow_pages_that_lead_in_a_circle_cost_the_row_that_they_are_of() {
    let intact = intact();
    let overflow: Vec<u32> = intact
        .kinds
        .iter()
        .filter(|(_, kind)| **kind == "overflow")
        .map(|(page, _)| *page)
        .collect();
    assert!(overflow.len() > 3);
    for page in overflow.iter().step_by(overflow.len() / 3) {
        let mut bytes = intact.bytes.clone();
        let start = (*page as usize - 1) * PAGE;
        // The last page of a chain has the number 0 here, which is not used to find another page.
        let was_last = bytes[start..start + 4] == [0; 4];
        bytes[start..start + 4].copy_from_slice(&page.to_be_bytes());
        let (rows, report) = salvaged(&bytes);
        for table in TABLES {
            let (was, is) = (&intact.rows[table], &rows[table]);
            assert!(
                is.iter().all(|row| was.contains(row)),
                "{table}: a row that was not there"
            );
            let lost = was.len() - is.len();
            assert!(
                lost <= usize::from(table == "nodes"),
                "{page} (last: {was_last}): {lost} of {table}, {report:?}"
            );
        }
    }
}

#[test]
fn a_list_of_free_pages_that_leads_in_a_circle_or_nowhere_costs_no_row_and_brings_none_back() {
    let intact = intact();
    let trunk = u32::from_be_bytes(intact.bytes[32..36].try_into().unwrap());
    assert!(trunk > 1, "there are free pages");
    let leaf = *intact
        .kinds
        .iter()
        .find(|(_, kind)| **kind == "table leaf")
        .unwrap()
        .0;
    let start = (trunk as usize - 1) * PAGE;
    for (at, page) in [
        (start, trunk),
        (start, leaf),
        (start + 4, u32::MAX),
        (start + 8, u32::MAX),
        (32, leaf),
    ] {
        let mut bytes = intact.bytes.clone();
        bytes[at..at + 4].copy_from_slice(&page.to_be_bytes());
        let (rows, report) = salvaged(&bytes);
        for table in TABLES {
            assert!(
                rows[table] == intact.rows[table],
                "{table}, {page} at {at}: {report:?}"
            );
        }
    }
}

#[test]
fn a_list_of_free_pages_that_names_a_page_of_a_sound_tree_does_not_take_its_rows() {
    let intact = intact();
    let trunk = u32::from_be_bytes(intact.bytes[32..36].try_into().unwrap());
    let start = (trunk as usize - 1) * PAGE;
    let listed = u32::from_be_bytes(intact.bytes[start + 4..start + 8].try_into().unwrap());
    assert!(listed > 0, "the trunk names pages");
    for kind in ["table leaf", "table interior", "overflow", "index"] {
        for page in intact
            .kinds
            .iter()
            .filter(|(_, of)| **of == kind)
            .map(|(page, _)| *page)
            .step_by(7)
        {
            let mut bytes = intact.bytes.clone();
            bytes[start + 8..start + 12].copy_from_slice(&page.to_be_bytes());
            let (tally, report) = judge(&intact, &bytes);
            // Without their collations salvage cannot know whether records are in order, so those
            // records may go to lost_and_found.
            let in_place = tally.saved + if kind == "index" { tally.aside } else { 0 };
            assert_eq!(
                (in_place, tally.invented),
                (tally.whole, 0),
                "{kind} {page}: {report:?}"
            );
        }
    }
}
