//! The tables and indexes of a database, as SQLite understands its schema.

use std::collections::HashMap;

use rusqlite::{Connection, types::ValueRef};

use super::{CheckResult, Inconclusive, must};
use crate::{sqlite::row_schema::RowSchema, util::operation::CancelToken};

/// Modules whose virtual tables SQLite checks even if full-text indexes are skipped (see
/// [`crate::sqlite::forget_fulltext`]).
const CHECKED_MODULES: [&str; 3] = ["rtree", "fts3", "fts4"];

pub struct Schema {
    pub tables: Vec<Table>,
    pub indexes: Vec<Index>,
    pub is_utf8: bool,
}

pub struct Table {
    pub name: String,
    pub root: u32,
    pub has_rowid: bool,
    /// `None` if SQLite must check the rows.
    pub shape: Option<RowSchema>,
}

pub struct Index {
    pub root: u32,
    /// The position in [`Schema::tables`].
    pub table: usize,
    pub is_partial: bool,
}

impl Schema {
    pub fn read(connection: &Connection, cancel: &CancelToken) -> CheckResult<Schema> {
        // The pragma is only prepared, not run. If that fails, a collation may be missing.
        connection.prepare("PRAGMA quick_check")?;
        let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0))?;
        let objects = objects(connection)?;
        let tables = tables(connection, &objects, cancel)?;
        let indexes = indexes(connection, &objects, &tables, cancel)?;
        Ok(Schema {
            tables,
            indexes,
            is_utf8: encoding == "UTF-8",
        })
    }
}

/// A row of `sqlite_schema`.
struct Object {
    name: String,
    root: u32,
    sql: String,
    is_index: bool,
}

/// Returns tables, views and indexes, keyed by their names in lower case. SQLite reads these rows
/// by its own rules, of which a sound schema needs few.
fn objects(connection: &Connection) -> CheckResult<HashMap<String, Object>> {
    let mut rows =
        connection.prepare("SELECT type, name, rootpage, coalesce(sql, '') FROM sqlite_schema")?;
    let mut rows = rows.query([])?;
    let mut objects = HashMap::new();
    while let Some(row) = rows.next()? {
        let (kind, name, root): (String, String, Option<u32>) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let (folded, sql): (_, String) = (name.to_ascii_lowercase(), row.get(3)?);
        // SQLite would query such a table instead of the pragma.
        must(!folded.starts_with("pragma_"))?;
        let is_index = match kind.as_str() {
            "table" => false,
            "index" => true,
            // A view shares the namespace of tables and indexes, but has no pages.
            "view" => false,
            "trigger" => continue,
            _ => return Err(Inconclusive::Unproven),
        };
        let object = Object {
            name,
            root: root.unwrap_or(0),
            sql: sql.to_ascii_lowercase(),
            is_index,
        };
        must(objects.insert(folded, object).is_none())?;
    }
    Ok(objects)
}

fn tables(
    connection: &Connection,
    objects: &HashMap<String, Object>,
    cancel: &CancelToken,
) -> CheckResult<Vec<Table>> {
    let known = "SELECT name, type, wr, strict FROM pragma_table_list WHERE schema = 'main'";
    let mut known = connection.prepare(known)?;
    let mut rows = known.query([])?;
    let name = "sqlite_schema".to_string();
    let mut tables = vec![Table {
        name,
        root: 1,
        has_rowid: true,
        shape: Some(RowSchema::of_schema()),
    }];
    let mut found = 0;
    while let Some(row) = rows.next()? {
        cancel.check()?;
        let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
        let (has_rowid, is_strict) = (!row.get::<_, bool>(2)?, row.get::<_, bool>(3)?);
        let Some(object) = objects.get(&name.to_ascii_lowercase()) else {
            must(name == "sqlite_schema")?;
            continue;
        };
        found += 1;
        must(object.name == name && !object.is_index)?;
        match kind.as_str() {
            "table" | "shadow" => {
                let shape = RowSchema::of_columns(connection, &name, has_rowid, is_strict)?;
                let is_plain =
                    has_rowid && !is_strict && !shape.is_computed && !object.sql.contains("check");
                tables.push(Table {
                    name,
                    root: object.root,
                    has_rowid,
                    shape: is_plain.then_some(shape),
                });
            }
            "virtual" => {
                let is_checked = CHECKED_MODULES
                    .iter()
                    .any(|module| object.sql.contains(module));
                must(object.root == 0 && !is_checked)?;
            }
            _ => must(object.root == 0)?,
        }
    }
    must(found == objects.values().filter(|object| !object.is_index).count())?;
    Ok(tables)
}

/// Returns the indexes that SQLite knows. A damaged schema may lack an index that a table must
/// have.
fn indexes(
    connection: &Connection,
    objects: &HashMap<String, Object>,
    tables: &[Table],
    cancel: &CancelToken,
) -> CheckResult<Vec<Index>> {
    let mut known =
        connection.prepare("SELECT name, origin, partial FROM pragma_index_list(?1)")?;
    let mut indexes = Vec::new();
    for (
        table,
        Table {
            name, has_rowid, ..
        },
    ) in tables.iter().enumerate()
    {
        cancel.check()?;
        let mut rows = known.query([name])?;
        while let Some(row) = rows.next()? {
            // In a table without rowids, this index is the table itself.
            if *has_rowid || row.get_ref(1)? != ValueRef::Text(b"pk") {
                let object = objects.get(&row.get::<_, String>(0)?.to_ascii_lowercase());
                let object = object
                    .filter(|object| object.is_index)
                    .ok_or(Inconclusive::Unproven)?;
                indexes.push(Index {
                    root: object.root,
                    table,
                    is_partial: row.get(2)?,
                });
            }
        }
    }
    must(indexes.len() == objects.values().filter(|object| object.is_index).count())?;
    Ok(indexes)
}
