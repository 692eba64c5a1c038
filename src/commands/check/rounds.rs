//! The rounds of a repair. Each round saves what it will change, lets the worker carry out the
//! actions, and checks the result.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{Inspection, Repair, SafetyBackup, inspect, is_meant};
use crate::{
    archive::manifest::BackupType,
    commands::{
        backup::create_backup,
        configured::{self, CallerEncryption},
        verify::duration_ms,
    },
    config::backup_config::BackupOptions,
    error::{Code, Error, Result},
    integrity::{
        Scope,
        issue::{Issue, Part, Severity},
        repair::{Action, Done, Work, actions_for, failed, is_damage},
        target::CheckTarget,
    },
    store::Store,
    util::operation::{OperationContext, Phase},
    worker::{
        client::{Worker, WorkerMode},
        protocol::RepairRequest,
    },
};

/// The maximum number of rounds. It is higher than the number that one damage can require.
const MAX_ROUNDS: usize = 5;

/// What a caller of [`super::repair`] asks for.
pub struct Request<'a> {
    pub subject: &'a CheckTarget,
    pub codes: Option<&'a [String]>,
    pub store: Option<&'a Store>,
    pub lock_timeout: Duration,
    pub worker_mode: &'a WorkerMode,
    pub context: &'a OperationContext,
}

/// A repair that is running.
pub struct Rounds<'a> {
    request: Request<'a>,
    /// The result of the newest check.
    found: Inspection,
    repair: Repair,
    /// The issues that rounds worked on, once for each attempt.
    tried: Vec<Issue>,
    /// The salvages that the last round made necessary.
    salvages: Vec<Action>,
    /// Whether the newest safety backup contains everything that a repair can change.
    backs_up_all: bool,
    /// Whether a repair of the last round succeeded.
    has_mended: bool,
}

/// What one round does.
struct Round {
    is_first: bool,
    issues: Vec<Issue>,
    actions: Vec<Action>,
    /// Whether the actions change only the graph database.
    is_graph_alone: bool,
}

impl<'a> Rounds<'a> {
    pub fn new(request: Request<'a>, found: Inspection) -> Self {
        Rounds {
            repair: Repair::begin(&found, request.codes),
            request,
            found,
            tried: Vec::new(),
            salvages: Vec::new(),
            backs_up_all: false,
            has_mended: false,
        }
    }

    /// Runs rounds until there is nothing new to do.
    pub fn run(mut self, began: Instant) -> Result<Inspection> {
        for number in 0..MAX_ROUNDS {
            let round = self.plan(number);
            if round.actions.is_empty() {
                break;
            }
            if let Err(error) = self.save(&round) {
                if round.is_first {
                    return Err(error);
                }
                // An earlier round has changed the database, so the result must report that.
                self.give_up(round, &error);
                break;
            }
            self.carry_out(round)?;
        }
        Ok(self.finish(began))
    }

    fn plan(&self, number: usize) -> Round {
        let issues: Vec<Issue> = self
            .found
            .issues
            .iter()
            .filter(|issue| self.is_wanted(issue))
            .cloned()
            .collect();
        let mut actions = actions_for(&issues);
        // A salvage replaces its database, so no other action changes that database in this round.
        let is_salvaged = |action: &Action| {
            self.salvages
                .iter()
                .any(|salvage| salvage.part == action.part)
        };
        actions.retain(|action| !is_salvaged(action));
        actions.extend_from_slice(&self.salvages);
        Round {
            is_first: number == 0,
            is_graph_alone: self.found.is_graph
                && actions.iter().all(|action| action.part == Part::Database),
            issues,
            actions,
        }
    }

    fn is_wanted(&self, issue: &Issue) -> bool {
        let has_salvaged = self
            .repair
            .actions
            .iter()
            .any(|action| action.salvage.is_some());
        let is_consequence = has_salvaged && issue.severity == Severity::Error;
        // A failed repair gets a second attempt if another repair succeeded in the meantime.
        let attempts = self
            .tried
            .iter()
            .filter(|tried| tried.key() == issue.key())
            .count();
        let is_new = attempts == 0 || (attempts == 1 && self.has_mended && !is_damage(issue));
        issue.repairable && is_new && (is_meant(issue, self.request.codes) || is_consequence)
    }

