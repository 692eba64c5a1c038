//! Salvages a damaged database and compares the result with the original.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
};

use kg_backup::internals::{
    error::Code,
    salvage::{report::Salvaged, salvage},
    util::operation::CancelToken,
};
use rusqlite::{Connection, types::Value};

use super::{Intact, Row, SCHEMA, TABLES, all_rows};

/// The number of rows wholly on untouched pages, of those that came back into their table, and of
/// rows that never existed.
#[derive(Default, Clone, Copy, Debug)]
pub struct Tally {
    pub cases: usize,
    pub whole: usize,
    pub saved: usize,
    /// Rows wholly on untouched pages that are in `lost_and_found` instead.
    pub aside: usize,
    pub invented: usize,
    /// Rows that differ from the original and have a damaged overflow page. Such damage cannot be
    /// detected.
    pub changed: usize,
}

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

/// Salvages `damaged` and compares the result with the original. Returns no report if nothing could
/// be recovered.
pub fn judge(intact: &Intact, damaged: &[u8]) -> (Tally, Option<Salvaged>) {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (
        dir.path().join("damaged.db"),
        dir.path().join("salvaged.db"),
    );
    fs::write(&source, damaged).unwrap();
    if let Some(wal) = &intact.wal {
        fs::write(dir.path().join("damaged.db-wal"), wal).unwrap();
    }
    let salvaged = salvage(&source, &target, SCHEMA, &CancelToken::default());
    assert!(
        fs::read(&source).unwrap() == damaged,
        "the source is as it was"
    );
    let (rows, aside, salvaged) = match salvaged {
        Ok(salvaged) => {
            let connection = Connection::open(&target).unwrap();
            let check: String = connection
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(check, "ok");
            (
                all_rows(&connection),
                lost_and_found(&connection),
                Some(salvaged),
            )
        }
        Err(error) => {
            assert_eq!(error.code, Code::DatabaseDamaged, "{error}");
            assert!(!target.exists());
            (BTreeMap::new(), HashSet::new(), None)
        }
    };
    let page = |number: u32| {
        let start = (number as usize - 1) * intact.page_size;
        start..start + intact.page_size
    };
    let is_untouched = |number: &u32| damaged.get(page(*number)) == intact.bytes.get(page(*number));
    let mut tally = Tally {
        cases: 1,
        ..Tally::default()
    };
    for table in TABLES {
        let (was, is) = (
            &intact.rows[table],
            rows.get(table).cloned().unwrap_or_default(),
        );
        let places = &intact.places[table];
        for row in is.iter().filter(|row| !was.contains(row)) {
            let origin = was
                .iter()
                .position(|before| before.0 == row.0 && before.0 != 0);
            let is_on_overflow =
                |page: &u32| intact.kinds.get(page) == Some(&"overflow") && !is_untouched(page);
            let is_changed = origin.is_some_and(|at| places[at].iter().any(is_on_overflow));
            *(if is_changed {
                &mut tally.changed
            } else {
                &mut tally.invented
            }) += 1;
        }
        for (row, pages) in was.iter().zip(places) {
            if pages.iter().all(is_untouched) {
                tally.whole += 1;
                let is_saved = is.contains(row);
                tally.saved += usize::from(is_saved);
                tally.aside += usize::from(!is_saved && aside.contains(&as_record(table, row)));
            }
        }
    }
    (tally, salvaged)
}

/// Returns a row in the form of its record. The column that stands for the rowid is NULL. All
/// integers become reals, because a record stores small whole reals as integers.
fn as_record(table: &str, (rowid, values): &Row) -> String {
    let hides_rowid = ["edges", "tags"].contains(&table);
    let value = |(index, value): (usize, &Value)| match value {
        _ if hides_rowid && index == 0 => Value::Null,
        Value::Integer(integer) => Value::Real(*integer as f64),
        value => value.clone(),
    };
    format!(
        "{rowid} {:?}",
        values.iter().enumerate().map(value).collect::<Vec<_>>()
    )
}

fn lost_and_found(connection: &Connection) -> HashSet<String> {
    let Ok(mut statement) = connection.prepare("SELECT * FROM lost_and_found") else {
        return HashSet::new();
    };
    let rows = statement.query_map([], |row| {
        let fields: usize = row.get("field_count")?;
        let values = (0..fields)
            .map(|field| row.get(5 + field))
            .collect::<rusqlite::Result<_>>()?;
        Ok(as_record(
            "",
            &(row.get::<_, Option<i64>>("id")?.unwrap_or(0), values),
        ))
    });
    rows.unwrap().map(Result::unwrap).collect()
}
