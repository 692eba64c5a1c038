//! Checks the rows of a graph database: rules that SQLite does not know, and declared foreign keys.
//!
//! The checks require a database with a sound structure. If a page or an index entry is missing,
//! all results are wrong.

use std::collections::HashSet;

use rusqlite::Connection;

use super::{
    Check, Named,
    issue::{Examples, Issue, IssueCode, Severity},
};
use crate::{
    error::Result,
    sqlite::{check::reason, quoted},
    util::wording,
};

/// Tables of the host, and the severity if one is missing.
const TABLES: [(&str, Severity); 6] = [
    ("nodes", Severity::Error),
    ("edges", Severity::Error),
    ("tags", Severity::Warning),
    ("node_tags", Severity::Warning),
    ("metadata", Severity::Warning),
    ("nodes_fts", Severity::Warning),
];
/// References between the tables of the host, whether declared or not: table, column, parent.
const REFERENCES: [(&str, &str, &str); 4] = [
    ("edges", "source_id", "nodes"),
    ("edges", "target_id", "nodes"),
    ("node_tags", "node_id", "nodes"),
    ("node_tags", "tag_id", "tags"),
];

/// Returns a condition for rows of `table` that refer to a missing row, or `None` if a column does
/// not exist.
///
/// Repair evaluates the same condition again in its own transaction.
pub fn orphans(
    connection: &Connection,
    table: &str,
    columns: &[&str],
) -> rusqlite::Result<Option<String>> {
    let mut conditions = Vec::new();
    let own = columns_of(connection, table)?;
    for (_, column, parent) in REFERENCES
        .iter()
        .filter(|(of, column, _)| *of == table && columns.contains(column))
    {
        if !own.contains(*column) || !columns_of(connection, parent)?.contains("id") {
            return Ok(None);
        }
        // If the list contained a NULL, NOT IN would never be true.
        conditions
            .push(format!("({column} IS NOT NULL AND {column} NOT IN (SELECT id FROM {parent} WHERE id IS NOT NULL))"));
    }
    Ok((!conditions.is_empty()).then(|| conditions.join(" OR ")))
}

/// Returns whether the database has any of the tables of the host.
pub fn is_graph(connection: &Connection) -> rusqlite::Result<bool> {
    TABLES.iter().try_fold(false, |found, (table, _)| {
        Ok(found || has_table(connection, table)?)
    })
}

/// Runs all checks of rows. A check that fails becomes an issue, and the others still run.
pub fn check(connection: &Connection, named: &Named, check: &Check) -> Result<Vec<Issue>> {
    let mut issues = Vec::new();
    type Question = fn(&Connection, &Named) -> rusqlite::Result<Vec<Issue>>;
    let questions: [(&str, Question); 6] = [
        ("tables", missing),
        ("edges", edges),
        ("tags of nodes", tags),
        ("frontmatter", frontmatter),
        ("paths", paths),
        ("foreign keys", foreign_keys),
    ];
    for (about, ask) in questions {
        match ask(connection, named) {
            Ok(found) => issues.extend(found),
            Err(cause) => {
                check.cancel.check()?;
                let message = format!(
                    "The {about} in {} could not be checked: {}",
                    named.path,
                    reason(&cause)
                );
                issues.push(
                    named
                        .issue(IssueCode::NotChecked, message, "Check them in the host")
                        .table(about),
                );
            }
        }
    }
    Ok(issues)
}

/// Returns an issue if the graph database of a project has no table. Its content was lost, or it
/// never had any.
pub fn empty(
    connection: &Connection,
    named: &Named,
    is_graph: bool,
) -> rusqlite::Result<Option<Issue>> {
    let tables = table_count(connection)?;
    let message = format!("{} is empty: it has no table", named.path);
    let remedy = "Restore the newest good backup with `kg diag restore --file latest`; if the \
                  project is new, start the host, which creates its tables";
    Ok((is_graph && tables == 0).then(|| named.issue(IssueCode::DatabaseEmpty, message, remedy)))
}

/// Returns the number of tables, without those of SQLite itself.
pub fn table_count(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    connection.query_row(sql, [], |row| row.get(0))
}

