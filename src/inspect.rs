//! The verbs `inspect` and `repair`: what is wrong with a project's database, files and vectors, and mending what can be.
//!
//! A repair checks first, backs up, repairs, and checks again; after a salvage also what the lost rows left behind. It works on
//! what it found itself: of the issues that a caller hands in only the codes count.

use std::{
    collections::HashSet,
    iter,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    archive::manifest::BackupType,
    backup::{BackupOptions, create_backup},
    error::{Code, Error, Result},
    integrity::{
        Checked, Report, SCRATCH_PREFIX, Scope,
        issue::{Issue, IssueCode, Part, Severity},
        repair::{Action, Done, Salvage, Work, actions_for, failed, is_damage},
        subject::Subject,
    },
    project::STATE_DIR,
    reader::{
        client::{Launch, Reader},
        protocol::{CheckRequest, RepairRequest},
    },
    schedule::automatic,
    scratch::Scratch,
    sqlite::wal_in_use::CLOSE_IT,
    store::Store,
    task::{Phase, Task},
    verify::duration_ms,
};

/// What checks found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// No issue is an error.
    pub healthy: bool,
    /// Errors first.
    pub issues: Vec<Issue>,
    pub checked: Checked,
    pub duration_ms: u64,
    /// With `repairMode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    /// Whether the database is the one of the project's configuration.
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

pub fn is_healthy(issues: &[Issue]) -> bool {
    issues.iter().all(|issue| issue.severity != Severity::Error)
}

/// Where the safety backup of a repair is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SafetyBackup {
    pub id: String,
    pub path: PathBuf,
}

