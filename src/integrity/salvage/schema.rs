//! What the tables are: the rows of `sqlite_schema`, and the columns as rows of a table's b-tree hold them.
//!
//! The text of a table is never parsed here. SQLite executes it in the new database and is asked what came of it.

use rusqlite::Connection;

use super::{
    file::Source,
    overflow::{Chains, Owner},
    record::{Class, Value, class_of, serial_types, values},
    walk::{Tree, Walk},
};
use crate::{
    error::Result,
    sqlite::btree::{Cell, Kind, parse},
    task::Cancel,
};

/// A row of `sqlite_schema`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    pub name: String,
    pub table: String,
    /// 0 for what has none, or where it is not known.
    pub root: u32,
    /// Empty for the indexes that come with a table.
    pub sql: String,
}

pub struct Schema {
    pub objects: Vec<Object>,
    /// Whether nothing of `sqlite_schema` is missing.
    pub is_whole: bool,
}

/// Reads `sqlite_schema`; where its tree is damaged, also from pages that hold rows like its own.
pub fn read(source: &Source, is_free: &[bool], cancel: &Cancel) -> Result<Schema> {
    let tree = Tree {
        name: "sqlite_schema".to_string(),
        root: 1,
        by_rowid: true,
        is_index: false,
        shape: Some(Shape::of_schema()),
    };
    let mut walk = Walk::new(source, vec![tree], is_free.to_vec(), cancel);
    walk.run()?;
    let is_whole = walk.found[0].holes.is_empty() && walk.bad_pages.is_empty();
    let mut pages: Vec<u32> = walk.found[0].leaves.iter().map(|leaf| leaf.page).collect();
    if !is_whole {
        for number in 1..=source.present {
            if number % 256 == 0 {
                cancel.check()?;
            }
            if !walk.is_owned[number as usize] && !is_free[number as usize] && holds_schema(source, number) {
                pages.push(number);
            }
        }
    }
    let mut chains = Chains::new(source);
    for page in &pages {
        if let Some((_, page)) = walk.read(*page, true) {
            chains.claim(&walk, &page, Owner::Tree);
        }
    }
    let mut objects: Vec<Object> = Vec::new();
    let mut is_complete = is_whole;
    let mut seen = std::collections::HashSet::new();
    for number in pages {
        let Some((bytes, page)) = walk.read(number, true) else { continue };
        for cell in &page.cells {
            let payload = chains.payload(&walk, number, &bytes, cell, Owner::Tree);
            match payload.ok().and_then(|payload| object(&payload, source)) {
                Some(object) if seen.insert((object.kind.clone(), object.name.clone())) => objects.push(object),
                Some(_) => {}
                None => is_complete = false,
            }
        }
    }
    Ok(Schema { objects, is_whole: is_complete })
}

pub fn holds_schema(source: &Source, number: u32) -> bool {
    let Some(bytes) = source.page(number) else { return false };
    let Some(page) = parse(&bytes, number, source.geometry) else { return false };
    let is_row = |cell: &Cell| {
        let local = cell.local(&bytes);
        let Some((types, at)) = serial_types(local, cell.payload_bytes) else { return false };
        let text = types.first().filter(|serial| class_of(**serial) == Class::Text);
        let kind = text.and_then(|serial| local.get(at..at + (*serial as usize - 12) / 2));
        let kind: Vec<u8> = kind.unwrap_or_default().iter().copied().filter(|byte| *byte != 0).collect();
        types.len() == 5
            && [&b"table"[..], b"index", b"view", b"trigger"].contains(&&kind[..])
            && class_of(types[3]) == Class::Integer
    };
    page.exact && page.kind == Kind::TableLeaf && !page.cells.is_empty() && page.cells.iter().all(is_row)
}

fn object(payload: &[u8], source: &Source) -> Option<Object> {
    let text = |value: &Value<'_>| match value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    let row = values(payload, source.encoding)?;
    let [kind, name, table, root, sql] = &row[..] else { return None };
    let kind = text(kind).filter(|kind| ["table", "index", "view", "trigger"].contains(&kind.as_str()))?;
    let root = match root {
        Value::Integer(root) => u32::try_from(*root).ok()?,
        Value::Null => 0,
        _ => return None,
    };
    let sql = match sql {
        Value::Null => String::new(),
        sql => text(sql)?,
    };
    Some(Object { kind, name: text(name)?, table: text(table)?, root, sql })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

/// A column, as records hold it.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    affinity: Affinity,
    not_null: bool,
    has_default: bool,
    /// Stands for the rowid; records hold NULL.
    pub is_rowid: bool,
    /// SQLite computes it: the value in the record is not inserted.
    pub is_generated: bool,
}

/// The columns of a table or index in the order of its records.
#[derive(Debug, Clone)]
pub struct Shape {
    pub columns: Vec<Column>,
}

impl Shape {
    pub fn of_schema() -> Shape {
        let column = |affinity| Column {
            name: String::new(),
            affinity,
            not_null: false,
            has_default: false,
            is_rowid: false,
            is_generated: false,
        };
        let columns = [Affinity::Text, Affinity::Text, Affinity::Text, Affinity::Integer, Affinity::Text];
        Shape { columns: columns.into_iter().map(column).collect() }
    }

