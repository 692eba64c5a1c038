//! How the backups of a project stand.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    automatic,
    history::{History, HookFailure, Run},
    kind,
    plan::{Action, State},
};
use crate::{
    archive::manifest::BackupType,
    base::own_backups,
    error::Result,
    project::Project,
    settings::Settings,
    store::{Backup, Store},
};

/// So many of the newest sizes are told.
const MOST_SIZES: usize = 30;

/// Times are milliseconds since the epoch, sizes bytes of archives.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub backup_dir: std::path::PathBuf,
    pub enabled: bool,
    pub schedule: Option<String>,
    pub timezone: Option<String>,
    /// What a run on schedule makes.
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// `None` unless a schedule is enabled.
    pub next_run: Option<i64>,
    pub count: usize,
    pub total_size: u64,
    pub by_type: ByType,
    pub chains: Chains,
    pub latest: Option<Backup>,
    /// The last attempt of `kg`, which may have failed.
    pub last_run: Option<Run>,
    pub last_success: Option<Run>,
    pub last_failure: Option<Run>,
    /// Hooks that failed when they ran last.
    pub hook_failures: Vec<HookFailure>,
    /// Of the newest backups, oldest first.
    pub sizes: Vec<u64>,
    pub health: Health,
    /// What to see to, whatever the time is.
    #[serde(skip)]
    problems: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ByType {
    pub full: usize,
    pub incremental: usize,
    pub snapshot: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chains {
    /// Full backups that incremental ones rest on.
    pub count: usize,
    /// How many backups a restore of the newest one reads.
    pub newest_length: usize,
    /// Incremental backups that rest on one that is gone.
    pub broken: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// There is a good backup, and no run is missing.
    pub ok: bool,
    /// What to see to.
    pub messages: Vec<String>,
}

impl Status {
    /// The health at a later time. Nothing else changes by itself than that a run is late.
    pub fn health_when(&self, is_late: bool) -> Health {
        Health::of(&self.problems, is_late)
    }

    /// When the newest backup was made, by whomever.
    pub fn succeeded_at(&self) -> Option<i64> {
        self.last_success.as_ref().map(Run::ended_at).max(self.latest.as_ref().map(|latest| latest.timestamp))
    }

    pub fn failed_at(&self) -> Option<i64> {
        self.last_failure.as_ref().map(Run::ended_at)
    }
}

impl Health {
    fn of(problems: &[String], is_late: bool) -> Self {
        let mut messages = problems.to_vec();
        if is_late {
            messages.push("a run is due; does the service run? See `kg serve --status`".into());
        }
        Health { ok: messages.is_empty(), messages }
    }
}

/// `project` is `None` where there is none: then only the store is told of.
pub fn status(project: Option<&Project>, store: &Store, settings: &Settings, now: Timestamp) -> Result<Status> {
    let now = now.as_millisecond();
    let backups = store.list()?;
    let own = project.map(|project| own_backups(store, project)).transpose()?.unwrap_or_default();
    let history = project.map(History::read).unwrap_or_default();
    let enabled = automatic::is_enabled(settings);
    let plan = project.map(|project| automatic::plan(settings, project.root())).transpose()?.flatten();
    let kind = automatic::wanted_kind(settings);
    let next_run = plan.as_ref().filter(|_| enabled).and_then(|plan| {
        let known = history.state.as_ref().map(State::covered);
        let mut state = State::new(plan, known.max(kind::last_run(&own, kind)), now);
        match plan.decide(&mut state, now) {
            Action::Run { .. } => Some(now),
            Action::Wait { until } => Some(until),
            Action::Never => None,
        }
    });
    let mut sizes: Vec<u64> = backups.iter().take(MOST_SIZES).map(|backup| backup.size).collect();
    sizes.reverse();
    let count = |kind| backups.iter().filter(|backup| backup.kind == kind).count();
    let chains = chains(&backups);
    let problems = problems(&backups, &chains, &history);
    Ok(Status {
        backup_dir: store.dir().to_path_buf(),
        enabled,
        schedule: settings.text("backup.schedule").map(str::to_string),
        timezone: settings.text("backup.timezone").map(str::to_string),
        kind,
        next_run,
        count: backups.len(),
        total_size: backups.iter().map(|backup| backup.size).sum(),
        by_type: ByType {
            full: count(BackupType::Full),
            incremental: count(BackupType::Incremental),
            snapshot: count(BackupType::Snapshot),
        },
        chains,
        last_run: history.last().cloned(),
        last_success: history.runs.iter().rev().find(|run| run.backup.is_some()).cloned(),
        last_failure: history.runs.iter().rev().find(|run| run.error.is_some()).cloned(),
        hook_failures: history.hook_failures,
        sizes,
        health: Health::of(&problems, next_run.is_some_and(|next| next <= now)),
        problems,
        latest: backups.into_iter().next(),
    })
}

fn chains(backups: &[Backup]) -> Chains {
    let base_of = |backup: &Backup| {
        let id = backup.based_on.as_ref()?;
        backups.iter().find(|base| base.id == *id)
    };
    let mut chains = Chains::default();
    let mut rested_on: Vec<&str> = Vec::new();
    for backup in backups.iter().filter(|backup| backup.based_on.is_some()) {
        match base_of(backup) {
            None => chains.broken += 1,
            Some(base) if base.based_on.is_none() => rested_on.push(&base.id),
            Some(_) => {}
        }
    }
    rested_on.sort_unstable();
    rested_on.dedup();
    chains.count = rested_on.len();
    let mut link = backups.first();
    while let Some(backup) = link.filter(|_| chains.newest_length < backups.len()) {
        chains.newest_length += 1;
        link = base_of(backup);
    }
    chains
}

fn problems(backups: &[Backup], chains: &Chains, history: &History) -> Vec<String> {
    let mut messages = Vec::new();
    // What a repair saved of a damaged database is no sign that it is damaged now.
    match backups.iter().find(|backup| !backup.safety_backup) {
        None => messages.push("there is no backup: make one with `kg diag backup`".to_string()),
        Some(newest) if !newest.is_sound() => {
            messages.push(format!("the database was damaged when {} was made", newest.id));
        }
        Some(_) => {}
    }
    if chains.broken > 0 {
        messages.push(format!("{} incremental backups rest on one that is gone", chains.broken));
    }
    if let Some(error) = history.last().and_then(|run| run.error.as_ref()) {
        messages.push(format!("the last run failed: {} [{}]", error.message, error.code));
    }
    messages
}
