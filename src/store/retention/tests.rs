use std::borrow::Borrow;

use proptest::prelude::*;

use super::*;
use crate::{
    archive::manifest::{Contents, Stats},
    sqlite::check::{Integrity, IntegrityStatus},
    store::Pin,
};

const NOW: i64 = 1_800_000_000_000;

fn backup(hours_old: i64, good: bool) -> Backup {
    let status = if good {
        IntegrityStatus::Ok
    } else {
        IntegrityStatus::Failed
    };
    Backup {
        id: format!("backup-{hours_old}"),
        kind: BackupType::Full,
        archive: crate::place::Archive::at("archive".as_ref()),
        size: 1,
        sidecar_size: 0,
        checksum: String::new(),
        timestamp: NOW - hours_old * 3_600_000,
        description: None,
        contents: Contents::default(),
        stats: Stats {
            node_count: 1,
            ..Stats::default()
        },
        integrity: Integrity {
            status,
            messages: Vec::new(),
            not_checked: Vec::new(),
            full_text: true,
        },
        warnings: Vec::new(),
        based_on: None,
        // The checksum of the base above.
        based_on_checksum: Some(String::new()),
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

fn reasons(ages: &[(i64, bool)], policy: impl Borrow<Policy>) -> Vec<Reason> {
    let backups: Vec<Backup> = ages
        .iter()
        .map(|(hours, good)| backup(*hours, *good))
        .collect();
    let now = Timestamp::from_millisecond(NOW).unwrap();
    decide(&backups, policy.borrow(), now, None)
        .into_iter()
        .map(|decision| decision.reason)
        .collect()
}

#[test]
fn a_backup_is_removed_when_it_is_older_than_the_days_or_beyond_the_number() {
    use Reason::*;
    let week = Policy {
        retention_days: Some(7),
        ..Policy::default()
    };
    assert_eq!(
        reasons(&[(1, true), (167, true), (168, true), (169, true)], week),
        [NewestGood, WithinLimits, WithinLimits, TooOld]
    );
    let two = Policy {
        max_backups: Some(2),
        ..Policy::default()
    };
    assert_eq!(
        reasons(&[(1, true), (2, true), (3, true)], two),
        [NewestGood, WithinLimits, TooMany]
    );
}

#[test]
fn the_newest_good_backup_stays_even_when_newer_damaged_ones_fill_the_limit() {
    use Reason::*;
    let one = Policy {
        retention_days: Some(1),
        max_backups: Some(1),
        ..Policy::default()
    };
    assert_eq!(
        reasons(&[(1, false), (2, false), (900, true), (901, true)], &one),
        [WithinLimits, TooMany, NewestGood, TooMany]
    );
    assert_eq!(reasons(&[(900, false)], &one), [TooOld]);
}

#[test]
fn the_safety_backup_of_a_repair_is_the_newest_good_one_only_where_there_is_no_other() {
    let now = Timestamp::from_millisecond(NOW).unwrap();
    let one = Policy {
        retention_days: Some(1),
        max_backups: Some(1),
        ..Policy::default()
    };
    let kept = |backups: &[Backup]| -> Vec<Reason> {
        decide(backups, &one, now, None)
            .into_iter()
            .map(|decision| decision.reason)
            .collect()
    };
    let safety = |hours| Backup {
        safety_backup: true,
        ..backup(hours, true)
    };
    assert_eq!(
        kept(&[safety(1), backup(900, true)]),
        [Reason::WithinLimits, Reason::NewestGood]
    );
    assert_eq!(
        kept(&[safety(900), backup(901, false), safety(902)]),
        [Reason::NewestGood, Reason::TooMany, Reason::TooMany]
    );
}

fn pin() -> Option<Pin> {
    Some(Pin {
        reason: None,
        at: NOW,
    })
}

#[test]
fn a_snapshot_or_an_emptied_graph_takes_the_place_of_no_backup_that_holds_more() {
    use Reason::*;
    let now = Timestamp::from_millisecond(NOW).unwrap();
    let one = Policy {
        retention_days: Some(1),
        max_backups: Some(1),
        ..Policy::default()
    };
    let reasons = |backups: &[Backup]| -> Vec<Reason> {
        decide(backups, &one, now, None)
            .into_iter()
            .map(|decision| decision.reason)
            .collect()
    };
    let full = |hours| backup(hours, true);
    let snapshot = |hours| Backup {
        kind: BackupType::Snapshot,
        ..full(hours)
    };
    let empty = |hours| Backup {
        stats: Stats::default(),
        ..full(hours)
    };
    assert_eq!(
        reasons(&[snapshot(1), snapshot(2), full(900), full(901)]),
        [NewestGood, TooMany, NewestGood, TooMany]
    );
    // The snapshot has nodes, and the empty backup is not a snapshot: each lacks something that
    // the full backup has.
    assert_eq!(
        reasons(&[empty(1), empty(2), snapshot(800), full(900)]),
        [NewestGood, TooMany, NewestGood, NewestGood]
    );
    assert_eq!(
        reasons(&[empty(1), empty(2), snapshot(800)]),
        [NewestGood, TooMany, NewestGood]
    );
    assert_eq!(reasons(&[empty(1), empty(2)]), [NewestGood, TooMany]);
}

#[test]
fn an_incomplete_backup_takes_the_place_of_no_complete_one() {
    use Reason::*;
    let now = Timestamp::from_millisecond(NOW).unwrap();
    let one = Policy {
        retention_days: Some(1),
        max_backups: Some(1),
        ..Policy::default()
    };
    let reasons = |backups: &[Backup]| -> Vec<Reason> {
        decide(backups, &one, now, None)
            .into_iter()
            .map(|decision| decision.reason)
            .collect()
    };
    let incomplete = |hours| Backup {
        incomplete: true,
        ..backup(hours, true)
    };
    assert_eq!(
        reasons(&[
            incomplete(1),
            incomplete(2),
            backup(900, true),
            backup(901, true)
        ]),
        [NewestGood, TooMany, NewestGood, TooMany]
    );
    assert_eq!(
        reasons(&[incomplete(1), incomplete(2)]),
        [NewestGood, TooMany]
    );
    assert_eq!(
        reasons(&[backup(1, true), backup(2, true)]),
        [NewestGood, TooMany]
    );
}

#[test]
fn a_backup_that_is_dated_ahead_takes_no_place_of_a_rule() {
    use Reason::*;
    let now = Timestamp::from_millisecond(NOW).unwrap();
    let policy = Policy {
        keep: Keep {
            yearly: Some(2),
            ..Keep::default()
        },
        ..Policy::default()
    };
    // The backup dated in the future comes last, as in the list.
    let backups = [
        backup(1, true),
        backup(2, true),
        backup(3, true),
        backup(-24 * 400, true),
    ];
    let reasons: Vec<Reason> = decide(&backups, &policy, now, None)
        .into_iter()
        .map(|decision| decision.reason)
        .collect();
    assert_eq!(reasons, [NewestGood, NoRule, KeepYearly, NoRule]);
}

#[test]
fn what_was_made_a_moment_ago_stays_with_what_it_rests_on() {
    let now = Timestamp::from_millisecond(NOW).unwrap();
    let daily = Policy {
        keep: Keep {
            daily: Some(1),
            ..Keep::default()
        },
        ..Policy::default()
    };
    let mut backups = vec![backup(0, false), backup(1, true), backup(2, true)];
    backups[0].based_on = Some(backups[2].id.clone());
    let made = backups[0].id.clone();
    let reasons: Vec<Reason> = decide(&backups, &daily, now, Some(&made))
        .into_iter()
        .map(|decision| decision.reason)
        .collect();
    assert_eq!(
        reasons,
        [Reason::JustMade, Reason::NewestGood, Reason::Needed]
    );
}

/// A history of backups, newest first. Each has an age, a sound or damaged source, and possibly
/// an older base. It may be pinned, a snapshot, incomplete, or of a graph without nodes.
fn history() -> impl Strategy<Value = Vec<Backup>> {
    let base = prop::option::of(any::<prop::sample::Index>());
    let few = || prop::bool::weighted(0.15);
    let one = (0..2000_i64, any::<bool>(), base, few(), few(), few(), few());
    prop::collection::vec(one, 0..60).prop_map(|mut history| {
        history.sort_by_key(|(hours, ..)| *hours);
        history.dedup_by_key(|(hours, ..)| *hours);
        let mut backups: Vec<Backup> = history
            .iter()
            .map(|(hours, good, ..)| backup(*hours, *good))
            .collect();
        for (place, (_, _, base, pinned, is_snapshot, is_empty, is_incomplete)) in
            history.iter().enumerate()
        {
            backups[place].incomplete = *is_incomplete;
            if *is_snapshot {
                backups[place].kind = BackupType::Snapshot;
            }
            if *is_empty {
                backups[place].stats = Stats::default();
            }
            let older = &backups[place + 1..];
            let base = base
                .filter(|_| !older.is_empty())
                .map(|base| older[base.index(older.len())].id.clone());
            backups[place].based_on = base;
            backups[place].pinned = pin().filter(|_| *pinned);
        }
        backups
    })
}

fn keep() -> impl Strategy<Value = Keep> {
    let count = || prop::option::of(1..8_u32);
    (count(), count(), count(), count(), count(), count()).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly)| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        },
    )
}

