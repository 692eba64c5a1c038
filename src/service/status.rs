//! The command `status`: the state of the backups of a project.

use std::iter;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    copies::Copies,
    history::{History, HookFailure, Run},
};
use crate::{
    archive::manifest::BackupType,
    commands::{configured, own_backups::own_among},
    config::Settings,
    error::{Result, Warning, WarningCode},
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

/// The number of newest backups whose sizes are reported.
const MOST_SIZES: usize = 30;

/// The state of the backups. Times are milliseconds since the epoch. Sizes are bytes of archives
/// and their sidecars.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub backup_dir: std::path::PathBuf,
    pub enabled: bool,
    pub schedule: Option<String>,
    pub timezone: Option<String>,
    /// The type of backup that a scheduled run makes.
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// `None` unless a schedule is enabled.
    pub next_run: Option<i64>,
    pub count: usize,
    /// The number of archives and manifests that could not be read and may or may not be backups.
    pub unread: usize,
    pub total_size: u64,
    pub by_type: ByType,
    /// The number of backups of other projects, or of this project at an earlier path. Retention of
    /// this project ignores them.
    pub others: usize,
    pub chains: Chains,
    pub latest: Option<Backup>,
    /// The last attempt of `kg`, which may have failed.
    pub last_run: Option<Run>,
    pub last_success: Option<Run>,
    pub last_failure: Option<Run>,
    /// Hooks that failed when they last ran.
    pub hook_failures: Vec<HookFailure>,
    /// Why configured hooks do not run or cannot all be used.
    pub hook_warnings: Vec<String>,
    /// The sizes of the newest backups, oldest first.
    pub sizes: Vec<u64>,
    pub health: Health,
    /// The second store of the settings. Absent if they name none, or if its state is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<Copies>,
    /// The store held backups of the project at the last run and holds none now, or this was the
    /// case at the last run.
    pub store_emptied: bool,
    /// The newest backup of this project, even if other projects share the store. Safety backups
    /// before repairs do not count.
    #[serde(skip)]
    pub newest: Option<Newest>,
    /// Why no scheduled backups are made, and the command that changes this.
    #[serde(skip)]
    pub without_schedule: Vec<&'static str>,
    /// Problems that do not depend on the current time.
    #[serde(skip)]
    problems: Vec<String>,
}

/// The newest backup that a project made, except safety backups.
#[derive(Debug)]
pub struct Newest {
    pub timestamp: i64,
    pub size: u64,
    /// The size before compression, in bytes.
    pub source_size: u64,
    /// The number of backups that a restore of this backup reads.
    pub chain_length: usize,
    /// The backup lacks part of its project or may hold half of a change.
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
    /// The number of full backups that have incremental backups.
    pub count: usize,
    /// The number of backups that a restore of the newest backup reads.
    pub newest_length: usize,
    /// The number of incremental backups that cannot be restored because a backup that they depend
    /// on is missing.
    pub broken: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// True if there is a good backup and no run was missed.
    pub ok: bool,
    /// Problems that need attention.
    pub messages: Vec<String>,
}

impl Status {
    /// Returns the health at a later time. Only a late run can change it.
    pub fn health_when(&self, is_late: bool) -> Health {
        Health::of(&self.problems, is_late)
    }

    /// Adjusts the status for a service, whose purpose is to make scheduled backups. `doubt` is an
    /// additional problem.
    pub fn of_service(mut self, doubt: Option<String>) -> Self {
        let without_schedule = self.without_schedule.iter().map(|why| why.to_string());
        let problems: Vec<String> = doubt.into_iter().chain(without_schedule).collect();
        self.health.ok &= problems.is_empty();
        self.health.messages.extend(problems.iter().cloned());
        self.problems.extend(problems);
        self
    }

    /// Returns when the newest backup of the project was made, by any process.
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
            messages.push(
                "a run is overdue; check with `kg serve --status` whether the service is running"
                    .into(),
            );
        }
        Health {
            ok: messages.is_empty(),
            messages,
        }
    }
}

