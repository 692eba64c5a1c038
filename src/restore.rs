//! The verb `restore`: brings a project, or a part of it, back from an archive.
//!
//! Everything is unpacked into a staging directory inside the target's `.kg/` (so that putting it into place is a rename
//! on one file system) and every byte of the archive is checked, before the reader touches a file of the project.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use tempfile::TempDir;

use crate::{
    archive::{
        manifest::{MANIFEST_ENTRY, Manifest},
        read::{Unpack, read_archive},
    },
    durable::{self, PARTIAL_PREFIX},
    error::{Code, Error, Result, Warning},
    lock,
    project::{Component, STAGING_PREFIX, STATE_DIR, discover::component_of_entry},
    reader::{
        client::{Launch, Reader},
        journal,
        protocol::ApplyRequest,
    },
    store::{Store, manifest_beside},
    task::{Phase, Task},
    verify::duration_ms,
};

#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The project's root to restore into; made where it does not exist.
    pub target: PathBuf,
    /// `None` for everything that the backup holds.
    pub only: Option<Vec<Component>>,
    /// Replace files that exist, keeping what they were.
    pub overwrite: bool,
    /// Check everything and say what would happen, without changing anything.
    pub dry_run: bool,
    /// How long to wait for another restore into the target, and for a lock on a database.
    pub lock_timeout: Duration,
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
}

/// Restores the backup that `reference` means (a path, an id, `latest`).
pub fn restore(
    store: &Store,
    reference: &str,
    launch: &Launch,
    options: &RestoreOptions,
    task: &Task,
) -> Result<RestoreResult> {
    let began = Instant::now();
    let archive = store.locate(reference)?;
    let target = std::path::absolute(&options.target).map_err(|cause| Error::io("resolve", &options.target, cause))?;
    let mut staging = Staging::prepare(&target, options, task)?;
    let mut unpacking = Unpacking { dir: staging.path(), options, current: None };
    let beside = manifest_beside(&archive);
    let report = read_archive(&archive, beside.as_deref(), &mut unpacking, task, Phase::Unpacking)?;
    let manifest = report.into_manifest(&archive)?;
    // No descriptor of a file that becomes part of the live project may be open here when it does.
    drop(unpacking);
    assert_holds(&manifest, options)?;
    write_manifest(staging.path(), &manifest)?;
    task.report(Phase::Applying, 0, 0)?;
    // From here on it is carried to its end, or taken back.
    task.cancel.protect();
    let applied = Reader::apply(
        launch,
        ApplyRequest {
            target: target.clone(),
            staging: staging.path().to_path_buf(),
            only: options.only.clone(),
            overwrite: options.overwrite,
            dry_run: options.dry_run,
            lock_timeout_ms: options.lock_timeout.as_millis() as u64,
        },
    )?;
    staging.succeeded();
    Ok(RestoreResult {
        id: manifest.id,
        backup_path: archive,
        target_dir: target,
        dry_run: options.dry_run,
        files_restored: applied.files_restored,
        bytes_restored: applied.bytes_restored,
        files_replaced: applied.files_replaced,
        safety_copy: applied.safety_copy,
        warnings: applied.warnings,
        duration_ms: duration_ms(began.elapsed()),
    })
}

fn assert_holds(manifest: &Manifest, options: &RestoreOptions) -> Result<()> {
    let Some(only) = &options.only else { return Ok(()) };
    if manifest.files.iter().any(|record| only.contains(&record.component)) {
        return Ok(());
    }
    let wanted: Vec<String> = only.iter().map(|component| format!("{component:?}").to_lowercase()).collect();
    Err(Error::invalid(
        format!("{} holds nothing of: {}", manifest.id, wanted.join(", ")),
        "Restore another part, or choose another backup with `kg diag backup --list`",
    ))
}

fn write_manifest(staging: &Path, manifest: &Manifest) -> Result<()> {
    let path = staging.join(MANIFEST_ENTRY);
    fs::write(&path, manifest.to_json()).map_err(|cause| Error::io("write", &path, cause))
}

/// Where a restore unpacks. Whatever it made in the target is gone again unless the restore succeeded.
struct Staging {
    dir: Option<TempDir>,
    /// Directories that did not exist before, innermost first.
    made: Vec<PathBuf>,
    /// Of the target's state directory, which is locked while this restore runs; none in a dry run.
    _lock: Option<File>,
}