/// Returns the ages in hours that a rule keeps, for `count` backups made every `every_hours`
/// hours.
fn kept_of(keep: Keep, every_hours: i64, count: i64) -> Vec<i64> {
    let ages: Vec<(i64, bool)> = (0..count)
        .map(|number| (number * every_hours, true))
        .collect();
    let reasons = reasons(
        &ages,
        Policy {
            keep,
            ..Policy::default()
        },
    );
    let kept = ages
        .iter()
        .zip(reasons)
        .filter(|(_, reason)| *reason != Reason::NoRule);
    kept.map(|((hours, _), _)| *hours).collect()
}

#[test]
fn a_rule_keeps_the_newest_of_each_of_its_last_periods() {
    // NOW is 2027-01-15T08:00:00Z, a Friday.
    let none = Keep::default;
    assert_eq!(
        kept_of(
            Keep {
                last: Some(3),
                ..none()
            },
            5,
            100
        ),
        [0, 5, 10]
    );
    assert_eq!(
        kept_of(
            Keep {
                hourly: Some(3),
                ..none()
            },
            1,
            100
        ),
        [0, 1, 2]
    );
    assert_eq!(
        kept_of(
            Keep {
                daily: Some(3),
                ..none()
            },
            1,
            100
        ),
        [0, 9, 33]
    );
    assert_eq!(
        kept_of(
            Keep {
                weekly: Some(3),
                ..none()
            },
            24,
            100
        ),
        [0, 5 * 24, 12 * 24]
    );
    assert_eq!(
        kept_of(
            Keep {
                monthly: Some(3),
                ..none()
            },
            24,
            100
        ),
        [0, 15 * 24, 46 * 24]
    );
    assert_eq!(
        kept_of(
            Keep {
                yearly: Some(2),
                ..none()
            },
            24,
            100
        ),
        [0, 15 * 24]
    );
    assert_eq!(
        kept_of(
            Keep {
                daily: Some(2),
                last: Some(2),
                ..none()
            },
            4,
            50
        ),
        [0, 4, 12]
    );
    // There are fewer than nine years, so the oldest backup is kept too.
    assert_eq!(
        kept_of(
            Keep {
                yearly: Some(9),
                ..none()
            },
            24,
            100
        ),
        [0, 15 * 24, 99 * 24]
    );
}

