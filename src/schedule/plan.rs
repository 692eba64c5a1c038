//! Decides what to do now: run, or wait until a time.
//!
//! ```text
//! State::new(last) ─▶ decide(now) ─▶ Run ─▶ succeeded(now), or failed(now): retry or give up
//!                          └───────▶ Wait { until } ─▶ decide(now) again, at the latest then
//! ```
//!
//! The state is a single time: every scheduled time up to it has been handled. However many times
//! were missed while the machine slept, one run therefore makes up for them all. A run also covers
//! the times that pass while it works, so runs never queue. If the clock is set back by more than
//! [`CLOCK_TOLERANCE_MS`], the schedule continues from the new time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    schedule::cron::Cadence,
};

/// A run that begins later than this after its scheduled time counts as missed.
pub const GRACE_MS: i64 = 90_000;
/// How far a clock may be set back, as time servers do, without repeating a run.
pub const CLOCK_TOLERANCE_MS: i64 = 60 * 60 * 1000;
pub const DEFAULT_RETRIES: u32 = 3;
pub const DEFAULT_RETRY_DELAY_MS: i64 = 60_000;
/// The limit of the delay, which doubles with each retry.
pub const MAX_RETRY_DELAY_MS: i64 = 60 * 60 * 1000;
/// The limit of delays and jitter. A larger value is assumed to be a mistake.
const MAX_MS: i64 = 24 * 60 * 60 * 1000;

/// When to run, and how to handle missed times and failed runs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub cadence: Cadence,
    /// Whether to make up for missed times.
    pub catch_up: bool,
    /// The maximum delay of a run in milliseconds. The actual delay depends only on the scheduled
    /// time and `seed`.
    pub jitter_ms: i64,
    pub seed: String,
    pub retries: u32,
    /// The delay before the first retry, in milliseconds.
    pub retry_delay_ms: i64,
}

/// The options of a schedule. `None` means the default.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// A cron expression.
    pub schedule: String,
    pub timezone: Option<String>,
    /// Default: true.
    pub catch_up: Option<bool>,
    /// Default: 0.
    pub jitter_ms: Option<i64>,
    /// Default: [`DEFAULT_RETRIES`].
    pub retries: Option<u32>,
    /// Default: [`DEFAULT_RETRY_DELAY_MS`].
    pub retry_delay_ms: Option<i64>,
    /// Spreads the jitter of different projects.
    pub seed: String,
}

impl PlanOptions {
    /// Returns the plan. Fails with `KG_INVALID_OPTION` if an option is out of range.
    pub fn resolve(self) -> Result<Plan> {
        let plan = Plan {
            cadence: Cadence::parse(&self.schedule, self.timezone.as_deref())?,
            catch_up: self.catch_up.unwrap_or(true),
            jitter_ms: self.jitter_ms.unwrap_or(0),
            seed: self.seed,
            retries: self.retries.unwrap_or(DEFAULT_RETRIES),
            retry_delay_ms: self.retry_delay_ms.unwrap_or(DEFAULT_RETRY_DELAY_MS),
        };
        plan.check()?;
        Ok(plan)
    }
}

/// The progress of the schedule. All times are milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Every scheduled time up to this one has been handled.
    covered: i64,
    /// How often the current run has failed.
    failures: u32,
    retry_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "camelCase")]
pub enum Action {
    Run {
        trigger: Trigger,
    },
    Wait {
        until: i64,
    },
    /// The schedule has no further time.
    Never,
}

/// Why a run happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    Schedule,
    /// The scheduled time was missed.
    CatchUp,
    /// The previous run failed.
    Retry,
    /// A user requested the run.
    Manual,
}

impl State {
    /// Returns the state when a scheduler starts. `last` is the time of the newest backup that
    /// counts as a run.
    pub fn new(plan: &Plan, last: Option<i64>, now: i64) -> Self {
        let covered = last
            .filter(|_| plan.catch_up)
            .map_or(now, |last| last.min(now));
        State {
            covered,
            failures: 0,
            retry_at: None,
        }
    }
}

