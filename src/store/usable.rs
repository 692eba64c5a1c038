//! Which backups can be counted on. What `latest` means, what retention never removes, and what health tells, is decided here alone.
//!
//! A backup is good when its source was not found damaged and all that it rests on is there. The safety backup of a repair holds what
//! was about to be repaired, so it counts only where there is nothing else.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{Backup, Unlisted};
use crate::{
    error::{Warning, WarningCode},
    sqlite::check::IntegrityStatus,
};

/// A warning names this many of the backups that were passed over.
const MOST_NAMED: usize = 5;

/// The places of the good ones among `backups`, which come newest first.
pub fn good(backups: &[Backup]) -> Vec<usize> {
    let broken = broken_chains(backups);
    let is_sound =
        |place: &usize| backups[*place].is_sound() && !broken.contains_key(&backups[*place].id);
    let sound: Vec<usize> = (0..backups.len()).filter(is_sound).collect();
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

/// What `latest` means: the newest good one; where there is none, the newest, so that it can be looked at.
pub fn latest(backups: &[Backup]) -> Option<&Backup> {
    newest_good(backups).or(backups.first())
}

/// What of the backups that come before `chosen`, newest first, keeps `latest` from meaning them: id, and why. `unlisted` counts as far as it is of a
/// later time. What a repair saved is never meant, and is not named.
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
        // One that is dated ahead may be newer, whatever its place in the list is.
        if backup.is_ahead(now) && !chosen.is_ahead(now) {
            return Some("it is dated ahead of now".to_string());
        }
        if backup.timestamp <= chosen.timestamp {
            return None;
        }
        let flawed = backup
            .flaw_of_source()
            .map(|flaw| format!("its source was {flaw}"));
        broken
            .get(&backup.id)
            .map(|rests| format!("its chain is broken: {rests}"))
            .or(flawed)
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

/// The warning of whatever takes `chosen` for the latest backup although there are such newer ones.
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
        "`latest` means {}, which is older than what was passed over: {}{more}",
        chosen.id,
        named.join(", ")
    );
    Some(Warning::new(WarningCode::PassedOver, message))
}

/// Incremental backups that rest, directly or not, on one that is gone or is another one of that name: id, and why.
pub fn broken_chains(backups: &[Backup]) -> BTreeMap<String, String> {
    let by_id: HashMap<&str, &Backup> = backups
        .iter()
        .map(|backup| (backup.id.as_str(), backup))
        .collect();
    let broken = |backup: &Backup| Some((backup.id.clone(), broken_at(backup, &by_id)?));
    backups.iter().filter_map(broken).collect()
}

/// Where the chain of a backup ends too early.
fn broken_at(backup: &Backup, by_id: &HashMap<&str, &Backup>) -> Option<String> {
    let mut link = backup;
    // No chain is longer than there are backups; a longer one leads in a circle.
    for _ in 0..by_id.len() {
        let base = link.based_on.as_ref()?;
        match by_id.get(base.as_str()) {
            None => {
                return Some(format!(
                    "{} rests on {base}, which is missing or cannot be read",
                    backup.id
                ));
            }
            Some(found) if link.based_on_checksum.as_ref() != Some(&found.checksum) => {
                return Some(format!(
                    "{} rests on another {base} than the one that is there",
                    backup.id
                ));
            }
            Some(found) => link = found,
        }
    }
    link.based_on
        .as_ref()
        .map(|_| format!("{} rests on itself", backup.id))
}

impl Backup {
    /// Whether what it holds can be counted on: its source was neither found damaged nor emptied.
    pub fn is_sound(&self) -> bool {
        self.flaw_of_source().is_none()
    }

    /// What was wrong with its source, if a backup of it is not a good one.
    pub fn flaw_of_source(&self) -> Option<&'static str> {
        match self.integrity.status {
            IntegrityStatus::Failed => Some("damaged"),
            _ if self.emptied => Some("empty"),
            _ => None,
        }
    }
}
