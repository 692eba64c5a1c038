//! Reports the result of a backup to the commands, webhooks and heartbeats of a project.
//!
//! ```text
//! .kg/hooks.json ─▶ file (is it trusted?) ─▶ Hooks ─┐
//!                                                   ├▶ runner ─▶ command | request ─▶ Outcome
//!                 a backup begins or ends ─▶ Event ─┘
//! ```
//!
//! `kg serve` and `kg diag backup` run hooks; Node has callbacks instead. A hook never changes the
//! result of a backup. It runs on separate threads with a time limit, and its failure is an
//! [`Outcome`], never an error. No backup contains the configuration of hooks, so an archive can
//! never decide which commands run here (`docs/guide/security.md`).

pub mod event;
pub mod file;
pub mod runner;

mod command;
mod request;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

pub use self::{
    event::{Event, EventKind, VERSION as EVENT_VERSION},
    runner::HookRunner,
};
use crate::{
    config::{
        Settings, parse, read_text,
        schema::{ConfigFile, masked},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::Project,
    service::history::{History, HookFailure},
    system::{paths, portable::MetadataExt},
    util::operation::CancelToken,
};

const DEFAULT_TIMEOUT_SECONDS: u32 = 10;
const DEFAULT_RETRIES: u32 = 3;
const MOST_SECRET_BYTES: usize = 4096;

/// The hooks of a project, as they are configured now.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    root: PathBuf,
    hooks: Vec<Hook>,
    timeout: Duration,
    retries: u32,
    /// The secret that signs webhooks, or why it cannot be used.
    secret: Option<std::result::Result<Vec<u8>, String>>,
}

#[derive(Debug, Clone)]
pub struct Hook {
    /// The settings key of the hook.
    pub key: &'static str,
    on: EventKind,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Command(Vec<String>),
    Webhook(String),
    Heartbeat(String),
}

/// The result of one hook.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub hook: String,
    /// When the hook ended, in milliseconds since the epoch.
    pub at: i64,
    pub duration_ms: u64,
    /// The answer or output, or what went wrong.
    pub result: std::result::Result<String, String>,
}

/// Reads the action of a hook from the value of its settings key.
type Reading = fn(&Value) -> Option<What>;

/// All hooks. A test runs them in this order, so that a monitor ends with a success.
const ALL: [(&str, EventKind, Reading); 7] = [
    ("backup.hooks.heartbeatStart", EventKind::Started, heartbeat),
    (
        "backup.hooks.onFailure.command",
        EventKind::Failed,
        command_of,
    ),
    ("backup.hooks.onFailure.url", EventKind::Failed, webhook),
    (
        "backup.hooks.heartbeatFailure",
        EventKind::Failed,
        heartbeat,
    ),
    (
        "backup.hooks.onSuccess.command",
        EventKind::Succeeded,
        command_of,
    ),
    ("backup.hooks.onSuccess.url", EventKind::Succeeded, webhook),
    ("backup.hooks.heartbeat", EventKind::Succeeded, heartbeat),
];

fn command_of(value: &Value) -> Option<What> {
    let arguments = value.as_array()?.iter();
    Some(What::Command(
        arguments
            .filter_map(|one| one.as_str().map(str::to_string))
            .collect(),
    ))
}

fn webhook(value: &Value) -> Option<What> {
    value.as_str().map(|url| What::Webhook(url.to_string()))
}

fn heartbeat(value: &Value) -> Option<What> {
    value.as_str().map(|url| What::Heartbeat(url.to_string()))
}

impl Hooks {
    /// Loads the hooks and turns problems into warnings. If another user could have written the
    /// file, no hook is loaded. Otherwise only invalid hooks are skipped.
    pub fn load(project: &Project, warnings: &mut Vec<Warning>) -> Self {
        let mut warn = |message: String| {
            warnings.push(Warning::about(WarningCode::Hook, shown_path(), message))
        };
        match Hooks::read(project, &mut warn) {
            Ok(hooks) => hooks,
            Err(error) => {
                warn(format!("No hook runs: {error}"));
                Hooks::default()
            }
        }
    }

    fn read(project: &Project, warn: &mut impl FnMut(String)) -> Result<Self> {
        let Some(text) = file::read(project)? else {
            return Ok(Hooks::default());
        };
        let invalid = |what: String| {
            let message = format!(
                "{} is not a valid configuration: {what}",
                file::path(project).display()
            );
            Error::new(
                Code::HooksInvalid,
                message,
                "Correct it, or remove it and set the hooks again",
            )
        };
        let config = parse(text.as_bytes()).map_err(|what| invalid(format!("it {what}")))?;
        let settings = Settings::in_home(ConfigFile::Hooks, &config, warn);
        let found = ALL.iter().filter_map(|(key, on, what)| {
            Some(Hook {
                key,
                on: *on,
                what: what(settings.get(key)?)?,
            })
        });
        let seconds = settings
            .whole("backup.hooks.timeout")
            .unwrap_or(DEFAULT_TIMEOUT_SECONDS);
        let secret_file = settings
            .text("backup.hooks.secretFile")
            .map(|path| project.root().join(path));
        Ok(Hooks {
            root: project.root().to_path_buf(),
            hooks: found.collect(),
            timeout: Duration::from_secs(seconds.into()),
            retries: settings
                .whole("backup.hooks.retries")
                .unwrap_or(DEFAULT_RETRIES),
            secret: secret_file.map(|path| secret(&path)),
        })
    }

