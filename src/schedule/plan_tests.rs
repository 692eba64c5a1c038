//! Simulates whole years of a plan with an artificial clock.

use jiff::{ToSpan, civil, tz::TimeZone};
use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn plan(expression: &str, zone: &str) -> Plan {
    Plan {
        cadence: Cadence::parse(expression, Some(zone)).unwrap(),
        catch_up: true,
        jitter_ms: 0,
        seed: String::new(),
        retries: 3,
        retry_delay_ms: MINUTE,
    }
}

fn at(time: &str) -> i64 {
    time.parse::<Timestamp>().unwrap().as_millisecond()
}

/// A machine that runs a plan, with a record of its runs and sleeps.
struct Machine {
    plan: Plan,
    now: i64,
    /// When the machine will sleep and for how long, in order.
    sleeps: Vec<(i64, i64)>,
    slept: Vec<(i64, i64)>,
    /// Whether each run fails, in turn.
    failing: Vec<bool>,
    runs: Vec<(i64, Trigger)>,
}

impl Machine {
    fn new(plan: Plan, from: i64) -> Self {
        Machine {
            plan,
            now: from,
            sleeps: Vec::new(),
            slept: Vec::new(),
            failing: Vec::new(),
            runs: Vec::new(),
        }
    }

    fn run_until(&mut self, end: i64) {
        let mut state = State::new(&self.plan, None, self.now);
        while self.now < end {
            match self.plan.decide(&mut state, self.now) {
                Action::Wait { until } => self.wait(until),
                Action::Never => return,
                Action::Run { trigger } => {
                    self.runs.push((self.now, trigger));
                    self.now += 20 * SECOND;
                    let fails = !self.failing.is_empty()
                        && self.failing[self.runs.len() % self.failing.len()];
                    if fails {
                        self.plan.failed(&mut state, self.now);
                    } else {
                        self.plan.succeeded(&mut state, self.now);
                    }
                }
            }
        }
    }

    fn wait(&mut self, until: i64) {
        assert!(
            until > self.now,
            "a plan that waits for the past never ends"
        );
        let now = self.now;
        self.sleeps.retain(|(from, _)| *from >= now);
        match self.sleeps.first().copied() {
            Some((from, length)) if from < until => {
                self.slept.push((from, from + length));
                self.now = from + length;
            }
            _ => self.now = until,
        }
    }
}

/// Returns the instants of 2:30 on every day of a year, computed independently of croner. If a
/// clock change skips 2:30, the instant is that of the change.
fn half_past_two(zone: &str, year: i16) -> Vec<i64> {
    let zone = TimeZone::get(zone).unwrap();
    let first = civil::date(year, 1, 1);
    let days =
        (0..first.days_in_year()).map(|day| first.checked_add(i32::from(day).days()).unwrap());
    days.map(|day| {
        let local = day.at(2, 30, 0, 0);
        if zone.to_ambiguous_timestamp(local).is_ambiguous() {
            let before = day.at(0, 30, 0, 0).to_zoned(zone.clone()).unwrap();
            let change = zone
                .following(before.timestamp())
                .next()
                .unwrap()
                .timestamp();
            let earlier = zone.to_ambiguous_timestamp(local).earlier().unwrap();
            let is_skipped = zone.to_datetime(earlier) != local;
            return if is_skipped { change } else { earlier }.as_millisecond();
        }
        local
            .to_zoned(zone.clone())
            .unwrap()
            .timestamp()
            .as_millisecond()
    })
    .collect()
}

