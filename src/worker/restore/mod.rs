//! Applies an unpacked, checked backup to a project, or puts back the files that a restore
//! replaced.
//!
//! ```text
//! manifest or record ─▶ destinations ─▶ existing files ─▶ all changes, or none
//!                       [`placement`]   [`plan`]          [`transaction`], [`journal`]
//! ```
//!
//! The restore first checks everything that could refuse it, such as files that it would replace
//! and databases that are in use. Then it moves every file in the way to a directory that keeps it
//! ([`undo`]) and moves the new file in. It follows no link on any path ([`target`]).
//!
//! The restore does not move a sound database. The database gets its new content through SQLite, as
//! the last step, so that processes that have it open see the new content. A damaged database is
//! replaced together with its companions. No WAL, index or journal of the old database remains next
//! to the new one.
//!
//! A failure puts everything back. A kill at any instant leaves a journal. With it, the next
//! restore or backup of the project rolls everything back or completes it ([`recovery`]). The
//! result is either the old state or the state of the backup.
//!
//! A repair that salvages a damaged database replaces the database in the same way ([`salvage`]).

mod case_folding;
mod file_steps;
pub mod journal;
mod placement;
mod plan;
pub mod record;
mod recovery;
mod roll_back;
pub mod salvage;
mod target;
mod transaction;
pub mod undo;

