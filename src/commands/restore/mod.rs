//! The command `restore`: brings a project, or a part of it, back from an archive.
//!
//! Everything is unpacked into a [`staging`] directory inside the target's `.kg/`, and every byte of
//! the archive is checked, before the worker touches a file of the project. The staging directory is
//! on the file system of the target, so that the worker can put files into place by renaming them.

mod staging;

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use self::staging::Staging;
use crate::{
    archive::{
        extract::FileWithRoom,
        file_list::{FILE_LIST_ENTRY, ListWriter},
        filter::EntryFilter,
        manifest::{MANIFEST_ENTRY, Manifest},
    },
    commands::verify::duration_ms,
    config::{
        SettingChange,
        backup_config::{DEFAULT_LOCK_TIMEOUT, DEFAULT_UNDO_RETENTION_DAYS},
    },
    error::{Error, Result, Warning, WarningCode},
    place::Archive,
    project::{CONFIG_FILE, Component, Project, STATE_DIR, identity::Kinship, pattern},
    sqlite::check::IntegrityStatus,
    store::{
        Store,
        chain::{self, Extent, Unpacked, UnpackedFull},
        lacks,
    },
    system::paths,
    util::{
        operation::{OperationContext, Phase},
        sync_many::EarlySync,
        unsupported,
    },
    worker::{
        client::{Worker, WorkerMode},
        protocol::{Applied, ApplyRequest},
        restore::lock_target,
    },
};

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The root of the project to restore into. It is created if it does not exist.
    pub target: PathBuf,
    /// The components to restore. Default: all.
    pub only: Option<Vec<Component>>,
    /// Patterns of the paths to restore, see [`EntryFilter`]. Default: all.
    pub paths: Option<Vec<String>>,
    /// Replaces a damaged database even if another process has it open.
    pub force: bool,
    /// Replaces existing files. Their old content is kept for an undo.
    pub overwrite: bool,
    /// Keeps the backup settings of the target, whatever the restored configuration has.
    pub keep_settings: bool,
    /// Checks everything and reports what would happen, without changing anything.
    pub dry_run: bool,
    /// How long to wait for another restore into the target and for the lock of a database.
    pub lock_timeout: Duration,
    /// How many days the files that a restore replaced are kept for an undo.
    pub undo_retention_days: u32,
}

