//! How the backups of a project stand.

use std::iter;

use jiff::Timestamp;
use serde::Serialize;

use super::history::{History, HookFailure, Run};
use crate::{
    archive::manifest::BackupType,
    commands::{own_backups::own_among, scheduled},
    config::Settings,
    error::{Result, WarningCode},
    project::Project,
    schedule::{
        backup_type,
        plan::{Action, State, Trigger},
    },
    service::hooks::Hooks,
    store::{
        Backup, Listing, Store, broken_chains, known_stores, newest_good, passed_over,
        passed_over_warning,
    },
};

/// So many of the newest sizes are told.
const MOST_SIZES: usize = 30;

/// Times are milliseconds since the epoch, sizes bytes of archives and their sidecars.
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
    /// Archives and manifests that could not be read: whether they are backups cannot be told.
    pub unread: usize,
    pub total_size: u64,
    pub by_type: ByType,
    /// How many of these are of other projects, or of this one where it lay before: its retention leaves them alone.
    pub others: usize,
    pub chains: Chains,
    pub latest: Option<Backup>,
    /// The last attempt of `kg`, which may have failed.
    pub last_run: Option<Run>,
    pub last_success: Option<Run>,
    pub last_failure: Option<Run>,
    /// Hooks that failed when they ran last.
    pub hook_failures: Vec<HookFailure>,
    /// Why hooks that are configured do not run, or cannot all be used.
    pub hook_warnings: Vec<String>,
    /// Of the newest backups, oldest first.
    pub sizes: Vec<u64>,
    pub health: Health,
    /// The store held backups of the project at the last run and holds none now, or did so at the last run.
    pub store_emptied: bool,
    /// Of this project, where others share the store; not what a repair saved.
    #[serde(skip)]
    pub newest: Option<Newest>,
    /// Why no backups are made on a schedule, and what to type.
    #[serde(skip)]
    pub without_schedule: Vec<&'static str>,
    /// What to see to, whatever the time is.
    #[serde(skip)]
    problems: Vec<String>,
}

/// The newest backup that a project made for itself.
#[derive(Debug)]
pub struct Newest {
    pub timestamp: i64,
    pub size: u64,
    /// Before compression.
    pub source_size: u64,
    /// How many backups a restore of it reads.
    pub chain_length: usize,
    /// It lacks something of the project, or may hold half of a change.
    pub incomplete: bool,
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
    /// Incremental backups that cannot be restored, as one that they rest on is gone.
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

    /// As a service tells it, which is there to make backups on a schedule. `doubt` is what else there is to see to.
    pub fn of_service(mut self, doubt: Option<String>) -> Self {
        let without_schedule = self.without_schedule.iter().map(|why| why.to_string());
        let problems: Vec<String> = doubt.into_iter().chain(without_schedule).collect();
        self.health.ok &= problems.is_empty();
        self.health.messages.extend(problems.iter().cloned());
        self.problems.extend(problems);
        self
    }

    /// When the newest backup of the project was made, by whomever.
    pub fn succeeded_at(&self) -> Option<i64> {
        self.last_success
            .as_ref()
            .map(Run::ended_at)
            .max(self.newest.as_ref().map(|newest| newest.timestamp))
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
        Health {
            ok: messages.is_empty(),
            messages,
        }
    }
}

