//! Decides which backups a run copies, and in which order.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use super::{CopyFailure, CopyOptions};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    store::{
        Backup, Flaw, Listing, Store, Unlisted,
        retention::{Policy, decide},
        shared::by_origin,
        sort,
    },
    util::wording,
};

/// What to copy.
pub(super) struct Plan {
    /// Each backup comes after its base.
    pub missing: Vec<Backup>,
    pub present: usize,
    pub failed: Vec<CopyFailure>,
}

impl Plan {
    pub fn new(
        source: &Store,
        listing: &Listing,
        held: &[Backup],
        options: &CopyOptions,
    ) -> Result<Self> {
        let listed = &listing.backups;
        let (chosen, failed) = match &options.ids {
            None => (
                wanted(source, listed, held, &options.retention),
                listing.unlisted.iter().map(unusable).collect(),
            ),
            Some(ids) => {
                let ids: BTreeSet<&String> = ids.iter().collect();
                let chosen = ids.into_iter().map(|id| source.get(id));
                (chosen.collect::<Result<Vec<_>>>()?, Vec::new())
            }
        };
        let by_id: HashMap<&str, &Backup> = listed
            .iter()
            .map(|backup| (backup.id.as_str(), backup))
            .collect();
        let mut plan = Plan {
            missing: Vec::new(),
            present: 0,
            failed,
        };
        let mut planned: HashSet<String> = HashSet::new();
        for backup in chosen {
            if is_held(held, &backup) {
                plan.present += 1;
                continue;
            }
            match missing_members(&backup, &by_id, held) {
                Ok(members) => {
                    let new = members.into_iter().rev();
                    plan.missing
                        .extend(new.filter(|member| planned.insert(member.id.clone())));
                }
                Err(error) => plan.failed.push(CopyFailure {
                    id: backup.id,
                    error,
                }),
            }
        }
        Ok(plan)
    }
}

/// Returns the backups that belong into the target, newest first, with those that are there already.
/// What the limits of the target would remove at once is left out.
fn wanted(source: &Store, listed: &[Backup], held: &[Backup], policy: &Policy) -> Vec<Backup> {
    let chosen = listed.iter().filter(|backup| is_chosen(source, backup));
    let chosen: Vec<Backup> = chosen.cloned().collect();
    if policy.keeps_everything() {
        return chosen;
    }
    let is_new = |backup: &&Backup| !is_held(held, backup);
    let new = chosen.iter().filter(is_new).cloned();
    let now = Timestamp::now();
    let mut kept: HashSet<String> = HashSet::new();
    for mut group in by_origin(new.chain(held.iter().cloned()).collect()).into_values() {
        sort(&mut group, now);
        let decisions = decide(&group, policy, now, None);
        let ids = decisions.into_iter().filter(|one| one.kept);
        kept.extend(ids.map(|decision| decision.id));
    }
    chosen
        .into_iter()
        .filter(|backup| is_held(held, backup) || kept.contains(&backup.id))
        .collect()
}

fn is_held(held: &[Backup], backup: &Backup) -> bool {
    held.iter()
        .any(|held| held.id == backup.id && held.checksum == backup.checksum)
}

/// Returns the members of a chain that the target lacks, newest first. `KG_CHAIN_BROKEN` if one is in
/// neither store.
fn missing_members(
    backup: &Backup,
    by_id: &HashMap<&str, &Backup>,
    held: &[Backup],
) -> Result<Vec<Backup>> {
    let mut members = vec![backup.clone()];
    let mut member = backup;
    while let Some(id) = &member.based_on {
        let checksum = member.based_on_checksum.as_ref();
        let is_it = |base: &&Backup| base.id == *id && Some(&base.checksum) == checksum;
        if held.iter().any(|base| is_it(&base)) {
            break;
        }
        let base = by_id.get(id.as_str()).copied().filter(is_it);
        // A chain cannot have more members than there are backups, so a longer one is a cycle.
        let Some(base) = base.filter(|_| members.len() <= by_id.len()) else {
            return Err(Error::new(
                Code::ChainBroken,
                format!("{} depends on {id}, which is in neither store", member.id),
                "Copy a full backup",
            ));
        };
        members.push(base.clone());
        member = base;
    }
    Ok(members)
}

/// Warns of backups that are not copied because they belong to other projects.
pub(super) fn of_others(source: &Store, listed: &[Backup]) -> Option<Warning> {
    let is_other = |backup: &&Backup| !is_chosen(source, backup);
    let others = listed.iter().filter(is_other).count();
    let message = format!(
        "{} in {} {} to other projects and not copied; `backupIds` names single ones",
        wording::count(others, "backup"),
        source.dir().display(),
        wording::agree(others, "belongs", "belong")
    );
    (others > 0).then(|| Warning::new(WarningCode::Store, message))
}

/// Returns whether a backup is copied without being named. Outside any project, all are.
fn is_chosen(source: &Store, backup: &Backup) -> bool {
    source.home().is_none() || source.is_of_project(backup)
}

/// Describes an entry of the source that is not a usable backup.
fn unusable(left: &Unlisted) -> CopyFailure {
    let code = match &left.flaw {
        Flaw::NoArchive | Flaw::NoManifest => Code::BackupNotFound,
        Flaw::Misfit => Code::ChecksumMismatch,
        Flaw::Unread(error) => error.code,
    };
    let error = Error::new(
        code,
        format!("{} cannot be copied: {}", left.archive, left.why()),
        "Make a new backup; `kg diag list` shows what is usable",
    );
    CopyFailure {
        id: left.id.clone(),
        error,
    }
}
