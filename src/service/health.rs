//! The command `health`: reports the state of a project and its backups without reading archives.

mod of_copies;
mod of_store;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use self::{of_copies::of_copies, of_store::of_store};
use crate::{
    archive::manifest::BackupType,
    commands::{
        check::{inspect, is_healthy},
        configured,
        verify::duration_ms,
    },
    config::Settings,
    error::{Error, Result},
    integrity::{
        Checked, Scope,
        files::everyone_may_write,
        issue::{Issue, IssueCode, Part, Severity},
        target::CheckTarget,
    },
    project::Project,
    service::{
        Holder,
        history::{History, Run},
    },
    store::{Backup, Store},
    system::user,
    util::{age::age, operation::OperationContext, temp_dir::free_bytes},
    worker::client::WorkerMode,
};

/// The age above which the newest good backup is worth a warning. The guide recommends a full
/// backup at least weekly.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(8 * 24 * 60 * 60);

#[derive(Debug, Clone)]
pub struct HealthOptions {
    /// The root of the project.
    pub root: PathBuf,
    /// The settings of the project.
    pub settings: Settings,
    /// Check the whole database, not only what `quick_check` covers.
    pub check_database: bool,
    /// The maximum age of the newest good backup. If it is set, a missing or older backup is an
    /// error. Otherwise it is a warning, with [`DEFAULT_MAX_AGE`] as the limit.
    pub max_age: Option<Duration>,
    pub lock_timeout: Duration,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// True if no issue is an error.
    pub healthy: bool,
    /// Sorted by severity, errors first.
    pub issues: Vec<Issue>,
    pub checked: Checked,
    pub backups: Backups,
    pub service: Service,
    pub duration_ms: u64,
}

/// The state of the backups.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backups {
    pub backup_dir: PathBuf,
    pub count: usize,
    /// The number of archives and manifests that could not be read and may or may not be backups.
    pub unread: usize,
    /// The id of the backup that `latest` selects: its source was not damaged, and its chain is
    /// complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest_good: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The free space of the disk, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// The expected size of the next full backup, in bytes.
    pub next_bytes: u64,
}

/// The state of automatic backups.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// True if a schedule is set and enabled.
    pub is_enabled: bool,
    /// The process that makes scheduled backups, if one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Holder>,
    /// The description of that process for a person.
    #[serde(skip)]
    pub shown: Option<String>,
    /// The last attempt of `kg`, which may have failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Run>,
}

