//! The verb `restore`: brings a project, or a part of it, back from an archive.
//!
//! Everything is unpacked into a staging directory inside the target's `.kg/` (so that putting it into place is a rename
//! on one file system) and every byte of the archive is checked, before the reader touches a file of the project.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    archive::{
        filter::EntryFilter,
        manifest::{MANIFEST_ENTRY, Manifest},
    },
    commands::{backup::DEFAULT_LOCK_TIMEOUT, verify::duration_ms},
    error::{Code, Error, Result, Warning, WarningCode},
    project::{Component, Project, STAGING_PREFIX, STATE_DIR, pattern},
    sqlite::check::IntegrityStatus,
    store::{Store, chain, lacks},
    system::paths,
    util::{
        atomic_file,
        dir_handle::{DirHandle, held_path},
        operation::{OperationContext, Phase},
        ownership,
        temp_dir::PrivateDir,
        unsupported,
    },
    worker::{
        client::{Worker, WorkerMode},
        protocol::ApplyRequest,
        restore::{lock_target, undo::DEFAULT_RETENTION_DAYS},
    },
};

#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The project's root to restore into; made where it does not exist.
    pub target: PathBuf,
    /// `None` for everything that the backup holds.
    pub only: Option<Vec<Component>>,
    /// Patterns for paths, see [`EntryFilter`]; `None` for everything.
    pub paths: Option<Vec<String>>,
    /// Replace a damaged database even while another process has it open.
    pub force: bool,
    /// Replace files that exist, keeping what they were.
    pub overwrite: bool,
    /// Check everything and say what would happen, without changing anything.
    pub dry_run: bool,
    /// How long to wait for another restore into the target, and for a lock on a database.
    pub lock_timeout: Duration,
    /// What earlier restores replaced longer ago than this is removed.
    pub undo_retention_days: u32,
}

impl RestoreOptions {
    /// Everything into `target`, replacing nothing.
    pub fn new(target: PathBuf) -> Self {
        RestoreOptions {
            target,
            only: None,
            paths: None,
            force: false,
            overwrite: false,
            dry_run: false,
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
            undo_retention_days: DEFAULT_RETENTION_DAYS,
        }
    }
}

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
    /// How many of them took the place of an existing file.
    pub files_replaced: u64,
    /// The directory that keeps what was replaced, under the paths it had in the project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_copy: Option<PathBuf>,
    pub warnings: Vec<Warning>,
    pub duration_ms: u64,
    /// Of the backup, as it is inside.
    #[serde(skip)]
    pub manifest: Manifest,
}

