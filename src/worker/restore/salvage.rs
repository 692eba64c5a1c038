//! Replaces a damaged database with the rows that can be read from it.
//!
//! ```text
//! damaged file, its WAL ─▶ read page by page ─▶ new database in staging ─▶ restore of one file
//! ```
//!
//! The last step uses the machinery of a restore: the journal, the renames, and the directory for
//! an undo. A kill at any instant leaves the old files or the new one, and never the new one next
//! to an old WAL.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use super::{
    Change, placement,
    plan::{Conditions, claim, plan},
    target::Target,
    undo,
};
use crate::{
    error::{Code, Error, Result},
    integrity::{documented_schema, issue::Part, repair::Salvage, target::Resolved},
    project::{Project, STAGING_PREFIX, STATE_DIR, names, without_project},
    salvage::{FallbackSchema, readable::Readable, report::Salvaged, salvage as read_into},
    sqlite::raw_copy::{self, fingerprints},
    system::{
        portable::{MetadataExt, set_mode},
        user,
    },
    util::{
        atomic_file,
        operation::CancelToken,
        temp_dir::{Scratch, safe_parent},
        unsupported::{self, Unsupported},
    },
};

/// The name of the new database in the staging directory.
const NEW_DATABASE: &str = "salvaged";
/// The operation that the undo record names.
pub const UNDO_OF: &str = "repair";

/// Replaces the database of `part` at `database`. The caller holds the lock of the project.
///
/// Returns `KG_DATABASE_DAMAGED` if there is nothing to save or if SQLite still reads more than
/// could be saved. Returns `KG_DATABASE_BUSY` if the database changed meanwhile. Also returns
/// `KG_DATABASE_IN_USE`, `KG_NO_PROJECT`, and errors of the file system. After an error, everything
/// is as it was.
pub fn salvage(
    resolved: &Resolved,
    database: &Path,
    part: Part,
    lock_timeout: Duration,
) -> Result<Salvage> {
    let Some(project) = &resolved.project else {
        return Err(without_project(database));
    };
    let root = project.root();
    let mut target = Target::open(root)?;
    let location = location_of(project, database, &mut target);
    // Checked before the work as well as after it, because reading the database drops the lock.
    drop(claim(&target, &location).map_err(without_force)?);
    let work = Scratch::new(&safe_parent(&project.state_dir()), STAGING_PREFIX)?;
    let before = content_of(database);
    let is_documented = part != Part::Database || resolved.is_graph;
    let fallback = if is_documented {
        documented_schema::schema_of(part)
    } else {
        &[]
    };
    let new = work.path().join(NEW_DATABASE);
    let mut report = read_all(database, &new, work.path(), fallback)?;
    dress_as(database, &new)?;
    let staging = Scratch::new(&project.state_dir(), STAGING_PREFIX)?;
    atomic_file::persist_noclobber(&new, &staging.path().join(NEW_DATABASE))?;
    let undo_dir = undo::free_dir(root)?;
    let staged_in = staging
        .path()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let from = format!("{STATE_DIR}/{staged_in}/{NEW_DATABASE}");
    let kept = target.absolute(&format!("{undo_dir}/{}", placement::kept_as(&location)));
    let placements = placement::of_database(&from, &location)?;
    let conditions = Conditions {
        undo_dir: &undo_dir,
        force: false,
        dry_run: false,
        lock_timeout,
    };
    let plan = plan(&target, &placements, &conditions).map_err(without_force)?;
    // Other processes are locked out from here on.
    if content_of(database) != before {
        return Err(changed(database));
    }
    let change = Change {
        keeps: Some((undo_dir, UNDO_OF.to_string())),
        brought_id: None,
        undoes: None,
        staging: Some(staging.path()),
    };
    let warnings = change.carry_out(&target, root, plan, lock_timeout)?;
    report
        .warnings
        .extend(warnings.into_iter().map(|warning| warning.message));
    Ok(Salvage { report, kept })
}

