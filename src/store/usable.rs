//! Decides which backups are usable. This module alone defines the meaning of `latest`, the backups
//! that retention never removes, and the backups that health reports.
//!
//! A backup is good if its source was not found damaged and its chain is complete. One whose archive
//! was replaced in an object store counts only if all were, as after a copy. The safety
//! backup before a repair contains the unrepaired state, so it counts only if there is no other
//! good backup.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{Backup, Unlisted};
use crate::{
    error::{Warning, WarningCode},
    sqlite::check::IntegrityStatus,
};

/// The maximum number of skipped backups that a warning names.
const MOST_NAMED: usize = 5;

/// Returns the indices of the good backups in `backups`, which are sorted newest first.
pub fn good(backups: &[Backup]) -> Vec<usize> {
    let broken = broken_chains(backups);
    let is_sound =
        |place: &usize| backups[*place].is_sound() && !broken.contains_key(&backups[*place].id);
    let sound: Vec<usize> = (0..backups.len()).filter(is_sound).collect();
    let as_written = |place: &usize| !backups[*place].is_replaced;
    // After a copy between stores, none is as it was written.
    let proven: Vec<usize> = sound.iter().copied().filter(as_written).collect();
    let sound = if proven.is_empty() { sound } else { proven };
    let regular: Vec<usize> = sound
        .iter()
        .copied()
        .filter(|place| !backups[*place].safety_backup)
        .collect();
    if regular.is_empty() { sound } else { regular }
}

pub fn newest_good(backups: &[Backup]) -> Option<&Backup> {
    good(backups).first().map(|place| &backups[*place])
}

/// Returns the backup that `latest` means: the newest good one, or else the newest, so that the
/// user can inspect it.
pub fn latest(backups: &[Backup]) -> Option<&Backup> {
    newest_good(backups).or(backups.first())
}

/// Returns the backups newer than `chosen` that `latest` skips: id and reason, newest first.
/// Entries of `unlisted` count if they began later. The safety backup of a repair is never a
/// candidate and is not named.
pub fn passed_over(
    backups: &[Backup],
    unlisted: &[Unlisted],
    chosen: &Backup,
) -> Vec<(String, String)> {
    let now = Timestamp::now();
    let broken = broken_chains(backups);
    let why = |backup: &Backup| {
        if backup.id == chosen.id || backup.safety_backup {
            return None;
        }
        // A backup dated in the future may be newer, regardless of its position in the list.
        if backup.is_ahead(now) && !chosen.is_ahead(now) {
            return Some("it is dated ahead of now".to_string());
        }
        if backup.timestamp <= chosen.timestamp {
            return None;
        }
        let replaced = backup.is_replaced && !chosen.is_replaced;
        let replaced = replaced.then(|| "its archive was replaced since it was made".to_string());
        let flawed = backup
            .flaw_of_source()
            .map(|flaw| format!("its source was {flaw}"));
        broken
            .get(&backup.id)
            .map(|rests| format!("its chain is broken: {rests}"))
            .or(flawed)
            .or(replaced)
    };
    let listed = backups
        .iter()
        .filter_map(|backup| Some((backup.id.clone(), why(backup)?)));
    let newer = unlisted.iter().filter(|left| left.began_after(chosen));
    let mut found: Vec<(String, String)> = newer
        .map(|left| (left.id.clone(), left.why().to_string()))
        .chain(listed)
        .collect();
    found.sort_by(|a, b| b.0.cmp(&a.0));
    found
}

/// Returns the warning for treating `chosen` as the latest backup although newer ones were skipped.
pub fn passed_over_warning(passed: &[(String, String)], chosen: &Backup) -> Option<Warning> {
    if passed.is_empty() {
        return None;
    }
    let named: Vec<String> = passed
        .iter()
        .take(MOST_NAMED)
        .map(|(id, why)| format!("{id} ({why})"))
        .collect();
    let more = passed.len().saturating_sub(MOST_NAMED);
    let more = if more > 0 {
        format!(", and {more} more")
    } else {
        String::new()
    };
    let message = format!(
        "`latest` means {}, which is older than the backups that were passed over: {}{more}",
        chosen.id,
        named.join(", ")
    );
    Some(Warning::new(WarningCode::PassedOver, message))
}

/// Returns the incremental backups whose chain contains a missing or replaced member: id and
/// reason.
pub fn broken_chains(backups: &[Backup]) -> BTreeMap<String, String> {
    let by_id: HashMap<&str, &Backup> = backups
        .iter()
        .map(|backup| (backup.id.as_str(), backup))
        .collect();
    let broken = |backup: &Backup| Some((backup.id.clone(), broken_at(backup, &by_id)?));
    backups.iter().filter_map(broken).collect()
}

/// Returns why the chain of a backup is incomplete, if it is.
fn broken_at(backup: &Backup, by_id: &HashMap<&str, &Backup>) -> Option<String> {
    let mut link = backup;
    // A chain cannot have more members than there are backups, so a longer one is a cycle.
    for _ in 0..by_id.len() {
        let base = link.based_on.as_ref()?;
        match by_id.get(base.as_str()) {
            None => {
                return Some(format!(
                    "{} depends on {base}, which is missing or cannot be read",
                    backup.id
                ));
            }
            Some(found) if link.based_on_checksum.as_ref() != Some(&found.checksum) => {
                return Some(format!(
                    "{} depends on another {base} than the one that exists",
                    backup.id
                ));
            }
            Some(found) => link = found,
        }
    }
    link.based_on
        .as_ref()
        .map(|_| format!("{} depends on itself", backup.id))
}

impl Backup {
    /// Returns whether the content is reliable: the source was neither found damaged nor emptied.
    pub fn is_sound(&self) -> bool {
        self.flaw_of_source().is_none()
    }

    /// Returns the defect of the source that keeps the backup from being good.
    pub fn flaw_of_source(&self) -> Option<&'static str> {
        match self.integrity.status {
            IntegrityStatus::Failed => Some("damaged"),
            _ if self.emptied => Some("empty"),
            _ => None,
        }
    }
}