/// Restores the backup that `reference` means (a path, an id, `latest`).
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
    let target = paths::absolute(&options.target)
        .map_err(|cause| Error::io("resolve", &options.target, cause))?;
    // An absolute path of the project names the same part at any target.
    let home = store.home().map(|home| home.root());
    let of_home =
        |path: &String| home.map_or_else(|| path.clone(), |home| pattern::relative(home, path));
    let paths: Option<Vec<String>> = options
        .paths
        .as_ref()
        .map(|paths| paths.iter().map(of_home).collect());
    let pick = EntryFilter::new(&target, options.only.clone(), paths.as_deref())?;
    let archive = store.locate_holding(reference, options.only.as_deref())?;
    let state = target.join(STATE_DIR);
    let mut warnings = store.doubts(reference, &archive, Some(&target));
    let staging = staging.insert(Staging::prepare(&target, options.dry_run)?);
    let is_own = warnings
        .iter()
        .all(|warning| warning.code != WarningCode::OtherProject);
    if !options.dry_run {
        warnings.extend(Worker::recover_interrupted(
            worker_mode,
            &target,
            options.lock_timeout,
            options.undo_retention_days,
            context,
        )?);
    }
    let held = staging.held_path();
    let unpack_to = (!options.dry_run).then_some(held.as_path());
    // No descriptor of a file that becomes part of the live project is open here when it does.
    let plan = chain::plan(&archive, &pick, store.keys(), context)?;
    let manifest = chain::unpack(&plan, unpack_to, store.keys(), context)?.manifest;
    assert_holds(store, &manifest, &pick, options)?;
    let in_vain = pick
        .in_vain()
        .map(|pattern| format!("{} holds nothing of `{pattern}`", manifest.id));
    warnings.extend(in_vain.map(|message| Warning::new(WarningCode::Incomplete, message)));
    write_manifest(&held, &manifest)?;
    context.report(Phase::Applying, 0, 0)?;
    if !options.dry_run {
        // The reader waits too, but cannot be told to stop.
        drop(lock_target(&state, options.lock_timeout, context)?);
    }
    // From here on it is carried to its end, or taken back.
    context.cancel.enter_critical_section();
    let applied = Worker::apply(
        worker_mode,
        ApplyRequest {
            target: target.clone(),
            staging: staging.path().to_path_buf(),
            only: options.only.clone(),
            paths,
            overwrite: options.overwrite,
            force: options.force,
            dry_run: options.dry_run,
            lock_timeout_ms: options.lock_timeout.as_millis() as u64,
        },
    );
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            // What was unpacked may be what completes an interrupted restore.
            return Err(
                match Worker::recover_interrupted(
                    worker_mode,
                    &target,
                    options.lock_timeout,
                    options.undo_retention_days,
                    context,
                ) {
                    Ok(warnings) => with_warnings(error, &warnings),
                    Err(_) => {
                        staging.keep();
                        error
                    }
                },
            );
        }
    };
    staging.succeeded();
    warnings.extend(less_than_saved(&manifest));
    warnings.extend(applied.warnings);
    warnings.extend(store.key_warnings(&archive));
    warnings.extend(store.plain_warning(&archive));
    warnings.extend(unsupported::warnings(&[&target]));
    warnings
        .extend(of_another(&target, &manifest).filter(|_| is_own && applied.files_replaced > 0));
    Ok(RestoreResult {
        id: manifest.id.clone(),
        backup_path: archive,
        target_dir: target,
        dry_run: options.dry_run,
        files_restored: applied.files_restored,
        bytes_restored: applied.bytes_restored,
        files_replaced: applied.files_replaced,
        safety_copy: applied.safety_copy,
        warnings,
        duration_ms: duration_ms(began.elapsed()),
        manifest,
    })
}

/// What a second reader did about the work of one that died.
fn with_warnings(error: Error, warnings: &[Warning]) -> Error {
    match warnings.first() {
        Some(warning) => Error {
            remedy: format!("{}; look at the project, and run it again", warning.message),
            ..error
        },
        None => error,
    }
}

/// What the backup itself is not: complete, or of a sound source.
fn less_than_saved(manifest: &Manifest) -> Vec<Warning> {
    let id = &manifest.id;
    let lacks = lacks(&manifest.warnings)
        .unwrap_or_else(|| "its manifest does not name what it lacks".into());
    let incomplete = manifest.incomplete.then(|| {
        Warning::new(
            WarningCode::Incomplete,
            format!("{id} does not hold all of its project: {lacks}"),
        )
    });
    let damaged = (manifest.integrity.status == IntegrityStatus::Failed).then(|| {
        let message = format!(
            "The databases of {id} were damaged when they were saved, and are restored as they were"
        );
        Warning::new(WarningCode::SourceDamaged, message)
    });
    incomplete.into_iter().chain(damaged).collect()
}

/// Where projects share a directory of backups, it is easy to take another one's.
fn of_another(target: &Path, manifest: &Manifest) -> Option<Warning> {
    let target = Project::open(target).ok().filter(|target| {
        manifest
            .project
            .as_ref()
            .is_some_and(|of| *of != target.id())
    })?;
    let message = format!(
        "{} was made of another project than {}, or of this one where it lay before; `kg diag restore --undo` takes it back",
        manifest.id,
        target.root().display()
    );
    Some(Warning::new(WarningCode::OtherProject, message))
}