/// Salvages the database into `new`, with a copy of the database in `work`. Fails if there is
/// nothing to save or if SQLite still reads more than could be saved.
fn read_all(
    database: &Path,
    new: &Path,
    work: &Path,
    fallback: FallbackSchema<'_>,
) -> Result<Salvaged> {
    let cancel = CancelToken::default();
    // Works on a copy, because SQLite may write while it reads a damaged database.
    let readable = Readable::of(&raw_copy::copy(database, work)?.database(), &cancel)?;
    let report = read_into(database, new, fallback, &cancel)?;
    if is_nothing(&report) {
        return Err(nothing(database));
    }
    let broken = |table: &str| {
        report
            .tables
            .iter()
            .find(|found| found.name == table)
            .map_or(0, |found| found.rows_broken)
    };
    match readable.lacking_in(&Readable::of(new, &cancel)?, broken) {
        Some(lacks) => Err(fewer(database, &lacks)),
        None => Ok(report),
    }
}

/// Returns the location of the database in the project. A database outside the project may be
/// written because the caller or the configuration named it.
fn location_of(project: &Project, database: &Path, target: &mut Target) -> String {
    let state = project.state_dir();
    let state = dunce::canonicalize(&state).unwrap_or(state);
    if let Ok(below) = database.strip_prefix(state) {
        return names::encode(&Path::new(STATE_DIR).join(below));
    }
    if let Ok(below) = database.strip_prefix(project.root()) {
        return names::encode(below);
    }
    target.allow(Some(database.to_path_buf()));
    names::encode(database)
}

/// Returns the attributes that reveal a write. An empty WAL is ignored, because SQLite creates one
/// when it opens a database.
fn content_of(database: &Path) -> Vec<Option<(u64, u64, i64, i64)>> {
    fingerprints(database)
        .into_iter()
        .map(|found| found.filter(|(_, length, ..)| *length > 0))
        .collect()
}

/// Returns whether no row was recovered.
fn is_nothing(report: &Salvaged) -> bool {
    let rows_aside = report.lost_and_found.as_ref().map_or(0, |found| found.rows);
    report.rows_recovered == 0 && rows_aside == 0
}

/// Gives the new database the permissions of the old one, and its owner if this user may set it.
fn dress_as(old: &Path, new: &Path) -> Result<()> {
    let failed = |cause: io::Error| Error::io("set the permissions of", new, cause);
    let found = fs::metadata(old).map_err(failed)?;
    let own = fs::metadata(new).map_err(failed)?;
    let is_root = user::is_root();
    if is_root && (found.uid(), found.gid()) != (own.uid(), own.gid()) {
        if let Err(cause) = user::give(new, Some(found.uid()), Some(found.gid())) {
            unsupported::note(Unsupported::Owner, old, &cause);
        }
    } else if found.gid() != own.gid() {
        // Only root and members of a group may give a file to it.
        let _ = user::give(new, None, Some(found.gid()));
    }
    let file = File::open(new).map_err(failed)?;
    let permitted = unsupported::attributes(set_mode(&file, found.mode() & 0o777), old);
    permitted
        .and_then(|()| unsupported::sync(&file, old))
        .map_err(failed)
}

/// Removes the advice to use force, because a repair cannot be forced.
fn without_force(error: Error) -> Error {
    error.with_remedy_for(
        Code::DatabaseInUse,
        "Nothing was changed; close it there or stop that process, then run it again",
    )
}

fn changed(database: &Path) -> Error {
    Error::new(
        Code::DatabaseBusy,
        format!("{} changed while it was read", database.display()),
        "Nothing was changed; stop the process that writes to it, then run it again",
    )
}

fn nothing(database: &Path) -> Error {
    let message = format!("{} contains no row that could be read", database.display());
    Error::damaged(message).with_nothing_changed()
}

/// Describes a salvage that recovered less than SQLite can still read.
fn fewer(database: &Path, lacks: &str) -> Error {
    let message = format!(
        "SQLite can still read more of {} than could be salvaged: {lacks}",
        database.display()
    );
    let error = Error::damaged(message).with_nothing_changed();
    let remedy = format!(
        "{}, or copy these tables in the application, which has what SQLite needs for them",
        error.remedy
    );
    Error { remedy, ..error }
}