use std::{
    collections::HashSet,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use nix::fcntl::OFlag;

use self::{
    file_steps::read_only_dirs,
    placement::Placements,
    plan::{Conditions, Plan, plan},
    record::Record,
    recovery::{Recovered, recover},
    target::Target,
    transaction::carry_out,
};
use super::protocol::{Applied, ApplyRequest, RecoverRequest, UndoRequest, Undone};
use crate::{
    archive::{
        filter::EntryFilter,
        manifest::{EntryKind, MANIFEST_ENTRY, Manifest},
    },
    config::Settings,
    error::{Code, Error, Result, Warning, WarningCode},
    project::{CONFIG_FILE, STAGING_PREFIX, STATE_DIR, UNDO_DIR, exclude, names},
    sqlite::files::names_super_journal,
    system::holders,
    util::{
        atomic_file::{self, PARTIAL_PREFIX},
        dir_handle::DirHandle,
        file_lock,
        operation::{CancelToken, OperationContext},
        temp_dir::remove_tree,
        unsupported,
    },
};

/// The number of paths that a message names.
const NAMED_PATHS: usize = 3;

pub fn apply(request: &ApplyRequest) -> Result<Applied> {
    let root = &request.target;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let mut warnings = Vec::new();
    let _lock = if request.dry_run {
        None
    } else {
        Some(lock_and_recover(root, lock_timeout, &mut warnings)?)
    };
    let mut target = Target::open(root)?;
    let staged_in = request.staging.file_name().unwrap_or_default();
    // A dry run unpacks nothing, and its staging directory lies outside the project.
    let staging = if request.dry_run {
        request.staging.clone()
    } else {
        target.hold(staged_in)?
    };
    let manifest = read_manifest(&staging, &request.staging)?;
    let picked = EntryFilter::new(
        &request.target,
        request.only.clone(),
        request.paths.as_deref(),
    )?
    .select(&manifest);
    let placements = placement::of_backup(
        &mut target,
        root,
        &staging,
        staged_in,
        &manifest,
        &picked,
        &mut warnings,
    )?;
    let taken = plan::taken(&target, &placements)?;
    if !taken.is_empty() && !request.overwrite {
        return Err(target_exists(&target, &taken));
    }
    let undo_dir = undo::free_dir(root)?;
    let conditions = Conditions {
        undo_dir: &undo_dir,
        force: request.force,
        dry_run: request.dry_run,
        lock_timeout,
    };
    let plan = plan(&target, &placements, &conditions)?;
    let sizes = placements
        .files
        .iter()
        .filter_map(|placement| placement.record);
    let mut applied = Applied {
        files_restored: placements.files.len() as u64,
        bytes_restored: sizes.map(|record| record.size).sum(),
        files_replaced: taken.len() as u64,
        safety_copy: None,
        warnings,
    };
    if request.dry_run {
        return Ok(applied);
    }
    applied
        .warnings
        .extend(changed_settings(&target, &placements)?);
    assert_no_super_journal(&target, &placements)?;
    dress(&target, &placements, &plan)?;
    // After a restore into an empty project, there is nothing to put back.
    let can_undo = holds_something(&root.join(STATE_DIR)) || plan.keeps_in(&undo_dir);
    if can_undo && applied.files_replaced > 0 {
        applied.safety_copy = Some(root.join(&undo_dir));
    }
    let undo = can_undo.then_some((undo_dir, manifest.id));
    applied.warnings.extend(change(
        &target,
        root,
        plan,
        undo,
        None,
        Some(&request.staging),
        lock_timeout,
    )?);
    Ok(applied)
}

/// Returns a warning that names the backup settings that the restored configuration changes, or
/// that says that the previous settings could not be read.
fn changed_settings(target: &Target, placements: &Placements<'_>) -> Result<Option<Warning>> {
    let config = format!("{STATE_DIR}/{CONFIG_FILE}");
    let Some(placement) = placements
        .files
        .iter()
        .find(|placement| placement.to == config)
    else {
        return Ok(None);
    };
    let read = |location: &str| {
        Ok::<_, Error>(Settings::read_at(
            &target.existing(location)?.path(),
            &mut |_| {},
        ))
    };
    let (true, Some(from)) = (target.is_taken(&config)?, &placement.from) else {
        return Ok(None);
    };
    let (before, after) = (read(&config)?, read(from)?);
    let warn = |message| {
        Ok(Some(Warning::about(
            WarningCode::SettingsChanged,
            &config,
            message,
        )))
    };
    if before.are_unusable() {
        return warn(format!(
            "The backup settings in the replaced {config} could not be read, so some may have been \
             lost: check the current settings with `kg config show`"
        ));
    }
    let changes = before.changes(&after);
    if changes.is_empty() {
        return Ok(None);
    }
    let had_schedule = before.without_schedule().is_empty() && !after.without_schedule().is_empty();
    let ends = if had_schedule {
        ". Scheduled backups are now off"
    } else {
        ""
    };
    warn(format!(
        "The restore changed backup settings: {}{ends}. Set them again with `kg config set`",
        changes.join(", ")
    ))
}

/// Puts back the files that the newest restore replaced and removes the files that it added. Keeps
/// the current files in turn.
pub fn undo(request: &UndoRequest) -> Result<Undone> {
    let root = &request.target;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let mut warnings = Vec::new();
    let _lock = if request.dry_run {
        None
    } else {
        Some(lock_and_recover(root, lock_timeout, &mut warnings)?)
    };
    let (dir, record) = undo::newest(root, request.earlier)?;
    let mut target = Target::open(root)?;
    if let Some(outside) = &record.outside {
        placement::assert_not_of_another(root, outside)?;
    }
    target.allow(record.outside.clone());
    let placements = placement::of_undo(&dir, &record);
    assert_kept(&target, &dir, &placements)?;
    let undo_dir = undo::free_dir(root)?;
    let conditions = Conditions {
        undo_dir: &undo_dir,
        force: request.force,
        dry_run: request.dry_run,
        lock_timeout,
    };
    let plan = plan(&target, &placements, &conditions)?;
    let put_back = placements
        .files
        .iter()
        .filter(|placement| placement.from.is_some())
        .count() as u64;
    let applied = Applied {
        files_restored: put_back,
        bytes_restored: 0,
        files_replaced: plan::taken(&target, &placements)?.len() as u64,
        safety_copy: (!request.dry_run).then(|| root.join(&undo_dir)),
        warnings,
    };
    let files_removed = placements.files.len() as u64 - put_back;
    let mut undone = Undone {
        of: record.of.clone(),
        at: record.at,
        files_removed,
        applied,
    };
    if !request.dry_run {
        undone
            .applied
            .warnings
            .extend(changed_settings(&target, &placements)?);
        let undo = Some((undo_dir, record.of.clone()));
        undone.applied.warnings.extend(change(
            &target,
            root,
            plan,
            undo,
            Some((dir, record)),
            None,
            lock_timeout,
        )?);
    }
    Ok(undone)
}

/// Recovers killed restores and removes what they unpacked. Also removes replaced files that are
/// older than the retention of undos.
pub fn tidy(request: &RecoverRequest) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    let root = &request.target;
    let _lock = lock_and_recover(
        root,
        Duration::from_millis(request.lock_timeout_ms),
        &mut warnings,
    )?;
    let state = root.join(STATE_DIR);
    for name in undo::expired(&state, request.undo_retention_days)? {
        let dir = state.join(UNDO_DIR).join(name);
        if let Err(cause) = remove_tree(&dir) {
            let error = Error::io("remove", &dir, cause);
            warnings.push(Warning::new(
                WarningCode::Store,
                format!(
                    "{}: it is older than the retention of replaced files",
                    error.message
                ),
            ));
        }
    }
    // A directory that is not empty stays.
    let _ = DirHandle::around(&state.join(UNDO_DIR)).map(|place| place.remove_dir());
    Ok(warnings)
}

