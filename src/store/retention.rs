//! Retention: decides which backups to keep. A pure function of the backups, the policy and the
//! time; `commands::prune` carries out the decisions.

use std::{collections::HashMap, time::Duration};

use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::Serialize;

use super::{Backup, good};
use crate::{archive::manifest::BackupType, error::Error};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The retention policy. Without limits and rules it keeps everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The age in days beyond which backups are removed.
    pub retention_days: Option<u32>,
    /// The maximum number of backups to keep.
    pub max_backups: Option<u32>,
    /// Rules that keep backups regardless of the limits.
    pub keep: Keep,
    /// The time zone of the calendar periods in the rules.
    pub zone: TimeZone,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            retention_days: None,
            max_backups: None,
            keep: Keep::default(),
            zone: TimeZone::UTC,
        }
    }
}

impl Policy {
    pub fn keeps_everything(&self) -> bool {
        !self.has_limits() && self.keep == Keep::default()
    }

    fn has_limits(&self) -> bool {
        self.retention_days.is_some() || self.max_backups.is_some()
    }
}

/// Rules that keep the newest good backup of each of the last so many hours, days, ISO weeks,
/// months and years. Only periods with a good backup count; their time zone is [`Policy::zone`].
/// `last` keeps the newest good backups, whatever their period.
///
/// The rules work like restic's `forget`
/// (<https://restic.readthedocs.io/en/stable/060_forget.html>). A rule that is not used up also
/// keeps the oldest good backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    pub last: Option<u32>,
    pub hourly: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
}

impl Keep {
    /// Completes the rules that are not set with those of `other`.
    pub fn over(self, other: Keep) -> Keep {
        Keep {
            last: self.last.or(other.last),
            hourly: self.hourly.or(other.hourly),
            daily: self.daily.or(other.daily),
            weekly: self.weekly.or(other.weekly),
            monthly: self.monthly.or(other.monthly),
            yearly: self.yearly.or(other.yearly),
        }
    }
}

/// Why a backup is kept or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Kept: the newest good backup is never removed, whatever the limits are. It may be a
    /// snapshot, incomplete, or of a graph without nodes. Then the newest good backup that is none
    /// of these is kept too, and the newest of a graph with nodes.
    NewestGood,
    /// Kept: this run just made it.
    JustMade,
    /// Kept: it is pinned. It does not count towards any limit or rule.
    Pinned,
    /// Kept: it is within all limits.
    WithinLimits,
    /// Kept: a kept backup depends on it.
    Needed,
    KeepLast,
    KeepHourly,
    KeepDaily,
    KeepWeekly,
    KeepMonthly,
    KeepYearly,
    /// Removed: no `keep` rule selects it, and there are no limits.
    NoRule,
    /// Removed: older than `retentionDays`.
    TooOld,
    /// Removed: at least `maxBackups` newer ones exist.
    TooMany,
}

/// The decision on one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub id: String,
    pub kept: bool,
    pub reason: Reason,
    /// Why the backup could not be removed although it should have been; `kept` is true then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Decides on `backups` of one project, which are sorted newest first. Pinned backups are kept. The
/// others are decided on as if there were no pinned ones, except that a pinned backup can be the
/// newest good one. The backup with the id `made` is kept because its creator is told that it
/// exists.
pub fn decide(
    backups: &[Backup],
    policy: &Policy,
    now: Timestamp,
    made: Option<&str>,
) -> Vec<Decision> {
    let places = places(backups);
    let good = good(backups);
    let last_good = last_good(backups, &good);
    // The real time of a backup dated in the future is unknown, so it belongs to no period.
    let counts = |place: &usize| {
        let backup = &backups[*place];
        backup.pinned.is_none() && !backup.is_ahead(now)
    };
    let good: Vec<usize> = good.into_iter().filter(counts).collect();
    let rules = Rules {
        policy,
        now,
        last_good,
        by_rule: by_rule(backups, &good, policy),
        ranks: ranks(backups),
    };
    let mut decisions: Vec<Decision> = backups
        .iter()
        .enumerate()
        .map(|(place, backup)| rules.decide(place, backup, made))
        .collect();
    keep_bases(&mut decisions, backups, &places);
    decisions
}

/// Returns, for each backup, the number of earlier entries that count towards `max_backups`.
fn ranks(backups: &[Backup]) -> Vec<u64> {
    backups
        .iter()
        .scan(0, |rank, backup| {
            let next = *rank + u64::from(backup.pinned.is_none());
            Some(std::mem::replace(rank, next))
        })
        .collect()
}

/// What decides on a backup alone, without those that depend on it.
struct Rules<'a> {
    policy: &'a Policy,
    now: Timestamp,
    last_good: Vec<usize>,
    by_rule: HashMap<usize, Reason>,
    ranks: Vec<u64>,
}

