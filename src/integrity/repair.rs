//! Repairs what can be repaired without guessing. Indexes and full-text indexes are rebuilt from
//! their tables. Rows with a broken reference are moved to another table. The readable content of a
//! damaged database is saved in a new one ([`crate::salvage`]).
//!
//! [`action_for`] alone decides what can be done about an issue, and [`perform`] does it. It works
//! through SQLite, in one transaction per database, so that processes that have the database open
//! see the repaired content. A failed action is rolled back and the others stay. If SQLite finds
//! damage meanwhile, all of them are rolled back.
//!
//! Removed rows are kept as JSON in the table `kg_repair_removed` of the same database.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::{
    issue::{Issue, IssueCode, Part},
    rows,
    target::{CheckTarget, Resolved},
    vectors,
};
use crate::{
    error::{Code, Error, Result},
    salvage::report::Salvaged,
    sqlite::{check::is_page_damage, quoted, replace::open_live},
};

/// Name of the table that keeps removed rows.
pub const REMOVED: &str = "kg_repair_removed";
const KEEP: &str = "CREATE TABLE IF NOT EXISTS kg_repair_removed (
    id INTEGER PRIMARY KEY, removed_at TEXT NOT NULL, reason TEXT NOT NULL, \"table\" TEXT NOT NULL, \"row\" TEXT NOT NULL
)";

/// One action of a repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    pub code: IssueCode,
    /// The database to repair: that of the graph or that of the vectors.
    pub part: Part,
    pub work: Work,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Rebuilds an index.
    Reindex { index: String },
    /// Rebuilds a full-text index.
    Rebuild { table: String },
    /// Moves rows of `table` in which one of `columns` refers to a missing row.
    Remove { table: String, columns: Vec<String> },
    /// Replaces a damaged database with a new one that holds its readable content.
    Salvage,
}

/// The outcome of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub action: Action,
    /// Number of rows that were moved to `kg_repair_removed`.
    pub rows_removed: u64,
    pub salvage: Option<Salvage>,
    pub error: Option<Error>,
}

/// The outcome of a salvage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Salvage {
    #[serde(flatten)]
    pub report: Salvaged,
    /// Path where the damaged database is kept, with its WAL or journal.
    pub kept: PathBuf,
}

/// Replaces the damaged database at a path with its readable content. Only the worker implements
/// this.
pub type Salvaging<'a> = &'a dyn Fn(&Resolved, &Path, Part) -> Result<Salvage>;

/// Returns whether the issue means that pages themselves are damaged.
pub fn is_damage(issue: &Issue) -> bool {
    matches!(
        issue.code,
        IssueCode::DatabaseDamaged | IssueCode::NotADatabase
    )
}

/// Sets for each issue whether repair can do something about it, and what.
///
/// If pages of a file are damaged, only its salvage is offered. The same holds if a WAL does not
/// belong to its database, because writing would make the content of one of the two permanent.
pub fn offer(issues: &mut [Issue]) {
    let damaged: Vec<Option<String>> = issues
        .iter()
        .filter(|issue| is_damage(issue))
        .map(|issue| issue.path.clone())
        .collect();
    let foreign = issues
        .iter()
        .filter(|issue| issue.code == IssueCode::WalForeign);
    let foreign: Vec<Option<String>> = foreign.map(|issue| issue.path.clone()).collect();
    for issue in issues {
        let wal = issue.path.as_ref().map(|path| format!("{path}-wal"));
        let is_left = !is_damage(issue)
            && (damaged.contains(&issue.path) || (wal.is_some() && foreign.contains(&wal)));
        let action = action_for(issue).filter(|_| !is_left);
        issue.repair = action.map(|action| action.says());
        issue.repairable = issue.repair.is_some();
    }
}

/// Returns what repair does about an issue, or `None` if it can do nothing.
pub fn action_for(issue: &Issue) -> Option<Action> {
    let remove = |columns: &[&str]| {
        let columns = columns.iter().map(|column| column.to_string()).collect();
        issue
            .table
            .clone()
            .map(|table| Work::Remove { table, columns })
    };
    let work = match issue.code {
        IssueCode::IndexDamaged => issue.index.clone().map(|index| Work::Reindex { index }),
        IssueCode::FullTextDamaged => issue.table.clone().map(|table| Work::Rebuild { table }),
        IssueCode::EdgeSource => remove(&["source_id"]),
        IssueCode::EdgeTarget => remove(&["target_id"]),
        IssueCode::TagOrphan => remove(&["node_id", "tag_id"]),
        // Only vector stores in SQLite set the table of the issue.
        IssueCode::VectorOrphan => remove(&["id"]),
        IssueCode::DatabaseDamaged | IssueCode::NotADatabase => Some(Work::Salvage),
        _ => None,
    };
    Some(Action {
        code: issue.code,
        part: issue.component,
        work: work?,
    })
}