/// Returns whether [`tidy`] has anything to do. A host may call this function because it opens no
/// file of the project, only directories.
pub fn is_untidy(state: &Path, undo_retention_days: u32) -> Result<bool> {
    Ok(journal::is_pending(state)
        || !left_behind(state)?.is_empty()
        || !undo::expired(state, undo_retention_days)?.is_empty())
}

/// Locks the directory itself, which leaves no lock file. Only one process at a time changes a
/// target. `KG_TARGET_LOCKED` if the lock is not available in time.
pub fn lock_target(state: &Path, timeout: Duration, context: &OperationContext) -> Result<File> {
    let failed = |cause| Error::io("lock", state, cause);
    let dir = File::from(DirHandle::open(state).map_err(failed)?);
    if file_lock::wait(&dir, timeout, context, failed)? {
        return Ok(dir);
    }
    Err(locked(
        state,
        "a restore into it or a backup of it is running",
    ))
}

/// Keeps restores out while a project is read, because a mix of old and new files is not a
/// consistent state. `KG_TARGET_LOCKED` if the lock is not available in time.
pub fn lock_against_restores(
    state: &Path,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<File> {
    let failed = |cause| Error::io("lock", state, cause);
    let dir = File::from(DirHandle::open(state).map_err(failed)?);
    if file_lock::wait_shared(
        &dir,
        timeout,
        &OperationContext::new(cancel.clone(), None),
        failed,
    )? {
        return Ok(dir);
    }
    Err(locked(state, "a restore into it is running"))
}

fn locked(state: &Path, who: &str) -> Error {
    let holder = fs::metadata(state)
        .ok()
        .and_then(|found| holders::of_flock(&found));
    let holder = holder.map_or(String::new(), |process| {
        format!(" ({})", holders::name(process))
    });
    let message = format!("{} is in use: {who}{holder}", state.display());
    Error::new(
        Code::TargetLocked,
        message,
        "Wait until it ends, or raise `lockTimeout` (`--lock-timeout`)",
    )
}

/// Locks the target and recovers killed restores.
pub fn lock_and_recover(
    root: &Path,
    lock_timeout: Duration,
    warnings: &mut Vec<Warning>,
) -> Result<File> {
    let state = root.join(STATE_DIR);
    let lock = lock_target(&state, lock_timeout, &OperationContext::default())?;
    if journal::is_pending(&state)
        && let Some(recovered) = recover(&mut Target::open(root)?, root, lock_timeout)?
    {
        let Recovered {
            completed,
            warnings: seen,
        } = recovered;
        let what = if completed {
            "completed"
        } else {
            "rolled back"
        };
        let message =
            format!("An earlier restore into this project was interrupted and has been {what}");
        warnings.push(Warning::new(WarningCode::Recovered, message));
        warnings.extend(seen);
    }
    left_behind(&state)?
        .iter()
        .try_for_each(remove_left_behind)?;
    Ok(lock)
}

/// Returns what killed restores left: temporary files, and directories that they unpacked into. A
/// running restore holds the lock of its directory. The returned handles lock the other
/// directories.
fn left_behind(state: &Path) -> Result<Vec<(PathBuf, Option<File>)>> {
    let entries = fs::read_dir(state).map_err(|cause| Error::io("read", state, cause))?;
    let left = entries.flatten().filter_map(|entry| {
        let (name, kind) = (entry.file_name(), entry.file_type().ok()?);
        let name = name.to_str()?;
        if kind.is_file() && name.starts_with(PARTIAL_PREFIX) {
            return Some((entry.path(), None));
        }
        let dir = (kind.is_dir() && name.starts_with(STAGING_PREFIX))
            .then(|| DirHandle::open(&entry.path()).ok())??;
        let dir = File::from(dir);
        dir.try_lock().ok()?;
        Some((entry.path(), Some(dir)))
    });
    Ok(left.collect())
}

fn remove_left_behind((path, lock): &(PathBuf, Option<File>)) -> Result<()> {
    match lock {
        Some(_) => remove_tree(path).map_err(|cause| Error::io("remove", path, cause)),
        None => atomic_file::remove(path),
    }
}

/// Returns whether the project contains anything that an undo could bring back.
fn holds_something(state: &Path) -> bool {
    let Ok(entries) = fs::read_dir(state) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        !entry
            .file_name()
            .to_str()
            .is_some_and(|name| exclude::is_of_restore(name, is_dir))
    })
}

