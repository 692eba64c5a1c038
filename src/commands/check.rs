//! The commands `inspect` and `repair`: check a project's database, files and vectors, and repair
//! what can be repaired.
//!
//! A repair checks, makes a backup, repairs, and checks again. After a salvage it also repairs the
//! references to lost rows. It acts only on issues that it found itself. Of the issues that a
//! caller passes, only the codes matter.

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
    commands::{
        backup::create_backup,
        scheduled::{self, CallerEncryption},
        verify::duration_ms,
    },
    config::backup_config::BackupOptions,
    error::{Code, Error, Result},
    integrity::{
        Checked, Report, SCRATCH_PREFIX, Scope,
        issue::{Issue, IssueCode, Part, Severity},
        repair::{Action, Done, Salvage, Work, actions_for, failed, is_damage},
        target::CheckTarget,
    },
    project::STATE_DIR,
    sqlite::wal_in_use::CLOSE_IT,
    store::Store,
    util::{
        operation::{OperationContext, Phase},
        temp_dir::Scratch,
    },
    worker::{
        client::{Worker, WorkerMode},
        protocol::{CheckRequest, RepairRequest},
    },
};

/// The maximum number of rounds. It is higher than the number that one damage can require.
const MAX_ROUNDS: usize = 5;

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
    let mut found = inspect(subject, Scope::ALL, lock_timeout, worker_mode, context)?;
    let is_meant = |issue: &Issue| {
        codes.is_none_or(|codes| codes.iter().any(|code| code == issue.code.as_str()))
    };
    assert_may_repair(&found, is_meant)?;
    let mut repair = Repair::begin(&found, codes);
    let (mut tried, mut salvages): (Vec<Issue>, Vec<Action>) = (Vec::new(), Vec::new());
    let (mut backs_up_all, mut has_mended) = (false, false);
    for round in 0..MAX_ROUNDS {
        let has_salvaged = repair.actions.iter().any(|action| action.salvage.is_some());
        let is_wanted = |issue: &&Issue| {
            let is_consequence = has_salvaged && issue.severity == Severity::Error;
            // A failed repair gets a second attempt if another repair succeeded in the meantime.
            let attempts = tried
                .iter()
                .filter(|tried| tried.key() == issue.key())
                .count();
            let is_new = attempts == 0 || (attempts == 1 && has_mended && !is_damage(issue));
            issue.repairable && is_new && (is_meant(issue) || is_consequence)
        };
        let worked_on: Vec<Issue> = found.issues.iter().filter(is_wanted).cloned().collect();
        let mut actions = actions_for(&worked_on);
        // A salvage replaces its database, so no other action changes that database in this round.
        actions.retain(|action| !salvages.iter().any(|salvage| salvage.part == action.part));
        actions.append(&mut salvages);
        if actions.is_empty() {
            break;
        }
        let is_graph_alone =
            found.is_graph && actions.iter().all(|action| action.part == Part::Database);
        if round == 0 || !(is_graph_alone || backs_up_all) {
            let back_up = |root: &Path| {
                back_up(
                    root,
                    is_graph_alone,
                    store,
                    lock_timeout,
                    worker_mode,
                    context,
                )
            };
            match repair.save(&found, &actions, back_up) {
                Ok(()) => backs_up_all = !is_graph_alone,
                Err(error) if round == 0 => return Err(error),
                // An earlier round has changed the database, so the result must report that.
                Err(error) => {
                    repair.add(
                        actions
                            .iter()
                            .map(|action| failed(action, &error))
                            .collect(),
                    );
                    tried.extend(worked_on);
                    break;
                }
            }
        }
        context.report(Phase::Repairing, 0, 0)?;
        // From here on, the repair is either completed or rolled back.
        context.cancel.enter_critical_section();
        let request = RepairRequest {
            subject: subject.clone(),
            actions: actions.clone(),
            safety_copy: repair.safety_copy.clone().filter(|_| round == 0),
            lock_timeout_ms: lock_timeout.as_millis() as u64,
        };
        let done = match Worker::repair(worker_mode, request) {
            Err(error) if round == 0 => return Err(with_backup(error, &repair)),
            done => done.unwrap_or_else(|error| {
                actions
                    .iter()
                    .map(|action| failed(action, &error))
                    .collect()
            }),
        };
        if found.checked.project.is_some() {
            salvages = escalated(&done);
        }
        found = inspect(subject, Scope::ALL, lock_timeout, worker_mode, context)?;
        has_mended = done.iter().any(|done| done.error.is_none());
        repair.add(done);
        tried.extend(worked_on);
    }
    tried.sort_by(|one, other| one.key().cmp(&other.key()));
    tried.dedup_by(|one, other| one.key() == other.key());
    repair.count(&tried, &found);
    Ok(Inspection {
        repair: Some(repair),
        duration_ms: duration_ms(began.elapsed()),
        ..found
    })
}