/// Checks the health of a project. Opens files of the project, so only `kg` itself may call this in
/// process.
pub fn health(
    store: &Store,
    options: &HealthOptions,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<Health> {
    let began = Instant::now();
    let scope = Scope {
        vectors: false,
        quick: !options.check_database,
        ..Scope::ALL
    };
    let project = Project::open(&options.root)?;
    let subject = CheckTarget::of(&options.root, None);
    let inspection = inspect(&subject, scope, options.lock_timeout, worker_mode, context)?;
    let mut issues = inspection.issues;
    let backups = of_store(store, &inspection.checked, options.max_age, &mut issues);
    let own = store.list().map(|listed| own_of(store, listed));
    issues.extend(
        own.ok()
            .and_then(|own| of_copies(&project, &options.settings, &own)),
    );
    let service = of_service(&project, &options.settings, backups.age_ms, &mut issues);
    issues.sort_by_key(|issue| (issue.severity, issue.component, issue.code));
    Ok(Health {
        healthy: is_healthy(&issues),
        issues,
        checked: inspection.checked,
        backups,
        service,
        duration_ms: duration_ms(began.elapsed()),
    })
}

/// Keeps only the backups of this project. Other projects that use the same directory save nothing
/// of it.
fn own_of(store: &Store, backups: Vec<Backup>) -> Vec<Backup> {
    backups
        .into_iter()
        .filter(|backup| store.is_own(backup))
        .collect()
}

/// Collects the state of the service. Adds issues for a schedule without a running service, and for
/// a failed last run without a good backup since.
fn of_service(
    project: &Project,
    settings: &Settings,
    newest_age_ms: Option<u64>,
    issues: &mut Vec<Issue>,
) -> Service {
    // An invalid schedule is reported as an issue of the configuration.
    let has_plan = matches!(configured::plan(settings, project.root()), Ok(Some(_)));
    let is_enabled = has_plan && configured::is_enabled(settings);
    let process = match Holder::find(project) {
        Ok(Some(process)) => {
            issues.extend(idle_service(settings, is_enabled));
            Some(process)
        }
        Ok(None) => {
            issues.extend(is_enabled.then(stopped_service));
            None
        }
        Err(error) => {
            issues.push(unknown_service(&error));
            None
        }
    };
    let last_run = History::read(project).map_or_else(
        |error| {
            issues.push(unreadable_history(error));
            None
        },
        |history| history.last().cloned(),
    );
    let failure = last_run.as_ref().and_then(|run| {
        let error = run.error.as_ref()?;
        failed_backup(age_ms(run.started_at), newest_age_ms, error)
    });
    issues.extend(failure);
    let shown = process.as_ref().map(|process| process.shown(project));
    Service {
        is_enabled,
        process,
        shown,
        last_run,
    }
}

fn unknown_service(error: &Error) -> Issue {
    let message = format!(
        "Could not determine whether a service is running: {}",
        error.message
    );
    Issue::new(
        IssueCode::ServiceUnknown,
        Part::Backups,
        message,
        &error.remedy,
    )
}

fn stopped_service() -> Issue {
    Issue::new(
        IssueCode::ServiceStopped,
        Part::Backups,
        "Scheduled backups are enabled, but no service is running for this project",
        "Start it with `kg serve --all`",
    )
}

/// Returns an issue if the running service makes no backups, unless the settings as a whole are
/// unusable.
fn idle_service(settings: &Settings, is_enabled: bool) -> Option<Issue> {
    if is_enabled || settings.are_unusable() {
        return None;
    }
    let why = settings.without_schedule().join("; ");
    let remedy = if why.is_empty() {
        "Correct the schedule; see `kg config show`"
    } else {
        &why
    };
    Some(Issue::new(
        IssueCode::ServiceIdle,
        Part::Backups,
        "The service of this project is running, but it makes no backups",
        remedy,
    ))
}

fn unreadable_history(error: Error) -> Issue {
    let message = format!(
        "Could not determine whether the last backup failed: {}",
        error.message
    );
    let code = IssueCode::FileUnreadable;
    Issue::new(code, Part::Backups, message, error.remedy).severity(Severity::Warning)
}

/// Returns an issue for a backup that failed `past_ms` ago, unless a good backup was made since.
fn failed_backup(past_ms: u64, newest_age_ms: Option<u64>, error: &Error) -> Option<Issue> {
    if newest_age_ms.is_some_and(|newest| newest <= past_ms) {
        return None;
    }
    let message = format!(
        "The last backup failed, {} ago: {} [{}]",
        age(past_ms),
        error.message,
        error.code
    );
    let remedy = if error.remedy.is_empty() {
        "Make one with `kg diag backup`"
    } else {
        &error.remedy
    };
    let code = IssueCode::BackupFailed;
    Some(Issue::new(code, Part::Backups, message, remedy))
}

fn age_ms(timestamp: i64) -> u64 {
    (Timestamp::now().as_millisecond() - timestamp).max(0) as u64
}

/// Returns the size of the newest full backup, or of the database if there is no full backup.
fn next_size(backups: &[Backup], database_size: u64) -> u64 {
    backups
        .iter()
        .find(|backup| backup.kind == BackupType::Full)
        .map_or(database_size, Backup::disk_size)
}

/// Checks whether backups can be written, and returns the free space of the disk in bytes.
fn room(dir: &Path, next_bytes: u64, issues: &mut Vec<Issue>) -> Option<u64> {
    let exists = dir.ancestors().find(|dir| dir.exists())?;
    let issue = |code, message: String, remedy: &str| {
        Issue::new(code, Part::Backups, message, remedy).path(dir.to_string_lossy())
    };
    if !exists.is_dir() || !user::may_write(exists) {
        let message = format!("Backups cannot be written to {}", dir.display());
        issues.push(issue(
            IssueCode::BackupDir,
            message,
            "Give this user write access to it, or choose another directory",
        ));
    }
    issues.extend(exposed(dir));
    let free = free_bytes(exists)?;
    issues.extend(space(dir, free, next_bytes));
    Some(free)
}

/// Returns a warning if every user may replace archives in the directory.
fn exposed(dir: &Path) -> Option<Issue> {
    fs::metadata(dir).ok().filter(everyone_may_write)?;
    let message = format!(
        "Every user can write to {} and can therefore replace or remove backups",
        dir.display()
    );
    let remedy = format!("Remove that permission: chmod o-w '{}'", dir.display());
    Some(
        Issue::new(IssueCode::Permissions, Part::Backups, message, remedy)
            .path(dir.to_string_lossy()),
    )
}

/// Returns an error if the next backup does not fit, and a warning if the one after it would not
/// fit.
fn space(dir: &Path, free: u64, next_bytes: u64) -> Option<Issue> {
    if free >= next_bytes.saturating_mul(2) {
        return None;
    }
    let message = format!(
        "{} has {free} bytes left; the next backup is likely to take {next_bytes}",
        dir.display()
    );
    let remedy = "Remove old backups with `kg diag prune`, or use another disk";
    let severity = if free < next_bytes {
        Severity::Error
    } else {
        Severity::Warning
    };
    let issue = Issue::new(IssueCode::DiskSpace, Part::Backups, message, remedy).severity(severity);
    Some(issue.path(dir.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_the_next_backup_does_not_fit_on_is_an_error_and_one_for_two_is_fine() {
        let told = |free, next| {
            space(Path::new("/backups"), free, next).map(|issue| (issue.code, issue.severity))
        };
        assert_eq!(told(99, 100), Some((IssueCode::DiskSpace, Severity::Error)));
        assert_eq!(
            told(100, 100),
            Some((IssueCode::DiskSpace, Severity::Warning))
        );
        assert_eq!(told(200, 100), None);
        assert_eq!(told(0, 0), None);
    }
}