/// Returns the places that the rules keep, for backups made at these times, newest first.
fn kept_in(zone: &str, keep: Keep, times: &[&str]) -> Vec<usize> {
    let policy = Policy {
        keep,
        zone: TimeZone::get(zone).unwrap(),
        ..Policy::default()
    };
    let at = |time: &&str| time.parse::<Timestamp>().unwrap().as_millisecond();
    let backups: Vec<Backup> = times
        .iter()
        .map(|time| Backup {
            id: (*time).into(),
            timestamp: at(time),
            ..backup(0, true)
        })
        .collect();
    let decisions = decide(
        &backups,
        &policy,
        Timestamp::from_millisecond(NOW).unwrap(),
        None,
    );
    (0..times.len())
        .filter(|place| decisions[*place].kept)
        .collect()
}

#[test]
fn periods_are_those_of_the_calendar_in_the_time_zone() {
    let none = Keep::default;
    // Two evenings in Berlin, one of which is the next day in UTC; and the last hours of a
    // year, which is over in Tokyo.
    let evenings = [
        "2026-06-03T12:00:00Z",
        "2026-06-02T23:30:00Z",
        "2026-06-02T21:30:00Z",
        "2026-06-01T10:00:00Z",
    ];
    assert_eq!(
        kept_in(
            "UTC",
            Keep {
                daily: Some(2),
                ..none()
            },
            &evenings
        ),
        [0, 1]
    );
    assert_eq!(
        kept_in(
            "Europe/Berlin",
            Keep {
                daily: Some(2),
                ..none()
            },
            &evenings
        ),
        [0, 2]
    );
    let year = [
        "2026-01-01T00:30:00Z",
        "2025-12-31T16:00:00Z",
        "2025-12-31T14:00:00Z",
        "2025-01-01T10:00:00Z",
    ];
    for keep in [
        Keep {
            monthly: Some(2),
            ..none()
        },
        Keep {
            yearly: Some(2),
            ..none()
        },
    ] {
        assert_eq!(kept_in("UTC", keep, &year), [0, 1]);
        assert_eq!(kept_in("Asia/Tokyo", keep, &year), [0, 2]);
    }
    // Sunday in UTC, Monday in Auckland.
    let week = [
        "2026-06-07T23:00:00Z",
        "2026-06-07T13:00:00Z",
        "2026-06-07T11:00:00Z",
        "2026-05-01T00:00:00Z",
    ];
    assert_eq!(
        kept_in(
            "UTC",
            Keep {
                weekly: Some(2),
                ..none()
            },
            &week
        ),
        [0, 3]
    );
    assert_eq!(
        kept_in(
            "Pacific/Auckland",
            Keep {
                weekly: Some(2),
                ..none()
            },
            &week
        ),
        [0, 2]
    );
}

