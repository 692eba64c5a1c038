//! Which backups can be counted on. What `latest` means, what retention never removes, and what health tells, is decided here alone.
//!
//! A backup is good when its source was not found damaged and all that it rests on is there. The safety backup of a repair holds what
//! was about to be repaired, so it counts only where there is nothing else.

use std::collections::{BTreeMap, HashMap};

use super::Backup;
use crate::sqlite::check::IntegrityStatus;

/// The places of the good ones among `backups`, which come newest first.
pub fn good(backups: &[Backup]) -> Vec<usize> {
    let broken = broken_chains(backups);
    let is_sound = |place: &usize| backups[*place].is_sound() && !broken.contains_key(&backups[*place].id);
    let sound: Vec<usize> = (0..backups.len()).filter(is_sound).collect();
    let regular: Vec<usize> = sound.iter().copied().filter(|place| !backups[*place].safety_backup).collect();
    if regular.is_empty() { sound } else { regular }
}

pub fn newest_good(backups: &[Backup]) -> Option<&Backup> {
    good(backups).first().map(|place| &backups[*place])
}

/// What `latest` means: the newest good one; where there is none, the newest, so that it can be looked at.
pub fn latest(backups: &[Backup]) -> Option<&Backup> {
    newest_good(backups).or(backups.first())
}

/// Incremental backups that rest, directly or not, on one that is gone or is another one of that name: id, and why.
pub fn broken_chains(backups: &[Backup]) -> BTreeMap<String, String> {
    let by_id: HashMap<&str, &Backup> = backups.iter().map(|backup| (backup.id.as_str(), backup)).collect();
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
            None => return Some(format!("{} rests on {base}, which is not there", backup.id)),
            Some(found) if link.based_on_checksum.as_ref() != Some(&found.checksum) => {
                return Some(format!("{} rests on another {base} than the one that is there", backup.id));
            }
            Some(found) => link = found,
        }
    }
    link.based_on.as_ref().map(|_| format!("{} rests on itself", backup.id))
}

impl Backup {
    /// Whether its source was not found damaged.
    pub fn is_sound(&self) -> bool {
        self.integrity.status != IntegrityStatus::Failed
    }
}
