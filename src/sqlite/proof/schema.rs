//! What tables and indexes there are, as SQLite understands the schema.

use rusqlite::{Connection, types::ValueRef};

use super::{Doubt, Proven, holds};
use crate::sqlite::shape::Shape;

pub struct Schema {
    pub tables: Vec<Table>,
    pub indexes: Vec<Index>,
    pub is_utf8: bool,
}

pub struct Table {
    pub name: String,
    pub root: u32,
    pub has_rowid: bool,
    /// `None` where the rows are left to SQLite.
    pub shape: Option<Shape>,
}

pub struct Index {
    pub root: u32,
    /// Among the tables.
    pub table: usize,
    pub is_partial: bool,
}

impl Schema {
    pub fn read(connection: &Connection) -> Proven<Schema> {
        let others =
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND rootpage = 0 AND sql NOT LIKE '%using%fts5%'";
        let others: u64 = connection.query_row(others, [], |row| row.get(0))?;
        holds(others == 0).ok_or(Doubt::Unproven)?;
        let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0))?;
        let tables = tables(connection)?;
        Ok(Schema { indexes: indexes(connection, &tables)?, tables, is_utf8: encoding == "UTF-8" })
    }
}

fn tables(connection: &Connection) -> Proven<Vec<Table>> {
    let name = "sqlite_schema".to_string();
    let mut tables = vec![Table { name, root: 1, has_rowid: true, shape: Some(Shape::of_schema()) }];
    let is_special = "SELECT (SELECT strict FROM pragma_table_list(?1) WHERE schema = 'main')
        OR EXISTS (SELECT 1 FROM pragma_table_xinfo(?1) WHERE hidden > 1)";
    let mut is_special = connection.prepare(is_special)?;
    let made = "SELECT name, rootpage, sql FROM sqlite_schema WHERE type = 'table' AND rootpage > 0";
    let mut made = connection.prepare(made)?;
    let mut rows = made.query([])?;
    while let Some(row) = rows.next()? {
        let (name, root, sql): (String, u32, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        // `PRAGMA quick_check` takes a number for one of findings.
        holds(name.starts_with(|first: char| first.is_alphabetic() || first == '_')).ok_or(Doubt::Unproven)?;
        let (shape, has_rowid) = Shape::of_table(connection, &name)?;
        let may_have_checks = sql.to_ascii_lowercase().contains("check");
        let is_special = is_special.query_row([&name], |row| row.get::<_, bool>(0))?;
        let is_plain = has_rowid && !is_special && !may_have_checks;
        tables.push(Table { name, root, has_rowid, shape: is_plain.then_some(shape) });
    }
    Ok(tables)
}

/// Those that SQLite knows of: a damaged schema may lack one that a table must have.
fn indexes(connection: &Connection, tables: &[Table]) -> Proven<Vec<Index>> {
    let of_table =
        "SELECT origin, partial, (SELECT rootpage FROM sqlite_schema WHERE type = 'index' AND name = known.name)
        FROM pragma_index_list(?1) known";
    let mut of_table = connection.prepare(of_table)?;
    let mut indexes = Vec::new();
    for (place, table) in tables.iter().enumerate() {
        let mut rows = of_table.query([&table.name])?;
        while let Some(row) = rows.next()? {
            // Of a table without rowids that is the table itself.
            if table.has_rowid || row.get_ref(0)? != ValueRef::Text(b"pk") {
                indexes.push(Index { table: place, is_partial: row.get(1)?, root: row.get(2)? });
            }
        }
    }
    Ok(indexes)
}
