//! The command `backup`: saves a project into a new archive of a store.
//!
//! | module | duty |
//! | --- | --- |
//! | [`plan`] | decides the type, and what is reused |
//! | [`incremental_base`] | finds and checks the base of an incremental backup |
//! | [`page_cache`] | remembers the pages of the newest backup |
//! | [`save`], [`receive`] | carry out the plan: worker to archive |
//! | [`content`] | the manifest, and whether something is missing |
//! | [`old_backups`] | applies the retention policy afterwards |

mod content;
mod incremental_base;
mod old_backups;
pub mod page_cache;
mod plan;
mod receive;
mod save;

use std::path::Path;

use serde::Serialize;

pub use self::incremental_base::reuse_source;
use self::{old_backups::look_after, plan::BackupPlan, save::Run};
use crate::{
    archive::manifest::BackupType,
    commands::{own_backups::own_backups, prune::PruneResult},
    config::backup_config::BackupOptions,
    error::{Error, Result},
    project::{Project, exclude::Exclusion, identity::Identity},
    store::{Backup, Store, known_stores},
    util::{operation::OperationContext, unsupported},
    worker::client::{Worker, WorkerMode},
};

/// A new backup, and what became of the older ones.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    #[serde(flatten)]
    pub backup: Backup,
    /// Bytes of the archive that were copied from an earlier one.
    #[serde(rename = "reusedBytes")]
    pub reused_bytes: u64,
    /// Absent if no limit is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<PruneResult>,
    /// Why the limits were not applied. Absent if they were, or if none is set.
    #[serde(rename = "retentionError", skip_serializing_if = "Option::is_none")]
    pub retention_error: Option<Error>,
}

/// Saves the project at `root` and returns when the backup is on the disk.
///
/// A failure or an abort leaves nothing behind. Once the backup is on the disk, every problem with
/// older backups is a warning.
pub fn create_backup(
    root: &Path,
    store: &Store,
    worker_mode: &WorkerMode,
    options: &BackupOptions,
    context: &OperationContext,
) -> Result<Created> {
    // The worker checks these too. Checked here, they fail before a directory is made.
    let project = Project::open(root)?;
    Exclusion::new(project.root(), &options.exclude_patterns)?;
    store.assert_outside(&project)?;
    if options.kind == BackupType::Incremental {
        store.assert_takes_chains()?;
    }
    let check_policy = || store.check_encryption_policy(page_cache::is_of_encrypted(&project));
    if store.directory().is_some() {
        check_policy()?;
    }
    let mut warnings = Worker::recover_interrupted(
        worker_mode,
        project.root(),
        options.lock_timeout,
        options.undo_retention_days,
        context,
    )?;
    let lock = store.lock(options.lock_timeout, context)?;
    // Only the holder of the lock knows what is in an object store.
    if store.directory().is_none() {
        check_policy()?;
    }
    let (_, unidentified) = Identity::ensure(&project);
    warnings.extend(unidentified);
    let store = &store.clone().for_project(project.root());
    let is_full = options.kind != BackupType::Incremental;
    warnings.extend(store.clean_up(&lock, is_full, context)?);
    warnings.extend(store.unconditional_warning()?);
    let own = own_backups(store, &project)?;
    let emptied = known_stores::emptied(&project, store, &own);
    let store_was_emptied = emptied.is_some();
    warnings.extend(emptied);

    let plan = BackupPlan::decide(&project, store, options, context)?;
    let run = Run {
        project: &project,
        store,
        lock: &lock,
        worker_mode,
        options,
        context,
    };
    let saved = run.carry_out(plan)?;
    warnings.extend(saved.plan_warnings);

    let mut backup = saved.backup;
    // Hooks report the first warning, so those about the whole backup come before those about
    // single files.
    backup.warnings.splice(0..0, warnings);
    backup.warnings.extend(store.key_warnings(&backup.archive));
    backup.warnings.extend(store.key_without_encryption());
    let old = look_after(&project, store, &lock, options, &backup, store_was_emptied);
    backup.warnings.extend(old.warnings);
    backup
        .warnings
        .extend(unsupported::warnings(&[store.dir(), &project.state_dir()]));
    Ok(Created {
        backup,
        reused_bytes: saved.reused_bytes,
        retention: old.retention,
        retention_error: old.error,
    })
}
