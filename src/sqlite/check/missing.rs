//! What the schema of a database uses and this build of SQLite does not have: functions, collations, tokenizers, modules.
//!
//! SQLite names what it misses when it executes the text of a table or index anew, so an empty database in memory is made
//! to try each. On a connection that only reads, SQLite does not even look at CHECK constraints, and it passes over virtual
//! tables without a module.

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

/// What is missing, by the table that needs it. Nothing if the schema cannot be read, which the checks report.
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
        // What is not text is no definition, which the checks report.
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

/// What is missing for this object. Other failures, as of a table that belongs to a virtual one and is there already, mean
/// nothing.
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
    // The text comes from a file: a table made of a query is not what a schema holds, and may never end.
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