impl RestoreOptions {
    /// Returns the options that restore everything into `target` and replace nothing.
    pub fn new(target: PathBuf) -> Self {
        RestoreOptions {
            target,
            only: None,
            paths: None,
            force: false,
            overwrite: false,
            keep_settings: false,
            dry_run: false,
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
            undo_retention_days: DEFAULT_UNDO_RETENTION_DAYS,
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreResult {
    /// The backup that was restored.
    pub id: String,
    /// Its archive.
    pub backup_path: PathBuf,
    pub target_dir: PathBuf,
    pub dry_run: bool,
    pub files_restored: u64,
    pub bytes_restored: u64,
    /// How many of them replaced an existing file.
    pub files_replaced: u64,
    /// The directory that keeps the replaced files, under their paths in the project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_copy: Option<PathBuf>,
    /// Whether an undo can take the restore back. It cannot if the project was empty.
    pub can_undo: bool,
    /// The backup settings that the restore changed, or would change.
    pub settings_changed: Vec<SettingChange>,
    pub warnings: Vec<Warning>,
    pub duration_ms: u64,
    /// The path of the graph database in the backup, relative to the root.
    #[serde(skip)]
    pub database: Option<String>,
    /// The manifest inside the archive.
    #[serde(skip)]
    pub manifest: Manifest,
}

/// Restores the backup that `reference` names: a path, an id, or `latest`.
pub fn restore(
    store: &Store,
    reference: &str,
    worker_mode: &WorkerMode,
    options: &RestoreOptions,
    context: &OperationContext,
) -> Result<RestoreResult> {
    let mut staging = None;
    let restored = restore_through(
        &mut staging,
        store,
        reference,
        worker_mode,
        options,
        context,
    );
    match staging {
        Some(staging) => {
            let restored = restored.map_err(|error| staging.named(error));
            staging.end(restored)
        }
        None => restored,
    }
}

fn restore_through(
    staging: &mut Option<Staging>,
    store: &Store,
    reference: &str,
    worker_mode: &WorkerMode,
    options: &RestoreOptions,
    context: &OperationContext,
) -> Result<RestoreResult> {
    let began = Instant::now();
    let request = Request::new(store, reference, options)?;
    let target = &request.target;
    let mut warnings = store.doubts(reference, &request.archive, Some(target));
    let names_another_project = warnings
        .iter()
        .any(|warning| warning.code == WarningCode::OtherProject);
    let staging = staging.insert(Staging::prepare(target, options.dry_run)?);
    if !options.dry_run {
        warnings.extend(recover(worker_mode, target, options, context)?);
    }
    let (manifest, database) = unpack(&request, staging, store, options, context)?;
    warnings.extend(request.unmatched_patterns(&manifest));
    let applied = apply(&request, staging, worker_mode, options, context)?;
    staging.succeeded();

    warnings.extend(flaws(&manifest));
    warnings.extend(applied.warnings);
    warnings.extend(store.key_warnings(&request.archive));
    warnings.extend(store.plain_warning(&request.archive));
    warnings.extend(unsupported::warnings(&[target]));
    if applied.files_replaced > 0 && !names_another_project {
        warnings.extend(of_another_project(target, &manifest));
    }
    Ok(RestoreResult {
        id: manifest.id.clone(),
        backup_path: request.archive.path(),
        target_dir: request.target,
        dry_run: options.dry_run,
        files_restored: applied.files_restored,
        bytes_restored: applied.bytes_restored,
        files_replaced: applied.files_replaced,
        safety_copy: applied.safety_copy,
        can_undo: applied.can_undo,
        settings_changed: applied.settings_changed,
        warnings,
        duration_ms: duration_ms(began.elapsed()),
        database,
        manifest,
    })
}

/// The options of a restore with all paths resolved.
struct Request {
    /// Absolute.
    target: PathBuf,
    archive: Archive,
    /// The patterns, relative to the root of a project.
    paths: Option<Vec<String>>,
    filter: EntryFilter,
}

impl Request {
    fn new(store: &Store, reference: &str, options: &RestoreOptions) -> Result<Request> {
        let target = paths::absolute(&options.target)
            .map_err(|cause| Error::io("resolve", &options.target, cause))?;
        // An absolute path inside the project names the same part of any target.
        let home = store.home().map(|home| home.root());
        let relative =
            |path: &String| home.map_or_else(|| path.clone(), |home| pattern::relative(home, path));
        let paths: Option<Vec<String>> = options
            .paths
            .as_ref()
            .map(|paths| paths.iter().map(relative).collect());
        let filter = EntryFilter::new(&target, options.only.clone(), paths.as_deref())?;
        let archive = store.locate_holding(reference, options.only.as_deref())?;
        Ok(Request {
            target,
            archive,
            paths,
            filter,
        })
    }

    fn unmatched_patterns(&self, manifest: &Manifest) -> Vec<Warning> {
        let message =
            |pattern| format!("{} contains nothing that matches `{pattern}`", manifest.id);
        self.filter
            .in_vain()
            .map(|pattern| Warning::new(WarningCode::Incomplete, message(pattern)))
            .collect()
    }
}

/// Completes or rolls back interrupted restores of the target.
fn recover(
    worker_mode: &WorkerMode,
    target: &Path,
    options: &RestoreOptions,
    context: &OperationContext,
) -> Result<Vec<Warning>> {
    Worker::recover_interrupted(
        worker_mode,
        target,
        options.lock_timeout,
        options.undo_retention_days,
        context,
    )
}

/// Unpacks the chain into the staging directory and checks every byte. A dry run unpacks only the
/// configuration, whose settings the result compares with those of the target.
///
/// Every descriptor of an unpacked file is closed when this returns. That matters because the file
/// may become a live database. Returns the manifest and the path of the graph database.
fn unpack(
    request: &Request,
    staging: &Staging,
    store: &Store,
    options: &RestoreOptions,
    context: &OperationContext,
) -> Result<(Manifest, Option<String>)> {
    let held = staging.held_path();
    let extent = match options.dry_run {
        true => Extent::File(&held, CONFIG_FILE),
        false => Extent::Picked(&held),
    };
    if request.filter.is_everything()
        && let Some(full) = unpack_full(request, staging, extent, store, context)?
    {
        staging.sync(full.records)?;
        return Ok((full.manifest, full.graph_database));
    }
    let unpacked = chain::unpack(
        &request.archive,
        &request.filter,
        extent,
        early_sync(staging, extent),
        store.keys(),
        context,
    )?;
    assert_holds(store, &unpacked, &request.filter, options)?;
    describe(&held, &unpacked)?;
    let Unpacked {
        manifest, files, ..
    } = unpacked;
    staging.sync(files.records().len())?;
    let database = files.graph_database().map(|record| record.path.clone());
    Ok((manifest, database))
}

/// A dry run unpacks nothing that must be durable.
fn early_sync<'a>(staging: &'a Staging, extent: Extent<'_>) -> Option<EarlySync<'a>> {
    match extent {
        Extent::Picked(_) => staging.early_sync(),
        Extent::File(..) => None,
    }
}

/// Unpacks a full backup in little memory. Returns `None`, and leaves nothing, if it is not a full
/// one or has a problem.
fn unpack_full(
    request: &Request,
    staging: &Staging,
    extent: Extent<'_>,
    store: &Store,
    context: &OperationContext,
) -> Result<Option<UnpackedFull>> {
    let early_sync = early_sync(staging, extent);
    let held = staging.held_path();
    let staging = held.as_path();
    let list = FileWithRoom::create(staging, FILE_LIST_ENTRY);
    let mut list =
        list.map_err(|cause| Error::io("write", &staging.join(FILE_LIST_ENTRY), cause))?;
    let unpacked = chain::unpack_full(
        &request.archive,
        extent,
        &mut list,
        early_sync,
        store.keys(),
        context,
    );
    let unpacked = unpacked.map_err(|error| list.failed().unwrap_or(error))?;
    match &unpacked {
        Some(full) => write_manifest(staging, &full.manifest)?,
        None => {
            let failed = |cause| Error::io("remove", staging, cause);
            for entry in fs::read_dir(staging).map_err(failed)? {
                fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
            }
        }
    }
    Ok(unpacked)
}

/// Has the worker put the unpacked files into place.
fn apply(
    request: &Request,
    staging: &mut Staging,
    worker_mode: &WorkerMode,
    options: &RestoreOptions,
    context: &OperationContext,
) -> Result<Applied> {
    context.report(Phase::Applying, 0, 0)?;
    let target = &request.target;
    if !options.dry_run {
        // Waits here, where a cancellation is noticed. The worker could not be cancelled.
        let state = target.join(STATE_DIR);
        drop(lock_target(&state, options.lock_timeout, context)?);
    }
    // From here on the restore is completed or rolled back.
    context.cancel.enter_critical_section();
    let apply = ApplyRequest {
        target: target.clone(),
        staging: staging.path().to_path_buf(),
        only: options.only.clone(),
        paths: request.paths.clone(),
        overwrite: options.overwrite,
        force: options.force,
        keep_settings: options.keep_settings,
        dry_run: options.dry_run,
        lock_timeout_ms: options.lock_timeout.as_millis() as u64,
    };
    let error = match Worker::apply(worker_mode, apply) {
        Ok(applied) => return Ok(applied),
        Err(error) => error,
    };
    // If the worker died, a second one completes or rolls back its work. It may need the unpacked
    // files, so they stay if that fails too.
    match recover(worker_mode, target, options, context) {
        Ok(warnings) => Err(with_warnings(error, &warnings)),
        Err(_) => {
            staging.keep();
            Err(error)
        }
    }
}

/// Adds to the remedy what a second worker did after the first one died.
fn with_warnings(error: Error, warnings: &[Warning]) -> Error {
    match warnings.first() {
        Some(warning) => Error {
            remedy: format!(
                "{}. Look at the project, then run it again",
                warning.message
            ),
            ..error
        },
        None => error,
    }
}

/// Warns if the backup is incomplete, or if its source was damaged.
fn flaws(manifest: &Manifest) -> Vec<Warning> {
    let id = &manifest.id;
    let lacks = lacks(&manifest.warnings)
        .unwrap_or_else(|| "the manifest does not say what is missing".into());
    let incomplete = manifest.incomplete.then(|| {
        Warning::new(
            WarningCode::Incomplete,
            format!("{id} is incomplete: {lacks}"),
        )
    });
    let damaged = (manifest.integrity.status == IntegrityStatus::Failed).then(|| {
        let message = format!(
            "The databases of {id} were damaged when they were saved. They are restored as they were"
        );
        Warning::new(WarningCode::SourceDamaged, message)
    });
    incomplete.into_iter().chain(damaged).collect()
}

/// Warns of a backup of another project, because projects may share a store.
fn of_another_project(target: &Path, manifest: &Manifest) -> Option<Warning> {
    let target = Project::open(target).ok().filter(|target| {
        let origin = manifest.origin();
        origin.is_some() && target.identity().kinship(origin.as_ref()) == Kinship::Other
    })?;
    let message = format!(
        "{} belongs to another project than {}, or to this project before it was moved. To undo, run \
         `kg diag restore --undo`",
        manifest.id,
        target.root().display()
    );
    Some(Warning::new(WarningCode::OtherProject, message))
}

/// Fails if the backup contains nothing of what is to be restored.
fn assert_holds(
    store: &Store,
    Unpacked {
        manifest, files, ..
    }: &Unpacked,
    filter: &EntryFilter,
    options: &RestoreOptions,
) -> Result<()> {
    if filter.is_everything() || !filter.select(files).is_empty() {
        return Ok(());
    }
    let parts = options
        .only
        .iter()
        .flatten()
        .map(|part| format!("{part:?}").to_lowercase());
    let wanted: Vec<String> = parts
        .chain(options.paths.iter().flatten().cloned())
        .collect();
    let other = options
        .only
        .as_deref()
        .and_then(|only| store.latest_holding(only).ok())
        .filter(|other| other.id != manifest.id);
    let remedy = match other {
        Some(other) => format!("Restore {}, which contains some", other.id),
        None => {
            "Paths start with `.kg`; the list `files.jsonl` in the archive has them. To choose another backup, run `kg diag backup \
             --list`"
                .into()
        }
    };
    Err(Error::invalid(
        format!("{} contains nothing of: {}", manifest.id, wanted.join(", ")),
        remedy,
    ))
}

/// Writes the manifest and the list of files for the worker.
fn describe(staging: &Path, unpacked: &Unpacked) -> Result<()> {
    write_manifest(staging, &unpacked.manifest)?;
    let path = staging.join(FILE_LIST_ENTRY);
    let list = || {
        let mut list = ListWriter::new(BufWriter::new(fs::File::create(&path)?));
        for record in unpacked.files.records() {
            list.push(record)?;
        }
        list.out().flush()
    };
    list().map_err(|cause| Error::io("write", &path, cause))
}

fn write_manifest(staging: &Path, manifest: &Manifest) -> Result<()> {
    let path = staging.join(MANIFEST_ENTRY);
    fs::write(&path, manifest.to_json()).map_err(|cause| Error::io("write", &path, cause))
}