/// Reads the manifest. Messages call the directory `known_as`.
fn read_manifest(staging: &Path, known_as: &Path) -> Result<Manifest> {
    let read = fs::read(staging.join(MANIFEST_ENTRY));
    let json = read.map_err(|cause| Error::io("read", &known_as.join(MANIFEST_ENTRY), cause))?;
    Manifest::parse(&json, "the backup")
}

fn target_exists(target: &Target, replaced: &[String]) -> Error {
    let named: Vec<String> = replaced
        .iter()
        .take(NAMED_PATHS)
        .map(|location| target.absolute(location).display().to_string())
        .collect();
    let more = replaced.len().saturating_sub(NAMED_PATHS);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Error::new(
        Code::TargetExists,
        format!("The restore would replace {}{more}", named.join(", ")),
        "Nothing was changed; allow it with `overwrite` (the replaced files are kept), or restore \
         into another directory",
    )
}

/// Refuses a journal that names other files, because SQLite would delete those files when it opens
/// the database.
fn assert_no_super_journal(target: &Target, placements: &Placements<'_>) -> Result<()> {
    for placement in placements
        .files
        .iter()
        .filter(|placement| placement.to.ends_with("-journal"))
    {
        let Some(from) = &placement.from else {
            continue;
        };
        let staged = target
            .place(from)?
            .map(|place| place.open(OFlag::O_RDONLY, 0));
        let Some(Ok(file)) = staged else { continue };
        if names_super_journal(&file)
            .map_err(|cause| Error::io("read", &target.absolute(from), cause))?
        {
            return Err(target::not_ours(
                &placement.to,
                "is a journal that names other files",
            ));
        }
    }
    Ok(())
}

