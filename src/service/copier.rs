//! Copies new backups to the second store of the settings, `backup.copyTo`.
//!
//! A copy can take hours, so it must not delay the next backup. It runs in a process of its own, as
//! a call of the JavaScript API does, because the service itself opens files of the project only
//! between backups.

use std::{
    env,
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;

use super::Log;
use crate::{
    error::{Error, Result, Warning},
    util::operation::{CancelToken, OperationContext},
    worker::client::{Worker, WorkerMode},
};

/// How long after a failed copy the next one begins.
const RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

/// What the service needs to know of a copy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Copied {
    target: String,
    copied: Vec<Named>,
    bytes_copied: u64,
    failed: Vec<Failed>,
    warnings: Vec<Warning>,
}

#[derive(Debug, Deserialize)]
struct Named {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Failed {
    id: String,
    error: Error,
}

/// The answer to a call.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Ok(Option<Copied>),
    Error(Error),
}

pub struct Copier<'a> {
    root: &'a Path,
    log: &'a Log,
    cancel: CancelToken,
    running: Option<JoinHandle<Result<Option<Copied>>>>,
    /// When the next copy begins: at once after a backup, later after a failure.
    due: Option<Instant>,
    /// The last copy failed, and a hook was told.
    is_failing: bool,
}

impl<'a> Copier<'a> {
    pub fn new(root: &'a Path, log: &'a Log) -> Self {
        Copier {
            root,
            log,
            cancel: CancelToken::default(),
            running: None,
            due: None,
            is_failing: false,
        }
    }

    /// Asks for a copy. If one runs, another one follows it.
    pub fn ask(&mut self) {
        self.due = Some(Instant::now());
    }

    /// Notes the end of a copy and begins the next one that is due. Returns the error if a copy
    /// fails after one that did not, and whether a copy has ended.
    pub fn step(&mut self) -> (bool, Option<Error>) {
        let ended = self.running.take_if(|running| running.is_finished());
        let has_ended = ended.is_some();
        let error = ended.and_then(|ended| self.note(ended.join().unwrap_or_else(|_| panicked())));
        if self.running.is_none() && self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.begin();
        }
        (has_ended, error)
    }

    /// Cancels the copy that runs, and waits for its end. Only complete copies remain.
    pub fn end(self) {
        self.cancel.cancel();
        if let Some(running) = self.running {
            let _ = running.join();
        }
    }

    fn begin(&mut self) {
        let config = |kg: &Path| json!({ "projectRoot": self.root, "kgPath": kg });
        let cancel = self.cancel.clone();
        let begun = env::current_exe().and_then(|kg| {
            let call = json!({ "call": "copyConfigured", "config": config(&kg) }).to_string();
            let copy = move || copy(&call, WorkerMode::Subprocess(kg), cancel);
            thread::Builder::new().name("kg-copy".into()).spawn(copy)
        });
        match begun {
            Ok(running) => self.running = Some(running),
            Err(cause) => {
                let why = format!("warning: the copy could not be started: {cause}");
                self.log.line(&why);
                self.due = Some(Instant::now() + RETRY_AFTER);
            }
        }
    }

    fn note(&mut self, copied: Result<Option<Copied>>) -> Option<Error> {
        let error = match copied {
            Ok(None) => None,
            Ok(Some(copied)) => self.note_copied(copied),
            Err(error) => {
                let line = format!("the backups could not be copied: {error} [{}]", error.code);
                self.log.line(&line);
                Some(error)
            }
        };
        let was_failing = std::mem::replace(&mut self.is_failing, error.is_some());
        if error.is_some() && self.due.is_none() {
            self.due = Some(Instant::now() + RETRY_AFTER);
        }
        error.filter(|_| !was_failing)
    }

    fn note_copied(&self, copied: Copied) -> Option<Error> {
        let target = &copied.target;
        if !copied.copied.is_empty() {
            let ids: Vec<&str> = copied.copied.iter().map(|one| one.id.as_str()).collect();
            let (ids, bytes) = (ids.join(", "), copied.bytes_copied);
            self.log
                .line(&format!("copied {ids} to {target}, {bytes} bytes"));
        }
        for warning in &copied.warnings {
            self.log.line(&format!("warning: {}", warning.message));
        }
        for Failed { id, error } in &copied.failed {
            let line = format!("{id} was not copied to {target}: {error} [{}]", error.code);
            self.log.line(&line);
        }
        copied.failed.into_iter().next().map(|first| first.error)
    }
}

fn copy(call: &str, worker_mode: WorkerMode, cancel: CancelToken) -> Result<Option<Copied>> {
    let context = OperationContext::new(cancel, None);
    let answer = Worker::call(&worker_mode, call, &context)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok(copied)) => Ok(copied),
        Ok(Answer::Error(error)) => Err(error),
        Err(cause) => Err(Error::internal("The answer is not that of a copy").with_cause(cause)),
    }
}

fn panicked() -> Result<Option<Copied>> {
    Err(Error::internal("The copy panicked"))
}