/// Returns what repair does about these issues. A damaged database is salvaged once, even if it has
/// several issues.
pub fn actions_for<'a>(issues: impl IntoIterator<Item = &'a Issue>) -> Vec<Action> {
    let mut actions: Vec<Action> = Vec::new();
    for action in issues.into_iter().filter_map(action_for) {
        let is_known = |known: &Action| known.part == action.part && known.work == Work::Salvage;
        if action.work != Work::Salvage || !actions.iter().any(is_known) {
            actions.push(action);
        }
    }
    actions
}

impl Action {
    /// Returns a sentence about what the action would do, without its full stop.
    pub fn says(&self) -> String {
        match &self.work {
            Work::Reindex { index } => format!("Rebuild the index {index} (REINDEX)"),
            Work::Rebuild { table } => {
                format!("Rebuild the full-text index {table} from its table")
            }
            Work::Remove { table, .. } => format!("Move these rows of {table} to {REMOVED}"),
            Work::Salvage => {
                "Salvage what can be read into a new database, and keep the damaged one".to_string()
            }
        }
    }
}

/// Performs `actions` on the databases of `subject`.
pub fn perform(
    subject: &CheckTarget,
    actions: &[Action],
    lock_timeout: Duration,
    salvaging: Salvaging<'_>,
) -> Result<Vec<Done>> {
    let resolved = subject.resolve()?;
    let vectors = resolved
        .project
        .as_ref()
        .map(|project| project.state_dir().join(vectors::DATABASE));
    let mut done = Vec::new();
    for part in [Part::Database, Part::Vectors] {
        let of_part: Vec<&Action> = actions
            .iter()
            .filter(|action| action.part == part)
            .collect();
        let (database, graph) = match (part, &vectors) {
            _ if of_part.is_empty() => continue,
            (Part::Vectors, Some(vectors)) => {
                (vectors.as_path(), Some(resolved.database.as_path()))
            }
            _ => (resolved.database.as_path(), None),
        };
        // A salvage is the only action in its database; see [`offer`].
        let changed = match of_part.iter().find(|action| action.work == Work::Salvage) {
            Some(action) => salvage(action, salvaging(&resolved, database, part)),
            None => change(database, graph, &of_part, lock_timeout),
        };
        match changed {
            Ok(of_part) => done.extend(of_part),
            Err(error) if done.is_empty() => return Err(error),
            // The first database was changed already, and the caller must learn about it.
            Err(error) => done.extend(of_part.into_iter().map(|action| failed(action, &error))),
        }
    }
    Ok(done)
}

pub fn failed(action: &Action, error: &Error) -> Done {
    Done {
        action: action.clone(),
        rows_removed: 0,
        salvage: None,
        error: Some(error.clone()),
    }
}

fn salvage(action: &Action, salvaged: Result<Salvage>) -> Result<Vec<Done>> {
    match salvaged {
        Ok(salvage) => Ok(vec![Done {
            action: action.clone(),
            rows_removed: 0,
            salvage: Some(salvage),
            error: None,
        }]),
        // That nothing can be recovered is a result, not an error.
        Err(error) if error.code == Code::DatabaseDamaged => Ok(vec![failed(action, &error)]),
        Err(error) => Err(error),
    }
}