#[test]
fn a_year_has_one_run_a_day_in_every_zone_through_both_changes() {
    for zone in [
        "Europe/Berlin",
        "America/New_York",
        "UTC",
        "Australia/Lord_Howe",
    ] {
        let mut machine = Machine::new(
            plan("30 2 * * *", zone),
            half_past_two(zone, 2024)[0] - MINUTE,
        );
        let expected = half_past_two(zone, 2024);
        machine.run_until(expected[365] + MINUTE);
        let runs: Vec<i64> = machine.runs.iter().map(|(at, _)| *at).collect();
        assert_eq!(runs, expected, "{zone}");
        assert!(
            machine
                .runs
                .iter()
                .all(|(_, trigger)| *trigger == Trigger::Schedule)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Exactly the scheduled runs happen, plus one for each sleep in which at least one was missed.
    #[test]
    fn a_year_with_sleeps_and_failures_has_every_named_run_and_one_catch_up_a_gap(
        zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York"]),
        sleeps in prop::collection::vec((0..365 * 24_i64, 1..20 * 24_i64), 0..40),
        failing in prop::collection::vec(prop::bool::weighted(0.3), 1..20),
    ) {
        let named = half_past_two(zone, 2024);
        let start = named[0] - HOUR;
        let mut machine = Machine::new(plan("30 2 * * *", zone), start);
        // Sleeps begin and end at a quarter past an hour, so never within a run and its retries.
        machine.sleeps =
            sleeps.into_iter().map(|(from, length)| (start + from * HOUR + HOUR / 4, length * HOUR)).collect();
        machine.sleeps.sort();
        machine.failing = failing;
        let end = named[365] + HOUR;
        machine.run_until(end);
        let mut expected: Vec<i64> = Vec::new();
        for time in named {
            // One run after the sleep makes up for all missed times.
            let gap = machine.slept.iter().find(|(from, to)| *from < time && time < *to);
            expected.push(gap.map_or(time, |(_, to)| *to));
        }
        expected.dedup();
        expected.retain(|at| *at < end);
        let begun: Vec<i64> =
            machine.runs.iter().filter(|(_, trigger)| *trigger != Trigger::Retry).map(|(at, _)| *at).collect();
        prop_assert_eq!(begun, expected);
    }

    /// Jitter only delays, never by more than the limit, and always by the same amount.
    #[test]
    fn jitter_delays_each_run_by_its_own_time_within_the_limit(seed in "[a-z]{0,8}", jitter in 0..HOUR) {
        let jittered = Plan { jitter_ms: jitter, seed, ..plan("0 */6 * * *", "UTC") };
        let start = at("2024-01-01T00:00:00Z");
        let mut machine = Machine::new(jittered.clone(), start);
        machine.run_until(start + 20 * DAY);
        let mut again = Machine::new(jittered, start);
        again.run_until(start + 20 * DAY);
        prop_assert_eq!(&machine.runs, &again.runs);
        for (place, (at, trigger)) in machine.runs.iter().enumerate() {
            let time = start + (place as i64 + 1) * 6 * HOUR;
            prop_assert!((time..=time + jitter).contains(at));
            prop_assert_eq!(*trigger, Trigger::Schedule);
        }
    }
}

#[test]
fn a_run_that_was_missed_while_the_process_was_down_is_made_up_once_at_start() {
    let daily = plan("0 2 * * *", "UTC");
    let now = at("2024-05-10T12:00:00Z");
    let mut state = State::new(&daily, Some(at("2024-05-06T02:00:03Z")), now);
    assert_eq!(
        daily.decide(&mut state, now),
        Action::Run {
            trigger: Trigger::CatchUp
        }
    );
    daily.succeeded(&mut state, now + MINUTE);
    assert_eq!(
        daily.decide(&mut state, now + MINUTE),
        Action::Wait {
            until: at("2024-05-11T02:00:00Z")
        }
    );
}

#[test]
fn nothing_is_made_up_where_a_backup_is_newer_none_was_ever_made_or_it_is_not_wanted() {
    let daily = plan("0 2 * * *", "UTC");
    let now = at("2024-05-10T12:00:00Z");
    let next = Action::Wait {
        until: at("2024-05-11T02:00:00Z"),
    };
    let old = Some(at("2024-05-01T02:00:00Z"));
    let without = Plan {
        catch_up: false,
        ..daily.clone()
    };
    for (plan, last) in [
        (&daily, Some(at("2024-05-10T03:00:00Z"))),
        (&daily, None),
        (&without, old),
    ] {
        let mut state = State::new(plan, last, now);
        assert_eq!(plan.decide(&mut state, now), next);
    }
}

#[test]
fn without_catch_up_a_sleep_is_skipped_and_what_is_on_time_is_not() {
    let hourly = Plan {
        catch_up: false,
        ..plan("0 * * * *", "UTC")
    };
    let start = at("2024-05-10T00:30:00Z");
    let mut state = State::new(&hourly, None, start);
    let woken = start + 5 * HOUR;
    assert_eq!(
        hourly.decide(&mut state, woken),
        Action::Wait {
            until: at("2024-05-10T06:00:00Z")
        }
    );
    assert_eq!(
        hourly.decide(&mut state, at("2024-05-10T09:00:05Z")),
        Action::Run {
            trigger: Trigger::Schedule
        }
    );
}

#[test]
fn a_failure_is_retried_with_a_growing_delay_and_then_given_up() {
    let daily = plan("0 2 * * *", "UTC");
    let mut now = at("2024-05-10T02:00:00Z");
    let mut state = State::new(&daily, None, now - 1);
    assert_eq!(
        daily.decide(&mut state, now),
        Action::Run {
            trigger: Trigger::Schedule
        }
    );
    for delay in [1, 2, 4] {
        let retry = daily.failed(&mut state, now);
        assert_eq!(retry, Some(now + delay * MINUTE));
        assert_eq!(
            daily.decide(&mut state, now),
            Action::Wait {
                until: now + delay * MINUTE
            }
        );
        now += delay * MINUTE;
        assert_eq!(
            daily.decide(&mut state, now),
            Action::Run {
                trigger: Trigger::Retry
            }
        );
    }
    assert_eq!(daily.failed(&mut state, now), None);
    assert_eq!(
        daily.decide(&mut state, now),
        Action::Wait {
            until: at("2024-05-11T02:00:00Z")
        }
    );
    let stubborn = Plan {
        retries: 100,
        ..daily
    };
    let retries: Vec<i64> = (0..100)
        .filter_map(|_| stubborn.failed(&mut state, now))
        .collect();
    assert!(retries.iter().all(|at| *at <= now + MAX_RETRY_DELAY_MS) && retries.len() == 100);
}

#[test]
fn the_next_time_of_the_schedule_takes_the_place_of_a_retry() {
    let often = Plan {
        retry_delay_ms: HOUR,
        ..plan("*/10 * * * *", "UTC")
    };
    let now = at("2024-05-10T02:00:00Z");
    let mut state = State::new(&often, None, now - 1);
    assert_eq!(
        often.decide(&mut state, now),
        Action::Run {
            trigger: Trigger::Schedule
        }
    );
    often.failed(&mut state, now);
    let next = now + 10 * MINUTE;
    assert_eq!(often.decide(&mut state, now), Action::Wait { until: next });
    assert_eq!(
        often.decide(&mut state, next),
        Action::Run {
            trigger: Trigger::Schedule
        }
    );
}

#[test]
fn a_clock_that_is_set_repeats_nothing_by_seconds_and_loses_nothing_by_days() {
    let hourly = plan("0 * * * *", "UTC");
    let now = at("2024-05-10T02:00:00Z");
    let mut state = State::new(&hourly, None, now - 1);
    hourly.decide(&mut state, now);
    hourly.succeeded(&mut state, now + SECOND);
    let next = now + HOUR;
    assert_eq!(
        hourly.decide(&mut state.clone(), now - 10 * SECOND),
        Action::Wait { until: next }
    );
    assert_eq!(
        hourly.decide(&mut state.clone(), now + 5 * HOUR),
        Action::Run {
            trigger: Trigger::CatchUp
        }
    );
    let back = now - 30 * DAY;
    assert_eq!(
        hourly.decide(&mut state, back),
        Action::Wait { until: back + HOUR }
    );
    assert_eq!(
        hourly.decide(&mut state, back + HOUR),
        Action::Run {
            trigger: Trigger::Schedule
        }
    );
}

#[test]
fn a_retry_does_not_wait_for_a_clock_that_was_set_back() {
    let daily = plan("0 2 * * *", "UTC");
    let now = at("2024-05-10T02:00:00Z");
    let mut state = State::new(&daily, None, now - 1);
    daily.decide(&mut state, now);
    daily.failed(&mut state, now);
    let back = now - DAY + HOUR;
    let Action::Wait { until } = daily.decide(&mut state, back) else {
        panic!("it should wait")
    };
    assert!(until <= back + MAX_RETRY_DELAY_MS);
}

#[test]
fn times_that_pass_while_a_run_works_are_dealt_with_by_it() {
    let minutely = plan("* * * * *", "UTC");
    let now = at("2024-05-10T02:00:00Z");
    let mut state = State::new(&minutely, None, now - 1);
    minutely.decide(&mut state, now);
    minutely.succeeded(&mut state, now + 5 * MINUTE + SECOND);
    let next = now + 6 * MINUTE;
    assert_eq!(
        minutely.decide(&mut state, now + 5 * MINUTE + SECOND),
        Action::Wait { until: next }
    );
}