fn assert_holds(
    store: &Store,
    manifest: &Manifest,
    pick: &EntryFilter,
    options: &RestoreOptions,
) -> Result<()> {
    if pick.is_everything() || !pick.select(manifest).is_empty() {
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
        Some(other) => format!("{} holds some: name that one", other.id),
        None => {
            "Paths start at `.kg`: see those of its manifest; or choose another backup with `kg diag backup --list`"
                .into()
        }
    };
    Err(Error::invalid(
        format!("{} holds nothing of: {}", manifest.id, wanted.join(", ")),
        remedy,
    ))
}

fn write_manifest(staging: &Path, manifest: &Manifest) -> Result<()> {
    let path = staging.join(MANIFEST_ENTRY);
    fs::write(&path, manifest.to_json()).map_err(|cause| Error::io("write", &path, cause))
}

/// Where a restore unpacks. Whatever it made in the target is gone again unless the restore succeeded.
struct Staging {
    dir: Option<PrivateDir>,
    /// Directories that did not exist before, innermost first.
    made: Vec<PathBuf>,
    /// Of `dir`: while it is held, nobody takes that for left behind.
    lock: Option<File>,
}

impl Staging {
    fn prepare(target: &Path, dry_run: bool) -> Result<Self> {
        let state = target.join(STATE_DIR);
        if target
            .components()
            .any(|part| part.as_os_str() == STATE_DIR)
        {
            return Err(Error::new(
                Code::TargetInvalid,
                format!("{} lies in the state of a project", target.display()),
                format!("Name the directory that holds {STATE_DIR}, not a part of it"),
            ));
        }
        for dir in [target, &state] {
            if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
                return Err(Error::new(
                    Code::TargetInvalid,
                    format!("{} is a file", dir.display()),
                    "Name a directory as the target of the restore",
                ));
            }
        }
        if dry_run {
            let dir = Some(PrivateDir::new(&std::env::temp_dir(), STAGING_PREFIX)?);
            return Ok(Staging {
                dir,
                made: Vec::new(),
                lock: None,
            });
        }
        let made: Vec<_> = state
            .ancestors()
            .take_while(|dir| !dir.exists())
            .map(Path::to_path_buf)
            .collect();
        // From here on a failure removes what was made.
        let mut staging = Staging {
            dir: None,
            made,
            lock: None,
        };
        atomic_file::create_dirs(&state).map_err(|cause| Error::io("create", &state, cause))?;
        staging
            .made
            .iter()
            .rev()
            .for_each(|made| ownership::inherit(made));
        while staging.lock.is_none() {
            let dir = PrivateDir::new(&state, STAGING_PREFIX)?;
            staging.lock = dir.lock()?;
            staging.dir = Some(dir);
        }
        Ok(staging)
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), |dir| dir.path())
    }

    /// Where it is written to: to the directory that was made, whatever has its name by now.
    fn held_path(&self) -> PathBuf {
        self.lock.as_ref().map_or_else(
            || self.path().to_path_buf(),
            |dir| held_path(dir, self.path()),
        )
    }

    /// An error that names files as they are called, and not by the descriptor.
    fn named(&self, error: Error) -> Error {
        let (held, path) = (self.held_path(), self.path());
        Error {
            message: error
                .message
                .replace(&*held.to_string_lossy(), &path.to_string_lossy()),
            ..error
        }
    }

    /// Removes it. After a restore that was carried out, a directory that stays is a warning.
    fn end(mut self, done: Result<RestoreResult>) -> Result<RestoreResult> {
        let Some(dir) = self.dir.take() else {
            return done;
        };
        let Ok(mut restored) = done else {
            return dir.end(done);
        };
        let left = dir.remove().err();
        restored
            .warnings
            .extend(left.map(|left| Warning::new(WarningCode::Store, left.to_string())));
        Ok(restored)
    }

    fn succeeded(&mut self) {
        self.made.clear();
    }

    /// Leaves everything to the next run.
    fn keep(&mut self) {
        self.made.clear();
        if let Some(dir) = self.dir.take() {
            dir.keep();
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.dir = None;
        self.lock = None;
        for dir in &self.made {
            // One that holds something by now is somebody else's.
            let _ = DirHandle::around(dir).map(|place| place.remove_dir());
        }
    }
}
