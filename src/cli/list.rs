//! `kg diag list`: the backups of a store.

use std::path::Path;

use clap::Args;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{
    args::{Common, StoreDir, settings},
    output::{LESS, Output, code_of, size},
    status::{ago, date},
    table::{self, Align},
};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    store::{Backup, Flaw, Listing, Store, Unlisted, broken_chains, known_stores, newest_good},
    util::wording,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0, or 6 if it could not read everything.")]
pub struct ListArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    store: StoreDir,
}

pub fn run(args: &ListArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let settings = settings(&root, output);
    list(&args.store.open(&root, &settings)?, &root, output)
}

/// The narrowest terminal that shows the date of a backup instead of its age.
const NARROW: usize = 100;
const COLUMNS: [Align; 5] = [
    Align::Left,
    Align::Left,
    Align::Right,
    Align::Left,
    Align::Left,
];

/// Lists the backups and returns the exit status.
pub fn list(store: &Store, root: &Path, output: &Output) -> Result<u8> {
    store.assert_meant()?;
    assert_exists(store, root).inspect_err(|_| output.warnings(&emptied(store, &[])))?;
    let listing = store.read()?;
    let status = if listing.unread().next().is_some() {
        LESS
    } else {
        0
    };
    output.result(&json!({ "backups": listing.backups, "unlisted": described(&listing.unlisted) }));
    output.warnings(&list_warnings(store, &listing));
    let Listing { backups, unlisted } = listing;
    if backups.is_empty() && unlisted.is_empty() {
        output.line(format!("{} contains no backup", store.dir().display()));
        return Ok(status);
    }
    let width = table::width();
    // A date and a description do not both fit a narrow terminal.
    let is_narrow = width.is_some_and(|width| width < NARROW);
    let made = |timestamp| {
        if is_narrow {
            ago(timestamp)
        } else {
            date(timestamp, &TimeZone::UTC)
        }
    };
    let title = if is_narrow { "MADE" } else { "MADE (UTC)" };
    let mut rows = vec![["ID", "TYPE", "SIZE", title, "DESCRIPTION"].map(String::from)];
    rows.extend(unlisted.iter().map(|one| {
        let unknown = || "-".to_string();
        let mark = mark(&one.flaw).to_string();
        [one.id.clone(), unknown(), unknown(), unknown(), mark]
    }));
    let broken = broken_chains(&backups);
    rows.extend(backups.iter().map(|backup| {
        let why = broken.get(&backup.id).map(String::as_str);
        let description = one_line(backup.description.as_deref().unwrap_or(""));
        [
            backup.id.clone(),
            code_of(&backup.kind),
            size(backup.disk_size()),
            made(backup.timestamp),
            format!("{}{description}", marks(backup, store, why)),
        ]
    }));
    for line in table::lines(COLUMNS, &rows, width) {
        output.line(line);
    }
    Ok(status)
}

/// Fails with `KG_NO_BACKUPS` if the directory of the store does not exist. The own directory of a
/// project appears with its first backup.
pub(super) fn assert_exists(store: &Store, root: &Path) -> Result<()> {
    let is_new = store.home().is_some() && store.dir() == Store::default_dir(root);
    if is_new || !store.dir_is_missing() {
        return Ok(());
    }
    let message = format!("{} does not exist", store.dir().display());
    let remedy = "Check the name, which comes from `--backup-dir`, $KG_BACKUP_DIR, or \
                  `kg config get backup.dir`; or make a first backup there";
    Err(Error::new(Code::NoBackups, message, remedy))
}

/// Returns the files that are not backups, for `--json`.
fn described(unlisted: &[Unlisted]) -> Vec<Value> {
    let describe = |one: &Unlisted| json!({ "id": one.id, "path": one.archive.to_string(), "message": one.why() });
    unlisted.iter().map(describe).collect()
}

/// Returns the warnings about files that are not backups, about a store that lost its backups, and
/// about the backup that `latest` selects.
fn list_warnings(store: &Store, listing: &Listing) -> Vec<Warning> {
    let Listing { backups, unlisted } = listing;
    let mut warnings = Vec::new();
    if let Some(first) = unlisted.first() {
        let dir = store.dir().display();
        let message = format!(
            "{} {} in {dir} cannot be used as backups; the first: {}: {}",
            unlisted.len(),
            wording::agree(
                unlisted.len(),
                "archive or manifest",
                "archives or manifests"
            ),
            first.archive,
            first.why()
        );
        warnings.push(Warning::new(WarningCode::Store, message));
    }
    warnings.extend(emptied(store, backups));
    let preferred = store.preferred(backups.to_vec());
    if let Some(latest) = newest_good(&preferred) {
        warnings.extend(store.doubts("latest", &latest.archive, None));
    }
    warnings
}

/// Returns the warning about a store that contained backups of the project at the last run.
pub(super) fn emptied(store: &Store, backups: &[Backup]) -> Vec<Warning> {
    let own = backups.iter().filter(|backup| store.is_own(backup));
    let own: Vec<Backup> = own.cloned().collect();
    let home = store.home();
    let emptied = home.and_then(|home| known_stores::emptied(home, store, &own));
    Vec::from_iter(emptied)
}

/// Returns the mark of a file that cannot be used as a backup.
fn mark(flaw: &Flaw) -> &'static str {
    match flaw {
        Flaw::NoManifest => "[no manifest]",
        Flaw::Misfit => "[archive does not match its manifest]",
        Flaw::NoArchive => "[archive missing]",
        Flaw::Unread(_) => "[cannot be read]",
    }
}

/// Returns the marks of a backup, each with a space after it. `broken` says why its chain is broken.
fn marks(backup: &Backup, store: &Store, broken: Option<&str>) -> String {
    let is_other = store.home().is_some() && !store.is_of_project(backup);
    let is_same_path = store.home().is_some() && store.is_of_path(backup);
    let is_moved = store.home().is_some() && !is_other && !is_same_path && !store.is_own(backup);
    let chain = broken.map(|why| {
        format!(
            "[chain broken: {}] ",
            why.strip_prefix(&format!("{} ", backup.id)).unwrap_or(why)
        )
    });
    let pinned = backup.pinned.as_ref().map(|pin| match &pin.reason {
        None => "[pinned] ".into(),
        Some(reason) => format!("[pinned: {}] ", one_line(reason)),
    });
    let marks = [
        is_other.then(|| of_other(backup)),
        is_moved.then(|| "[other path] ".into()),
        is_same_path.then(|| of_path(backup)),
        backup.encrypted.then(|| "[encrypted] ".into()),
        backup.safety_backup.then(|| "[safety backup] ".into()),
        backup
            .flaw_of_source()
            .map(|flaw| format!("[source {flaw}] ")),
        chain,
        backup.incomplete.then(|| "[incomplete] ".into()),
        pinned,
    ];
    marks.into_iter().flatten().collect()
}

/// Names the project of a backup that may or may not be the present one.
fn of_path(backup: &Backup) -> String {
    let id = backup.project_id.as_deref().unwrap_or_default();
    format!("[project {id}] ")
}

fn of_other(backup: &Backup) -> String {
    match &backup.project_id {
        Some(id) => format!("[other project: {id}] "),
        None => "[other project] ".into(),
    }
}

/// Joins the lines of a text that a user wrote, so that none of them can look like a backup in the
/// list.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
