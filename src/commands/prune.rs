//! The command `prune`: removes the backups that the retention policy does not keep, oldest first.
//!
//! A dry run reports exactly what a run would do.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    error::{Error, Result, Warning, WarningCode},
    store::{
        Backup, Removal, Store, StoreLock,
        retention::{Decision, Policy, bases, decide, places},
        shared::by_origin,
    },
    util::{operation::OperationContext, unsupported, wording},
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneResult {
    pub dry_run: bool,
    /// One decision for every backup, newest first.
    pub decisions: Vec<Decision>,
    /// The size of the archives and sidecars that were removed, or in a dry run would be.
    pub bytes_freed: u64,
    /// Warnings about archives that retention could not consider, and about leftovers.
    pub warnings: Vec<Warning>,
}

/// Waits for the lock of the store and applies the policy.
///
/// Fails with `KG_INVALID_OPTION` if the policy keeps everything. A store that does not exist is a
/// warning.
pub fn prune(
    store: &Store,
    policy: &Policy,
    dry_run: bool,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<PruneResult> {
    if policy.keeps_everything() {
        return Err(Error::invalid(
            "There is no limit to prune by",
            "Give `retentionDays`, `maxBackups` or `keep`",
        ));
    }
    store.assert_undoubted()?;
    // Creating the directory, for example below an unmounted disk, would hide that it is missing.
    if !store.exists()? {
        let message = format!(
            "{} does not exist: there was nothing to remove",
            store.dir().display()
        );
        let warnings = vec![Warning::new(WarningCode::Store, message)];
        return Ok(together([], dry_run, &[]).warned(warnings));
    }
    if dry_run {
        let (backups, mut warnings) = store.preview_cleanup(context)?;
        let foresee = |backups: Vec<Backup>| {
            let decisions = decide(&backups, policy, Timestamp::now(), None);
            result(&backups, decisions, dry_run)
        };
        let groups = by_project(store, backups.clone(), &mut warnings)
            .into_iter()
            .map(foresee);
        return Ok(together(groups, dry_run, &backups).warned(warnings));
    }
    let lock = store.lock(lock_timeout, context)?;
    // Lists archives without a sidecar first, because they may depend on backups to be removed.
    let mut warnings = store.clean_up(&lock, true, context)?;
    let backups = store.list()?;
    let result = apply_to_own(store, &lock, policy, &backups, &mut warnings);
    if result.decisions.iter().any(|decision| !decision.kept) {
        warnings.extend(store.versions_warning());
    }
    warnings.extend(unsupported::warnings(&[store.dir()]));
    Ok(result.warned(warnings))
}

impl PruneResult {
    fn warned(mut self, warnings: Vec<Warning>) -> Self {
        self.warnings.splice(0..0, warnings);
        self
    }
}

/// Merges several results. The decisions are in the order of `backups`.
fn together(
    results: impl IntoIterator<Item = PruneResult>,
    dry_run: bool,
    backups: &[Backup],
) -> PruneResult {
    let mut all = PruneResult {
        dry_run,
        decisions: Vec::new(),
        bytes_freed: 0,
        warnings: Vec::new(),
    };
    for result in results {
        all.decisions.extend(result.decisions);
        all.bytes_freed += result.bytes_freed;
        all.warnings.extend(result.warnings);
    }
    let places = places(backups);
    all.decisions
        .sort_by_key(|decision| places.get(decision.id.as_str()).copied());
    all
}

/// Returns the backups that the policy applies to, in one group for each project.
///
/// If the store belongs to a project, only the backups of that project are returned, and a warning
/// counts the others. Because the policy applies to each group separately, backups of one project
/// do not displace those of another.
fn by_project(
    store: &Store,
    backups: Vec<Backup>,
    warnings: &mut Vec<Warning>,
) -> Vec<Vec<Backup>> {
    let total = backups.len();
    let mut groups = by_origin(backups);
    let Some(home) = store.home() else {
        return groups.into_values().collect();
    };
    let own = groups
        .remove(&Some(home.identity().origin()))
        .unwrap_or_default();
    if own.len() < total {
        let (others, dir) = (total - own.len(), store.dir().display());
        let message = format!(
            "{} in {dir} {} to other projects, or to this project before it was moved: not pruned. \
             Outside of any project, `kg diag prune --backup-dir {dir}` applies the limits to the \
             backups of each project separately",
            wording::count(others, "backup"),
            wording::agree(others, "belongs", "belong")
        );
        warnings.push(Warning::new(WarningCode::Store, message));
    }
    vec![own]
}

/// Applies the policy after a backup, to the backups of its project among those in `listed`. The
/// store must have been cleaned up.
pub fn apply_after(
    store: &Store,
    lock: &StoreLock,
    policy: &Policy,
    listed: Vec<Backup>,
    made: &Backup,
) -> PruneResult {
    let own = by_origin(listed.clone()).remove(&made.origin);
    let mut removal = store.removal(lock, listed);
    apply(
        store,
        &mut removal,
        own.unwrap_or_default(),
        policy,
        Some(&made.id),
    )
}

/// Applies the policy to the backups of the project that the store belongs to, or to those of each
/// project if it belongs to none. `listed` must contain all backups, and the store must have been
/// cleaned up.
pub fn apply_to_own(
    store: &Store,
    lock: &StoreLock,
    policy: &Policy,
    listed: &[Backup],
    warnings: &mut Vec<Warning>,
) -> PruneResult {
    let mut removal = store.removal(lock, listed.to_vec());
    let groups = by_project(store, listed.to_vec(), warnings);
    let applied: Vec<PruneResult> = groups
        .into_iter()
        .map(|group| apply(store, &mut removal, group, policy, None))
        .collect();
    together(applied, false, listed)
}

/// Removes the backups that the policy does not keep. If one cannot be removed, its decision
/// contains the error, and the others are removed nevertheless.
fn apply(
    store: &Store,
    removal: &mut Removal<'_>,
    backups: Vec<Backup>,
    policy: &Policy,
    made: Option<&str>,
) -> PruneResult {
    let mut decisions = decide(&backups, policy, Timestamp::now(), made);
    // Oldest first, but a backup is removed only after those that depend on it.
    let places = places(&backups);
    let doomed = (0..decisions.len()).filter(|place| !decisions[*place].kept);
    let mut order: Vec<(usize, usize)> = doomed
        .map(|place| (bases(&backups, &places, place).count(), place))
        .collect();
    order.sort_by(|a, b| b.cmp(a));
    for (_, place) in order {
        let decision = &mut decisions[place];
        if let Err(error) = removal.delete(&decision.id, false) {
            decision.kept = store.may_hold(&decision.id);
            decision.error = Some(error);
        }
    }
    result(&backups, decisions, false)
}

fn result(backups: &[Backup], decisions: Vec<Decision>, dry_run: bool) -> PruneResult {
    let removed = backups
        .iter()
        .zip(&decisions)
        .filter(|(_, decision)| !decision.kept);
    let removed: Vec<&Backup> = removed.map(|(backup, _)| backup).collect();
    let bytes_freed = removed.iter().map(|backup| backup.removable_size()).sum();
    let warnings = removed
        .iter()
        .filter_map(|backup| backup.left_behind())
        .collect();
    PruneResult {
        dry_run,
        decisions,
        bytes_freed,
        warnings,
    }
}