pub fn missing(connection: &Connection, named: &Named) -> rusqlite::Result<Vec<Issue>> {
    let mut issues = Vec::new();
    for (table, severity) in TABLES {
        if !has_table(connection, table)? {
            let message = format!("{} has no table {table}", named.path);
            let remedy = "Start the host, which creates its tables; if rows are missing too, restore a \
                 backup";
            issues.push(
                named
                    .issue(IssueCode::TableMissing, message, remedy)
                    .severity(severity)
                    .table(table),
            );
        }
    }
    let kept_up = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'nodes' AND sql LIKE '%nodes_fts%'";
    let triggers: u64 = connection.query_row(kept_up, [], |row| row.get(0))?;
    if triggers == 0 && has_table(connection, "nodes_fts")? && has_table(connection, "nodes")? {
        let message = format!(
            "No trigger keeps the full-text index nodes_fts in {} up to date",
            named.path
        );
        let issue = named.issue(
            IssueCode::TriggerMissing,
            message,
            "Start the host, which creates its triggers",
        );
        issues.push(issue.table("nodes_fts"));
    }
    Ok(issues)
}

fn edges(connection: &Connection, named: &Named) -> rusqlite::Result<Vec<Issue>> {
    let mut issues = Vec::new();
    let ends = [
        (
            IssueCode::EdgeSource,
            "source_id",
            ("comes from", "come from"),
        ),
        (IssueCode::EdgeTarget, "target_id", ("leads to", "lead to")),
    ];
    for (code, column, (one, many)) in ends {
        let Some(condition) = orphans(connection, "edges", &[column])? else {
            continue;
        };
        let shown =
            "'edge from ' || ifnull(source_id, 'NULL') || ' to ' || ifnull(target_id, 'NULL')";
        let found = found(connection, "edges", shown, &condition)?;
        if !found.is_empty() {
            let message = format!(
                "{} in {} {} a node that does not exist",
                wording::count(found.count, "edge"),
                named.path,
                wording::agree(found.count, one, many)
            );
            issues.push(
                named
                    .issue(code, message, "Run `kg diag repair`")
                    .found(found)
                    .table("edges"),
            );
        }
    }
    Ok(issues)
}

fn tags(connection: &Connection, named: &Named) -> rusqlite::Result<Vec<Issue>> {
    let Some(condition) = orphans(connection, "node_tags", &["node_id", "tag_id"])? else {
        return Ok(Vec::new());
    };
    let shown = "'node ' || ifnull(node_id, 'NULL') || ', tag ' || ifnull(tag_id, 'NULL')";
    let found = found(connection, "node_tags", shown, &condition)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let message = format!(
        "{} of node_tags in {} {} to a node or tag that does not exist",
        wording::count(found.count, "row"),
        named.path,
        wording::agree(found.count, "refers", "refer")
    );
    Ok(vec![
        named
            .issue(IssueCode::TagOrphan, message, "Run `kg diag repair`")
            .found(found)
            .table("node_tags"),
    ])
}

fn frontmatter(connection: &Connection, named: &Named) -> rusqlite::Result<Vec<Issue>> {
    if !columns_of(connection, "nodes")?
        .is_superset(&["id", "frontmatter"].map(String::from).into())
    {
        return Ok(Vec::new());
    }
    let found = found(
        connection,
        "nodes",
        "ifnull(id, 'NULL')",
        "frontmatter IS NOT NULL AND NOT json_valid(frontmatter)",
    )?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let message = format!(
        "The frontmatter of {} nodes in {} is not JSON",
        found.count, named.path
    );
    let remedy = "Let the host read the documents of these nodes again";
    Ok(vec![
        named
            .issue(IssueCode::Frontmatter, message, remedy)
            .found(found)
            .table("nodes"),
    ])
}

fn paths(connection: &Connection, named: &Named) -> rusqlite::Result<Vec<Issue>> {
    if !columns_of(connection, "nodes")?.contains("path") {
        return Ok(Vec::new());
    }
    let sql = "SELECT path || ' (' || count(*) || ' nodes)' FROM nodes WHERE path IS NOT NULL GROUP BY path HAVING count(*) > 1";
    let mut found = Examples::default();
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        found.add(shown(row, 0)?);
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let message = format!(
        "{} in {} {} to several nodes",
        wording::count(found.count, "path"),
        named.path,
        wording::agree(found.count, "belongs", "belong")
    );
    let remedy = "Remove all but one of them in the host";
    Ok(vec![
        named
            .issue(IssueCode::DuplicatePath, message, remedy)
            .found(found)
            .table("nodes"),
    ])
}