impl Rules<'_> {
    fn decide(&self, place: usize, backup: &Backup, made: Option<&str>) -> Decision {
        let reason = self.reason(place, backup);
        let is_kept = !matches!(reason, Reason::TooMany | Reason::TooOld | Reason::NoRule);
        let (kept, reason) = if !is_kept && made == Some(&backup.id) {
            (true, Reason::JustMade)
        } else {
            (is_kept, reason)
        };
        Decision {
            id: backup.id.clone(),
            kept,
            reason,
            error: None,
        }
    }

    fn reason(&self, place: usize, backup: &Backup) -> Reason {
        let policy = self.policy;
        let age_ms = self.now.as_millisecond().saturating_sub(backup.timestamp);
        let age_ms = age_ms.max(0) as u128;
        if backup.pinned.is_some() {
            Reason::Pinned
        } else if self.last_good.contains(&place) {
            Reason::NewestGood
        } else if let Some(rule) = self.by_rule.get(&place) {
            *rule
        } else if !policy.has_limits() && policy.keep != Keep::default() {
            Reason::NoRule
        } else if policy
            .max_backups
            .is_some_and(|most| self.ranks[place] >= u64::from(most))
        {
            Reason::TooMany
        } else if policy
            .retention_days
            .is_some_and(|days| age_ms > u128::from(days) * DAY.as_millis())
        {
            Reason::TooOld
        } else {
            Reason::WithinLimits
        }
    }
}

/// Keeps the backups that a kept backup depends on.
fn keep_bases(decisions: &mut [Decision], backups: &[Backup], places: &HashMap<&str, usize>) {
    let kept: Vec<usize> = (0..decisions.len())
        .filter(|place| decisions[*place].kept)
        .collect();
    for base in kept
        .into_iter()
        .flat_map(|place| bases(backups, places, place))
        .flatten()
    {
        let decision = &mut decisions[base];
        if !decision.kept {
            decision.kept = true;
            decision.reason = Reason::Needed;
        }
    }
}

/// Returns the places of the backups among `good` that no limit may remove. Older backups may
/// contain more than the newest one, so up to four are protected:
///
/// - the newest backup;
/// - the newest of a graph with nodes;
/// - the newest of these that is not a snapshot;
/// - the newest of these that is also complete.
fn last_good(backups: &[Backup], good: &[usize]) -> Vec<usize> {
    let newest = |is_wanted: &dyn Fn(&Backup) -> bool| {
        good.iter()
            .copied()
            .find(|place| is_wanted(&backups[*place]))
    };
    let is_whole = |backup: &Backup| backup.kind != BackupType::Snapshot;
    let is_filled = |backup: &Backup| backup.stats.node_count > 0;
    // Falls back to any backup that is not a snapshot, if none of them has a graph with nodes.
    let both =
        newest(&|backup| is_whole(backup) && is_filled(backup)).or_else(|| newest(&is_whole));
    let complete = newest(&|backup| is_whole(backup) && is_filled(backup) && !backup.incomplete);
    [newest(&|_| true), newest(&is_filled), both, complete]
        .into_iter()
        .flatten()
        .collect()
}

/// Returns the first rule that keeps each backup in `good`.
fn by_rule(backups: &[Backup], good: &[usize], policy: &Policy) -> HashMap<usize, Reason> {
    let keep = policy.keep;
    let day = |at: &Zoned| i64::from(at.year()) * 366 + i64::from(at.day_of_year());
    // The hour that a clock change repeats counts as another hour.
    let hour = |at: &Zoned| (day(at) * 24 + i64::from(at.hour()), at.offset().seconds());
    let week = |at: &Zoned| {
        (
            i64::from(at.date().iso_week_date().year()),
            at.date().iso_week_date().week().into(),
        )
    };
    // Each rule with a function that returns the period of a backup. For `last`, each backup is its
    // own period.
    type PeriodOf<'a> = &'a dyn Fn(usize, &Zoned) -> (i64, i32);
    let rules: [(Option<u32>, Reason, PeriodOf<'_>); 6] = [
        (keep.last, Reason::KeepLast, &|place, _| (place as i64, 0)),
        (keep.hourly, Reason::KeepHourly, &|_, at| hour(at)),
        (keep.daily, Reason::KeepDaily, &|_, at| (day(at), 0)),
        (keep.weekly, Reason::KeepWeekly, &|_, at| week(at)),
        (keep.monthly, Reason::KeepMonthly, &|_, at| {
            (at.year().into(), at.month().into())
        }),
        (keep.yearly, Reason::KeepYearly, &|_, at| {
            (at.year().into(), 0)
        }),
    ];
    let mut kept = HashMap::new();
    for (count, reason, period_of) in rules {
        let mut left = count.unwrap_or(0);
        let mut last = None;
        for place in good {
            let at = Timestamp::from_millisecond(backups[*place].timestamp)
                .unwrap_or(Timestamp::UNIX_EPOCH);
            let period = period_of(*place, &at.to_zoned(policy.zone.clone()));
            if left > 0 && (last != Some(period) || good.last() == Some(place)) {
                kept.entry(*place).or_insert(reason);
                last = Some(period);
                left -= 1;
            }
        }
    }
    kept
}

/// Maps the id of each backup to its place in the list.
pub fn places(backups: &[Backup]) -> HashMap<&str, usize> {
    backups
        .iter()
        .enumerate()
        .map(|(place, backup)| (backup.id.as_str(), place))
        .collect()
}

/// Returns the places of the bases of a backup, nearest first. The last item is `None` if a base is
/// missing.
pub fn bases(
    backups: &[Backup],
    places: &HashMap<&str, usize>,
    place: usize,
) -> impl Iterator<Item = Option<usize>> {
    let base_of = |place: usize| {
        backups[place]
            .based_on
            .as_deref()
            .map(|id| places.get(id).copied())
    };
    let mut found = Vec::new();
    let mut next = base_of(place);
    while let Some(base) = next {
        // Only forged manifests form a cycle, which is not a valid chain.
        let base = base.filter(|base| found.len() < backups.len() && *base != place);
        found.push(base);
        next = base.and_then(base_of);
    }
    found.into_iter()
}

#[cfg(test)]
mod tests;
