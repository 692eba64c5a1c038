//! Finds what the schema of a database uses but this build of SQLite lacks: functions, collations,
//! tokenizers and modules.
//!
//! SQLite names a missing object when it executes the SQL text of a table or index again. Therefore
//! each text is tried in an empty database in memory. On a read-only connection, SQLite does not
//! examine CHECK constraints, and it skips virtual tables without a module.

use std::collections::BTreeMap;

use rusqlite::{
    Connection,
    config::DbConfig,
    hooks::{AuthAction, AuthContext, Authorization},
};

use super::{NotChecked, is_missing, reason};

struct Object {
    kind: String,
    name: String,
    table: String,
    sql: String,
}

/// Returns what is missing, keyed by the table that needs it. Returns nothing if the schema cannot
/// be read, because the checks report that.
pub fn of(connection: &Connection) -> BTreeMap<String, NotChecked> {
    try_all(connection).unwrap_or_default()
}

fn try_all(connection: &Connection) -> rusqlite::Result<BTreeMap<String, NotChecked>> {
    let sql = "SELECT type, name, tbl_name, sql FROM sqlite_schema
               WHERE type IN ('table', 'index') AND sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type DESC, rowid";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut empty = Connection::open_in_memory()?;
    empty.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    let mut missing = BTreeMap::new();
    while let Some(row) = rows.next()? {
        // A value that is not text is not a definition. The checks report it.
        let (Ok(kind), Ok(name), Ok(table), Ok(sql)) =
            (row.get(0), row.get(1), row.get(2), row.get(3))
        else {
            continue;
        };
        let object = Object {
            kind,
            name,
            table,
            sql,
        };
        if let Some(reason) = lacks(&mut empty, &object)? {
            let Object {
                kind, name, table, ..
            } = object;
            let what = if kind == "index" {
                format!("the index {name} of the table {table}")
            } else {
                format!("the table {table}")
            };
            missing.entry(table.clone()).or_insert(NotChecked {
                table,
                what,
                reason,
            });
        }
    }
    Ok(missing)
}

/// Returns what is missing for this object. Other failures have no meaning here. For example, a
/// table that belongs to a virtual table may exist already.
fn lacks(empty: &mut Connection, object: &Object) -> rusqlite::Result<Option<String>> {
    let mut words = object.sql.split_whitespace().map(str::to_ascii_lowercase);
    let (first, second) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let is_virtual = second == "virtual";
    if first != "create" || !(is_virtual || ["table", "index", "unique"].contains(&second.as_str()))
    {
        return Ok(None);
    }
    // The SQL text comes from a file. A schema never contains a table that is created from a query,
    // and such a query may never end.
    let no_query = move |context: AuthContext<'_>| match context.action {
        AuthAction::Select if !is_virtual => Authorization::Deny,
        AuthAction::Attach { .. } => Authorization::Deny,
        _ => Authorization::Allow,
    };
    empty.authorizer(Some(no_query))?;
    let Err(cause) = empty.execute(&object.sql, []) else {
        return Ok(None);
    };
    Ok(is_missing(&cause.to_string()).then(|| reason(&cause)))
}