/// Checks declared foreign keys, except those that [`orphans`] covers.
fn foreign_keys(connection: &Connection, named: &Named) -> rusqlite::Result<Vec<Issue>> {
    let sql = "SELECT m.name, f.\"from\", f.\"table\" FROM sqlite_schema m JOIN pragma_foreign_key_list(m.name) f WHERE m.type = 'table'";
    let mut statement = connection.prepare(sql)?;
    let declared = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let declared: Vec<(String, String, String)> = declared.collect::<rusqlite::Result<_>>()?;
    let is_known = |(table, column, parent): &(String, String, String)| {
        REFERENCES.contains(&(table.as_str(), column.as_str(), parent.as_str()))
    };
    let tables: HashSet<&str> = declared
        .iter()
        .filter(|reference| !is_known(reference))
        .map(|(table, ..)| table.as_str())
        .collect();
    let mut issues = Vec::new();
    for table in tables {
        let mut found = Examples::default();
        let mut statement =
            connection.prepare(&format!("PRAGMA foreign_key_check({})", quoted(table)))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (rowid, parent): (Option<i64>, String) = (row.get(1)?, row.get(2)?);
            if is_known(&(
                table.to_string(),
                reference_of(connection, table, row.get(3)?)?,
                parent.clone(),
            )) {
                continue;
            }
            found.rowid = found.rowid.or(rowid);
            found.add(rowid.map_or(format!("to {parent}"), |rowid| {
                format!("row {rowid}, to {parent}")
            }));
        }
        if !found.is_empty() {
            let message = format!(
                "{} of {table} in {} {} to a row that does not exist",
                wording::count(found.count, "row"),
                named.path,
                wording::agree(found.count, "refers", "refer")
            );
            let remedy = "Correct or remove the listed rows";
            issues.push(
                named
                    .issue(IssueCode::ForeignKey, message, remedy)
                    .found(found)
                    .table(table),
            );
        }
    }
    Ok(issues)
}

/// Returns the column of a declared foreign key.
fn reference_of(connection: &Connection, table: &str, id: i64) -> rusqlite::Result<String> {
    connection.query_row(
        "SELECT \"from\" FROM pragma_foreign_key_list(?1) WHERE id = ?2",
        (table, id),
        |row| row.get(0),
    )
}

/// Returns the rows of `table` that meet `condition`, each shown as the expression `as_text`.
pub fn found(
    connection: &Connection,
    table: &str,
    as_text: &str,
    condition: &str,
) -> rusqlite::Result<Examples> {
    let rowid = if has_rowid(connection, table)? {
        "rowid"
    } else {
        "NULL"
    };
    let mut statement = connection.prepare(&format!(
        "SELECT {rowid}, {as_text} FROM {table} WHERE {condition}"
    ))?;
    let mut rows = statement.query([])?;
    let mut found = Examples::default();
    while let Some(row) = rows.next()? {
        if found.is_empty() {
            found.rowid = row.get(0)?;
        }
        found.add(shown(row, 1)?);
    }
    Ok(found)
}

/// Returns a column of a row as text, even if its bytes are not valid UTF-8.
fn shown(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    use rusqlite::types::ValueRef::{Blob, Integer, Null, Real, Text};
    Ok(match row.get_ref(column)? {
        Text(bytes) | Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Integer(number) => number.to_string(),
        Real(number) => number.to_string(),
        Null => "NULL".into(),
    })
}

pub fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    connection
        .query_row(sql, [name], |row| row.get::<_, u64>(0))
        .map(|count| count > 0)
}

pub fn columns_of(connection: &Connection, table: &str) -> rusqlite::Result<HashSet<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

fn has_rowid(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
    connection
        .query_row(sql, [table], |row| row.get::<_, bool>(0))
        .map(|without| !without)
}

pub fn count(connection: &Connection, table: &str) -> rusqlite::Result<u64> {
    if !has_table(connection, table)? {
        return Ok(0);
    }
    let count = |how: &str| {
        let sql = format!("SELECT count(*) FROM {} {how}", quoted(table));
        connection.query_row(&sql, [], |row| row.get(0))
    };
    // SQLite may choose an index whose collation is not available here.
    count("").or_else(|_| count("NOT INDEXED"))
}
