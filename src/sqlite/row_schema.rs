//! The columns of a table, as stored in the records of its b-tree.
//!
//! The SQL text of a table is never parsed here. SQLite is asked how it understood the text.

use rusqlite::Connection;

use crate::sqlite::format::{
    btree::Cell,
    record::{Class, class_of, serial_types},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

/// A column, as stored in records.
#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    pub affinity: Affinity,
    pub not_null: bool,
    pub has_default: bool,
    /// The column is an alias of the rowid, so records contain NULL.
    pub is_rowid: bool,
    /// SQLite computes the column, so the value in the record is not inserted.
    pub is_generated: bool,
}

/// The columns of a table or index, in the order of its records.
#[derive(Debug, Clone)]
pub struct RowSchema {
    pub columns: Vec<Column>,
    /// The table has generated columns, and records may contain some of them.
    pub is_computed: bool,
}

impl RowSchema {
    pub fn of_schema() -> RowSchema {
        let column = |affinity| Column {
            name: String::new(),
            affinity,
            not_null: false,
            has_default: false,
            is_rowid: false,
            is_generated: false,
        };
        let columns = [
            Affinity::Text,
            Affinity::Text,
            Affinity::Text,
            Affinity::Integer,
            Affinity::Text,
        ];
        RowSchema {
            columns: columns.into_iter().map(column).collect(),
            is_computed: false,
        }
    }

    /// Reads the columns of a table of `connection`, and whether it has rowids.
    pub fn of_table(connection: &Connection, table: &str) -> rusqlite::Result<(RowSchema, bool)> {
        let (without_rowid, is_strict): (bool, bool) = connection.query_row(
            "SELECT wr, strict FROM pragma_table_list(?1) WHERE schema = 'main'",
            [table],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok((
            RowSchema::of_columns(connection, table, !without_rowid, is_strict)?,
            !without_rowid,
        ))
    }

    /// Reads the columns of a table of which the caller knows whether it has rowids and is strict.
    pub fn of_columns(
        connection: &Connection,
        table: &str,
        has_rowid: bool,
        is_strict: bool,
    ) -> rusqlite::Result<RowSchema> {
        let primary_index: Option<String> = connection
            .query_row(
                "SELECT name FROM pragma_index_list(?1) WHERE origin = 'pk'",
                [table],
                |row| row.get(0),
            )
            .map(Some)
            .or_else(|error| match error {
                rusqlite::Error::QueryReturnedNoRows => Ok(None),
                error => Err(error),
            })?;
        let (mut key_columns, mut is_computed) = (0, false);
        let mut columns = Vec::new();
        let mut statement = connection.prepare(
            "SELECT cid, name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid",
        )?;
        let mut rows = statement.query([table])?;
        while let Some(row) = rows.next()? {
            let (declared, hidden): (String, i64) = (row.get(2)?, row.get(6)?);
            let is_key = row.get::<_, i64>(5)? > 0;
            key_columns += usize::from(is_key);
            is_computed |= hidden > 1;
            // Records do not contain virtual generated columns.
            if hidden == 2 {
                continue;
            }
            let column = Column {
                name: row.get(1)?,
                affinity: affinity(&declared, is_strict),
                not_null: row.get(3)?,
                has_default: row.get(4)?,
                is_rowid: is_key
                    && primary_index.is_none()
                    && declared.eq_ignore_ascii_case("INTEGER"),
                is_generated: hidden == 3,
            };
            columns.push((row.get::<_, i64>(0)?, column));
        }
        if key_columns != 1 || !has_rowid {
            columns
                .iter_mut()
                .for_each(|(_, column)| column.is_rowid = false);
        }
        if let Some(index) = primary_index.filter(|_| !has_rowid) {
            let mut statement =
                connection.prepare("SELECT cid FROM pragma_index_xinfo(?1) ORDER BY seqno")?;
            let order: Vec<i64> = statement
                .query_map([index], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let place = |cid: &i64| {
                order
                    .iter()
                    .position(|ordered| ordered == cid)
                    .unwrap_or(usize::MAX)
            };
            columns.sort_by_key(|(cid, _)| place(cid));
        }
        Ok(RowSchema {
            columns: columns.into_iter().map(|(_, column)| column).collect(),
            is_computed,
        })
    }

    /// Returns columns for an index that only give the number of fields in its records.
    pub fn of_index(connection: &Connection, index: &str) -> rusqlite::Result<RowSchema> {
        let fields: usize = connection.query_row(
            "SELECT count(*) FROM pragma_index_xinfo(?1)",
            [index],
            |row| row.get(0),
        )?;
        let any = Column {
            name: String::new(),
            affinity: Affinity::Blob,
            not_null: false,
            has_default: false,
            is_rowid: false,
            is_generated: false,
        };
        Ok(RowSchema {
            columns: vec![any; fields],
            is_computed: false,
        })
    }

    /// Returns whether a record with these serial types can be a row of this table. SQLite would
    /// not have stored it otherwise.
    pub fn allows(&self, types: &[u64]) -> bool {
        let allows = |(column, serial): (&Column, &u64)| match class_of(*serial) {
            Class::Null => column.is_rowid || !column.not_null,
            _ if column.is_rowid => false,
            Class::Integer | Class::Real => column.affinity != Affinity::Text,
            Class::Text | Class::Blob => true,
        };
        !types.is_empty()
            && types.len() <= self.columns.len()
            && self.columns.iter().zip(types).all(allows)
    }

    /// Returns whether a record with these serial types looks like a row of this table and of no
    /// other. Types that are allowed but unusual count against it.
    pub fn fits(&self, types: &[u64]) -> bool {
        let usual = |(column, serial): (&Column, &u64)| {
            !matches!(
                (column.affinity, class_of(*serial)),
                (
                    Affinity::Integer | Affinity::Real,
                    Class::Text | Class::Blob
                ) | (Affinity::Text, Class::Blob)
            )
        };
        let may_lack = |column: &Column| column.has_default || !column.not_null;
        self.allows(types)
            && self.columns.iter().zip(types).all(usual)
            && self.columns.iter().skip(types.len()).all(may_lack)
    }

    /// Returns whether a cell is allowed, judging by the part of it in the page.
    pub fn allows_cell(&self, bytes: &[u8], cell: &Cell) -> bool {
        match serial_types(cell.local(bytes), cell.payload_bytes) {
            Some((types, _)) => self.allows(&types),
            None => cell.overflow > 0,
        }
    }

    /// Returns whether a cell fits, judging by the part of it in the page.
    pub fn fits_cell(&self, bytes: &[u8], cell: &Cell) -> bool {
        match serial_types(cell.local(bytes), cell.payload_bytes) {
            Some((types, _)) => self.fits(&types),
            None => cell.overflow > 0,
        }
    }
}

/// Determines the affinity of a column from its declared type
/// (<https://www.sqlite.org/datatype3.html#determination_of_column_affinity>).
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