/// Returns the status. If `project` is `None`, it covers only the store and counts every backup of
/// the store.
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
    let (history, unknown) = read_history(project);
    let enabled = configured::is_enabled(settings);
    let kind = configured::wanted_kind(settings);
    let (next_run, is_late) = next_run(project, settings, &history, &own, now)?;
    let chains = chains(&backups);
    let regular = own.iter().find(|backup| !backup.safety_backup);
    let newest = regular.map(|backup| Newest {
        timestamp: backup.timestamp,
        size: backup.disk_size(),
        source_size: backup.stats.total_size,
        chain_length: chain_length(backup, &backups),
        incomplete: backup.incomplete,
    });
    let emptied = emptied(project, store, &own, &history);
    let mut problems = problems(regular, backups.is_empty(), unread == 0, &chains, &history);
    problems.extend(unread_message);
    problems.extend(unknown);
    let copies = project.and_then(|project| Copies::of(project, settings, &own, now));
    let copies = match copies.transpose() {
        Ok(copies) => copies,
        Err(error) => {
            let message = format!(
                "how far the copies are behind is unknown: {}",
                error.message
            );
            problems.push(message);
            None
        }
    };
    problems.extend(copies.as_ref().and_then(Copies::problem));
    problems.extend(emptied.iter().map(|warning| warning.message.clone()));
    if let Some(chosen) = newest_good(&own) {
        let passed = passed_over(&own, &unlisted, chosen);
        problems.extend(passed_over_warning(&passed, chosen).map(|warning| warning.message));
    }
    Ok(Status {
        backup_dir: store.dir().to_path_buf(),
        enabled,
        schedule: settings.schedule().map(str::to_string),
        timezone: settings.timezone().map(str::to_string),
        kind,
        next_run,
        count: backups.len(),
        unread,
        others: backups.len() - own.len(),
        total_size: backups.iter().map(Backup::disk_size).sum(),
        by_type: by_type(&backups),
        chains,
        last_run: history.last().cloned(),
        last_success: last_run(&history, |run| run.backup.is_some()),
        last_failure: last_run(&history, |run| run.error.is_some()),
        hook_failures: history.hook_failures,
        hook_warnings: project.map(hook_warnings).unwrap_or_default(),
        sizes: newest_sizes(&backups),
        health: Health::of(&problems, is_late),
        store_emptied: emptied.is_some_and(|warning| warning.code == WarningCode::StoreEmptied),
        copies,
        newest,
        without_schedule: settings.without_schedule(),
        problems,
        latest: backups.into_iter().next(),
    })
}

/// Returns the history of a project. If it cannot be read, the history is empty, and a message says
/// so.
fn read_history(project: Option<&Project>) -> (History, Option<String>) {
    match project.map(History::read).transpose() {
        Ok(history) => (history.unwrap_or_default(), None),
        Err(error) => (
            History::default(),
            Some(format!(
                "the results of the last runs are unknown: {}",
                error.message
            )),
        ),
    }
}

fn by_type(backups: &[Backup]) -> ByType {
    let count = |kind| backups.iter().filter(|backup| backup.kind == kind).count();
    ByType {
        full: count(BackupType::Full),
        incremental: count(BackupType::Incremental),
        snapshot: count(BackupType::Snapshot),
    }
}

/// Returns the time of the next run, and whether it is late. A run that is on time is about to begin
/// or has just begun.
fn next_run(
    project: Option<&Project>,
    settings: &Settings,
    history: &History,
    own: &[Backup],
    now: i64,
) -> Result<(Option<i64>, bool)> {
    let plan = project
        .map(|project| configured::plan(settings, project.root()))
        .transpose()?
        .flatten();
    let Some(plan) = plan.filter(|_| configured::is_enabled(settings)) else {
        return Ok((None, false));
    };
    let kind = configured::wanted_kind(settings);
    let covered = history.state.as_ref().map(State::covered);
    let mut state = State::new(&plan, covered.max(backup_type::last_run(own, kind)), now);
    Ok(match plan.decide(&mut state, now) {
        Action::Run { trigger } => (Some(now), matches!(trigger, Trigger::CatchUp)),
        Action::Wait { until } => (Some(until), false),
        Action::Never => (None, false),
    })
}

/// Returns the sizes of the newest backups, oldest first.
fn newest_sizes(backups: &[Backup]) -> Vec<u64> {
    let newest = backups.iter().take(MOST_SIZES).map(Backup::disk_size);
    let mut sizes: Vec<u64> = newest.collect();
    sizes.reverse();
    sizes
}

fn last_run(history: &History, is_meant: impl Fn(&Run) -> bool) -> Option<Run> {
    history.runs.iter().rev().find(|run| is_meant(run)).cloned()
}

/// Returns the warning that backups are gone from the store: now, or in the last run.
fn emptied(
    project: Option<&Project>,
    store: &Store,
    own: &[Backup],
    history: &History,
) -> Option<Warning> {
    let now = project.and_then(|project| known_stores::emptied(project, store, own));
    let in_last_run = history.last().into_iter().flat_map(|run| &run.warnings);
    now.or_else(|| {
        in_last_run
            .into_iter()
            .find(|warning| warning.code == WarningCode::StoreEmptied)
            .cloned()
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
    // A chain cannot be longer than the number of backups, so the limit stops a cycle.
    iter::successors(Some(backup), |link| base_of(link, backups))
        .take(backups.len())
        .count()
}

/// Returns a message that names an incomplete backup and, as far as its sidecar says, what it
/// lacks.
fn incomplete(backup: &Backup) -> String {
    format!("{} is incomplete: {}", backup.id, backup.lacks())
}

/// Collects problems. `newest` is the newest backup that is not a safety backup. A safety backup of
/// a damaged database does not show that the database is still damaged.
fn problems(
    newest: Option<&Backup>,
    is_empty: bool,
    is_known: bool,
    chains: &Chains,
    history: &History,
) -> Vec<String> {
    let mut messages = Vec::new();
    match newest {
        None if !is_known => messages.push("could not determine whether there is a backup".into()),
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
            "{} incremental backups depend on a backup that is missing",
            chains.broken
        ));
    }
    // Another process, such as an application, may have made a good backup since.
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
