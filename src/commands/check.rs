//! The commands `inspect` and `repair`: check a project's database, files and vectors, and repair
//! what can be repaired.
//!
//! A repair checks, makes a backup, repairs, and checks again. After a salvage it also repairs the
//! references to lost rows. It acts only on issues that it found itself. Of the issues that a
//! caller passes, only the codes matter.

mod rounds;

use std::{
    collections::HashSet,
    iter,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use self::rounds::{Request, Rounds};
use crate::{
    commands::verify::duration_ms,
    error::{Error, Result},
    integrity::{
        Checked, Report, SCRATCH_PREFIX, Scope,
        issue::{Issue, IssueCode, Part, Severity},
        repair::{Action, Done, Salvage, Work},
        target::CheckTarget,
    },
    project::{STATE_DIR, without_project},
    sqlite::wal_in_use,
    store::Store,
    util::{
        operation::{OperationContext, Phase},
        temp_dir::Scratch,
    },
    worker::{
        client::{Worker, WorkerMode},
        protocol::CheckRequest,
    },
};

/// The result of the checks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Whether no issue is an error.
    pub healthy: bool,
    /// The issues that were found, errors first.
    pub issues: Vec<Issue>,
    pub checked: Checked,
    pub duration_ms: u64,
    /// The repair, if one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    /// Whether the database is the one that the project's configuration names.
    #[serde(skip)]
    is_graph: bool,
}

impl Inspection {
    fn new(report: Report, began: Instant) -> Self {
        Inspection {
            healthy: is_healthy(&report.issues),
            issues: report.issues,
            checked: report.checked,
            is_graph: report.is_graph,
            duration_ms: duration_ms(began.elapsed()),
            repair: None,
        }
    }
}

/// Returns whether no issue is an error.
pub fn is_healthy(issues: &[Issue]) -> bool {
    issues.iter().all(|issue| issue.severity != Severity::Error)
}

/// The backup that a repair makes before it changes anything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SafetyBackup {
    pub id: String,
    pub path: PathBuf,
}