/// What a repair did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// Issues that are gone.
    pub fixed: usize,
    /// Issues that were worked on and are still there.
    pub failed: usize,
    /// Issues that repair can do nothing about, and codes of which there is no issue.
    pub skipped: usize,
    /// Absent where there was nothing to repair, and nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_backup: Option<SafetyBackup>,
    /// Instead of a backup, where the database belongs to no project: a copy of it, beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_copy: Option<PathBuf>,
    pub actions: Vec<ActionResult>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionResult {
    pub code: IssueCode,
    pub component: Part,
    /// What was done, or was to be done.
    pub action: String,
    pub done: bool,
    /// Rows that were moved to the table `kg_repair_removed`.
    pub rows_removed: u64,
    /// What was saved of a damaged database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salvage: Option<Salvage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Runs the checks of `scope`. Nothing is changed.
pub fn inspect(
    subject: &Subject,
    scope: Scope,
    lock_timeout: Duration,
    launch: &Launch,
    task: &Task,
) -> Result<Inspection> {
    let began = Instant::now();
    let scratch = Scratch::new(&std::env::temp_dir(), SCRATCH_PREFIX)?;
    task.report(Phase::Checking, 0, 0)?;
    let request = CheckRequest {
        subject: subject.clone(),
        scope,
        scratch: scratch.path().to_path_buf(),
        lock_timeout_ms: lock_timeout.as_millis() as u64,
    };
    Ok(Inspection::new(Reader::check(launch, request, task)?, began))
}

/// Repairs the issues of these codes, or of all where `codes` is `None`. The result holds what is wrong after that.
pub fn repair(
    subject: &Subject,
    codes: Option<&[String]>,
    store: Option<&Store>,
    lock_timeout: Duration,
    launch: &Launch,
    task: &Task,
) -> Result<Inspection> {
    let began = Instant::now();
    let before = inspect(subject, Scope::ALL, lock_timeout, launch, task)?;
    if let Some(issue) = before.issues.iter().find(|issue| issue.code == IssueCode::WalNotInUse) {
        return Err(Error::new(Code::DatabaseInUse, issue.message.clone(), CLOSE_IT));
    }
    let is_meant = |issue: &&Issue| codes.is_none_or(|codes| codes.iter().any(|code| code == issue.code.as_str()));
    let meant: Vec<&Issue> = before.issues.iter().filter(is_meant).collect();
    let repairable: Vec<&Issue> = meant.iter().copied().filter(|issue| issue.repairable).collect();
    let actions = actions_for(repairable.iter().copied());
    let found: HashSet<&str> = meant.iter().map(|issue| issue.code.as_str()).collect();
    let gone = codes.unwrap_or_default().iter().filter(|code| !found.contains(code.as_str()));
    let skipped = meant.len() - repairable.len() + gone.collect::<HashSet<_>>().len();
    let mut repair =
        Repair { fixed: 0, failed: 0, skipped, safety_backup: None, safety_copy: None, actions: Vec::new() };
    let outside = before.issues.iter().find(|issue| issue.code == IssueCode::DatabaseOutside);
    if let Some(outside) = outside.filter(|outside| outside.severity == Severity::Error || !actions.is_empty()) {
        return Err(not_named(outside, &before.checked));
    }
    if actions.is_empty() {
        return Ok(Inspection { repair: Some(repair), duration_ms: duration_ms(began.elapsed()), ..before });
    }
    match before.checked.project.as_ref().filter(|root| before.is_graph || is_saved(root, &before.checked.database)) {
        Some(root) => {
            let saved = back_up(root, &before, &actions, store, lock_timeout, launch, task)?;
            repair.safety_backup = Some(saved);
        }
        None => repair.safety_copy = Some(copy_beside(&before.checked.database, &actions)?),
    }
    task.report(Phase::Repairing, 0, 0)?;
    // From here on it is carried to its end, or taken back.
    task.cancel.protect();
    let lock_timeout_ms = lock_timeout.as_millis() as u64;
    let safety_copy = repair.safety_copy.clone();
    let request = RepairRequest { subject: subject.clone(), actions, safety_copy, lock_timeout_ms };
    let done = Reader::repair(launch, request).map_err(|error| with_backup(error, &repair))?;
    let mut after = inspect(subject, Scope::ALL, lock_timeout, launch, task)?;
    let has_salvaged = done.iter().any(|done| done.salvage.is_some());
    repair.count(&repairable, done, &after);
    // Of rows that were lost with their page others know the name: an edge whose node is gone breaks what its table declares.
    let is_orphaned = |issue: &&Issue| {
        let is_wanted = is_meant(issue) || issue.severity == Severity::Error;
        has_salvaged && issue.repairable && is_wanted && !is_damage(issue)
    };
    let orphaned: Vec<Issue> = after.issues.iter().filter(is_orphaned).cloned().collect();
    if !orphaned.is_empty() {
        let actions = actions_for(&orphaned);
        let request =
            RepairRequest { subject: subject.clone(), actions: actions.clone(), safety_copy: None, lock_timeout_ms };
        // The database has been replaced by now, and that is to be told.
        let done = Reader::repair(launch, request)
            .unwrap_or_else(|error| actions.iter().map(|action| failed(action, &error)).collect());
        after = inspect(subject, Scope::ALL, lock_timeout, launch, task)?;
        repair.count(&orphaned.iter().collect::<Vec<_>>(), done, &after);
    }
    Ok(Inspection { repair: Some(repair), duration_ms: duration_ms(began.elapsed()), ..after })
}

impl Repair {
    /// Adds what was done about `worked_on`, of which `after` tells what is left.
    fn count(&mut self, worked_on: &[&Issue], done: Vec<Done>, after: &Inspection) {
        let is_left = |issue: &&&Issue| after.issues.iter().any(|left| left.key() == issue.key());
        let failed = worked_on.iter().filter(is_left).count();
        self.failed += failed;
        self.fixed += worked_on.len() - failed;
        self.actions.extend(done.into_iter().map(ActionResult::from));
    }
}

/// Others may use a database outside the project: it is repaired if the caller means it.
fn not_named(outside: &Issue, checked: &Checked) -> Error {
    let root = checked.project.as_deref().unwrap_or(Path::new("DIR"));
    let remedy = format!(
        "Nothing was changed; {}. To repair that database, name it: kg diag repair '{}' --project '{}'",
        outside.remedy,
        checked.database.display(),
        root.display()
    );
    Error::invalid(outside.message.clone(), remedy)
}

/// Whether a backup of the project holds a database that is not its graph database.
fn is_saved(root: &Path, database: &Path) -> bool {
    root.join(STATE_DIR).canonicalize().is_ok_and(|state| database.starts_with(state))
}

/// Saves what is about to be changed.
fn back_up(
    root: &Path,
    before: &Inspection,
    actions: &[Action],
    store: Option<&Store>,
    lock_timeout: Duration,
    launch: &Launch,
    task: &Task,
) -> Result<SafetyBackup> {
    let store = match store {
        Some(store) => store.clone(),
        None => automatic::store(&Reader::settings(launch, root)?.0, root, None, launch)?,
    };
    let is_graph_alone = before.is_graph && actions.iter().all(|action| action.part == Part::Database);
    let options = BackupOptions {
        kind: if is_graph_alone { BackupType::Snapshot } else { BackupType::Full },
        description: Some("Before a repair".into()),
        is_safety_backup: true,
        lock_timeout,
        ..BackupOptions::default()
    };
    let backup = create_backup(root, &store, launch, &options, task)?.backup;
    Ok(SafetyBackup { id: backup.id, path: backup.path })
}

/// Where a database of no project is copied to before its rows are repaired. The reader makes the copy.
fn copy_beside(database: &Path, actions: &[Action]) -> Result<PathBuf> {
    if actions.iter().any(|action| action.work == Work::Salvage) {
        return Err(without_project(database));
    }
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let time = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let named = |suffix: String| database.with_file_name(format!("{name}-before-repair-{time}{suffix}.sqlite"));
    let suffixes = iter::once(String::new()).chain((2..).map(|number| format!("-{number}")));
    Ok(suffixes.map(named).find(|path| !path.exists()).unwrap_or_default())
}

fn without_project(database: &Path) -> Error {
    Error::new(
        Code::NoProject,
        format!("{} is damaged, and belongs to no project that could keep what is replaced", database.display()),
        "Nothing was changed; copy it into a project, as .kg/knowledge.db, and repair it there",
    )
}

fn with_backup(error: Error, repair: &Repair) -> Error {
    let kept = repair.safety_backup.as_ref().map(|backup| format!("; the backup from before is {}", backup.id));
    Error { remedy: format!("{}{}", error.remedy, kept.unwrap_or_default()), ..error }
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
