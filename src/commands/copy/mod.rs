//! The command `copy`: copies the backups of a project to a second store.
//!
//! Each backup is copied after its base, and the newest backups come first. So an interrupted run
//! leaves only complete backups, and the next run continues.

mod plan;
pub mod record;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use self::{
    plan::{Plan, of_others},
    record::{Copied, LastCopy},
};
use crate::{
    commands::{
        own_backups::own_among,
        prune::{self, PruneResult},
        verify::duration_ms,
    },
    config::{
        Settings,
        backup_config::{BackupConfig, DEFAULT_LOCK_TIMEOUT},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::Project,
    store::{Backup, Store, StoreLock, known_stores, retention::Policy},
    system::{file_id::FileId, paths::resolve},
    util::{
        operation::{OperationContext, Phase},
        progress::ByteProgress,
        unsupported,
    },
};

#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// The ids of the backups to copy, with their bases. `None`: all of the project that the target
    /// lacks and that `retention` keeps.
    pub ids: Option<Vec<String>>,
    /// Which backups to keep in the target.
    pub retention: Policy,
    /// Why the intended limits are unknown. Then nothing is removed.
    pub retention_doubt: Option<Error>,
    /// Copies nothing and reports what would be copied.
    pub dry_run: bool,
    /// How long to wait for another writer of the target.
    pub lock_timeout: Duration,
}

impl Default for CopyOptions {
    fn default() -> Self {
        CopyOptions {
            ids: None,
            retention: Policy::default(),
            retention_doubt: None,
            dry_run: false,
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
        }
    }
}

impl CopyOptions {
    /// Returns the options that copy everything, with these limits for the target.
    pub fn with_limits(limits: BackupConfig) -> Self {
        CopyOptions {
            retention: limits.retention(),
            lock_timeout: limits.lock_timeout.unwrap_or(DEFAULT_LOCK_TIMEOUT),
            retention_doubt: limits.retention_doubt,
            ..CopyOptions::default()
        }
    }
}

/// What a run copied.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyResult {
    /// The directory or URL of the target.
    pub target: PathBuf,
    pub dry_run: bool,
    /// The copies in the target, in the order in which they were made. In a dry run, the originals.
    pub copied: Vec<Backup>,
    /// Size of the copied archives in bytes.
    pub bytes_copied: u64,
    /// The number of chosen backups that the target had already.
    pub present: usize,
    /// The backups that could not be copied.
    pub failed: Vec<CopyFailure>,
    /// What retention removed from the target. Absent if the target has no limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<PruneResult>,
    pub warnings: Vec<Warning>,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct CopyFailure {
    pub id: String,
    pub error: Error,
}

/// Copies backups of `source` to `target`. Backups in the target are never changed, and a backup that
/// the target has is not read again.
///
/// A backup that cannot be copied because it is damaged, removed or in the way of another one does
/// not stop the run; any other failure does. The source is not locked.
pub fn copy(
    source: &Store,
    target: &Store,
    options: &CopyOptions,
    context: &OperationContext,
) -> Result<CopyResult> {
    let mut copied =
        copy_unrecorded(source, target, options, context).map_err(|error| match error.code {
            Code::Aborted => Error {
                remedy: "What was copied completely stays; run it again to go on".into(),
                ..error
            },
            _ => error,
        });
    let is_aborted = matches!(&copied, Err(error) if error.code == Code::Aborted);
    if !options.dry_run && !is_aborted {
        let unrecorded = record_outcome(target, &copied);
        if let Ok(result) = &mut copied {
            result.warnings.extend(unrecorded);
        }
    }
    copied
}

/// Copies the backups that the project lacks in its second store, `backup.copyTo`. Returns `None` if
/// the settings name none.
pub fn copy_configured(
    source: &Store,
    root: &Path,
    settings: &Settings,
    context: &OperationContext,
) -> Result<Option<CopyResult>> {
    let Some(target) = settings.copy_to(root) else {
        return Ok(None);
    };
    let store = match Store::at(&target) {
        Ok(store) => store.for_project(root).with_mode(settings.archive_mode()),
        Err(error) => {
            // The error says more than one about the record would.
            let _ = Project::open(root).map(|project| record_failure(&project, &target, &error));
            return Err(error);
        }
    };
    let options = CopyOptions::with_limits(BackupConfig::of_copies(settings));
    copy(source, &store, &options, context).map(Some)
}

fn copy_unrecorded(
    source: &Store,
    target: &Store,
    options: &CopyOptions,
    context: &OperationContext,
) -> Result<CopyResult> {
    let began = Instant::now();
    assert_two_stores(source, target)?;
    target.assert_undoubted()?;
    if let Some(home) = target.home() {
        target.assert_outside(home)?;
    }
    let listing = source.read()?;
    let lost = emptied(source, &listing.backups);
    let is_source_lost = lost.is_some();
    let mut warnings: Vec<Warning> = lost.into_iter().collect();
    if options.ids.is_none() {
        warnings.extend(of_others(source, &listing.backups));
    }
    let lock = match options.dry_run {
        true => None,
        false => Some(target.lock(options.lock_timeout, context)?),
    };
    if let Some(lock) = &lock {
        warnings.extend(target.clean_up(lock, true, context)?);
        warnings.extend(target.unconditional_warning()?);
    }
    let held = if target.exists()? {
        target.list()?
    } else {
        Vec::new()
    };
    warnings.extend(emptied(target, &held));
    warnings.extend(options.retention_doubt.iter().map(|doubt| {
        let message = format!(
            "No old copy is removed from {}: {}",
            target.dir().display(),
            doubt.message
        );
        Warning::new(WarningCode::Store, message)
    }));
    let plan = Plan::new(source, &listing, &held, options)?;
    let mut result = CopyResult {
        target: target.dir().to_path_buf(),
        dry_run: options.dry_run,
        copied: Vec::new(),
        bytes_copied: plan.missing.iter().map(|backup| backup.size).sum(),
        present: plan.present,
        failed: plan.failed,
        retention: None,
        warnings,
        duration_ms: 0,
    };
    match &lock {
        None => result.copied = plan.missing,
        Some(lock) => {
            transfer(target, lock, plan.missing, &mut result, context)?;
            // The limits must not remove the only backups that are left.
            let limits = (!is_source_lost).then_some(&options.retention);
            let more = look_after(target, lock, limits, &mut result.retention)?;
            result.warnings.extend(more);
        }
    }
    result.duration_ms = duration_ms(began.elapsed());
    Ok(result)
}

