//! Moves rows from pages into the new database.

use std::collections::HashMap;

use rusqlite::{
    Connection, Statement, ToSql,
    types::{ToSqlOutput, ValueRef},
};

use super::{
    file::Encoding,
    overflow::{Chains, Owner, Unread},
    rebuild::{Target, is_fatal},
    record::{Value, values},
    report::LostAndFoundReport,
    walk::{Leaf, TreeScan},
};
use crate::{
    error::Result,
    sqlite::{
        format::{btree::Cell, record::serial_types},
        quoted,
        row_schema::RowSchema,
    },
};

/// Maximum number of values per row in `lost_and_found`, which also has five columns of its own. By
/// default, SQLite allows 2000 columns in a table.
const MAX_COLUMNS: usize = 1_900;

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) | Value::DoubtfulText(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// The place where a row was found.
#[derive(Clone, Copy)]
pub struct RowLocation<'p> {
    pub table: &'p str,
    pub page: u32,
    /// `None` in a table that is keyed by records.
    pub rowid: Option<i64>,
}

/// Calls `row` for each row of a leaf, with its payload or the reason why it cannot be read. In a
/// tree keyed by records, the page may be an interior one.
pub fn of_leaf(
    walk: &TreeScan<'_>,
    chains: &Chains,
    leaf: &Leaf,
    by_rowid: bool,
    owner: Owner,
    mut row: impl FnMut(&Cell, Result<Vec<u8>, Unread>) -> Result<()>,
) -> Result<()> {
    let Some((bytes, page)) = walk.read(leaf.page, by_rowid) else {
        return Ok(());
    };
    for cell in &page.cells {
        let is_inside = !by_rowid || (leaf.lowest..=leaf.highest).contains(&cell.rowid);
        let payload = match is_inside {
            true => chains.payload(walk, leaf.page, &bytes, cell, owner),
            false => Err("its key is out of order".into()),
        };
        row(cell, payload)?;
    }
    Ok(())
}

/// Inserts rows into a table.
pub struct Filler<'c> {
    connection: &'c Connection,
    table: String,
    shape: &'c RowSchema,
    /// A name of the rowid that no column hides, if the rowid has to be inserted explicitly.
    rowid: Option<&'static str>,
    by_rowid: bool,
    /// Prepared statements by number of fields.
    statements: HashMap<usize, Statement<'c>>,
}

impl<'c> Filler<'c> {
    pub fn new(
        connection: &'c Connection,
        table: &str,
        shape: &'c RowSchema,
        by_rowid: bool,
    ) -> Filler<'c> {
        let is_column = |name: &str| {
            shape
                .columns
                .iter()
                .any(|column| column.name.eq_ignore_ascii_case(name))
        };
        let has_alias = shape.columns.iter().any(|column| column.is_rowid);
        let rowid = ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|name| !is_column(name));
        Filler {
            connection,
            table: table.to_string(),
            shape,
            rowid: rowid.filter(|_| by_rowid && !has_alias),
            by_rowid,
            statements: HashMap::new(),
        }
    }

    /// Inserts a row, or returns the reason why it cannot belong to this table.
    pub fn insert(
        &mut self,
        rowid: i64,
        payload: &[u8],
        encoding: Encoding,
    ) -> rusqlite::Result<Result<(), String>> {
        let types = serial_types(payload, payload.len() as u64).map(|(types, _)| types);
        let Some((types, row)) = types.zip(values(payload, encoding)) else {
            return Ok(Err("it is not a record".to_string()));
        };
        if !self.shape.allows(&types) {
            return Ok(Err("its values do not fit the columns".to_string()));
        }
        if row
            .iter()
            .any(|value| matches!(value, Value::DoubtfulText(_)))
        {
            return Ok(Err("one of its texts is damaged".to_string()));
        }
        if !self.statements.contains_key(&row.len()) {
            let statement = self.connection.prepare(&self.sql(row.len()))?;
            self.statements.insert(row.len(), statement);
        }
        let Some(statement) = self.statements.get_mut(&row.len()) else {
            return Ok(Err("it is not a record".to_string()));
        };
        let mut index = 0;
        let mut bind = |statement: &mut Statement<'_>, value: &dyn ToSql| {
            index += 1;
            statement.raw_bind_parameter(index, value)
        };
        if self.rowid.is_some() {
            bind(statement, &rowid)?;
        }
        for (column, value) in self.shape.columns.iter().zip(&row) {
            if column.is_rowid {
                bind(statement, &rowid)?;
            } else if !column.is_generated {
                bind(statement, value)?;
            }
        }
        match statement.raw_execute() {
            Ok(_) => Ok(Ok(())),
            Err(cause) if is_fatal(&cause) => Err(cause),
            Err(cause) => Ok(Err(cause.to_string())),
        }
    }

    fn sql(&self, fields: usize) -> String {
        let named = self.shape.columns.iter().enumerate();
        let named = named
            .filter(|(index, column)| (*index < fields || column.is_rowid) && !column.is_generated);
        let mut columns: Vec<String> = self.rowid.map(str::to_string).into_iter().collect();
        columns.extend(named.map(|(_, column)| quoted(&column.name)));
        let places = vec!["?"; columns.len()].join(", ");
        if columns.is_empty() {
            return format!("INSERT INTO {} DEFAULT VALUES", quoted(&self.table));
        }
        format!(
            "INSERT INTO {} ({}) VALUES ({places})",
            quoted(&self.table),
            columns.join(", ")
        )
    }

    pub fn keeps_rowids(&self) -> bool {
        !self.by_rowid
            || self.rowid.is_some()
            || self.shape.columns.iter().any(|column| column.is_rowid)
    }
}

