//! Looks after the older backups of the store, once a new one is on the disk.

use jiff::Timestamp;

use crate::{
    commands::{
        own_backups::own_among,
        prune::{self, PruneResult},
    },
    config::backup_config::BackupOptions,
    error::{Error, Warning, WarningCode},
    project::Project,
    store::{Backup, Store, StoreLock, known_stores},
};

/// What became of the older backups.
#[derive(Default)]
pub(super) struct OldBackups {
    /// Absent if no limit is set, or if the limits were not applied.
    pub retention: Option<PruneResult>,
    /// Why the limits were not applied.
    pub error: Option<Error>,
    pub warnings: Vec<Warning>,
}

/// Applies the retention policy. Every problem is a warning, because the new backup exists.
///
/// Removes nothing if `store_was_emptied`: backups that are expected but not seen may be on a disk
/// that is not mounted.
pub(super) fn look_after(
    project: &Project,
    store: &Store,
    lock: &StoreLock,
    options: &BackupOptions,
    made: &Backup,
    store_was_emptied: bool,
) -> OldBackups {
    let has_limits = !options.retention.keeps_everything();
    let listed = match store.list() {
        Ok(listed) => listed,
        Err(error) => return unlisted(error, has_limits),
    };
    let mut old = OldBackups::default();
    old.warnings.extend(dated_ahead(&listed));
    let mut count = own_among(listed.clone(), project).len();
    if has_limits && !store_was_emptied {
        let pruned = prune_after(store, lock, options, listed, made, &mut old.warnings);
        let removed = pruned.decisions.iter().filter(|decision| !decision.kept);
        count = count.saturating_sub(removed.count());
        old.retention = Some(pruned);
    }
    old.warnings
        .extend(known_stores::remember_new(project, store, count));
    store.keep_sidecars();
    old
}

fn unlisted(error: Error, has_limits: bool) -> OldBackups {
    let consequence = if has_limits {
        ", so none was removed"
    } else {
        ""
    };
    let message = format!(
        "The backup was made, but the older backups could not be listed{consequence}: {}",
        error.message
    );
    OldBackups {
        retention: None,
        error: Some(error).filter(|_| has_limits),
        warnings: vec![Warning::new(WarningCode::Store, message)],
    }
}

fn prune_after(
    store: &Store,
    lock: &StoreLock,
    options: &BackupOptions,
    listed: Vec<Backup>,
    made: &Backup,
    warnings: &mut Vec<Warning>,
) -> PruneResult {
    let mut result = prune::apply_after(store, lock, &options.retention, listed, made);
    let failed = result
        .decisions
        .iter()
        .filter_map(|decision| decision.error.as_ref());
    warnings.extend(failed.map(|error| {
        let message = format!("An old backup could not be removed: {error}");
        Warning::new(WarningCode::Store, message)
    }));
    warnings.append(&mut result.warnings);
    result
}

/// Warns of backups that are dated ahead of now. By name alone, each would be the newest for ever.
fn dated_ahead(listed: &[Backup]) -> Option<Warning> {
    let now = Timestamp::now();
    let mut ahead = listed.iter().filter(|backup| backup.is_ahead(now));
    let first = &ahead.next()?.id;
    let more = match ahead.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let message = format!(
        "{first}{more} is dated ahead of now, so a clock was wrong then or is wrong now. It counts \
         as older than all others. Delete it if you do not need it: `kg diag delete \
         {first}`"
    );
    Some(Warning::new(WarningCode::Store, message))
}
