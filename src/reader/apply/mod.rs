//! Puts an unpacked, checked backup into its place, or puts back what a restore replaced.
//!
//! ```text
//! manifest, or record of a restore ─▶ what goes where ─▶ what is in the way ─▶ all changes, or none
//!                                     [`place`]          [`plan`]             [`transaction`], [`journal`]
//! ```
//!
//! Everything that could refuse is asked first: where each file goes, whether something would be replaced, whether a
//! database is in use. Then every file that is in the way is moved to a directory that keeps it ([`undo`]), and the new one
//! is moved in. A sound database is not moved but gets its new content through SQLite, last, so that whoever has it open
//! sees it. A damaged one goes as a set: beside the new one there is no WAL, index or journal of the old. No path is
//! followed through a link ([`target`]).
//!
//! A failure half way puts everything back. A kill at any instant leaves a journal with which the next restore or backup of
//! the project takes everything back, or completes it: either the old state or the backup's.

mod folding;
pub mod journal;
mod place;
mod plan;
mod target;
mod transaction;
pub mod undo;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use self::{
    place::Placements,
    plan::{Conditions, Plan, plan},
    target::Target,
    transaction::{Recovered, carry_out, recover},
    undo::Record,
};
use super::protocol::{Applied, ApplyRequest, TidyRequest, UndoRequest, Undone};
use crate::{
    archive::{
        manifest::{EntryKind, MANIFEST_ENTRY, Manifest},
        pick::Pick,
    },
    durable::PARTIAL_PREFIX,
    error::{Code, Error, Result, Warning, WarningCode},
    lock,
    project::{STAGING_PREFIX, STATE_DIR, UNDO_DIR, exclude, names},
    task::Task,
};

/// How many paths a message names.
const NAMED_PATHS: usize = 3;

pub fn apply(request: &ApplyRequest) -> Result<Applied> {
    let root = &request.target;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let mut warnings = Vec::new();
    let _lock = if request.dry_run { None } else { Some(lock_and_recover(root, lock_timeout, &mut warnings)?) };
    let mut target = Target::open(root)?;
    let manifest = read_manifest(&request.staging)?;
    let picked = Pick::new(request.only.clone(), request.paths.as_deref())?.select(&manifest);
    let placements = place::of_backup(&mut target, root, &request.staging, &manifest, &picked, &mut warnings)?;
    let taken = plan::taken(&target, &placements)?;
    if !taken.is_empty() && !request.overwrite {
        return Err(target_exists(&target, &taken));
    }
    let undo_dir = undo::free_dir(root)?;
    let conditions = Conditions { undo_dir: &undo_dir, force: request.force, dry_run: request.dry_run, lock_timeout };
    let plan = plan(&target, &placements, &conditions)?;
    let sizes = placements.files.iter().filter_map(|placement| placement.record);
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
    dress(&target, &placements)?;
    // Of a restore into an empty place there is nothing to bring back.
    let can_undo = holds_something(&root.join(STATE_DIR)) || plan.keeps_in(&undo_dir);
    if can_undo && applied.files_replaced > 0 {
        applied.safety_copy = Some(root.join(&undo_dir));
    }
    change(&target, root, plan, can_undo.then_some((undo_dir, manifest.id)), None, lock_timeout)?;
    Ok(applied)
}

/// Puts back what the newest restore replaced, and takes away what it added. What is there now is kept in its turn.
pub fn undo(request: &UndoRequest) -> Result<Undone> {
    let root = &request.target;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let mut warnings = Vec::new();
    let _lock = if request.dry_run { None } else { Some(lock_and_recover(root, lock_timeout, &mut warnings)?) };
    let (dir, record) = undo::newest(root)?;
    let mut target = Target::open(root)?;
    target.allow(record.outside.clone());
    let placements = place::of_undo(&dir, &record);
    let undo_dir = undo::free_dir(root)?;
    let conditions = Conditions { undo_dir: &undo_dir, force: request.force, dry_run: request.dry_run, lock_timeout };
    let plan = plan(&target, &placements, &conditions)?;
    let put_back = placements.files.iter().filter(|placement| placement.from.is_some()).count() as u64;
    let applied = Applied {
        files_restored: put_back,
        bytes_restored: 0,
        files_replaced: plan::taken(&target, &placements)?.len() as u64,
        safety_copy: (!request.dry_run).then(|| root.join(&undo_dir)),
        warnings,
    };
    let files_removed = placements.files.len() as u64 - put_back;
    let undone = Undone { of: record.of.clone(), at: record.at, files_removed, applied };
    if !request.dry_run {
        change(&target, root, plan, Some((undo_dir, record.of.clone())), Some((dir, record)), lock_timeout)?;
    }
    Ok(undone)
}

/// Makes whole what killed restores left, removes what they unpacked, and what was kept for too long.
pub fn tidy(request: &TidyRequest) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    let root = &request.target;
    let _lock = lock_and_recover(root, Duration::from_millis(request.lock_timeout_ms), &mut warnings)?;
    let state = root.join(STATE_DIR);
    for name in undo::expired(&state, request.undo_retention_days)? {
        let dir = state.join(UNDO_DIR).join(name);
        fs::remove_dir_all(&dir).map_err(|cause| Error::io("remove", &dir, cause))?;
    }
    // Stays where something is in it.
    let _ = fs::remove_dir(state.join(UNDO_DIR));
    Ok(warnings)
}