#[test]
fn days_of_23_and_25_hours_are_one_day_and_an_hour_that_is_repeated_is_two() {
    let none = Keep::default;
    let spring = [
        "2026-03-29T21:30:00Z",
        "2026-03-28T23:30:00Z",
        "2026-03-28T22:30:00Z",
        "2026-03-27T10:00:00Z",
    ];
    assert_eq!(
        kept_in(
            "Europe/Berlin",
            Keep {
                daily: Some(2),
                ..none()
            },
            &spring
        ),
        [0, 2]
    );
    let autumn = [
        "2026-10-25T22:30:00Z",
        "2026-10-24T22:30:00Z",
        "2026-10-24T21:30:00Z",
        "2026-10-23T10:00:00Z",
    ];
    assert_eq!(
        kept_in(
            "Europe/Berlin",
            Keep {
                daily: Some(2),
                ..none()
            },
            &autumn
        ),
        [0, 2]
    );
    let repeated = [
        "2026-10-25T01:30:00Z",
        "2026-10-25T00:30:00Z",
        "2026-10-24T23:30:00Z",
        "2026-10-24T10:00:00Z",
    ];
    assert_eq!(
        kept_in(
            "Europe/Berlin",
            Keep {
                hourly: Some(3),
                ..none()
            },
            &repeated
        ),
        [0, 1, 2]
    );
}

