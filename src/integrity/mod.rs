//! Checks and repairs. Only the worker calls the functions here that open files
//! (`src/worker/check.rs`).
//!
//! ```text
//! database ─▶ private copy of one commit ─▶ structure ─▶ rows ─▶ documents, vectors
//!                       │                                                         │
//!                       └─▶ full-text indexes, on another connection ─────────────┤
//!                                                                                 ▼
//!                                                              issues ─▶ repair actions
//! ```
//!
//! A check holds the live database only while its pages are copied, so writers can continue. The
//! copy also allows the check of FTS5, which is written as an INSERT. Each finding is an [`Issue`].
//! After all checks, one place decides whether [`repair`] can do something about an issue.
//!
//! Not guaranteed: a check sees one commit of each database, without later changes. It cannot
//! detect that a process opens a database with `synchronous=off` or copies one while it is written.

pub mod documented_schema;
mod environment;
pub mod files;
mod fulltext;
pub mod issue;
pub mod repair;
pub mod rows;
mod structure;
pub mod target;
#[cfg(test)]
mod tests;
pub mod vectors;

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};
use serde::{Deserialize, Serialize};

pub use self::vectors::DATABASE as VECTOR_DATABASE;
use self::{
    issue::{Issue, IssueCode, Part},
    target::{CheckTarget, Resolved},
};
use crate::{
    error::{Error, Result, plain},
    project::{Project, STATE_DIR, names},
    sqlite::{
        check::{Pragma, bound, everything, is_unread_schema, read_schema, refused},
        forget_fulltext, in_place,
        private_copy::{self, PrivateCopy},
        raw_copy,
        snapshot::{self, Capture, Conditions},
    },
    util::{atomic_file, operation::CancelToken, progress::ByteProgress, threads::start_in},
};

/// Prefix of the names of scratch directories of checks.
pub const SCRATCH_PREFIX: &str = ".kg-check-";
/// Number of times that the database is read: copy, structure, full-text indexes and rows.
const READINGS: u64 = 4;

/// The parts of a project to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub database: bool,
    pub files: bool,
    pub vectors: bool,
    /// Runs only `quick_check` on the database, without a copy.
    pub quick: bool,
}

impl Scope {
    pub const ALL: Scope = Scope {
        database: true,
        files: true,
        vectors: true,
        quick: false,
    };
}

/// What was checked, with sizes and counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// The root of the project, absent if the database belongs to none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<PathBuf>,
    pub database: PathBuf,
    /// Size of the database in bytes.
    pub database_size: u64,
    pub nodes: u64,
    pub edges: u64,
    /// Number of distinct documents that nodes name.
    pub documents: u64,
    /// Number of files below `.kg/`.
    pub files: u64,
    pub vectors: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Issues, sorted by severity with errors first.
    pub issues: Vec<Issue>,
    pub checked: Checked,
    /// Whether the database is the one that the configuration of the project names.
    pub is_graph: bool,
}

/// The conditions that all checks share.
pub struct Check<'a> {
    pub cancel: &'a CancelToken,
    /// Counts the bytes to read.
    pub progress: &'a ByteProgress,
    pub lock_timeout: Duration,
    /// A directory of the caller with space for copies of databases.
    pub scratch: &'a Path,
}

/// A file, as issues name it.
pub struct Named {
    path: String,
    part: Part,
}

