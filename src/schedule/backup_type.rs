//! The choice between a full and an incremental backup.

use jiff::{Timestamp, tz::TimeZone};

use crate::{archive::manifest::BackupType, store::Backup};

/// Returns the type of the next backup, given that the schedule asks for `kind`. An incremental
/// backup becomes a full one if there is no good backup to build on. It also becomes a full one if
/// its chain began at least `full_every` days ago.
///
/// These are calendar days in `zone`, so a run that begins a second earlier than last week's still
/// makes a full backup. `backups` are those of one project, newest first.
pub fn choose(
    backups: &[Backup],
    kind: BackupType,
    full_every: Option<u32>,
    zone: &TimeZone,
    now: i64,
) -> BackupType {
    if kind != BackupType::Incremental {
        return kind;
    }
    let Some(newest) = newest_good(backups) else {
        return BackupType::Full;
    };
    // The backup itself reports a broken chain: it finds another base or warns that it is a full
    // backup.
    let Some(chain) = start_of(newest, backups) else {
        return kind;
    };
    let date =
        |at| Timestamp::from_millisecond(at).map(|at: Timestamp| zone.to_datetime(at).date());
    let is_old = match (date(chain.timestamp), date(now), full_every) {
        (Ok(made), Ok(today), Some(days)) => made
            .until(today)
            .is_ok_and(|age| age.get_days() >= i32::try_from(days).unwrap_or(i32::MAX)),
        _ => false,
    };
    if is_old { BackupType::Full } else { kind }
}

/// Returns when the newest backup was made that counts as a run of `kind`.
pub fn last_run(backups: &[Backup], kind: BackupType) -> Option<i64> {
    let counts = |backup: &&Backup| {
        !backup.safety_backup
            && (kind == BackupType::Snapshot || backup.kind != BackupType::Snapshot)
    };
    backups.iter().find(counts).map(|backup| backup.timestamp)
}

fn newest_good(backups: &[Backup]) -> Option<&Backup> {
    let is_good = |backup: &&Backup| {
        backup.kind != BackupType::Snapshot && backup.is_sound() && !backup.safety_backup
    };
    backups.iter().find(is_good)
}

/// Returns the full backup at the start of the chain of `newest`, if no member is missing.
fn start_of<'a>(newest: &'a Backup, backups: &'a [Backup]) -> Option<&'a Backup> {
    let mut link = newest;
    // A chain cannot have more members than there are backups, so a longer one is a cycle.
    for _ in 0..backups.len() {
        match &link.based_on {
            None => return Some(link),
            Some(base) => link = backups.iter().find(|backup| backup.id == *base)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::manifest::{Contents, Stats},
        sqlite::check::{Depth, Findings, Integrity, IntegrityStatus},
    };

    const DAY: i64 = 24 * 60 * 60 * 1000;
    /// 2024-03-01, 2:00 in UTC.
    const NOW: i64 = 1_709_258_400_000;

    fn backup(id: &str, kind: BackupType, age_ms: i64, based_on: Option<&str>) -> Backup {
        Backup {
            id: id.into(),
            kind,
            archive: crate::place::Archive::at("archive".as_ref()),
            size: 1,
            sidecar_size: 0,
            checksum: String::new(),
            timestamp: NOW - age_ms,
            description: None,
            contents: Contents::default(),
            stats: Stats::default(),
            integrity: Integrity::of(Findings::default(), Depth::All),
            warnings: Vec::new(),
            based_on: based_on.map(str::to_string),
            based_on_checksum: None,
            consolidated_from: None,
            safety_backup: false,
            incomplete: false,
            emptied: false,
            encrypted: false,
            pinned: None,
            linked_to: None,
            is_replaced: false,
            project_id: None,
            origin: None,
        }
    }

    fn chosen(backups: &[Backup]) -> BackupType {
        choose(
            backups,
            BackupType::Incremental,
            Some(7),
            &TimeZone::UTC,
            NOW,
        )
    }

    #[test]
    fn a_full_one_is_due_after_so_many_days_of_the_calendar_even_when_the_run_begins_a_little_early()
     {
        use BackupType::{Full, Incremental};
        let chain = |age| {
            [
                backup("b", Incremental, DAY, Some("a")),
                backup("a", Full, age, None),
            ]
        };
        assert_eq!(chosen(&chain(6 * DAY)), Incremental);
        assert_eq!(chosen(&chain(7 * DAY - 60_000)), Full);
        assert_eq!(chosen(&chain(30 * DAY)), Full);
        let never = choose(&chain(900 * DAY), Incremental, None, &TimeZone::UTC, NOW);
        assert_eq!(never, Incremental);
    }

    #[test]
    fn a_full_one_is_due_where_no_good_one_begins_a_chain() {
        use BackupType::{Full, Snapshot};
        assert_eq!(chosen(&[]), Full);
        assert_eq!(chosen(&[backup("s", Snapshot, DAY, None)]), Full);
        let mut damaged = backup("a", Full, DAY, None);
        damaged.integrity.status = IntegrityStatus::Failed;
        assert_eq!(chosen(&[damaged]), Full);
    }

    #[test]
    fn what_becomes_of_a_broken_chain_is_left_to_the_backup_which_says_so() {
        use BackupType::Incremental;
        assert_eq!(
            chosen(&[backup("b", Incremental, DAY, Some("gone"))]),
            Incremental
        );
        assert_eq!(
            chosen(&[backup("b", Incremental, DAY, Some("b"))]),
            Incremental
        );
    }

    #[test]
    fn other_kinds_are_made_as_they_are_wanted_and_a_snapshot_is_no_run_of_theirs() {
        let snapshot = backup("s", BackupType::Snapshot, DAY, None);
        let backups = [snapshot, backup("a", BackupType::Full, 3 * DAY, None)];
        assert_eq!(
            choose(&backups, BackupType::Snapshot, Some(1), &TimeZone::UTC, NOW),
            BackupType::Snapshot
        );
        assert_eq!(last_run(&backups, BackupType::Full), Some(NOW - 3 * DAY));
        assert_eq!(last_run(&backups, BackupType::Snapshot), Some(NOW - DAY));
    }

    #[test]
    fn the_safety_backup_of_a_repair_is_no_run_and_begins_no_chain() {
        let safety = Backup {
            safety_backup: true,
            ..backup("s", BackupType::Full, DAY, None)
        };
        let backups = [safety.clone(), backup("a", BackupType::Full, 3 * DAY, None)];
        assert_eq!(last_run(&backups, BackupType::Full), Some(NOW - 3 * DAY));
        assert_eq!(chosen(&[safety]), BackupType::Full);
    }
}
