//! Counts what SQLite can read of a database, which is the minimum that a salvage has to recover.
//!
//! Rows are read forwards from the first row until one cannot be read, and then backwards from the
//! last row. Rowids must ascend, so that pages in a circle or pages that are referenced twice count
//! once.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, config::DbConfig, types::ValueRef};

use crate::{
    error::{Error, Result},
    sqlite::{
        check::{bound, read_schema},
        quoted,
    },
    util::operation::CancelToken,
};

/// Tables with the number of rows that SQLite can read. `None` if it can read none, or if a salvage
/// rebuilds the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readable {
    tables: BTreeMap<String, Option<u64>>,
}

impl Readable {
    /// Counts the readable rows of the database at `path`, which must be a private copy. The result
    /// is empty if SQLite refuses the database.
    pub fn of(path: &Path, cancel: &CancelToken) -> Result<Readable> {
        let failed = |cause| Error::sqlite("open a copy of", path, cause);
        let mut connection = Connection::open(path).map_err(failed)?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
            .map_err(failed)?;
        let mut readable = Readable::default();
        if begin(&mut connection, cancel)
            .and_then(|()| read_schema(&connection, cancel))
            .is_err()
        {
            cancel.check()?;
            return Ok(readable);
        }
        for (name, is_rebuilt) in names(&connection) {
            cancel.check()?;
            let rows = match begin(&mut connection, cancel) {
                Ok(()) if !is_rebuilt => rows(&connection, &name),
                _ => None,
            };
            readable.tables.insert(name, rows);
        }
        cancel.check()?;
        Ok(readable)
    }

    /// Returns what `new` lacks compared with `self`, or `None` if it lacks nothing. `broken`
    /// returns the number of damaged rows of a table, which are allowed to be missing. SQLite does
    /// not notice if an overflow page holds random bytes, so it counts such rows as readable.
    pub fn lacking_in(&self, new: &Readable, broken: impl Fn(&str) -> u64) -> Option<String> {
        let lacks = self
            .tables
            .iter()
            .filter_map(|(name, rows)| match new.tables.get(name) {
                None => Some(format!("the table {name} would be missing")),
                Some(found) => {
                    let (before, after) = (rows.unwrap_or(0), found.unwrap_or(0));
                    (after + broken(name) < before)
                        .then(|| format!("the table {name} would have {after} of {before} rows"))
                }
            });
        let lacks: Vec<String> = lacks.collect();
        (!lacks.is_empty()).then(|| lacks.join("; "))
    }
}

/// Limits the instructions for one table, because damaged pages can form a circle.
fn begin(connection: &mut Connection, cancel: &CancelToken) -> Result<()> {
    let size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    let size = connection
        .query_row(size, [], |row| row.get(0))
        .unwrap_or(0);
    let (path, stop) = (
        connection.path().unwrap_or_default().to_string(),
        cancel.clone(),
    );
    let bounded = bound(connection, size, move || stop.is_cancelled());
    bounded.map_err(|cause| Error::sqlite("read", Path::new(&path), cause))
}

/// Returns the tables except those of SQLite itself, and whether a salvage rebuilds their rows. It
/// rebuilds full-text indexes and the tables that belong to them.
fn names(connection: &Connection) -> Vec<(String, bool)> {
    let sql = "SELECT s.name, coalesce(l.type = 'shadow', 0) OR s.sql LIKE '%using%fts_(%' FROM sqlite_schema s
               LEFT JOIN pragma_table_list l ON l.name = s.name AND l.schema = 'main'
               WHERE s.type = 'table' AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let listed = || -> rusqlite::Result<Vec<(String, bool)>> {
        connection
            .prepare(sql)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    };
    listed().unwrap_or_default()
}

