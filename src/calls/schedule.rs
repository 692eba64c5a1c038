//! The plan of a `BackupScheduler`, which JavaScript requests between its timers.

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
        cron::time_zone,
        plan::{Plan, PlanOptions, State},
    },
    store::Store,
};

/// The options of a scheduler that determine its plan.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScheduleOptions {
    schedule: String,
    #[serde(rename = "type")]
    kind: Option<BackupType>,
    /// The interval in days.
    full_backup_interval: Option<f64>,
    timezone: Option<String>,
    catch_up: Option<bool>,
    /// The largest delay of a run in milliseconds.
    jitter: Option<f64>,
    retries: Option<f64>,
    /// The delay before the first retry in milliseconds.
    retry_delay: Option<f64>,
    #[serde(default)]
    seed: String,
}

impl ScheduleOptions {
    pub fn plan(self) -> Result<Plan> {
        let jitter = whole("jitter", self.jitter, 0, "a number of milliseconds")?;
        let retries = whole("retries", self.retries, 0, "a number of retries")?;
        let retry_delay = whole(
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
                "`fullBackupInterval` requires the type `incremental`",
                "Set `type` to `incremental`, or leave it out",
            ));
        }
        PlanOptions {
            schedule: self.schedule,
            timezone: self.timezone,
            catch_up: self.catch_up,
            jitter_ms: jitter.map(i64::from),
            retries,
            retry_delay_ms: retry_delay.map(i64::from),
            seed: self.seed,
        }
        .resolve()
    }
}

/// An event at the time `now`, in milliseconds since the epoch.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlanRequest {
    options: ScheduleOptions,
    event: Event,
    /// The state that the previous request returned; absent at the start.
    state: Option<State>,
    /// The time of the newest backup, in milliseconds since the epoch; used only at the start.
    last: Option<i64>,
    now: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Event {
    /// Time has passed; nothing else happened.
    Tick,
    Succeeded,
    Failed,
}

/// Returns the new state and the next action. After a failure, it also returns the time of the
/// retry.
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
    // The other events need only the time of the next run. They pass a copy of the state, so that a
    // run that is due stays due for the next tick.
    let action = match event {
        Event::Tick => plan.decide(&mut state, now),
        _ => plan.decide(&mut state.clone(), now),
    };
    Ok(json!({ "state": state, "action": action, "retryAt": retry_at }))
}

/// The argument of `nextRun`, which returns the type of the next run and the time of the last one.
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