impl Staging {
    fn prepare(target: &Path, options: &RestoreOptions, task: &Task) -> Result<Self> {
        let state = target.join(STATE_DIR);
        for dir in [target, &state] {
            if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
                return Err(Error::new(
                    Code::TargetInvalid,
                    format!("{} is a file", dir.display()),
                    "Name a directory as the target of the restore",
                ));
            }
        }
        if options.dry_run {
            return Ok(Staging { dir: Some(staging_dir(&std::env::temp_dir())?), made: Vec::new(), _lock: None });
        }
        let made: Vec<_> = state.ancestors().take_while(|dir| !dir.exists()).map(Path::to_path_buf).collect();
        // From here on a failure removes what was made.
        let mut staging = Staging { dir: None, made, _lock: None };
        durable::create_dirs(&state).map_err(|cause| Error::io("create", &state, cause))?;
        staging._lock = Some(lock_target(&state, options.lock_timeout, task)?);
        clear(&state, options.lock_timeout, task)?;
        staging.dir = Some(staging_dir(&state)?);
        Ok(staging)
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), |dir| dir.path())
    }

    fn succeeded(&mut self) {
        self.made.clear();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.dir = None;
        for dir in &self.made {
            // One that holds something by now is somebody else's.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A directory that only this user may enter.
fn staging_dir(parent: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(STAGING_PREFIX)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|cause| Error::io("create a directory in", parent, cause))
}

/// Locks the directory itself, which leaves no file behind: one restore a target.
fn lock_target(state: &Path, timeout: Duration, task: &Task) -> Result<File> {
    let failed = |cause| Error::io("lock", state, cause);
    let dir = File::open(state).map_err(failed)?;
    if lock::wait(&dir, timeout, task, failed)? {
        return Ok(dir);
    }
    Err(Error::new(
        Code::TargetLocked,
        format!("Another restore into {} is running", state.display()),
        "Wait until it ends, or raise `lockTimeout`",
    ))
}

/// Takes back what an interrupted restore had begun, if there was one.
pub fn recover(state: &Path, lock_timeout: Duration, task: &Task) -> Result<()> {
    if !journal::is_pending(state) {
        return Ok(());
    }
    let _lock = lock_target(state, lock_timeout, task)?;
    clear(state, lock_timeout, task)
}

/// Takes back and removes what killed restores left; the target is locked. A reader that outlived its host is waited for.
fn clear(state: &Path, timeout: Duration, task: &Task) -> Result<()> {
    let entries = fs::read_dir(state).map_err(|cause| Error::io("read", state, cause))?;
    let left: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(STAGING_PREFIX) || name.starts_with(PARTIAL_PREFIX)
        })
        .map(|entry| entry.path())
        .collect();
    let (dirs, files): (Vec<_>, Vec<_>) = left.iter().partition(|path| path.is_dir());
    let _none_at_work: Vec<File> = dirs.iter().map(|dir| lock_target(dir, timeout, task)).collect::<Result<_>>()?;
    journal::recover(state)?;
    for dir in dirs {
        fs::remove_dir_all(dir).map_err(|cause| Error::io("remove", dir, cause))?;
    }
    files.into_iter().try_for_each(|file| durable::remove(file))
}

/// Writes each wanted entry into a file that is called by its number: no name from an archive is used as a path here. The
/// reader syncs those that it moves into place.
struct Unpacking<'a> {
    dir: &'a Path,
    options: &'a RestoreOptions,
    current: Option<File>,
}

impl Unpack for Unpacking<'_> {
    fn entry(&mut self, number: usize, name: &str, _size_bytes: u64) -> Result<Option<&mut dyn Write>> {
        let wanted = match &self.options.only {
            Some(only) => component_of_entry(name).is_some_and(|component| only.contains(&component)),
            None => true,
        };
        if self.options.dry_run || !wanted {
            return Ok(None);
        }
        let path = self.dir.join(number.to_string());
        let file = File::create_new(&path).map_err(|cause| Error::io("write", &path, cause))?;
        Ok(Some(self.current.insert(file)))
    }
}
