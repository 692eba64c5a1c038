//! The problems of the second store, `backup.copyTo`.

use std::path::Path;

use jiff::Timestamp;

use crate::{
    commands::{
        copy::record::{Copied, Lag},
        own_backups::own_among,
    },
    config::Settings,
    error::Error,
    integrity::issue::{Issue, IssueCode, Part},
    project::Project,
    service::copies,
    store::{Backup, Store},
};

/// Compares the second store with the backups of the first one. Reads the list of the second store.
pub(super) fn of_copies(project: &Project, settings: &Settings, own: &[Backup]) -> Option<Issue> {
    let target = settings.copy_to(project.root())?;
    let listed = Store::at(&target)
        .map(|store| store.for_project(project.root()))
        .and_then(|store| store.list());
    match listed {
        Ok(listed) => behind(&target, own, &own_among(listed, project)),
        Err(error) => Some(unknown(&target, &error)),
    }
}

fn behind(target: &Path, own: &[Backup], copies: &[Backup]) -> Option<Issue> {
    let lag = Lag::of(own, Copied::newest(copies).as_ref());
    let now = Timestamp::now().as_millisecond();
    let message = copies::behind(target, lag.missing, now.saturating_sub(lag.since?))?;
    let remedy = "Copy with `kg diag backup --copy-to`; `kg diag status` tells how the last \
                  copy ended";
    Some(issue(IssueCode::CopyBehind, message, remedy, target))
}

/// Whether the backups are there cannot be determined.
fn unknown(target: &Path, error: &Error) -> Issue {
    let message = format!(
        "Could not determine which backups are in the second store: {}",
        error.message
    );
    issue(IssueCode::CopyUnknown, message, &error.remedy, target)
}

fn issue(code: IssueCode, message: String, remedy: &str, target: &Path) -> Issue {
    Issue::new(code, Part::Backups, message, remedy).path(target.to_string_lossy())
}