impl Repair {
    fn begin(found: &Inspection, codes: Option<&[String]>) -> Self {
        let is_meant = |issue: &&Issue| {
            codes.is_none_or(|codes| codes.iter().any(|code| code == issue.code.as_str()))
        };
        let meant: Vec<&Issue> = found.issues.iter().filter(is_meant).collect();
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

/// Returns a salvage for each database in which another repair met damaged pages.
fn escalated(done: &[Done]) -> Vec<Action> {
    let mut salvages: Vec<Action> = Vec::new();
    for Done { action, error, .. } in done {
        let is_damaged = error
            .as_ref()
            .is_some_and(|error| error.code == Code::DatabaseDamaged);
        let is_known = salvages.iter().any(|salvage| salvage.part == action.part);
        if is_damaged && action.work != Work::Salvage && !is_known {
            salvages.push(Action {
                work: Work::Salvage,
                ..action.clone()
            });
        }
    }
    salvages
}

/// Fails with `KG_DATABASE_IN_USE` if a process commits to the database through another WAL. Fails
/// with `KG_INVALID_OPTION` if the database is outside the project and the caller did not name it.
fn assert_may_repair(found: &Inspection, is_meant: impl Fn(&Issue) -> bool) -> Result<()> {
    let of = |code: IssueCode| found.issues.iter().find(|issue| issue.code == code);
    if let Some(issue) = of(IssueCode::WalNotInUse) {
        return Err(Error::new(
            Code::DatabaseInUse,
            issue.message.clone(),
            CLOSE_IT,
        ));
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
    root.join(STATE_DIR)
        .canonicalize()
        .is_ok_and(|state| database.starts_with(state))
}

/// Makes the safety backup: a snapshot if only the graph database changes, otherwise a full backup.
fn back_up(
    root: &Path,
    is_graph_alone: bool,
    store: Option<&Store>,
    lock_timeout: Duration,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<SafetyBackup> {
    let store = match store {
        Some(store) => store.clone(),
        None => scheduled::store(
            &Worker::settings(worker_mode, root)?.0,
            root,
            None,
            CallerEncryption::Nothing,
            worker_mode,
        )?
        .for_recovery(),
    };
    let options = BackupOptions {
        kind: if is_graph_alone {
            BackupType::Snapshot
        } else {
            BackupType::Full
        },
        description: Some("Before a repair".into()),
        is_safety_backup: true,
        lock_timeout,
        ..BackupOptions::default()
    };
    let backup = create_backup(root, &store, worker_mode, &options, context)?.backup;
    Ok(SafetyBackup {
        id: backup.id,
        path: backup.path,
    })
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

fn without_project(database: &Path) -> Error {
    Error::new(
        Code::NoProject,
        format!(
            "{} is damaged, and belongs to no project that could keep the replaced database",
            database.display()
        ),
        "Nothing was changed; copy it into a project, as .kg/knowledge.db, and repair it there",
    )
}

/// Adds the id of the safety backup to the remedy.
fn with_backup(error: Error, repair: &Repair) -> Error {
    let kept = repair
        .safety_backup
        .as_ref()
        .map(|backup| format!("; the backup from before the repair is {}", backup.id));
    Error {
        remedy: format!("{}{}", error.remedy, kept.unwrap_or_default()),
        ..error
    }
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
