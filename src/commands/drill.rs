//! The command `drill` (`rehearse` in the API): restores a backup into a temporary directory and
//! checks the result, to prove that the backup can be restored.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    archive::manifest::Stats,
    commands::{
        check::inspect_in,
        restore::{RestoreOptions, restore},
        verify::duration_ms,
    },
    error::{Code, Error, Result, Warning},
    integrity::{Scope, issue::Issue, target::CheckTarget},
    project::names,
    store::Store,
    util::{operation::OperationContext, temp_dir::Scratch},
    worker::client::WorkerMode,
};

/// The prefix of the names of the temporary directories.
const SCRATCH_PREFIX: &str = ".kg-drill-";

#[derive(Debug, Clone)]
pub struct DrillOptions {
    /// A path, an id, or `latest`.
    pub backup: String,
    /// The directory in which the temporary directory is created. Defaults to the system's
    /// directory for temporary files.
    pub directory: Option<PathBuf>,
    pub lock_timeout: Duration,
}

/// The number of rows according to the manifest, and in the restored database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    pub expected: u64,
    pub found: u64,
}

/// The result of a drill.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillResult {
    /// Whether the restored project is healthy and has as many rows as the manifest states.
    pub passed: bool,
    /// The id of the backup.
    pub id: String,
    pub backup_path: PathBuf,
    /// The age of the backup. A recovery would lose everything written in this time.
    pub age_ms: u64,
    pub files_restored: u64,
    pub bytes_restored: u64,
    /// The duration of the restore, which is the time to recover.
    pub restore_ms: u64,
    pub check_ms: u64,
    pub nodes: Count,
    pub edges: Count,
    pub issues: Vec<Issue>,
    pub warnings: Vec<Warning>,
    pub duration_ms: u64,
}

/// Replaces the remedy of a restore or a check, which is to set another target or `TMPDIR` and does
/// not help here.
fn no_room(error: Error) -> Error {
    error.with_remedy_for(
        Code::NoSpace,
        "Free some space there, or name a directory with room for the restored project and a copy \
         of its database: `directory`",
    )
}

/// Restores a backup into a temporary directory and checks it there. The directory is removed, even
/// after a failure. If it cannot be removed, the error names it.
pub fn drill(
    store: &Store,
    options: &DrillOptions,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<DrillResult> {
    let parent = options.directory.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&parent, SCRATCH_PREFIX)?;
    let rehearsed = drill_in(scratch.path(), store, options, worker_mode, context);
    scratch.end(rehearsed)
}

fn drill_in(
    scratch: &Path,
    store: &Store,
    options: &DrillOptions,
    worker_mode: &WorkerMode,
    context: &OperationContext,
) -> Result<DrillResult> {
    let began = Instant::now();
    let target = scratch.join("project");
    let restoring = RestoreOptions {
        lock_timeout: options.lock_timeout,
        ..RestoreOptions::new(target.clone())
    };
    let restored =
        restore(store, &options.backup, worker_mode, &restoring, context).map_err(no_room)?;
    let manifest = &restored.manifest;
    let database = restored.database.as_deref().and_then(names::decode);
    // The path in the backup, because a restored configuration may name a live database outside of
    // any project.
    let database = database.map(|path| target.join(path));
    let scope = Scope {
        database: database.is_some(),
        ..Scope::ALL
    };
    let subject = CheckTarget::of(&target, database);
    let inspection = inspect_in(
        scratch,
        &subject,
        scope,
        options.lock_timeout,
        worker_mode,
        context,
    )
    .map_err(no_room)?;
    let Stats {
        node_count,
        edge_count,
        ..
    } = manifest.stats;
    let nodes = Count {
        expected: node_count,
        found: inspection.checked.nodes,
    };
    let edges = Count {
        expected: edge_count,
        found: inspection.checked.edges,
    };
    let has_all = nodes.expected == nodes.found && edges.expected == edges.found;
    let made = manifest.timestamp.as_millisecond();
    let age_ms = jiff::Timestamp::now()
        .as_millisecond()
        .saturating_sub(made)
        .max(0) as u64;
    Ok(DrillResult {
        passed: has_all && inspection.healthy,
        id: restored.id,
        backup_path: restored.backup_path,
        age_ms,
        files_restored: restored.files_restored,
        bytes_restored: restored.bytes_restored,
        restore_ms: restored.duration_ms,
        check_ms: inspection.duration_ms,
        nodes,
        edges,
        issues: inspection.issues,
        warnings: restored.warnings,
        duration_ms: duration_ms(began.elapsed()),
    })
}