    /// Returns the hooks of an event. A test runs all hooks.
    pub fn of(&self, event: EventKind) -> impl Iterator<Item = &Hook> {
        self.hooks
            .iter()
            .filter(move |hook| event == EventKind::Test || hook.on == event)
    }

    pub fn has_any_for(&self, event: EventKind) -> bool {
        self.of(event).next().is_some()
    }

    /// Returns the time limit for the hooks of an event.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs all hooks, one after the other.
    pub fn try_out(&self, project: &Project, cancel: &CancelToken, mut tell: impl FnMut(Outcome)) {
        let event = Event::new(EventKind::Test, project);
        for hook in self
            .of(EventKind::Test)
            .take_while(|_| !cancel.is_cancelled())
        {
            tell(runner::run_one(self, hook, &event, cancel));
        }
    }
}

impl Hook {
    fn run(
        &self,
        hooks: &Hooks,
        event: &Event,
        cancel: &CancelToken,
    ) -> std::result::Result<String, String> {
        let patience = request::Patience {
            limit: hooks.timeout,
            retries: hooks.retries,
            cancel,
        };
        let call = |url: &str, call| {
            request::call(url, &call, event, &patience)
                .map_err(|said| format!("{} {said}", masked(url)))
        };
        match &self.what {
            What::Command(command) => {
                command::run(command, event, &hooks.root, hooks.timeout, cancel)
            }
            What::Heartbeat(url) => call(url, request::Call::Heartbeat),
            What::Webhook(url) => {
                // The receiver would refuse an unsigned event or, worse, trust it.
                let secret = hooks
                    .secret
                    .as_ref()
                    .map(|secret| secret.as_deref())
                    .transpose();
                call(
                    url,
                    request::Call::Webhook {
                        secret: secret.map_err(String::clone)?,
                    },
                )
            }
        }
    }
}

impl Outcome {
    pub fn failure(&self) -> Option<String> {
        self.result
            .as_ref()
            .err()
            .map(|said| format!("The hook `{}` failed: {said}", self.hook))
    }
}

/// Records failed hooks for `--status`. A failure stays until the hook succeeds.
pub fn remember(project: &Project, outcomes: &[Outcome]) -> Result<()> {
    // Does not recreate a project that was removed meanwhile.
    if outcomes.is_empty() || !project.state_dir().is_dir() {
        return Ok(());
    }
    History::update(project, |history| {
        for outcome in outcomes {
            history
                .hook_failures
                .retain(|known| known.hook != outcome.hook);
            if let Err(message) = &outcome.result {
                let failure = HookFailure {
                    hook: outcome.hook.clone(),
                    at: outcome.at,
                    message: message.clone(),
                };
                history.hook_failures.push(failure);
            }
        }
    })
}

/// Forgets the failure of the hook of this key, because the hook was replaced or removed.
pub fn forget(project: &Project, key: &str) -> Result<()> {
    let is_of_it = |failure: &HookFailure| failure.hook == key;
    if !History::read(project)?.hook_failures.iter().any(is_of_it) {
        return Ok(());
    }
    History::update(project, |history| {
        history.hook_failures.retain(|failure| !is_of_it(failure))
    })
}

fn shown_path() -> String {
    format!(".kg/{}", ConfigFile::Hooks.file_name())
}

/// Reads the secret that signs webhooks. Line ends after the secret are not part of it.
fn secret(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let failed = |what: String| {
        format!(
            "is not called: `backup.hooks.secretFile`, {}: {what}",
            path.display()
        )
    };
    let text = read_text(path).map_err(|cause| failed(cause.to_string()))?;
    let mut secret = text.ok_or_else(|| failed("the file does not exist".into()))?;
    if fs::metadata(path).is_ok_and(|found| found.mode() & paths::OTHERS_WRITE != 0) {
        return Err(failed("other users can write to it".into()));
    }
    while matches!(secret.last(), Some(b'\n' | b'\r')) {
        secret.pop();
    }
    if secret.is_empty() || secret.len() > MOST_SECRET_BYTES {
        return Err(failed(format!(
            "a secret must have 1 to {MOST_SECRET_BYTES} bytes"
        )));
    }
    Ok(secret)
}