    /// Makes a backup or a copy, unless an earlier round has saved all that this round changes.
    fn save(&mut self, round: &Round) -> Result<()> {
        if !round.is_first && (round.is_graph_alone || self.backs_up_all) {
            return Ok(());
        }
        let back_up = |root: &Path| back_up(root, round.is_graph_alone, &self.request);
        self.repair.save(&self.found, &round.actions, back_up)?;
        self.backs_up_all = !round.is_graph_alone;
        Ok(())
    }

    /// Records a round that changed nothing because no backup could be made.
    fn give_up(&mut self, round: Round, error: &Error) {
        self.repair.add(all_failed(&round.actions, error));
        self.tried.extend(round.issues);
    }

    /// Lets the worker carry out the actions, and checks the result.
    fn carry_out(&mut self, round: Round) -> Result<()> {
        self.request.context.report(Phase::Repairing, 0, 0)?;
        // From here on, the repair is either completed or rolled back.
        self.request.context.cancel.enter_critical_section();
        let work = RepairRequest {
            subject: self.request.subject.clone(),
            actions: round.actions.clone(),
            safety_copy: self.repair.safety_copy.clone().filter(|_| round.is_first),
            lock_timeout_ms: self.request.lock_timeout.as_millis() as u64,
        };
        let done = match Worker::repair(self.request.worker_mode, work) {
            Ok(done) => done,
            Err(error) if round.is_first => return Err(with_backup(error, &self.repair)),
            Err(error) => all_failed(&round.actions, &error),
        };
        self.salvages = match &self.found.checked.project {
            Some(_) => escalated(&done),
            None => Vec::new(),
        };
        self.found = inspect(
            self.request.subject,
            Scope::ALL,
            self.request.lock_timeout,
            self.request.worker_mode,
            self.request.context,
        )?;
        self.has_mended = done.iter().any(|done| done.error.is_none());
        self.repair.add(done);
        self.tried.extend(round.issues);
        Ok(())
    }

    /// Counts what was repaired. The result contains the issues that remain.
    fn finish(mut self, began: Instant) -> Inspection {
        self.tried.sort_by(|one, other| one.key().cmp(&other.key()));
        self.tried.dedup_by(|one, other| one.key() == other.key());
        self.repair.count(&self.tried, &self.found);
        Inspection {
            repair: Some(self.repair),
            duration_ms: duration_ms(began.elapsed()),
            ..self.found
        }
    }
}

fn all_failed(actions: &[Action], error: &Error) -> Vec<Done> {
    actions.iter().map(|action| failed(action, error)).collect()
}

/// Returns a salvage for each database in which another repair met damaged pages.
fn escalated(done: &[Done]) -> Vec<Action> {
    let mut salvages: Vec<Action> = Vec::new();
    for Done { action, error, .. } in done {
        let is_damaged = error
            .as_ref()
            .is_some_and(|error| error.code == Code::DatabaseDamaged);
        let is_known = salvages.iter().any(|salvage| salvage.part == action.part);
        if is_damaged && action.work != Work::Salvage && !is_known {
            salvages.push(Action {
                work: Work::Salvage,
                ..action.clone()
            });
        }
    }
    salvages
}

/// Makes the safety backup: a snapshot if only the graph database changes, otherwise a full backup.
fn back_up(root: &Path, is_graph_alone: bool, request: &Request<'_>) -> Result<SafetyBackup> {
    let worker_mode = request.worker_mode;
    let store = match request.store {
        Some(store) => store.clone(),
        None => configured::store(
            &Worker::settings(worker_mode, root)?.0,
            root,
            configured::NamedStore::default(),
            CallerEncryption::Nothing,
            worker_mode,
        )?
        .for_recovery(),
    };
    let options = BackupOptions {
        kind: if is_graph_alone {
            BackupType::Snapshot
        } else {
            BackupType::Full
        },
        description: Some("Before a repair".into()),
        is_safety_backup: true,
        lock_timeout: request.lock_timeout,
        ..BackupOptions::default()
    };
    let backup = create_backup(root, &store, worker_mode, &options, request.context)?.backup;
    Ok(SafetyBackup {
        id: backup.id,
        path: backup.archive.path(),
    })
}

/// Adds the id of the safety backup to the remedy.
fn with_backup(error: Error, repair: &Repair) -> Error {
    let kept = repair
        .safety_backup
        .as_ref()
        .map(|backup| format!("; the backup from before the repair is {}", backup.id));
    Error {
        remedy: format!("{}{}", error.remedy, kept.unwrap_or_default()),
        ..error
    }
}