    /// Of a table of `connection`, and whether it has rowids.
    pub fn of_table(connection: &Connection, table: &str) -> rusqlite::Result<(Shape, bool)> {
        let (without_rowid, is_strict): (bool, bool) = connection.query_row(
            "SELECT wr, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?1",
            [table],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let primary_index: Option<String> = connection
            .query_row("SELECT name FROM pragma_index_list(?1) WHERE origin = 'pk'", [table], |row| row.get(0))
            .map(Some)
            .or_else(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => Ok(None),
                error => Err(error),
            })?;
        let mut key_columns = 0;
        let mut columns = Vec::new();
        let mut statement = connection.prepare(
            "SELECT cid, name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid",
        )?;
        let mut rows = statement.query([table])?;
        while let Some(row) = rows.next()? {
            let (declared, hidden): (String, i64) = (row.get(2)?, row.get(6)?);
            let is_key = row.get::<_, i64>(5)? > 0;
            key_columns += usize::from(is_key);
            // A virtual column is in no record.
            if hidden == 2 {
                continue;
            }
            let column = Column {
                name: row.get(1)?,
                affinity: affinity(&declared, is_strict),
                not_null: row.get(3)?,
                has_default: row.get(4)?,
                is_rowid: is_key && primary_index.is_none() && declared.eq_ignore_ascii_case("INTEGER"),
                is_generated: hidden == 3,
            };
            columns.push((row.get::<_, i64>(0)?, column));
        }
        if key_columns != 1 || without_rowid {
            columns.iter_mut().for_each(|(_, column)| column.is_rowid = false);
        }
        if let Some(index) = primary_index.filter(|_| without_rowid) {
            let mut statement = connection.prepare("SELECT cid FROM pragma_index_xinfo(?1) ORDER BY seqno")?;
            let order: Vec<i64> = statement.query_map([index], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            let place = |cid: &i64| order.iter().position(|ordered| ordered == cid).unwrap_or(usize::MAX);
            columns.sort_by_key(|(cid, _)| place(cid));
        }
        Ok((Shape { columns: columns.into_iter().map(|(_, column)| column).collect() }, !without_rowid))
    }

    /// Of an index: how many fields its records have.
    pub fn of_index(connection: &Connection, index: &str) -> rusqlite::Result<Shape> {
        let fields: usize =
            connection.query_row("SELECT count(*) FROM pragma_index_xinfo(?1)", [index], |row| row.get(0))?;
        let any = Column {
            name: String::new(),
            affinity: Affinity::Blob,
            not_null: false,
            has_default: false,
            is_rowid: false,
            is_generated: false,
        };
        Ok(Shape { columns: vec![any; fields] })
    }

    /// Whether a record of these types can be a row at all: SQLite would not have stored it otherwise.
    pub fn allows(&self, types: &[u64]) -> bool {
        let allows = |(column, serial): (&Column, &u64)| match class_of(*serial) {
            Class::Null => column.is_rowid || !column.not_null,
            _ if column.is_rowid => false,
            Class::Integer | Class::Real => column.affinity != Affinity::Text,
            Class::Text | Class::Blob => true,
        };
        !types.is_empty() && types.len() <= self.columns.len() && self.columns.iter().zip(types).all(allows)
    }

    /// Whether a record of these types looks like a row of this table and of no other: what is allowed but unusual counts
    /// against it.
    pub fn fits(&self, types: &[u64]) -> bool {
        let usual = |(column, serial): (&Column, &u64)| {
            !matches!(
                (column.affinity, class_of(*serial)),
                (Affinity::Integer | Affinity::Real, Class::Text | Class::Blob) | (Affinity::Text, Class::Blob)
            )
        };
        let may_lack = |column: &Column| column.has_default || !column.not_null;
        self.allows(types)
            && self.columns.iter().zip(types).all(usual)
            && self.columns.iter().skip(types.len()).all(may_lack)
    }

    /// Whether a cell is allowed, as far as its page tells.
    pub fn allows_cell(&self, bytes: &[u8], cell: &Cell) -> bool {
        match serial_types(cell.local(bytes), cell.payload_bytes) {
            Some((types, _)) => self.allows(&types),
            None => cell.overflow > 0,
        }
    }

    /// Whether a cell fits, as far as its page tells.
    pub fn fits_cell(&self, bytes: &[u8], cell: &Cell) -> bool {
        match serial_types(cell.local(bytes), cell.payload_bytes) {
            Some((types, _)) => self.fits(&types),
            None => cell.overflow > 0,
        }
    }
}

/// <https://www.sqlite.org/datatype3.html#determination_of_column_affinity>
fn affinity(declared: &str, is_strict: bool) -> Affinity {
    let declared = declared.to_ascii_uppercase();
    let has = |part: &str| declared.contains(part);
    if has("INT") {
        Affinity::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Affinity::Text
    } else if has("BLOB") || declared.is_empty() || (is_strict && has("ANY")) {
        Affinity::Blob
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}
