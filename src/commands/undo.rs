//! The command `undo`: puts back the files that the newest restore of a project replaced, and
//! removes those that it added.
//!
//! An undo keeps the files that it replaces, so that it can be undone too. The worker does all of
//! it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    commands::verify::duration_ms,
    config::SettingChange,
    error::{Result, Warning},
    project::Project,
    util::operation::{OperationContext, Phase},
    worker::{
        client::{Worker, WorkerMode},
        protocol::UndoRequest,
        restore::lock_target,
    },
};

#[derive(Debug, Clone)]
pub struct UndoOptions {
    /// Undo the newest restore that is not undone yet, and never an undo. Repeated undos lead back
    /// to the state before the first restore.
    pub earlier: bool,
    /// Replace a damaged database even while another process has it open.
    pub force: bool,
    /// Report what would happen, without changing anything.
    pub dry_run: bool,
    /// The time to wait for a restore into the project, and for a lock on a database.
    pub lock_timeout: Duration,
    /// Files that restores replaced longer ago than this are removed first.
    pub undo_retention_days: u32,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoResult {
    /// The backup whose restore was undone; `repair` if a repair had replaced a damaged database.
    pub id: String,
    /// The time of that restore, in milliseconds since the epoch.
    pub restored_at: i64,
    pub target_dir: PathBuf,
    pub dry_run: bool,
    /// The number of files that were put back.
    pub files_restored: u64,
    /// The number of files that the restore had added and that were removed.
    pub files_removed: u64,
    /// The directory that keeps the files that this undo replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_copy: Option<PathBuf>,
    /// The backup settings that the undo changed, or would change.
    pub settings_changed: Vec<SettingChange>,
    pub warnings: Vec<Warning>,
    pub duration_ms: u64,
}

/// Undoes the newest restore into the project at `root`.
pub fn undo_restore(
    root: &Path,
    worker_mode: &WorkerMode,
    options: &UndoOptions,
    context: &OperationContext,
) -> Result<UndoResult> {
    let began = Instant::now();
    let project = Project::open(root)?;
    let mut warnings = Vec::new();
    if !options.dry_run {
        warnings = Worker::recover_interrupted(
            worker_mode,
            project.root(),
            options.lock_timeout,
            options.undo_retention_days,
            context,
        )?;
        // The worker waits for the lock too, but that wait cannot be cancelled.
        drop(lock_target(
            &project.state_dir(),
            options.lock_timeout,
            context,
        )?);
    }
    context.report(Phase::Applying, 0, 0)?;
    // From here on, the undo is either completed or rolled back.
    context.cancel.enter_critical_section();
    let undone = Worker::undo(
        worker_mode,
        UndoRequest {
            target: project.root().to_path_buf(),
            earlier: options.earlier,
            force: options.force,
            dry_run: options.dry_run,
            lock_timeout_ms: options.lock_timeout.as_millis() as u64,
        },
    );
    if undone.is_err() && !options.dry_run {
        // Rolls back what the worker could not. An error here would only repeat the first one.
        let _ = Worker::recover_interrupted(
            worker_mode,
            project.root(),
            options.lock_timeout,
            options.undo_retention_days,
            context,
        );
    }
    let undone = undone?;
    warnings.extend(undone.applied.warnings);
    Ok(UndoResult {
        id: undone.of,
        restored_at: undone.at.as_millisecond(),
        target_dir: project.root().to_path_buf(),
        dry_run: options.dry_run,
        files_restored: undone.applied.files_restored,
        files_removed: undone.files_removed,
        safety_copy: undone.applied.safety_copy,
        settings_changed: undone.applied.settings_changed,
        warnings,
        duration_ms: duration_ms(began.elapsed()),
    })
}
