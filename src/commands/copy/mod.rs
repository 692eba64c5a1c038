//! The command `copy`: copies the backups of a project to a second store.
//!
//! Each backup is copied after its base, and the newest backups come first. So an interrupted run
//! leaves only complete backups, and the next run continues.

pub mod record;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;

use self::record::{Copied, LastCopy};
use crate::{
    commands::{
        own_backups::own_among,
        prune::{self, PruneResult},
    },
    config::{
        Settings,
        backup_config::{BackupConfig, DEFAULT_LOCK_TIMEOUT},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::Project,
    store::{
        Backup, Listing, Store, StoreLock, known_stores,
        retention::{Policy, decide},
        sort,
    },
    system::paths::resolve,
    util::{
        operation::{OperationContext, Phase},
        progress::ByteProgress,
        unsupported,
    },
};

#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// The ids of the backups to copy, with their bases. Empty: all of the project that the target
    /// lacks and that `retention` keeps.
    pub ids: Vec<String>,
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
            ids: Vec::new(),
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
    let mut copied = copy_unrecorded(source, target, options, context);
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
    let listing = source.read()?;
    let mut warnings: Vec<Warning> = unread(source, &listing).into_iter().collect();
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
    let plan = Plan::new(source, &listing.backups, &held, options)?;
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
            result
                .warnings
                .extend(look_after(target, lock, options, &mut result.retention)?);
        }
    }
    result.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(result)
}

fn assert_two_stores(source: &Store, target: &Store) -> Result<()> {
    let same = |one: &Store, other: &Store| match (one.directory(), other.directory()) {
        (Some(one), Some(other)) => resolve(one) == resolve(other),
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

/// Warns of backups that could not be read, so they could not be chosen.
fn unread(source: &Store, listing: &Listing) -> Option<Warning> {
    let why = listing.unread_message()?;
    let message = format!(
        "Not every backup in {} was copied: {why}",
        source.dir().display()
    );
    Some(Warning::new(WarningCode::Store, message))
}

/// Warns of a target that had copies and has none now, such as a disk that is not mounted.
fn emptied(target: &Store, held: &[Backup]) -> Option<Warning> {
    let home = target.home()?;
    known_stores::emptied(home, target, &own_among(held.to_vec(), home))
}

/// What to copy.
struct Plan {
    /// Each backup comes after its base.
    missing: Vec<Backup>,
    present: usize,
    failed: Vec<CopyFailure>,
}

impl Plan {
    fn new(
        source: &Store,
        listed: &[Backup],
        held: &[Backup],
        options: &CopyOptions,
    ) -> Result<Self> {
        let chosen = if options.ids.is_empty() {
            wanted(source, listed, held, &options.retention)
        } else {
            let ids = options.ids.iter();
            ids.map(|id| source.get(id)).collect::<Result<_>>()?
        };
        let by_id: HashMap<&str, &Backup> = listed
            .iter()
            .map(|backup| (backup.id.as_str(), backup))
            .collect();
        let mut plan = Plan {
            missing: Vec::new(),
            present: 0,
            failed: Vec::new(),
        };
        let mut planned: HashSet<String> = HashSet::new();
        for backup in chosen {
            if is_held(held, &backup) {
                plan.present += 1;
                continue;
            }
            match missing_members(&backup, &by_id, held) {
                Ok(members) => {
                    let new = members.into_iter().rev();
                    plan.missing
                        .extend(new.filter(|member| planned.insert(member.id.clone())));
                }
                Err(error) => plan.failed.push(CopyFailure {
                    id: backup.id,
                    error,
                }),
            }
        }
        Ok(plan)
    }
}

/// Returns the backups of the project that belong into the target, newest first, with those that are
/// there already. What the limits of the target would remove at once is left out.
fn wanted(source: &Store, listed: &[Backup], held: &[Backup], policy: &Policy) -> Vec<Backup> {
    let own = listed.iter().filter(|backup| source.is_own(backup));
    let own: Vec<Backup> = own.cloned().collect();
    if policy.keeps_everything() {
        return own;
    }
    let is_new = |backup: &&Backup| !is_held(held, backup);
    let mut all: Vec<Backup> = own.iter().filter(is_new).cloned().collect();
    let is_of_one = |backup: &&Backup| own.iter().any(|own| own.origin == backup.origin);
    all.extend(held.iter().filter(is_of_one).cloned());
    let now = Timestamp::now();
    sort(&mut all, now);
    let kept: HashSet<String> = decide(&all, policy, now, None)
        .into_iter()
        .filter(|decision| decision.kept)
        .map(|decision| decision.id)
        .collect();
    own.into_iter()
        .filter(|backup| is_held(held, backup) || kept.contains(&backup.id))
        .collect()
}

fn is_held(held: &[Backup], backup: &Backup) -> bool {
    held.iter()
        .any(|held| held.id == backup.id && held.checksum == backup.checksum)
}

/// Returns the members of a chain that the target lacks, newest first. `KG_CHAIN_BROKEN` if one is in
/// neither store.
fn missing_members(
    backup: &Backup,
    by_id: &HashMap<&str, &Backup>,
    held: &[Backup],
) -> Result<Vec<Backup>> {
    let mut members = vec![backup.clone()];
    let mut member = backup;
    while let Some(id) = &member.based_on {
        let checksum = member.based_on_checksum.as_ref();
        let is_it = |base: &&Backup| base.id == *id && Some(&base.checksum) == checksum;
        if held.iter().any(|base| is_it(&base)) {
            break;
        }
        let base = by_id.get(id.as_str()).copied().filter(is_it);
        // A chain cannot have more members than there are backups, so a longer one is a cycle.
        let Some(base) = base.filter(|_| members.len() <= by_id.len()) else {
            return Err(Error::new(
                Code::ChainBroken,
                format!("{} depends on {id}, which is in neither store", member.id),
                "Copy a full backup",
            ));
        };
        members.push(base.clone());
        member = base;
    }
    Ok(members)
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
    let listed = copied
        .as_ref()
        .ok()
        .map(|_| target.list().unwrap_or_default());
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
    options: &CopyOptions,
    retention: &mut Option<PruneResult>,
) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    if !options.retention.keeps_everything() {
        // Backups of other projects are none of this run's business.
        let others = &mut Vec::new();
        let limits = &options.retention;
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