impl State {
    /// Returns the time, in milliseconds since the epoch, up to which every scheduled time has been
    /// handled.
    pub fn covered(&self) -> i64 {
        self.covered
    }
}

impl Plan {
    fn check(&self) -> Result<()> {
        for (name, value, least) in [
            ("jitter", self.jitter_ms, 0),
            ("retryDelay", self.retry_delay_ms, 1),
        ] {
            if !(least..=MAX_MS).contains(&value) {
                return Err(Error::invalid(
                    format!(
                        "`{name}` is {value}, not a number of milliseconds from {least} to a day"
                    ),
                    "Give a whole number",
                ));
            }
        }
        if self.retries > 100 {
            return Err(Error::invalid(
                format!("`retries` is {}, more than 100", self.retries),
                "Give fewer",
            ));
        }
        Ok(())
    }

    pub fn decide(&self, state: &mut State, now: i64) -> Action {
        if state.covered > now.saturating_add(CLOCK_TOLERANCE_MS) {
            state.covered = now;
        }
        if let Some(at) = state.retry_at {
            state.retry_at = Some(at.min(now.saturating_add(MAX_RETRY_DELAY_MS)));
        }
        if !self.catch_up {
            self.skip_missed(state, now);
        }
        match (self.due(state.covered), state.retry_at) {
            (Some(due), _) if due <= now => {
                state.failures = 0;
                state.retry_at = None;
                let trigger = if now - due > GRACE_MS {
                    Trigger::CatchUp
                } else {
                    Trigger::Schedule
                };
                Action::Run { trigger }
            }
            (_, Some(retry)) if retry <= now => Action::Run {
                trigger: Trigger::Retry,
            },
            (Some(due), retry) => Action::Wait {
                until: due.min(retry.unwrap_or(due)),
            },
            (None, Some(until)) => Action::Wait { until },
            (None, None) => Action::Never,
        }
    }

    /// Records a successful run.
    pub fn succeeded(&self, state: &mut State, now: i64) {
        *state = State {
            covered: state.covered.max(now),
            failures: 0,
            retry_at: None,
        };
    }

    /// Records a failed run. Returns the time of the retry, or `None` if there are no retries left.
    pub fn failed(&self, state: &mut State, now: i64) -> Option<i64> {
        let failures = state.failures + 1;
        let delay = self
            .retry_delay_ms
            .saturating_mul(1 << (failures - 1).min(30))
            .min(MAX_RETRY_DELAY_MS);
        let retry_at = (failures <= self.retries).then(|| now.saturating_add(delay));
        let failures = if retry_at.is_some() { failures } else { 0 };
        *state = State {
            covered: state.covered.max(now),
            failures,
            retry_at,
        };
        retry_at
    }

    /// Marks missed times as handled. A later time that is still on schedule is kept.
    fn skip_missed(&self, state: &mut State, now: i64) {
        let missed = |due: i64| now - due > GRACE_MS;
        if !self.due(state.covered).is_some_and(missed) {
            return;
        }
        state.covered = state.covered.max(now - GRACE_MS - self.jitter_ms);
        while let Some(time) = self.after(state.covered)
            && missed(time + self.jitter(time))
        {
            state.covered = time;
        }
    }

    /// Returns the first scheduled time after `covered`.
    fn after(&self, covered: i64) -> Option<i64> {
        self.cadence
            .next(Timestamp::from_millisecond(covered).ok()?)
            .map(Timestamp::as_millisecond)
    }

    /// Returns when that time is due, including jitter.
    fn due(&self, covered: i64) -> Option<i64> {
        self.after(covered)
            .map(|time| time.saturating_add(self.jitter(time)))
    }

    fn jitter(&self, time: i64) -> i64 {
        if self.jitter_ms == 0 {
            return 0;
        }
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&time.to_le_bytes())
            .update(self.seed.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        (u64::from_le_bytes(first) % (self.jitter_ms as u64 + 1)) as i64
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
