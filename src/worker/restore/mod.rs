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

mod attributes;
mod case_folding;
mod description;
mod file_steps;
pub mod journal;
mod json_list;
mod leftovers;
mod lock;
mod placement;
mod plan;
pub mod record;
mod recovery;
mod roll_back;
pub mod salvage;
mod settings;
mod target;
mod texts;
mod transaction;
pub mod undo;

use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;

use self::{
    attributes::set_attributes,
    description::Description,
    file_steps::read_only_dirs,
    placement::{Placement, Placements},
    plan::{Conditions, Plan, Taken, plan},
    record::Record,
    settings::{Change as SettingsOf, Configurations},
    target::Target,
    transaction::carry_out,
};
pub use self::{
    leftovers::{needs_recovery, recover_interrupted},
    lock::{lock_against_restores, lock_and_recover, lock_target},
};
use super::protocol::{Applied, ApplyRequest, UndoRequest, Undone};
use crate::{
    archive::{filter::EntryFilter, manifest::Manifest},
    error::{Code, Error, Result, Warning, WarningCode},
    project::{Component, Project, STATE_DIR, exclude, identity::Identity},
    sqlite::files::names_super_journal,
    util::{dir_handle::Access, unsupported},
};

/// The number of paths that a message names.
const NAMED_PATHS: usize = 3;

/// A project while a restore or an undo changes it.
struct Session<'a> {
    root: &'a Path,
    force: bool,
    dry_run: bool,
    lock_timeout: Duration,
    /// Absent in a dry run, which changes nothing.
    _lock: Option<File>,
}