impl Named {
    fn issue(
        &self,
        code: IssueCode,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Issue {
        Issue::new(code, self.part, message, remedy).path(&self.path)
    }
}

/// Runs the checks. Everything that is wrong with the subject is an issue. An error means that the
/// checks could not run.
pub fn check(subject: &CheckTarget, scope: Scope, check: &Check) -> Result<Report> {
    let report = look(subject, scope, check)?;
    // SQLite also reports damage if a read fails once. Real damage is found again by a second
    // check.
    if report.issues.iter().any(repair::is_damage) {
        look(subject, scope, check)
    } else {
        Ok(report)
    }
}

fn look(subject: &CheckTarget, scope: Scope, check: &Check) -> Result<Report> {
    let resolved = subject.resolve()?;
    let mut report = Report {
        is_graph: resolved.is_graph,
        ..Report::default()
    };
    let looked_at = std::fs::metadata(&resolved.database);
    let refused = looked_at
        .as_ref()
        .err()
        .filter(|cause| cause.kind() != std::io::ErrorKind::NotFound)
        .map(plain);
    let found = looked_at.ok().filter(|found| found.is_file());
    report.checked.project = resolved
        .project
        .as_ref()
        .map(|project| project.root().to_path_buf());
    report.checked.database.clone_from(&resolved.database);
    report.checked.database_size = found.as_ref().map_or(0, |found| found.len());
    let named = Named {
        path: shown(resolved.project.as_ref(), &resolved.database),
        part: Part::Database,
    };
    if let Some(why) = refused {
        let message = format!(
            "Whether there is a database at {} cannot be determined: {why}",
            resolved.database.display()
        );
        let remedy = "Give this user access to it, or run this as a user who has access";
        report
            .issues
            .push(named.issue(IssueCode::DatabaseUnreadable, message, remedy));
    } else if found.is_none() {
        let message = format!("There is no database at {}", resolved.database.display());
        let remedy = "Set `database.path` in .kg/config.json, or restore a backup with `kg diag restore --file latest`";
        report
            .issues
            .push(named.issue(IssueCode::DatabaseMissing, message, remedy));
    }
    report.issues.extend(resolved.issues(&named));
    // A database of another project is not checked.
    let found = found.filter(|_| resolved.owner().is_none());
    let size = report.checked.database_size;
    check
        .progress
        .set_total(size * if scope.quick { 1 } else { READINGS });
    if found.is_some() && scope.quick {
        quick(&resolved, &named, check, &mut report)?;
        check.progress.add(size);
    }
    if scope.files
        && let Some(project) = &resolved.project
    {
        report.checked.files = files::check(
            project,
            &resolved.database,
            check.cancel,
            &mut report.issues,
        )?;
    }
    if !scope.quick {
        let graph = match found {
            Some(_) => check_private_copy(&resolved, &named, scope, check, &mut report)?,
            None => None,
        };
        if let Some(project) = &resolved.project {
            compare(project, graph.as_ref(), scope, check, &mut report)?;
        }
    }
    repair::offer(&mut report.issues);
    report
        .issues
        .sort_by_key(|issue| (issue.severity, issue.component, issue.code));
    Ok(report)
}

/// Checks documents and vectors, and compares them with the nodes if those can be trusted.
fn compare(
    project: &Project,
    graph: Option<&Graph>,
    scope: Scope,
    check: &Check,
    report: &mut Report,
) -> Result<()> {
    let Report {
        issues, checked, ..
    } = report;
    if scope.files
        && let Some(graph) = graph
    {
        checked.documents = files::documents(&graph.connection, project, check.cancel, issues)?;
    }
    if !scope.vectors {
        return Ok(());
    }
    let dir = project.state_dir().join(vectors::DIRECTORY);
    let path = format!("{STATE_DIR}/{}", vectors::DIRECTORY);
    let nodes = graph.map(|graph| &graph.connection);
    checked.vectors = vectors::check_files(&dir, &path, nodes, check.cancel, issues)?;
    let database = project.state_dir().join(vectors::DATABASE);
    if !database.is_file() || database == checked.database {
        return Ok(());
    }
    let named = Named {
        path: format!("{STATE_DIR}/{}", vectors::DATABASE),
        part: Part::Vectors,
    };
    issues.extend(environment::check(&database, &named, check.cancel));
    let private = private_copy::copy(
        &database,
        check.scratch,
        check.lock_timeout,
        check.cancel,
        &|_| (),
    )?;
    let refused = refused_for_damage(&private);
    issues.extend(refused.map(|error| structure::refused_to_open(&named, error)));
    let mut connection = open(private.database(), checked.database_size, check)?;
    let found = structure::integrity_check(&mut connection, &named, check)?;
    read_schema(&connection, check.cancel)?;
    let is_sound = refused.is_none()
        && found
            .iter()
            .all(|issue| issue.code == IssueCode::NotChecked);
    add_new(issues, found);
    if is_sound {
        let attached = graph.map(|graph| {
            let path = graph.private.database().to_string_lossy().into_owned();
            connection.execute(&format!("ATTACH ?1 AS {}", vectors::ATTACHED), [path])
        });
        let has_graph = matches!(attached, Some(Ok(_)));
        checked.vectors +=
            vectors::check_database(&connection, &named, has_graph, check.cancel, issues)?;
    }
    Ok(())
}

/// A sound private copy of the graph database.
struct Graph {
    connection: Connection,
    private: PrivateCopy,
}

/// Runs all checks of the database on a private copy. Returns the copy if its rows can be trusted.
fn check_private_copy(
    resolved: &Resolved,
    named: &Named,
    scope: Scope,
    check: &Check,
    report: &mut Report,
) -> Result<Option<Graph>> {
    let path = &resolved.database;
    if scope.database {
        report
            .issues
            .extend(environment::check(path, named, check.cancel));
    }
    let size = report.checked.database_size;
    let private = private_copy::copy(
        path,
        check.scratch,
        check.lock_timeout,
        check.cancel,
        &|bytes| check.progress.add(bytes),
    )?;
    let refused =
        refused_for_damage(&private).map(|error| structure::refused_to_open(named, error));
    let mut found: Vec<Issue> = refused.into_iter().collect();
    let mut connection = open(private.database(), size, check)?;
    if scope.database {
        found.extend(structure_and_fulltext(&private, named, size, check)?);
    } else if found.is_empty()
        && !everything(&mut connection, Pragma::Quick, check.cancel)?
            .damage
            .is_empty()
    {
        // The caller did not ask for the faults of the database. Comparing with damaged rows would
        // give wrong results.
        return Ok(None);
    }
    // Rows that violate a constraint are on sound pages.
    let is_sound = found.iter().all(|issue| {
        matches!(
            issue.code,
            IssueCode::FullTextDamaged | IssueCode::NotChecked | IssueCode::Constraint
        )
    });
    let is_damaged = found
        .iter()
        .any(|issue| repair::is_damage(issue) || issue.code == IssueCode::IndexDamaged);
    if is_damaged && environment::has_wal(path) && without_wal(path, check).is_some() {
        found.push(environment::wal_is_foreign(named));
    }
    add_new(&mut report.issues, found);
    // Parts of a schema that cannot be parsed must not prevent reading the others.
    read_schema(&connection, check.cancel)?;
    report.checked.nodes = rows::count(&connection, "nodes").unwrap_or(0);
    report.checked.edges = rows::count(&connection, "edges").unwrap_or(0);
    if !is_sound {
        if scope.database {
            let message = format!(
                "The rows of {} were not checked because its structure is damaged",
                named.path
            );
            let issue = named.issue(
                IssueCode::NotChecked,
                message,
                "Repair the structure first, then check again",
            );
            report.issues.push(issue);
        }
        return Ok(None);
    }
    if scope.database && (resolved.is_graph || rows::is_graph(&connection).unwrap_or(false)) {
        let mut found = rows::check(&connection, named, check)?;
        found.extend(rows::empty(&connection, named, resolved.is_graph).unwrap_or_default());
        // The WAL of another database may contain page 1, which makes this database look like that
        // one.
        let is_other = found
            .iter()
            .any(|issue| issue.code == IssueCode::TableMissing)
            && environment::has_wal(path);
        if is_other
            && without_wal(path, check).is_some_and(|alone| {
                rows::missing(&alone, named).is_ok_and(|lacks| lacks.is_empty())
            })
        {
            add_new(&mut report.issues, vec![environment::wal_is_foreign(named)]);
        }
        report.issues.extend(found);
    }
    check.progress.add(size);
    Ok(Some(Graph {
        connection,
        private,
    }))
}

/// Runs the two slowest checks in parallel.
fn structure_and_fulltext(
    private: &PrivateCopy,
    named: &Named,
    size: u64,
    check: &Check,
) -> Result<Vec<Issue>> {
    // Damaged pages can form a circle. The check of full-text indexes would then run for as long as
    // the apparent content requires, so damage found elsewhere stops it.
    let stop = CancelToken::default();
    let fulltext = || -> Result<Vec<Issue>> {
        let own = open_until(private.database(), size, check, &stop)?;
        // This transaction is never committed, so the check writes nothing, not even to the copy.
        let began = own.execute_batch("BEGIN");
        let found = if began.is_ok() {
            fulltext::check(&own, named, check)?
        } else {
            Vec::new()
        };
        check.progress.add(size);
        Ok(if stop.is_cancelled() {
            Vec::new()
        } else {
            found
        })
    };
    thread::scope(|threads| {
        let beside = start_in(threads, "kg-fulltext", fulltext)?;
        let mut own = open(private.database(), size, check)?;
        forget_fulltext(&own);
        let mut found = structure::integrity_check(&mut own, named, check)?;
        check.progress.add(size);
        if found.iter().any(repair::is_damage) {
            stop.cancel();
        }
        let panicked = |_| Err(Error::internal("The check of full-text indexes panicked"));
        add_new(&mut found, beside.join().unwrap_or_else(panicked)?);
        Ok(found)
    })
}

/// Adds the issues that are not yet known, because two checks may find the same one.
fn add_new(issues: &mut Vec<Issue>, found: Vec<Issue>) {
    for issue in found {
        if !issues.iter().any(|known| known.key() == issue.key()) {
            issues.push(issue);
        }
    }
}

/// Returns why SQLite refused the original, if the reason is damage. A schema that this build
/// cannot parse is not damage.
fn refused_for_damage(private: &PrivateCopy) -> Option<&Error> {
    let refused = private.refused.as_ref();
    refused.filter(|error| !error.cause.as_deref().is_some_and(is_unread_schema))
}

/// Opens a copy of the database without its WAL, if that copy is sound.
fn without_wal(path: &Path, check: &Check) -> Option<Connection> {
    // A truncated database is sound without its WAL only because it is empty.
    if in_place::cut_off(path, path).is_some() {
        return None;
    }
    let alone = check.scratch.join("without-wal");
    // A copy may remain from an earlier call, because a damaged database is checked twice.
    atomic_file::remove(&alone).ok()?;
    let size = raw_copy::copy_file(path, &alone).ok()?;
    let mut connection = open(&alone, size, check).ok()?;
    // Pages of two states can form valid trees whose indexes do not agree with their tables. Only
    // the full check compares them.
    forget_fulltext(&connection);
    let found = everything(
        &mut connection,
        Pragma::Full { most_findings: 1 },
        check.cancel,
    )
    .ok()?;
    // The check ends after one finding, so broken rows could hide damage.
    if found.damage.is_empty() && found.rows.is_empty() {
        open(&alone, size, check).ok()
    } else {
        None
    }
}

/// Runs `quick_check` and checks the tables, in a read transaction of the database itself.
fn quick(resolved: &Resolved, named: &Named, check: &Check, report: &mut Report) -> Result<()> {
    let path = &resolved.database;
    report
        .issues
        .extend(environment::check(path, named, check.cancel));
    let conditions = Conditions {
        scratch: check.scratch,
        lock_timeout: check.lock_timeout,
        with_twin: false,
    };
    let snapshot = match snapshot::take(path, conditions, check.cancel)? {
        Capture::Snapshot(snapshot) => snapshot,
        Capture::Damaged(copy, error) if error.cause.as_deref().is_some_and(is_unread_schema) => {
            let found = refused(&copy.database(), error, check.cancel)?;
            let connection = open(&copy.database(), 0, check)?;
            report
                .issues
                .extend(structure::issues_of(&connection, named, &found));
            return Ok(());
        }
        Capture::Damaged(_, error) => {
            report
                .issues
                .push(structure::refused_to_open(named, &error));
            return Ok(());
        }
    };
    let (_held, mut connection) = snapshot.into_connection();
    let found = everything(&mut connection, Pragma::Quick, check.cancel)?;
    report
        .issues
        .extend(structure::issues_of(&connection, named, &found));
    if found.damage.is_empty() {
        report
            .issues
            .extend(rows::empty(&connection, named, resolved.is_graph).unwrap_or_default());
        report.checked.nodes = rows::count(&connection, "nodes").unwrap_or(0);
        report.checked.edges = rows::count(&connection, "edges").unwrap_or(0);
        report
            .issues
            .extend(rows::missing(&connection, named).unwrap_or_default());
    }
    Ok(())
}

/// Opens a private copy. Checks on the connection end when they are cancelled or when damaged pages
/// form a circle.
fn open(database: &Path, size: u64, check: &Check) -> Result<Connection> {
    open_until(database, size, check, &CancelToken::default())
}

/// Opens a private copy like [`open`], for checks that `stop` ends too.
fn open_until(database: &Path, size: u64, check: &Check, stop: &CancelToken) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = || -> rusqlite::Result<Connection> {
        let mut connection = Connection::open_with_flags(database, flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        let (cancel, stop) = (check.cancel.clone(), stop.clone());
        bound(&mut connection, size, move || {
            cancel.is_cancelled() || stop.is_cancelled()
        })?;
        Ok(connection)
    };
    let connection = opened().map_err(|cause| Error::sqlite("open a copy of", database, cause))?;
    // These settings only affect speed, and a damaged copy may refuse them.
    let _ =
        connection.execute_batch("PRAGMA mmap_size = 1099511627776; PRAGMA cache_size = -16384");
    Ok(connection)
}

/// Returns a path relative to the project, or the full path if it is outside.
fn shown(project: Option<&Project>, path: &Path) -> String {
    let relative = project.and_then(|project| path.strip_prefix(project.root()).ok());
    relative.map_or_else(|| path.display().to_string(), names::encode)
}