/// The table for rows that could not be assigned to a table with certainty. It is created with the
/// first such row.
pub struct LostAndFound {
    name: String,
    is_made: bool,
    width: usize,
    rows: u64,
}

impl LostAndFound {
    /// Chooses the first free name among `lost_and_found`, `lost_and_found_1`, …
    pub fn new(is_taken: impl Fn(&str) -> bool) -> Self {
        let names = (1..).map(|number| format!("lost_and_found_{number}"));
        let name = std::iter::once("lost_and_found".to_string())
            .chain(names)
            .find(|name| !is_taken(name));
        LostAndFound {
            name: name.unwrap_or_default(),
            is_made: false,
            width: 0,
            rows: 0,
        }
    }

    /// Inserts a row. A payload that is not a valid record is kept as one BLOB.
    pub fn put(
        &mut self,
        target: &Target,
        place: RowLocation<'_>,
        payload: &[u8],
        encoding: Encoding,
        reason: &str,
    ) -> Result<()> {
        let mut row = values(payload, encoding).unwrap_or_else(|| vec![Value::Blob(payload)]);
        row.truncate(MAX_COLUMNS);
        self.put_values(target, place, &row, reason)
            .map_err(|cause| target.error(cause))
    }

    fn put_values(
        &mut self,
        target: &Target,
        place: RowLocation<'_>,
        row: &[Value<'_>],
        reason: &str,
    ) -> rusqlite::Result<()> {
        let name = quoted(&self.name);
        let connection = &target.connection;
        if !self.is_made {
            connection.execute_batch(&format!(
                "CREATE TABLE {name} (table_name TEXT, page INTEGER, reason TEXT, field_count INTEGER, id INTEGER)"
            ))?;
            self.is_made = true;
        }
        while self.width < row.len() {
            connection.execute_batch(&format!("ALTER TABLE {name} ADD COLUMN c{}", self.width))?;
            self.width += 1;
        }
        let columns: String = (0..row.len())
            .map(|column| format!(", c{column}"))
            .collect();
        let sql = format!(
            "INSERT INTO {name} (table_name, page, reason, field_count, id{columns}) VALUES (?, ?, ?, ?, ?{})",
            ", ?".repeat(row.len())
        );
        let mut statement = connection.prepare_cached(&sql)?;
        statement.raw_bind_parameter(1, Some(place.table).filter(|table| !table.is_empty()))?;
        statement.raw_bind_parameter(2, place.page)?;
        statement.raw_bind_parameter(3, reason)?;
        statement.raw_bind_parameter(4, row.len() as i64)?;
        statement.raw_bind_parameter(5, place.rowid)?;
        for (index, value) in row.iter().enumerate() {
            statement.raw_bind_parameter(index + 6, value)?;
        }
        statement.raw_execute()?;
        self.rows += 1;
        Ok(())
    }

    pub fn report(self) -> Option<LostAndFoundReport> {
        self.is_made.then_some(LostAndFoundReport {
            table: self.name,
            rows: self.rows,
        })
    }
}