impl<'a> Session<'a> {
    /// Locks the project and recovers killed restores, unless this is a dry run.
    fn begin(
        root: &'a Path,
        force: bool,
        dry_run: bool,
        lock_timeout_ms: u64,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self> {
        let lock_timeout = Duration::from_millis(lock_timeout_ms);
        let lock = if dry_run {
            None
        } else {
            Some(lock_and_recover(root, lock_timeout, warnings)?)
        };
        Ok(Session {
            root,
            force,
            dry_run,
            lock_timeout,
            _lock: lock,
        })
    }

    /// Plans the changes. Returns the location of the directory that will keep the replaced files,
    /// and the plan.
    fn plan(&self, target: &Target, placements: &Placements) -> Result<(String, Plan)> {
        let undo_dir = undo::free_dir(self.root)?;
        let conditions = Conditions {
            undo_dir: &undo_dir,
            force: self.force,
            dry_run: self.dry_run,
            lock_timeout: self.lock_timeout,
        };
        let plan = target.while_no_directory_is_made(|| plan(target, placements, &conditions))?;
        Ok((undo_dir, plan))
    }
}

/// Restores the unpacked files into the project.
pub fn apply(request: &ApplyRequest) -> Result<Applied> {
    let root = &request.target;
    let mut warnings = Vec::new();
    let session = Session::begin(
        root,
        request.force,
        request.dry_run,
        request.lock_timeout_ms,
        &mut warnings,
    )?;
    let mut target = Target::open(root)?;
    let staged_in = request.staging.file_name().unwrap_or_default();
    // A dry run unpacks nothing, and its staging directory lies outside the project.
    let staging = if request.dry_run {
        request.staging.clone()
    } else {
        target.hold(staged_in)?
    };
    let description = Description::read(&staging, &request.staging)?;
    let filter = EntryFilter::new(
        &request.target,
        request.only.clone(),
        request.paths.as_deref(),
    )?;
    let placements = placement::of_backup(
        &mut target,
        root,
        &staging,
        staged_in,
        &description,
        &filter,
        &mut warnings,
    )?;
    let configurations = Configurations::of_backup(&target, &placements, &staging)?;
    let taken = target.while_no_directory_is_made(|| plan::taken(&target, &placements))?;
    if taken.count > 0 && !request.overwrite {
        return Err(target_exists(&target, &taken));
    }
    if request.keep_settings {
        match &configurations {
            Some(configurations) => configurations.keep_settings()?,
            None => warnings.extend(settings::nothing_to_keep(&target, &placements)?),
        }
    }
    let (undo_dir, plan) = session.plan(&target, &placements)?;
    let mut applied = Applied {
        files_restored: placements.count() as u64,
        bytes_restored: placements.size_bytes,
        files_replaced: taken.count,
        safety_copy: None,
        can_undo: false,
        settings_changed: Vec::new(),
        warnings,
    };
    if let Some(configurations) = &configurations {
        applied.settings(configurations.changes(SettingsOf::Restore, request.dry_run));
    }
    if request.dry_run {
        return Ok(applied);
    }
    assert_no_super_journal(&target, &placements)?;
    set_attributes(&target, &placements, &plan)?;
    let is_new = !has_database(&target, &placements)?;
    drop(placements);
    // After a restore into an empty project, there is nothing to put back.
    let can_undo = holds_something(&root.join(STATE_DIR)) || plan.keeps_any();
    applied.can_undo = can_undo;
    if can_undo && applied.files_replaced > 0 {
        applied.safety_copy = Some(root.join(&undo_dir));
    }
    let brought_id = brought_id(request, is_new, &description.manifest);
    let undo = can_undo.then_some((undo_dir, description.manifest.id));
    let change = Change {
        keeps: undo,
        brought_id: brought_id.clone(),
        undoes: None,
        staging: Some(&request.staging),
    };
    let warnings = change.carry_out(&target, root, plan, session.lock_timeout)?;
    applied.warnings.extend(warnings);
    if let Some(id) = brought_id {
        applied.warnings.extend(take_over_id(root, &id));
    }
    applied.warnings.extend(unsupported_there(&target, root));
    Ok(applied)
}

/// Returns whether a database is replaced, so that the target is a project of its own already.
fn has_database(target: &Target, placements: &Placements) -> Result<bool> {
    for placement in placements.files().filter(Placement::is_database) {
        if target.is_taken(placement.to())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the id that the restore gives the project, so that its next backups continue the earlier
/// ones. A project gets one if it becomes that of the backup: it gets the database, and had neither a
/// database nor an id.
fn brought_id(request: &ApplyRequest, is_new: bool, manifest: &Manifest) -> Option<String> {
    let has_database = |only: &Vec<Component>| only.contains(&Component::Database);
    let gets_database = request.paths.is_none() && request.only.as_ref().is_none_or(has_database);
    let origin = manifest.origin().filter(|origin| !origin.is_by_path())?;
    let is_free = is_new && gets_database && Identity::at(&request.target).is_unidentified();
    is_free.then_some(origin.project)
}

fn take_over_id(root: &Path, id: &str) -> Option<Warning> {
    let project = Project::open(root).ok()?;
    let error = Identity::adopt(&project, id).err()?;
    let message = format!(
        "The restored project did not get its id, so its next backups do not continue the earlier \
         ones: {}",
        error.message
    );
    Some(Warning::new(WarningCode::ProjectId, message))
}

/// Removes the id that a restore had brought, if it is still that one.
fn take_back_id(root: &Path, id: &str) -> Option<Warning> {
    let project = Project::open(root).ok()?;
    let error = Identity::forget(&project, id).err()?;
    let message = format!(
        "The project still has the id of the backup that was restored: {}. Remove \
         .kg/backup-project-id",
        error.message
    );
    Some(Warning::new(WarningCode::ProjectId, message))
}

/// Puts back the files that the newest restore replaced and removes the files that it added. Keeps
/// the current files in turn.
pub fn undo(request: &UndoRequest) -> Result<Undone> {
    let root = &request.target;
    let mut warnings = Vec::new();
    let session = Session::begin(
        root,
        request.force,
        request.dry_run,
        request.lock_timeout_ms,
        &mut warnings,
    )?;
    let (dir, mut record) = undo::newest(root, request.earlier)?;
    let mut target = Target::open(root)?;
    if let Some(outside) = &record.outside {
        placement::assert_not_of_another(root, outside)?;
    }
    target.allow(record.outside.clone());
    let brought_id = record.brought_id.clone();
    let files = std::mem::take(&mut record.files);
    let placements = placement::of_undo(&dir, files, &record.taken)?;
    assert_kept(&target, &dir, &placements)?;
    let (undo_dir, plan) = session.plan(&target, &placements)?;
    let put_back = placements.files().filter(Placement::has_new).count() as u64;
    let applied = Applied {
        files_restored: put_back,
        bytes_restored: 0,
        files_replaced: plan::taken(&target, &placements)?.count,
        safety_copy: (!request.dry_run).then(|| root.join(&undo_dir)),
        can_undo: !request.dry_run,
        settings_changed: Vec::new(),
        warnings,
    };
    let files_removed = placements.count() as u64 - put_back;
    let mut undone = Undone {
        of: record.of.clone(),
        at: record.at,
        files_removed,
        applied,
    };
    if let Some(configurations) = Configurations::of_undo(&target, &placements)? {
        let changes = configurations.changes(SettingsOf::Undo, request.dry_run);
        undone.applied.settings(changes);
    }
    if !request.dry_run {
        let change = Change {
            keeps: Some((undo_dir, record.of.clone())),
            brought_id: None,
            undoes: Some((dir, record)),
            staging: None,
        };
        let warnings = change.carry_out(&target, root, plan, session.lock_timeout)?;
        undone.applied.warnings.extend(warnings);
        if let Some(id) = brought_id {
            undone.applied.warnings.extend(take_back_id(root, &id));
        }
        let refused = unsupported_there(&target, root);
        undone.applied.warnings.extend(refused);
    }
    Ok(undone)
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

fn target_exists(target: &Target, taken: &Taken) -> Error {
    let named: Vec<String> = taken
        .first
        .iter()
        .map(|location| target.absolute(location).display().to_string())
        .collect();
    let more = taken.count.saturating_sub(named.len() as u64);
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
fn assert_no_super_journal(target: &Target, placements: &Placements) -> Result<()> {
    for placement in placements
        .files()
        .filter(|placement| placement.to().ends_with("-journal"))
    {
        let Some(from) = placement.from() else {
            continue;
        };
        let staged = target.place(&from)?.map(|place| place.open(Access::Read));
        let Some(Ok(file)) = staged else { continue };
        if names_super_journal(&file)
            .map_err(|cause| Error::io("read", &target.absolute(&from), cause))?
        {
            return Err(target::not_ours(
                placement.to(),
                "is a journal that names other files",
            ));
        }
    }
    Ok(())
}

/// Fails with `KG_NOTHING_TO_UNDO` if a kept file is missing. Then nothing of that restore is
/// undone.
fn assert_kept(target: &Target, dir: &str, placements: &Placements) -> Result<()> {
    for from in placements.files().filter_map(|placement| placement.from()) {
        if !target.is_taken(&from)? {
            return Err(Error::new(
                Code::NothingToUndo,
                format!(
                    "{}, which the newest restore had replaced, no longer exists",
                    target.absolute(&from).display()
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

/// What a plan belongs to.
struct Change<'a> {
    /// The directory that keeps the replaced files, and the id of the backup for its record.
    keeps: Option<(String, String)>,
    /// The kept files that an undo puts back, and their record.
    undoes: Option<(String, Record)>,
    /// The id that the project gets.
    brought_id: Option<String>,
    /// Where the new files were unpacked.
    staging: Option<&'a Path>,
}

impl Change<'_> {
    /// Carries out the plan.
    fn carry_out(
        self,
        target: &Target,
        root: &Path,
        plan: Plan,
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
        let staging = self.staging.and_then(Path::file_name);
        intent.staging = staging
            .and_then(|name| name.to_str())
            .map(|name| format!("{STATE_DIR}/{name}/"));
        match self.keeps {
            Some((dir, of)) => {
                let mut record = Record::new(of, plan.touched);
                record.brought_id = self.brought_id;
                record.made = made;
                if let Some((_, undone)) = &self.undoes {
                    record.undo = !undone.undo;
                    record.taken.clone_from(&undone.made);
                }
                record.outside.clone_from(&intent.outside);
                intent.undo = Some((dir, record));
            }
            None => intent.made = made,
        }
        if let Some((dir, record)) = self.undoes {
            intent.retired = Some(dir);
            intent.emptied = record.made.into_iter().map(|dir| dir.at).collect();
        }
        intent.opened = read_only_dirs(target, &intent)?;
        // The claims on databases that are replaced as files are held until here.
        carry_out(target, root, intent, lock_timeout).inspect(|_| drop(plan.claims))
    }
}

/// Returns warnings about what the file systems of the target do not support.
fn unsupported_there(target: &Target, root: &Path) -> Vec<Warning> {
    let outside = target.outside().and_then(Path::parent).unwrap_or(root);
    unsupported::warnings(&[root, outside])
}