fn assert_two_stores(source: &Store, target: &Store) -> Result<()> {
    // A bind mount has another path and the same inode.
    let inode = |dir: &Path| FileId::at(dir).ok().map(|found| found.identity);
    let same = |one: &Store, other: &Store| match (one.directory(), other.directory()) {
        (Some(one), Some(other)) => {
            resolve(one) == resolve(other)
                || inode(one).is_some_and(|one| Some(one) == inode(other))
        }
        _ => one.dir() == other.dir(),
    };
    if !same(source, target) {
        return Ok(());
    }
    Err(Error::invalid(
        format!("The copies would go into {} itself", source.dir().display()),
        "Name another directory or URL",
    ))
}

/// Warns of a store that had backups and has none now, such as a disk that is not mounted.
fn emptied(target: &Store, held: &[Backup]) -> Option<Warning> {
    let home = target.home()?;
    known_stores::emptied(home, target, &own_among(held.to_vec(), home))
}

/// Copies the backups one after the other.
fn transfer(
    target: &Store,
    lock: &StoreLock,
    missing: Vec<Backup>,
    result: &mut CopyResult,
    context: &OperationContext,
) -> Result<()> {
    let progress = ByteProgress::new(context, Phase::Copying, result.bytes_copied);
    result.bytes_copied = 0;
    for backup in missing {
        let lacks_base = result
            .failed
            .iter()
            .any(|failure| Some(&failure.id) == backup.based_on.as_ref());
        let copied = if lacks_base {
            Err(without_base(&backup))
        } else {
            target.add_copy(lock, &backup, &progress)
        };
        match copied {
            Ok(copy) => {
                result.bytes_copied += copy.size;
                result.warnings.extend(
                    copy.warnings
                        .iter()
                        .filter(|warning| warning.code == WarningCode::Store)
                        .cloned(),
                );
                result.copied.push(copy);
            }
            Err(error) if is_of_one_backup(error.code) => result.failed.push(CopyFailure {
                id: backup.id,
                error,
            }),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether the other backups can still be copied after this error.
fn is_of_one_backup(code: Code) -> bool {
    matches!(
        code,
        Code::ChecksumMismatch
            | Code::BackupNotFound
            | Code::BackupExists
            | Code::ChainBroken
            | Code::Unsupported
    )
}

fn without_base(backup: &Backup) -> Error {
    let base = backup.based_on.as_deref().unwrap_or_default();
    Error::new(
        Code::ChainBroken,
        format!("{} depends on {base}, which could not be copied", backup.id),
        "Copy a full backup",
    )
}

/// Records how a copy ended, for status and metrics. Returns a warning if that fails.
fn record_outcome(target: &Store, copied: &Result<CopyResult>) -> Option<Warning> {
    let project = target.home()?;
    // A store that did not answer is not asked again.
    let is_silent =
        |error: &Error| matches!(error.code, Code::StoreUnreachable | Code::StoreDenied);
    let listed = match copied {
        Err(error) if is_silent(error) => None,
        _ => target.list().ok(),
    };
    let first_failure =
        |result: &CopyResult| result.failed.first().map(|first| first.error.clone());
    let last = LastCopy {
        ended_at: Timestamp::now().as_millisecond(),
        newest: listed.and_then(|listed| Copied::newest(&own_among(listed, project))),
        error: copied
            .as_ref()
            .map_or_else(|error| Some(error.clone()), first_failure),
    };
    let error = record::write(project, target.dir(), last).err()?;
    let message = format!("The copy could not be recorded: {}", error.message);
    Some(Warning::new(WarningCode::Store, message))
}

fn record_failure(project: &Project, target: &Path, error: &Error) -> Result<()> {
    let last = LastCopy {
        ended_at: Timestamp::now().as_millisecond(),
        newest: None,
        error: Some(error.clone()),
    };
    record::write(project, target, last)
}

/// Applies the limits of the target, and remembers how many copies it has.
fn look_after(
    target: &Store,
    lock: &StoreLock,
    limits: Option<&Policy>,
    retention: &mut Option<PruneResult>,
) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    if let Some(limits) = limits.filter(|limits| !limits.keeps_everything()) {
        // Backups of other projects are none of this run's business.
        let others = &mut Vec::new();
        *retention = Some(prune::apply_to_own(
            target,
            lock,
            limits,
            &target.list()?,
            others,
        ));
    }
    if let Some(home) = target.home() {
        let own = own_among(target.list()?, home).len();
        warnings.extend(known_stores::remember(home, target, own));
        target.keep_sidecars();
    }
    warnings.extend(unsupported::warnings(&[target.dir()]));
    Ok(warnings)
}
