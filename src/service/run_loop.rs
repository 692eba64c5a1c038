//! The work of the service: load the settings, check whether a run is due, make a backup, record
//! the result, and update the published status. The loop [`super::serve`] does one step after the
//! other.
//!
//! Every step opens files of the project, so it runs only between backups.

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;

use super::{Log, Options, copier::Copier, state::ServiceState};
use crate::{
    commands::{
        backup::{Created, create_backup},
        configured::{self, CallerEncryption},
    },
    config::{Settings, backup_config::BackupConfig},
    error::{Code, Error, Result},
    project::{CONFIG_FILE, Project},
    schedule::plan::{Action, Plan, State, Trigger},
    service::{
        history::{self, Began, History},
        hook_session::HookSession,
        hooks::{self, Event},
        metrics,
        run_marker::RunMarker,
        status::{Status, status},
    },
    store,
    system::file_id::FileId,
    util::operation::{CancelToken, OperationContext},
    worker::client::WorkerMode,
};

/// How long settings may be unreadable before the service reports it.
const SETTLING: Duration = Duration::from_secs(1);
const DESCRIPTION: &str = "Scheduled backup";

/// The maximum age of the published status, if another process changed the store.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same for an object store, where each look costs a request.
const LOOK_EVERY_AT_OBJECTS: Duration = Duration::from_secs(15 * 60);

pub struct Service<'a> {
    project: &'a Project,
    log: &'a Log,
    options: &'a Options,
    cancel: &'a CancelToken,
    pub board: Arc<ServiceState>,
    pub hooks: HookSession<'a>,
    pub copier: Copier<'a>,
    /// The last valid settings.
    pub settings: Settings,
    /// Why the current settings cannot be used.
    unreadable: Option<Unreadable>,
    /// `None` while no schedule is enabled.
    plan: Option<Plan>,
    state: Option<State>,
    /// The time of the last look at the backups, and the mark of the history file then.
    looked: Option<(Instant, Option<Mark>)>,
}

/// Settings that became unreadable while the service runs.
struct Unreadable {
    since: Instant,
    why: Error,
    is_told: bool,
}

impl<'a> Service<'a> {
    pub fn new(
        project: &'a Project,
        log: &'a Log,
        options: &'a Options,
        cancel: &'a CancelToken,
        board: Arc<ServiceState>,
    ) -> Self {
        Service {
            project,
            log,
            options,
            cancel,
            board,
            hooks: HookSession::start(project, log),
            copier: Copier::new(project.root(), log),
            settings: Settings::default(),
            unreadable: None,
            plan: None,
            state: None,
            looked: None,
        }
    }

    /// Loads the settings. At the start of the service, missed runs count. A schedule that changes
    /// later begins now.
    pub fn load(&mut self, is_start: bool) {
        let mut warnings = Vec::new();
        let settings = Settings::read(self.project.root(), &mut warnings);
        // A missing file does not reset the settings. A user removes settings with `kg config
        // unset`.
        let is_lost =
            !is_start && self.settings != Settings::default() && !self.config_path().exists();
        let lost = is_lost.then(|| {
            let message = format!("{} is gone", self.config_path().display());
            Error::new(
                Code::ConfigInvalid,
                message,
                "Restore it with `kg diag restore --file latest --config-only`",
            )
        });
        if let Some(why) = settings.assert_usable().err().or(lost) {
            self.unreadable = Some(Unreadable {
                since: Instant::now(),
                why,
                is_told: false,
            });
            if is_start {
                self.settings = settings;
            }
            return;
        }
        if self.unreadable.take().is_some_and(|before| before.is_told) {
            self.log.line("the settings can be read again");
        }
        for warning in warnings {
            self.log.line(&format!("warning: {}", warning.message));
        }
        let is_other = |name: &str| settings.get(name) != self.settings.get(name);
        let is_new = ["backup.enabled", "backup.schedule", "backup.timezone"]
            .into_iter()
            .any(is_other);
        self.settings = settings;
        self.looked = None;
        // Also at the start of the service, because an earlier one may have ended before its copy.
        let copies_to = |settings: &Settings| settings.copy_to(self.project.root());
        if copies_to(&self.settings).is_some() {
            self.copier.ask();
        }
        self.plan = self.planned();
        if !is_new && !is_start {
            return;
        }
        let Some(plan) = &self.plan else {
            self.state = None;
            self.log.line("no backups are made: `backup.enabled` is not true, or there is no `backup.schedule`");
            return;
        };
        let now = now();
        let last = if is_start { self.last() } else { None };
        self.state = Some(State::new(plan, last, now));
        let next = plan
            .cadence
            .next(Timestamp::now())
            .map(|next| next.to_string())
            .unwrap_or_default();
        let schedule = self.settings.schedule().unwrap_or_default();
        self.log.line(&format!(
            "the schedule is `{schedule}`; the next run is at {next}"
        ));
        self.remember(None);
    }

