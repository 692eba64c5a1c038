//! Checks whether full-text indexes agree with their content.
//!
//! `PRAGMA integrity_check` does not compare an FTS5 index with the table that holds its content.
//! The `integrity-check` command of FTS5 with rank 1 does. The command is an INSERT and takes a
//! write lock, so it runs on a private copy.

use rusqlite::Connection;

use super::{
    Check, Named,
    issue::{Issue, IssueCode},
};
use crate::{
    error::Result,
    sqlite::{
        check::{is_damage, reason},
        quoted,
    },
};

/// An FTS5 table, and whether it can be rebuilt from its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullText {
    pub name: String,
    pub has_content: bool,
}

/// Returns all FTS5 tables, or none if the schema cannot be read. Other checks report such a
/// schema.
pub fn tables(connection: &Connection) -> Vec<FullText> {
    let found = || -> rusqlite::Result<Vec<FullText>> {
        let sql = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND rootpage = 0";
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let all = rows.collect::<rusqlite::Result<Vec<_>>>()?.into_iter();
        Ok(all
            .filter_map(|(name, sql)| full_text(name, &sql))
            .collect())
    };
    found().unwrap_or_default()
}

fn full_text(name: String, sql: &str) -> Option<FullText> {
    let plain: String = sql.to_lowercase().split_whitespace().collect();
    let has_content = !plain.contains("content=''") && !plain.contains("content=\"\"");
    plain
        .contains("usingfts5(")
        .then_some(FullText { name, has_content })
}

/// Compares every full-text index with its content. `connection` must be to a private copy.
pub fn check(connection: &Connection, named: &Named, check: &Check) -> Result<Vec<Issue>> {
    let mut issues = Vec::new();
    for FullText { name, has_content } in tables(connection) {
        check.cancel.check()?;
        let quoted = quoted(&name);
        let sql = format!("INSERT INTO {quoted}({quoted}, rank) VALUES ('integrity-check', 1)");
        let Err(cause) = connection.execute(&sql, []) else {
            continue;
        };
        check.cancel.check()?;
        issues.push(match is_damage(&cause) {
            true => {
                let message = format!(
                    "The full-text index {name} in {} does not agree with its table",
                    named.path
                );
                let remedy = if has_content {
                    "Run `kg diag repair`"
                } else {
                    "Let the host build it again"
                };
                named
                    .issue(IssueCode::FullTextDamaged, message, remedy)
                    .table(name)
            }
            false => {
                let message = format!(
                    "The full-text index {name} in {} could not be checked: {}",
                    named.path,
                    reason(&cause)
                );
                named
                    .issue(
                        IssueCode::NotChecked,
                        message,
                        "Check it in the host, which provides what it needs",
                    )
                    .table(name)
            }
        });
    }
    Ok(issues)
}