/// Gives unpacked files the permissions and time of the originals, creates links, and syncs the
/// files to disk.
///
/// Owners are not restored. If the restore runs as root, a file gets the owner of the file that it
/// replaces, or else the owner of its destination directory.
///
/// This does not touch a database whose content goes into a live database, because SQLite writes to
/// that file too.
fn dress(target: &Target, placements: &Placements<'_>, plan: &Plan) -> Result<()> {
    let swapped: HashSet<&str> = plan
        .intent
        .swaps
        .iter()
        .map(|swapped| swapped.new.as_str())
        .collect();
    for placement in &placements.files {
        let (Some(from), Some(record)) = (&placement.from, placement.record) else {
            continue;
        };
        if swapped.contains(from.as_str()) {
            continue;
        }
        let staged = target
            .existing(from)?
            .known_as(target.absolute(&placement.to));
        // Opened before its mode is set, because the mode may deny access to this user.
        let file = if record.kind == EntryKind::Link {
            let made = staged.make_link(
                &record
                    .target
                    .as_deref()
                    .and_then(names::decode)
                    .unwrap_or_default(),
            );
            made.map_err(|cause| Error::io("create", &staged.path(), cause))?;
            None
        } else {
            let opened = staged.open(OFlag::O_WRONLY, 0);
            Some(opened.map_err(|cause| Error::io("open", &staged.path(), cause))?)
        };
        target
            .owner_of(&placement.to)?
            .map_or(Ok(()), |owner| staged.give_to(owner))?;
        let (seconds, nanoseconds) = placement::seconds_and_nanoseconds(record.mtime);
        staged.set_modified(seconds, nanoseconds)?;
        if let Some(file) = file {
            // A database is data, so it never gets execute permission, whatever its record says.
            let mode = if record.database {
                record.mode & 0o666
            } else {
                record.mode & 0o777
            };
            let permitted = staged.tolerate(file.set_permissions(Permissions::from_mode(mode)));
            permitted
                .map_err(|cause| Error::io("set the permissions of", &staged.path(), cause))?;
            unsupported::sync(&file, &staged.known_path())
                .map_err(|cause| Error::io("sync", &staged.path(), cause))?;
        }
    }
    Ok(())
}

/// Fails with `KG_NOTHING_TO_UNDO` if a kept file is missing. Then nothing of that restore is
/// undone.
fn assert_kept(target: &Target, dir: &str, placements: &Placements<'_>) -> Result<()> {
    for from in placements
        .files
        .iter()
        .filter_map(|placement| placement.from.as_ref())
    {
        if !target.is_taken(from)? {
            return Err(Error::new(
                Code::NothingToUndo,
                format!(
                    "{}, which the newest restore had replaced, no longer exists",
                    target.absolute(from).display()
                ),
                format!(
                    "Nothing was changed; move {} away to undo the restore before it",
                    target.absolute(dir).display()
                ),
            ));
        }
    }
    Ok(())
}

/// Carries out the plan. `undo` is the directory that keeps the replaced files, and the id for its
/// record. `undone` is the restore that an undo consumes.
fn change(
    target: &Target,
    root: &Path,
    plan: Plan,
    undo: Option<(String, String)>,
    undone: Option<(String, Record)>,
    staging: Option<&Path>,
    lock_timeout: Duration,
) -> Result<Vec<Warning>> {
    let made = plan.made_in_project();
    let mut intent = plan.intent;
    intent.outside = target.outside().map(Path::to_path_buf);
    intent.token = format!(
        "{}-{}",
        std::process::id(),
        Timestamp::now().as_nanosecond()
    );
    let staging = staging
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    intent.staging = staging.map(|name| format!("{STATE_DIR}/{name}/"));
    match undo {
        Some((dir, of)) => {
            let mut record = Record::new(of, plan.touched);
            record.made = made;
            record.undo = undone.as_ref().is_some_and(|(_, undone)| !undone.undo);
            record.taken = undone
                .as_ref()
                .map_or(Vec::new(), |(_, undone)| undone.made.clone());
            record.outside.clone_from(&intent.outside);
            intent.undo = Some((dir, record));
        }
        None => intent.made = made,
    }
    if let Some((dir, record)) = undone {
        intent.retired = Some(dir);
        intent.emptied = record.made.into_iter().map(|dir| dir.at).collect();
    }
    intent.opened = read_only_dirs(target, &intent)?;
    // The claims on databases that are replaced as files are held until here.
    let mut warnings =
        carry_out(target, root, intent, lock_timeout).inspect(|_| drop(plan.claims))?;
    let outside = target.outside().and_then(Path::parent).unwrap_or(root);
    warnings.extend(unsupported::warnings(&[root, outside]));
    Ok(warnings)
}