    fn config_path(&self) -> PathBuf {
        self.project.state_dir().join(CONFIG_FILE)
    }

    /// Reports once that the settings cannot be read. The delay gives an editor time to save them.
    pub fn tell_unreadable(&mut self) {
        let is_due = |found: &&mut Unreadable| !found.is_told && found.since.elapsed() >= SETTLING;
        let Some(found) = self.unreadable.as_mut().filter(is_due) else {
            return;
        };
        found.is_told = true;
        let why = found.why.clone();
        self.log.line(&format!(
            "warning: the last valid settings stay in force: {why} [{}]",
            why.code
        ));
        let hooks = self.hooks.load();
        self.hooks.tell(
            &hooks,
            Event {
                error: Some(why),
                ..Event::new(hooks::EventKind::Failed, self.project)
            },
        );
        self.remember(None);
    }

    fn planned(&self) -> Option<Plan> {
        if !configured::is_enabled(&self.settings) {
            return None;
        }
        configured::plan(&self.settings, self.project.root()).unwrap_or_else(|error| {
            self.log
                .line(&format!("the schedule cannot be used: {error}"));
            None
        })
    }

    /// Returns the time up to which all runs are dealt with, in milliseconds since the epoch. It
    /// comes from an earlier service or from the existing backups.
    fn last(&self) -> Option<i64> {
        let known = History::read(self.project)
            .ok()
            .and_then(|history| history.state.as_ref().map(State::covered));
        known.max(
            configured::last_run(&self.settings, self.project)
                .ok()
                .flatten(),
        )
    }

    pub fn due(&mut self) -> Option<Trigger> {
        let (Some(plan), Some(state)) = (&self.plan, &mut self.state) else {
            return None;
        };
        match plan.decide(state, now()) {
            Action::Run { trigger } => Some(trigger),
            Action::Wait { .. } | Action::Never => None,
        }
    }

    pub fn run(&mut self, trigger: Trigger) {
        let hooks = self.hooks.begin(trigger);
        let began = Began::now();
        let kind = configured::wanted_kind(&self.settings);
        let started = RunMarker::begin(Some(self.project), kind, trigger, began);
        let made = panic::catch_unwind(AssertUnwindSafe(|| self.back_up())).unwrap_or_else(|_| {
            Err(Error::new(
                Code::Internal,
                "The backup panicked",
                "Please report this, with the log of the service",
            ))
        });
        if self.cancel.is_cancelled() && made.is_err() {
            self.log
                .line("a backup was cancelled because the service stopped; nothing of it remains");
            started.end();
            return;
        }
        self.board.counts(made.is_ok());
        let ended = now();
        let (Some(plan), Some(state)) = (&self.plan, &mut self.state) else {
            started.end();
            return;
        };
        let run = history::Run::of(&made, kind, trigger, began);
        let mut event = Event::of_run(self.project, &made, trigger, run.duration_ms);
        match &made {
            Ok(created) => {
                plan.succeeded(state, ended);
                let backup = &created.backup;
                let took = run.duration_ms as f64 / 1000.0;
                self.log.line(&format!(
                    "made {}, {} bytes in {took:.1} s",
                    backup.archive, backup.size
                ));
                if backup.incomplete {
                    self.log.line(&format!(
                        "warning: {} is incomplete: {}",
                        backup.id,
                        backup.lacks()
                    ));
                }
                for warning in &backup.warnings {
                    self.log.line(&format!("warning: {}", warning.message));
                }
            }
            Err(error) => {
                let retry = plan
                    .failed(state, ended)
                    .and_then(|at| Timestamp::from_millisecond(at).ok());
                event.retry_at = retry;
                let retry = retry.map_or("no retry before the next scheduled run".into(), |at| {
                    format!("next attempt at {at:.0}")
                });
                self.log.line(&format!(
                    "a backup failed, {retry}: {error} [{}]",
                    error.code
                ));
            }
        }
        self.remember(Some(run));
        started.end();
        self.hooks.tell(&hooks, event);
        if made.is_ok() && self.settings.copy_to(self.project.root()).is_some() {
            self.copier.ask();
        }
    }