fn change(
    database: &Path,
    graph: Option<&Path>,
    actions: &[&Action],
    lock_timeout: Duration,
) -> Result<Vec<Done>> {
    let refused = |cause| Error::sqlite("repair", database, cause);
    let connection = open_live(database)?;
    begin(&connection, graph, lock_timeout).map_err(refused)?;
    let mut done = Vec::new();
    for action in actions {
        connection
            .execute_batch("SAVEPOINT action")
            .map_err(refused)?;
        let carried_out = carry_out(&connection, action);
        let end = if carried_out.is_ok() {
            "RELEASE action"
        } else {
            "ROLLBACK TO action; RELEASE action"
        };
        let is_damage = carried_out.as_ref().is_err_and(is_page_damage);
        if is_damage || connection.execute_batch(end).is_err() {
            // Closing the connection rolls everything back, whatever its state.
            let message = format!(
                "{} turned out to be damaged while it was repaired",
                database.display()
            );
            let error = Error::damaged(message).with_nothing_changed();
            return Ok(actions
                .iter()
                .map(|action| failed(action, &error))
                .collect());
        }
        done.push(match carried_out {
            Ok(rows_removed) => Done {
                action: (*action).clone(),
                rows_removed,
                salvage: None,
                error: None,
            },
            Err(cause) => failed(action, &refused(cause)),
        });
    }
    connection.execute_batch("COMMIT").map_err(refused)?;
    Ok(done)
}

/// Begins a write transaction, and attaches the graph if the action needs its nodes.
fn begin(
    connection: &Connection,
    graph: Option<&Path>,
    lock_timeout: Duration,
) -> rusqlite::Result<()> {
    connection.busy_timeout(lock_timeout)?;
    // Rows are removed because their parents are missing, so nothing may cascade from them.
    connection.pragma_update(None, "foreign_keys", false)?;
    let Some(graph) = graph else {
        return connection.execute_batch("BEGIN IMMEDIATE");
    };
    connection.execute(
        &format!("ATTACH ?1 AS {}", vectors::ATTACHED),
        [graph.to_string_lossy()],
    )?;
    // IMMEDIATE would lock the graph too. The table is created outside the transaction, so that the
    // first statement of the transaction is a write.
    connection.execute_batch(&format!("{KEEP}; BEGIN; DELETE FROM {REMOVED} WHERE 0"))
}

/// Performs an action within the transaction and returns the number of rows that were moved.
fn carry_out(connection: &Connection, action: &Action) -> rusqlite::Result<u64> {
    match &action.work {
        Work::Reindex { index } => connection
            .execute_batch(&format!("REINDEX {}", quoted(index)))
            .map(|()| 0),
        Work::Rebuild { table } => rebuild(connection, table).map(|()| 0),
        Work::Remove { table, columns } => {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            let condition = match action.part {
                Part::Vectors => Some(vectors::orphan(vectors::ATTACHED)),
                _ => rows::orphans(connection, table, &columns)?,
            };
            condition.map_or(Ok(0), |condition| {
                remove(connection, table, &condition, action.code)
            })
        }
        // A salvage replaces the database and has nothing to do inside it.
        Work::Salvage => Ok(0),
    }
}

fn rebuild(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    let quoted = quoted(table);
    connection.execute_batch(&format!(
        "INSERT INTO {quoted}({quoted}) VALUES ('rebuild')"
    ))?;
    let check = format!("INSERT INTO {quoted}({quoted}, rank) VALUES ('integrity-check', 1)");
    connection.execute_batch(&check)
}

/// Moves rows to `kg_repair_removed`, each as a JSON object of its columns. JSON has no bytes, so a
/// BLOB becomes the text `X'…'`.
fn remove(
    connection: &Connection,
    table: &str,
    condition: &str,
    code: IssueCode,
) -> rusqlite::Result<u64> {
    let mut columns: Vec<String> = rows::columns_of(connection, table)?.into_iter().collect();
    columns.sort();
    let fields: Vec<String> = columns
        .iter()
        .map(|column| {
            let (text, name) = (column.replace('\'', "''"), quoted(column));
            format!("'{text}', CASE typeof({name}) WHEN 'blob' THEN quote({name}) ELSE {name} END")
        })
        .collect();
    connection.execute_batch(KEEP)?;
    let quoted = quoted(table);
    let kept = connection.execute(
        &format!(
            "INSERT INTO {REMOVED} (removed_at, reason, \"table\", \"row\")
             SELECT strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), ?1, ?2, json_object({}) FROM {quoted} WHERE {condition}",
            fields.join(", ")
        ),
        (code.as_str(), table),
    )?;
    let removed = connection.execute(&format!("DELETE FROM {quoted} WHERE {condition}"), [])?;
    if removed != kept {
        // A trigger of the host interfered. The action is rolled back so that no row is lost.
        return Err(rusqlite::Error::StatementChangedRows(removed));
    }
    Ok(removed as u64)
}