/// Whether there is something for [`tidy`] to do. Asks for paths only, so a host may call it.
pub fn is_untidy(state: &Path, undo_retention_days: u32) -> Result<bool> {
    Ok(journal::is_pending(state)
        || !left_behind(state)?.is_empty()
        || !undo::expired(state, undo_retention_days)?.is_empty())
}

/// Locks the directory itself, which leaves no file behind: one process at a time changes a target.
pub fn lock_target(state: &Path, timeout: Duration, task: &Task) -> Result<File> {
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

fn lock_and_recover(root: &Path, lock_timeout: Duration, warnings: &mut Vec<Warning>) -> Result<File> {
    let state = root.join(STATE_DIR);
    let lock = lock_target(&state, lock_timeout, &Task::default())?;
    if journal::is_pending(&state)
        && let Some(recovered) = recover(&mut Target::open(root)?, root, lock_timeout)?
    {
        let what = match recovered {
            Recovered::TakenBack => "had been interrupted and was taken back",
            Recovered::Completed => "had been interrupted and was completed",
        };
        warnings.push(Warning::new(WarningCode::Recovered, format!("An earlier restore into this project {what}")));
    }
    for path in left_behind(&state)? {
        remove_left_behind(&path)?;
    }
    Ok(lock)
}

/// What killed restores unpacked into, and temporary files. A directory in which a restore is at work is locked by that.
fn left_behind(state: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(state).map_err(|cause| Error::io("read", state, cause))?;
    let paths = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        let is_staging = name.to_str().is_some_and(|name| name.starts_with(STAGING_PREFIX));
        let is_partial = name.to_str().is_some_and(|name| name.starts_with(PARTIAL_PREFIX));
        is_partial || is_staging && File::open(entry.path()).is_ok_and(|dir| dir.try_lock().is_ok())
    });
    Ok(paths.map(|entry| entry.path()).collect())
}

fn remove_left_behind(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, cause)),
        _ => Ok(()),
    }
}

/// Whether there is a project that an undo could bring back, rather than nothing.
fn holds_something(state: &Path) -> bool {
    let Ok(entries) = fs::read_dir(state) else { return false };
    entries.flatten().any(|entry| !entry.file_name().to_str().is_some_and(exclude::is_of_restore))
}

fn read_manifest(staging: &Path) -> Result<Manifest> {
    let path = staging.join(MANIFEST_ENTRY);
    let json = fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
    Manifest::parse(&json, "the backup")
}

fn target_exists(target: &Target, replaced: &[String]) -> Error {
    let named: Vec<String> =
        replaced.iter().take(NAMED_PATHS).map(|location| target.absolute(location).display().to_string()).collect();
    let more = replaced.len().saturating_sub(NAMED_PATHS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::new(
        Code::TargetExists,
        format!("The restore would replace {}{more}", named.join(", ")),
        "Nothing was changed; allow it with `overwrite` (what is replaced is kept), or restore into another directory",
    )
}

/// Gives what was unpacked the permissions and the time of the original, makes links, and writes that to the disk.
///
/// Owners are not restored; but root gives a file to whoever owns what it replaces, or else the project.
fn dress(target: &Target, placements: &Placements<'_>) -> Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    let owner_of = |location: &str| -> Result<_> { target.place(location)?.map_or(Ok(None), |place| place.stat()) };
    let project = owner_of(STATE_DIR)?;
    for placement in &placements.files {
        let (Some(from), Some(record)) = (&placement.from, placement.record) else { continue };
        let staged = target.existing(from)?;
        if record.kind == EntryKind::Link {
            let to = record.target.as_deref().and_then(names::decode).unwrap_or_default();
            staged.make_link(&to)?;
        } else {
            staged.set_mode(record.mode)?;
        }
        if let Some(owner) = owner_of(&placement.to)?.or(project).filter(|_| is_root) {
            staged.set_owner(owner.st_uid, owner.st_gid)?;
        }
        staged.set_modified(record.mtime.as_second(), record.mtime.subsec_nanosecond().into())?;
        if record.kind.is_file() {
            let path = staged.path();
            let synced = staged.open(nix::fcntl::OFlag::O_WRONLY, 0).and_then(|file| file.sync_all());
            synced.map_err(|cause| Error::io("sync", &path, cause))?;
        }
    }
    Ok(())
}

/// Carries the plan out. `undo` is where what it replaces is kept, and what that is of; `undone` what an undo uses up.
fn change(
    target: &Target,
    root: &Path,
    plan: Plan,
    undo: Option<(String, String)>,
    undone: Option<(String, Record)>,
    lock_timeout: Duration,
) -> Result<()> {
    let made = plan.made_in_project();
    let outside = target.outside().map(Path::to_path_buf);
    let mut intent = plan.intent;
    match undo {
        Some((dir, of)) => intent.undo = Some((dir, Record::new(of, plan.touched, made, outside.clone()))),
        None => intent.made.retain(|dir| made.contains(&dir.at)),
    }
    if let Some((dir, record)) = undone {
        intent.retired = Some(dir);
        intent.emptied = record.made;
    }
    intent.outside = outside;
    // The claims on databases that are replaced as files are held until here.
    carry_out(target, root, intent, lock_timeout).map(|()| drop(plan.claims))
}