/// `project` is `None` where there is none: then only the store is told of, and each of its backups counts.
pub fn status(
    project: Option<&Project>,
    store: &Store,
    settings: &Settings,
    now: Timestamp,
) -> Result<Status> {
    let now = now.as_millisecond();
    let listing = store.read()?;
    let (unread, unread_message) = (listing.unread().count(), listing.unread_message());
    let Listing { backups, unlisted } = listing;
    let own = project.map_or_else(
        || backups.clone(),
        |project| own_among(backups.clone(), project),
    );
    let (history, unknown) = match project.map(History::read).transpose() {
        Ok(history) => (history.unwrap_or_default(), None),
        Err(error) => (
            History::default(),
            Some(format!(
                "what the last runs led to cannot be told: {}",
                error.message
            )),
        ),
    };
    let enabled = scheduled::is_enabled(settings);
    let plan = project
        .map(|project| scheduled::plan(settings, project.root()))
        .transpose()?
        .flatten();
    let kind = scheduled::wanted_kind(settings);
    let next = plan.as_ref().filter(|_| enabled).map(|plan| {
        let known = history.state.as_ref().map(State::covered);
        let mut state = State::new(plan, known.max(backup_type::last_run(&own, kind)), now);
        plan.decide(&mut state, now)
    });
    let next_run = match next {
        Some(Action::Run { .. }) => Some(now),
        Some(Action::Wait { until }) => Some(until),
        Some(Action::Never) | None => None,
    };
    // One that is on time is about to begin, or has just begun.
    let is_late = matches!(
        next,
        Some(Action::Run {
            trigger: Trigger::CatchUp
        })
    );
    let mut sizes: Vec<u64> = backups
        .iter()
        .take(MOST_SIZES)
        .map(Backup::disk_size)
        .collect();
    sizes.reverse();
    let count = |kind| backups.iter().filter(|backup| backup.kind == kind).count();
    let chains = chains(&backups);
    let regular = own.iter().find(|backup| !backup.safety_backup);
    let newest = regular.map(|backup| Newest {
        timestamp: backup.timestamp,
        size: backup.disk_size(),
        source_size: backup.stats.total_size,
        chain_length: chain_length(backup, &backups),
        incomplete: backup.incomplete,
    });
    let emptied = project.and_then(|project| known_stores::emptied(project, store, &own));
    let in_last_run = history.last().into_iter().flat_map(|run| &run.warnings);
    let emptied = emptied.or(in_last_run
        .into_iter()
        .find(|warning| warning.code == WarningCode::StoreEmptied)
        .cloned());
    let mut problems = problems(regular, backups.is_empty(), unread == 0, &chains, &history);
    problems.extend(unread_message);
    problems.extend(unknown);
    problems.extend(emptied.iter().map(|warning| warning.message.clone()));
    if let Some(chosen) = newest_good(&own) {
        let passed = passed_over(&own, &unlisted, chosen);
        problems.extend(passed_over_warning(&passed, chosen).map(|warning| warning.message));
    }
    Ok(Status {
        backup_dir: store.dir().to_path_buf(),
        enabled,
        schedule: settings.text("backup.schedule").map(str::to_string),
        timezone: settings.text("backup.timezone").map(str::to_string),
        kind,
        next_run,
        count: backups.len(),
        unread,
        others: backups.len() - own.len(),
        total_size: backups.iter().map(Backup::disk_size).sum(),
        by_type: ByType {
            full: count(BackupType::Full),
            incremental: count(BackupType::Incremental),
            snapshot: count(BackupType::Snapshot),
        },
        chains,
        last_run: history.last().cloned(),
        last_success: history
            .runs
            .iter()
            .rev()
            .find(|run| run.backup.is_some())
            .cloned(),
        last_failure: history
            .runs
            .iter()
            .rev()
            .find(|run| run.error.is_some())
            .cloned(),
        hook_failures: history.hook_failures,
        hook_warnings: project.map(hook_warnings).unwrap_or_default(),
        sizes,
        health: Health::of(&problems, is_late),
        store_emptied: emptied.is_some_and(|warning| warning.code == WarningCode::StoreEmptied),
        newest,
        without_schedule: settings.without_schedule(),
        problems,
        latest: backups.into_iter().next(),
    })
}

fn hook_warnings(project: &Project) -> Vec<String> {
    let mut warnings = Vec::new();
    Hooks::load(project, &mut warnings);
    warnings
        .into_iter()
        .map(|warning| warning.message)
        .collect()
}

fn chains(backups: &[Backup]) -> Chains {
    let mut rested_on: Vec<&str> = backups
        .iter()
        .filter_map(|backup| base_of(backup, backups))
        .filter(|base| base.based_on.is_none())
        .map(|base| base.id.as_str())
        .collect();
    rested_on.sort_unstable();
    rested_on.dedup();
    Chains {
        count: rested_on.len(),
        newest_length: backups
            .first()
            .map_or(0, |newest| chain_length(newest, backups)),
        broken: broken_chains(backups).len(),
    }
}

fn base_of<'a>(backup: &Backup, backups: &'a [Backup]) -> Option<&'a Backup> {
    let id = backup.based_on.as_ref()?;
    backups.iter().find(|base| base.id == *id)
}

fn chain_length(backup: &Backup, backups: &[Backup]) -> usize {
    // No chain is longer than there are backups; a longer one leads in a circle.
    iter::successors(Some(backup), |link| base_of(link, backups))
        .take(backups.len())
        .count()
}

/// That a backup lacks something, and what, as far as its sidecar names it.
fn incomplete(backup: &Backup) -> String {
    format!("{} is incomplete: {}", backup.id, backup.lacks())
}

/// `newest` is the one that the project made last for itself: what a repair saved of a damaged database is no sign that it is damaged now.
fn problems(
    newest: Option<&Backup>,
    is_empty: bool,
    is_known: bool,
    chains: &Chains,
    history: &History,
) -> Vec<String> {
    let mut messages = Vec::new();
    match newest {
        None if !is_known => messages.push("whether there is a backup cannot be told".into()),
        None => {
            let others = if is_empty { "" } else { " of this project" };
            messages.push(format!(
                "there is no backup{others}: make one with `kg diag backup`"
            ));
        }
        Some(newest) => match newest.flaw_of_source() {
            Some(flaw) => messages.push(format!(
                "the database was {flaw} when {} was made",
                newest.id
            )),
            None if newest.incomplete => messages.push(incomplete(newest)),
            None => {}
        },
    }
    if chains.broken > 0 {
        messages.push(format!(
            "{} incremental backups rest on one that is gone",
            chains.broken
        ));
    }
    // Somebody else, an application, may have made one since.
    let is_mended = |run: &&Run| {
        newest.is_some_and(|newest| newest.is_sound() && newest.timestamp > run.started_at)
    };
    let failure = history
        .last()
        .filter(|run| !is_mended(run))
        .and_then(|run| run.error.as_ref());
    if let Some(error) = failure {
        messages.push(format!(
            "the last run failed: {} [{}]",
            error.message, error.code
        ));
    }
    messages
}