    /// Goes on with the copies to the second store, and reports the first one that fails.
    pub fn step_copy(&mut self) {
        let (has_ended, error) = self.copier.step();
        if has_ended {
            self.remember(None);
        }
        if let Some(error) = error {
            let event = Event {
                error: Some(error),
                ..Event::new(hooks::EventKind::Failed, self.project)
            };
            self.hooks.tell(&self.hooks.load(), event);
        }
    }

    fn back_up(&self) -> Result<Created> {
        let root = self.project.root();
        let store = configured::store(
            &self.settings,
            root,
            configured::NamedStore::default(),
            CallerEncryption::Nothing,
            &WorkerMode::InProcess,
        )?;
        let mut options = configured::options(
            BackupConfig::default(),
            &self.settings,
            root,
            &store,
            Timestamp::now(),
        )?;
        options.description = Some(DESCRIPTION.into());
        create_backup(
            root,
            &store,
            &WorkerMode::InProcess,
            &options,
            &OperationContext::new(self.cancel.clone(), None),
        )
    }

    /// Returns whether the published status may be outdated, because another process made a backup
    /// or changed the store.
    pub fn is_behind(&self) -> bool {
        let is_current = |(at, of): &(Instant, Option<Mark>)| {
            at.elapsed() < self.look_every() && *of == mark(&History::path(self.project))
        };
        !self.looked.as_ref().is_some_and(is_current)
    }

    fn look_every(&self) -> Duration {
        let dir = self.settings.dir(self.project.root());
        if dir.is_some_and(|dir| store::is_remote(&dir)) {
            LOOK_EVERY_AT_OBJECTS
        } else {
            LOOK_EVERY
        }
    }

    /// Publishes the status of the backups over HTTP.
    pub fn look(&mut self) -> Arc<Result<Status>> {
        self.looked = Some((Instant::now(), mark(&History::path(self.project))));
        let store = configured::store(
            &self.settings,
            self.project.root(),
            configured::NamedStore::default(),
            CallerEncryption::Nothing,
            &WorkerMode::InProcess,
        );
        let found = store
            .and_then(|store| status(Some(self.project), &store, &self.settings, Timestamp::now()));
        let doubt = self
            .unreadable
            .as_ref()
            .filter(|found| found.is_told)
            .map(|found| {
                format!(
                    "the settings cannot be read, and the last valid ones stay in force: {}",
                    found.why.message
                )
            });
        let doubt = doubt.or_else(|| self.settings.refuses_backups());
        let found = Arc::new(found.map(|status| status.of_service(doubt)));
        self.board.publish(Arc::clone(&found));
        found
    }

    fn measure(&self, path: &Path, status: &Result<Status>) -> Result<()> {
        metrics::write(path, self.project, status.as_ref().map_err(Error::clone)?)
    }

    fn remember(&mut self, run: Option<history::Run>) {
        let updated = History::update(self.project, |history| {
            history.runs.extend(run);
            history.state.clone_from(&self.state);
        });
        if let Err(error) = updated {
            self.log
                .line(&format!("warning: the run could not be recorded: {error}"));
        }
        let status = self.look();
        if let Some(Err(error)) = self
            .options
            .metrics_file
            .as_ref()
            .map(|path| self.measure(path, &status))
        {
            self.log.line(&format!(
                "warning: the metrics could not be written: {error}"
            ));
        }
    }
}

pub fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Attributes that change when a file changes.
pub type Mark = (SystemTime, u64, u64);

pub fn mark(path: &Path) -> Option<Mark> {
    let found = fs::metadata(path).ok()?;
    let (_, inode) = FileId::at(path).ok()?.identity;
    Some((found.modified().ok()?, found.len(), inode))
}