fn rows(connection: &Connection, table: &str) -> Option<u64> {
    let columns = columns(connection, table)
        .ok()
        .filter(|columns| !columns.is_empty())?;
    let is_column = |name: &&str| {
        columns
            .iter()
            .any(|column| column.eq_ignore_ascii_case(name))
    };
    let rowid = ["rowid", "_rowid_", "oid"]
        .into_iter()
        .find(|name| !is_column(name));
    let list = columns
        .iter()
        .map(|column| quoted(column))
        .collect::<Vec<_>>()
        .join(", ");
    let select = |key: &str, end: &str| {
        format!(
            "SELECT {key}, {list} FROM {} NOT INDEXED {end}",
            quoted(table)
        )
    };
    let Some(rowid) = rowid else {
        return count(connection, &select("NULL", ""), None)
            .ok()
            .map(|read| read.rows);
    };
    let Ok(forward) = count(connection, &select(rowid, ""), None) else {
        // A table without rowids cannot be read backwards.
        return count(connection, &select("NULL", ""), None)
            .ok()
            .map(|read| read.rows);
    };
    if forward.is_whole {
        return Some(forward.rows);
    }
    let back = count(
        connection,
        &select(rowid, &format!("ORDER BY {rowid} DESC")),
        Some(forward.last),
    );
    Some(forward.rows + back.map_or(0, |read| read.rows))
}

/// Returns the columns that records hold.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0";
    connection
        .prepare(sql)?
        .query_map([table], |row| row.get(0))?
        .collect()
}

struct Read {
    rows: u64,
    last: i64,
    is_whole: bool,
}

/// Reads rows until one cannot be read. With `after`, reads backwards to that rowid. Fails only if
/// the statement itself is invalid.
fn count(connection: &Connection, sql: &str, after: Option<i64>) -> rusqlite::Result<Read> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut read = Read {
        rows: 0,
        last: i64::MIN,
        is_whole: false,
    };
    let mut before: Option<i64> = None;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => {
                return Ok(Read {
                    is_whole: true,
                    ..read
                });
            }
            Err(_) => return Ok(read),
        };
        let ValueRef::Integer(key) = row.get_ref(0)? else {
            read.rows += 1;
            continue;
        };
        let is_next = match after {
            Some(after) => key > after && before.is_none_or(|before| key < before),
            None => before.is_none_or(|before| key > before),
        };
        if after.is_some_and(|after| key <= after) {
            return Ok(read);
        }
        if is_next {
            read.rows += 1;
            (before, read.last) = (Some(key), key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_on_both_sides_of_a_damaged_page_are_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        let connection = Connection::open(&file).unwrap();
        let sql = "PRAGMA page_size = 512; CREATE TABLE t (x); CREATE TABLE w (k PRIMARY KEY, v) WITHOUT ROWID;
                   WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                       INSERT INTO t SELECT hex(zeroblob(40)) || i FROM n;
                   INSERT INTO w SELECT rowid, x FROM t; CREATE VIEW v AS SELECT missing(x) FROM t";
        connection.execute_batch(sql).unwrap();
        let leaf = "SELECT pageno, ncell FROM dbstat WHERE name = 't' AND pagetype = 'leaf' LIMIT 1 OFFSET 20";
        let (page, cells): (u64, u64) = connection
            .query_row(leaf, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        drop(connection);
        let whole = Readable::of(&file, &CancelToken::default()).unwrap();
        assert_eq!(
            whole.tables,
            BTreeMap::from([("t".into(), Some(400)), ("w".into(), Some(400))])
        );
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[(page as usize - 1) * 512..page as usize * 512].fill(0x55);
        std::fs::write(&file, bytes).unwrap();
        let damaged = Readable::of(&file, &CancelToken::default()).unwrap();
        assert_eq!(damaged.tables.get("t"), Some(&Some(400 - cells)));
        assert_eq!(damaged.lacking_in(&whole, |_| 0), None);
        let text = whole.lacking_in(&damaged, |_| 0).unwrap();
        assert_eq!(
            text,
            format!("the table t would have {} of 400 rows", 400 - cells)
        );
        assert_eq!(
            whole.lacking_in(&damaged, |table| if table == "t" { cells } else { 0 }),
            None
        );
        assert_eq!(Readable::default().lacking_in(&whole, |_| 0), None);
        assert!(
            whole
                .lacking_in(&Readable::default(), |_| 1000)
                .unwrap()
                .contains("the table w would be missing")
        );
    }
}
