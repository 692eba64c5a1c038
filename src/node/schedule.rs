//! The plan of a `BackupScheduler`: what JavaScript asks between its timers.

use serde::Deserialize;
use serde_json::{Value, json};

use super::config::{Config, parse, whole};
use crate::{
    archive::manifest::BackupType,
    commands::own_backups::own_backups,
    error::{Error, Result},
    project::Project,
    schedule::{
        backup_type,
        cron::{Cadence, time_zone},
        plan::{DEFAULT_RETRIES, DEFAULT_RETRY_DELAY_MS, Plan, State},
    },
    store::Store,
};

/// The options of a scheduler that make its plan.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScheduleOptions {
    schedule: String,
    #[serde(rename = "type")]
    kind: Option<BackupType>,
    /// In days.
    full_backup_interval: Option<f64>,
    timezone: Option<String>,
    catch_up: Option<bool>,
    /// In milliseconds.
    jitter: Option<f64>,
    retries: Option<f64>,
    /// In milliseconds.
    retry_delay: Option<f64>,
    #[serde(default)]
    seed: String,
}

impl ScheduleOptions {
    pub fn plan(self) -> Result<Plan> {
        whole("jitter", self.jitter, 0, "a number of milliseconds")?;
        whole("retries", self.retries, 0, "a number of retries")?;
        whole(
            "retryDelay",
            self.retry_delay,
            1,
            "a number of milliseconds",
        )?;
        whole(
            "fullBackupInterval",
            self.full_backup_interval,
            1,
            "a number of days",
        )?;
        if self.full_backup_interval.is_some() && self.kind != Some(BackupType::Incremental) {
            return Err(Error::invalid(
                "`fullBackupInterval` goes with the type `incremental`",
                "Set `type` to `incremental`, or leave it out",
            ));
        }
        let plan = Plan {
            cadence: Cadence::parse(&self.schedule, self.timezone.as_deref())?,
            catch_up: self.catch_up.unwrap_or(true),
            jitter_ms: self.jitter.map_or(0, |jitter| jitter as i64),
            seed: self.seed,
            retries: self
                .retries
                .map_or(DEFAULT_RETRIES, |retries| retries as u32),
            retry_delay_ms: self
                .retry_delay
                .map_or(DEFAULT_RETRY_DELAY_MS, |delay| delay as i64),
        };
        plan.check()?;
        Ok(plan)
    }
}

/// Something happened at the time `now`, in milliseconds since the epoch.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanRequest {
    options: ScheduleOptions,
    event: Event,
    /// Absent at the start.
    state: Option<State>,
    /// When the newest backup was made; at the start.
    last: Option<i64>,
    now: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Event {
    /// Nothing but the time.
    Tick,
    Succeeded,
    Failed,
}

/// The new state, and what to do; after a failure, when it is tried again.
pub fn plan(request: &str) -> Result<Value> {
    let PlanRequest {
        options,
        event,
        state,
        last,
        now,
    } = parse(request)?;
    let plan = options.plan()?;
    let now = now as i64;
    let mut state = state.unwrap_or_else(|| State::new(&plan, last, now));
    let mut retry_at = None;
    match event {
        Event::Tick => {}
        Event::Succeeded => plan.succeeded(&mut state, now),
        Event::Failed => retry_at = plan.failed(&mut state, now),
    }
    // Asked only for its time: the state keeps a run that is due for the next tick.
    let action = match event {
        Event::Tick => plan.decide(&mut state, now),
        _ => plan.decide(&mut state.clone(), now),
    };
    Ok(json!({ "state": state, "action": action, "retryAt": retry_at }))
}

/// What the next run makes, and when the last one was.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NextRun {
    #[serde(rename = "type")]
    kind: BackupType,
    full_backup_interval: Option<f64>,
    timezone: Option<String>,
    now: f64,
}

pub fn next_run(config: &Config, store: &Store, request: &NextRun) -> Result<Value> {
    let backups = own_backups(store, &Project::open(&config.project_root)?)?;
    let zone = time_zone(request.timezone.as_deref())?;
    let full_every = request.full_backup_interval.map(|days| days as u32);
    let kind = backup_type::choose(
        &backups,
        request.kind,
        full_every,
        &zone,
        request.now as i64,
    );
    let last = backup_type::last_run(&backups, request.kind);
    Ok(json!({ "type": kind, "last": last }))
}