#[test]
fn limits_keep_beside_the_rules_and_damaged_backups_fill_none() {
    use Reason::*;
    let policy = Policy {
        retention_days: Some(1),
        keep: Keep {
            daily: Some(2),
            ..Keep::default()
        },
        ..Policy::default()
    };
    let ages = [
        (0, false),
        (1, true),
        (2, true),
        (30, true),
        (31, true),
        (60, true),
    ];
    assert_eq!(
        reasons(&ages, policy),
        [
            WithinLimits,
            NewestGood,
            WithinLimits,
            KeepDaily,
            TooOld,
            TooOld
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_newest_good_one_and_all_that_is_needed_stay_and_deciding_again_changes_nothing(
        backups in history(),
        retention_days in prop::option::of(1..60_u32),
        max_backups in prop::option::of(1..30_u32),
        keep in keep(),
    ) {
        let policy = Policy { retention_days, max_backups, keep, ..Policy::default() };
        let now = Timestamp::from_millisecond(NOW).unwrap();
        let first = decide(&backups, &policy, now, None);
        let kept: Vec<Backup> = backups
            .iter().zip(&first).filter(|(_, decision)| decision.kept).map(|(backup, _)| backup.clone()).collect();
        let good = |backup: &&Backup| backup.integrity.status != IntegrityStatus::Failed;
        prop_assert_eq!(backups.iter().find(good), kept.iter().find(good));
        let both = |backup: &&Backup| {
            good(backup) && backup.kind != BackupType::Snapshot && backup.stats.node_count > 0
        };
        prop_assert_eq!(backups.iter().find(both), kept.iter().find(both));
        let complete = |backup: &&Backup| both(backup) && !backup.incomplete;
        prop_assert_eq!(backups.iter().find(complete), kept.iter().find(complete));
        prop_assert!(decide(&kept, &policy, now, None).iter().all(|decision| decision.kept));
        for (backup, decision) in backups.iter().zip(&first) {
            prop_assert_eq!(backup.pinned.is_some(), decision.reason == Reason::Pinned);
        }
        for base in kept.iter().filter_map(|backup| backup.based_on.as_ref()) {
            prop_assert!(kept.iter().any(|backup| backup.id == *base), "{base} is needed");
        }
        if let Some(most) = max_backups {
            let within = first.iter().filter(|decision| decision.reason == Reason::WithinLimits).count();
            prop_assert!(within <= most as usize);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pin_keeps_its_backup_and_takes_no_other_from_a_limit_or_rule(
        backups in history(),
        retention_days in prop::option::of(1..60_u32),
        max_backups in prop::option::of(1..30_u32),
        keep in keep(),
    ) {
        let policy = Policy { retention_days, max_backups, keep, ..Policy::default() };
        let now = Timestamp::from_millisecond(NOW).unwrap();
        // Chains are removed because a backup with a base could not be decided on alone.
        let alone = |backup: &Backup| Backup { based_on: None, ..backup.clone() };
        let backups: Vec<Backup> = backups.iter().map(alone).collect();
        let others: Vec<Backup> = backups.iter().filter(|backup| backup.pinned.is_none()).cloned().collect();
        let with_pins = decide(&backups, &policy, now, None);
        let with_pins = with_pins.iter().filter(|decision| decision.reason != Reason::Pinned);
        let newest_good = |decision: &&Decision| decision.reason == Reason::NewestGood;
        for (with, without) in with_pins.zip(&decide(&others, &policy, now, None)) {
            prop_assert_eq!(&with.id, &without.id);
            // A newer pinned backup may be the newest good one instead.
            prop_assert!(with.reason == without.reason || newest_good(&without), "{with:?} {without:?}");
        }
    }
}

#[test]
fn a_pinned_backup_and_what_it_rests_on_stay_beside_those_that_the_limits_keep() {
    use Reason::*;
    let mut backups: Vec<Backup> = (0..6).map(|number| backup(100 * number, true)).collect();
    backups[4].based_on = Some(backups[5].id.clone());
    backups[4].pinned = pin();
    backups[1].pinned = pin();
    let two = Policy {
        max_backups: Some(2),
        ..Policy::default()
    };
    let decided = decide(
        &backups,
        &two,
        Timestamp::from_millisecond(NOW).unwrap(),
        None,
    );
    let reasons: Vec<Reason> = decided.iter().map(|decision| decision.reason).collect();
    assert_eq!(
        reasons,
        [NewestGood, Pinned, WithinLimits, TooMany, Pinned, Needed]
    );
}

#[test]
fn a_backup_whose_base_is_gone_is_not_the_newest_good_one() {
    let mut backups = vec![backup(1, true), backup(2, true), backup(3, true)];
    backups[0].based_on = Some("backup-gone".into());
    let one = Policy {
        max_backups: Some(1),
        ..Policy::default()
    };
    let decided = decide(
        &backups,
        &one,
        Timestamp::from_millisecond(NOW).unwrap(),
        None,
    );
    let reasons: Vec<Reason> = decided
        .into_iter()
        .map(|decision| decision.reason)
        .collect();
    assert_eq!(
        reasons,
        [Reason::WithinLimits, Reason::NewestGood, Reason::TooMany]
    );
}