/// The result of a repair.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// The number of issues that were repaired.
    pub fixed: usize,
    /// The number of issues that the repair tried to fix and that remain.
    pub failed: usize,
    /// The number of issues that cannot be repaired, and of given codes without an issue.
    pub skipped: usize,
    /// Absent if there was nothing to repair, so nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_backup: Option<SafetyBackup>,
    /// If no backup can contain the database, a copy of it in the same directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_copy: Option<PathBuf>,
    pub actions: Vec<ActionResult>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionResult {
    pub code: IssueCode,
    pub component: Part,
    /// A description of the action.
    pub action: String,
    pub done: bool,
    /// The number of rows that were moved to the table `kg_repair_removed`.
    pub rows_removed: u64,
    /// The content that was salvaged from a damaged database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salvage: Option<Salvage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Runs the checks of `scope` without changing anything.
pub fn inspect(
    subject: &CheckTarget,
    scope: Scope,
    lock_timeout: Duration,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<Inspection> {
    inspect_in(
        &std::env::temp_dir(),
        subject,
        scope,
        lock_timeout,
        worker_mode,
        context,
    )
}

/// Runs the checks as [`inspect`] does, with copies of databases in a new directory below `dir`.
pub fn inspect_in(
    dir: &Path,
    subject: &CheckTarget,
    scope: Scope,
    lock_timeout: Duration,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<Inspection> {
    let began = Instant::now();
    let scratch = Scratch::new(dir, SCRATCH_PREFIX)?;
    context.report(Phase::Checking, 0, 0)?;
    let request = CheckRequest {
        subject: subject.clone(),
        scope,
        scratch: scratch.path().to_path_buf(),
        lock_timeout_ms: lock_timeout.as_millis() as u64,
    };
    let report = scratch.end(Worker::check(worker_mode, request, context))?;
    Ok(Inspection::new(report, began))
}

/// Repairs the issues with these codes, or all issues if `codes` is `None`. The result contains the
/// issues that remain.
///
/// One repair can make another one necessary or possible. For example, other rows may refer to rows
/// that were lost with their page, and an index can be rebuilt once its table is sound. The checks
/// therefore run again after each round, until there is nothing new to do.
pub fn repair(
    subject: &CheckTarget,
    codes: Option<&[String]>,
    store: Option<&Store>,
    lock_timeout: Duration,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<Inspection> {
    let began = Instant::now();
    let found = inspect(subject, Scope::ALL, lock_timeout, worker_mode, context)?;
    assert_may_repair(&found, |issue| is_meant(issue, codes))?;
    let request = Request {
        subject,
        codes,
        store,
        lock_timeout,
        worker_mode,
        context,
    };
    Rounds::new(request, found).run(began)
}

/// Returns whether the caller asked for the repair of an issue.
fn is_meant(issue: &Issue, codes: Option<&[String]>) -> bool {
    codes.is_none_or(|codes| codes.iter().any(|code| code == issue.code.as_str()))
}

impl Repair {
    fn begin(found: &Inspection, codes: Option<&[String]>) -> Self {
        let meant: Vec<&Issue> = found
            .issues
            .iter()
            .filter(|issue| is_meant(issue, codes))
            .collect();
        let known: HashSet<&str> = meant.iter().map(|issue| issue.code.as_str()).collect();
        let gone = codes
            .unwrap_or_default()
            .iter()
            .filter(|code| !known.contains(code.as_str()));
        let left = meant.iter().filter(|issue| !issue.repairable).count();
        let skipped = left + gone.collect::<HashSet<_>>().len();
        Repair {
            fixed: 0,
            failed: 0,
            skipped,
            safety_backup: None,
            safety_copy: None,
            actions: Vec::new(),
        }
    }

    /// Returns whether every salvage recovered all content.
    pub fn is_complete(&self) -> bool {
        self.actions
            .iter()
            .filter_map(|action| action.salvage.as_ref())
            .all(|salvage| salvage.report.is_complete())
    }

    /// Makes a backup or a copy before a change. The result names the first backup, which contains
    /// the oldest state.
    fn save(
        &mut self,
        found: &Inspection,
        actions: &[Action],
        back_up: impl FnOnce(&Path) -> Result<SafetyBackup>,
    ) -> Result<()> {
        let root = found.checked.project.as_ref();
        let Some(root) =
            root.filter(|root| found.is_graph || is_saved(root, &found.checked.database))
        else {
            if self.safety_copy.is_none() {
                self.safety_copy = Some(copy_beside(&found.checked.database, actions)?);
            }
            return Ok(());
        };
        let saved = back_up(root)?;
        self.safety_backup.get_or_insert(saved);
        Ok(())
    }

    fn add(&mut self, done: Vec<Done>) {
        self.actions
            .extend(done.into_iter().map(ActionResult::from));
    }

    /// Counts how many of the issues in `worked_on` remain and how many are fixed.
    fn count(&mut self, worked_on: &[Issue], after: &Inspection) {
        let is_left = |issue: &&Issue| after.issues.iter().any(|left| left.key() == issue.key());
        self.failed = worked_on.iter().filter(is_left).count();
        self.fixed = worked_on.len() - self.failed;
    }
}

/// Fails with `KG_DATABASE_IN_USE` if a process commits to the database through another WAL. Fails
/// with `KG_INVALID_OPTION` if the database is outside the project and the caller did not name it.
fn assert_may_repair(found: &Inspection, is_meant: impl Fn(&Issue) -> bool) -> Result<()> {
    let of = |code: IssueCode| found.issues.iter().find(|issue| issue.code == code);
    if let Some(issue) = of(IssueCode::WalNotInUse) {
        return Err(wal_in_use::refused(&issue.message));
    }
    let would_act = || {
        found
            .issues
            .iter()
            .any(|issue| issue.repairable && is_meant(issue))
    };
    match of(IssueCode::DatabaseOutside) {
        Some(outside) if outside.severity == Severity::Error || would_act() => {
            Err(not_named(outside, &found.checked))
        }
        _ => Ok(()),
    }
}

/// Returns the error for a database outside the project. Other programs may use it, so the caller
/// must name it.
fn not_named(outside: &Issue, checked: &Checked) -> Error {
    let root = checked.project.as_deref().unwrap_or(Path::new("DIR"));
    let remedy = format!(
        "Nothing was changed; {}. To repair that database, name it: kg diag repair '{}' --project \
         '{}'",
        outside.remedy,
        checked.database.display(),
        root.display()
    );
    Error::invalid(outside.message.clone(), remedy)
}

/// Returns whether a backup of the project contains a database that is not its graph database.
fn is_saved(root: &Path, database: &Path) -> bool {
    dunce::canonicalize(root.join(STATE_DIR)).is_ok_and(|state| database.starts_with(state))
}

/// Returns the path of the copy that the worker makes before it repairs a database that no backup
/// can contain.
///
/// Fails with `KG_NO_PROJECT` if the database needs a salvage, because the damaged database is kept
/// in a project.
fn copy_beside(database: &Path, actions: &[Action]) -> Result<PathBuf> {
    if actions.iter().any(|action| action.work == Work::Salvage) {
        return Err(without_project(database));
    }
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let time = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let named = |suffix: String| {
        database.with_file_name(format!("{name}-before-repair-{time}{suffix}.sqlite"))
    };
    let suffixes = iter::once(String::new()).chain((2..).map(|number| format!("-{number}")));
    Ok(suffixes
        .map(named)
        .find(|path| !path.exists())
        .unwrap_or_default())
}

impl From<Done> for ActionResult {
    fn from(done: Done) -> Self {
        ActionResult {
            code: done.action.code,
            component: done.action.part,
            action: done.action.says(),
            done: done.error.is_none(),
            rows_removed: done.rows_removed,
            salvage: done.salvage,
            error: done.error,
        }
    }
}
