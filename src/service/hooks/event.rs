//! The event that a hook receives: one JSON object, the same for commands (standard input) and
//! webhooks (body).
//!
//! It is part of the interface (`docs/guide/hooks.md`). As long as [`VERSION`] stays the same,
//! members are added but never changed.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    archive::manifest::BackupType,
    commands::backup::Created,
    error::{Error, Result, Warning},
    project::Project,
    schedule::plan::Trigger,
    sqlite::check::IntegrityStatus,
    util::{file_lock::host_name, hex::hex},
};

pub const VERSION: u32 = 1;
/// The maximum number of warnings in an event. A backup that could not read a whole tree has a
/// warning for each file.
const MOST_WARNINGS: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventKind {
    #[serde(rename = "backup.started")]
    Started,
    #[serde(rename = "backup.succeeded")]
    Succeeded,
    #[serde(rename = "backup.failed")]
    Failed,
    /// A user tests the hooks.
    #[serde(rename = "backup.test")]
    Test,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Started => "backup.started",
            EventKind::Succeeded => "backup.succeeded",
            EventKind::Failed => "backup.failed",
            EventKind::Test => "backup.test",
        }
    }
}

/// An event of a backup. Times are in RFC 3339, sizes in bytes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub version: u32,
    /// Unique to this event and the same for every delivery of it.
    pub id: String,
    pub event: EventKind,
    pub time: Timestamp,
    pub project: String,
    pub host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<i64>,
    /// When the service retries a failed backup; absent if it waits for the next scheduled time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Saved>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// The backup that was made.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    pub id: String,
    pub path: String,
    #[serde(rename = "type")]
    pub kind: BackupType,
    pub size: u64,
    pub checksum: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub based_on: Option<String>,
    /// Whether the databases were sound when they were saved.
    pub integrity: IntegrityStatus,
    /// Whether the backup lacks part of its project or may hold half of a change.
    pub incomplete: bool,
    /// The first warnings, at most `MOST_WARNINGS`.
    pub warnings: Vec<Warning>,
}

impl Event {
    pub fn new(event: EventKind, project: &Project) -> Self {
        Event {
            version: VERSION,
            id: unique(),
            event,
            time: Timestamp::now(),
            project: project.root().display().to_string(),
            host: host_name(),
            trigger: None,
            duration_ms: None,
            retry_at: None,
            backup: None,
            error: None,
        }
    }

    /// Creates the event for a run that has ended.
    pub fn of_run(
        project: &Project,
        made: &Result<Created>,
        trigger: Trigger,
        duration_ms: i64,
    ) -> Self {
        let kind = if made.is_ok() {
            EventKind::Succeeded
        } else {
            EventKind::Failed
        };
        Event {
            trigger: Some(trigger),
            duration_ms: Some(duration_ms),
            backup: made.as_ref().ok().map(Saved::of),
            error: made.as_ref().err().cloned(),
            ..Event::new(kind, project)
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the main values as environment variables, for commands that do not read JSON.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("KG_BACKUP_EVENT", self.event.name().to_string()),
            ("KG_PROJECT", self.project.clone()),
        ];
        if let Some(backup) = &self.backup {
            all.extend([
                ("KG_BACKUP_ID", backup.id.clone()),
                ("KG_BACKUP_PATH", backup.path.clone()),
            ]);
            all.extend(
                backup
                    .incomplete
                    .then(|| ("KG_BACKUP_INCOMPLETE", "1".to_string())),
            );
        }
        if let Some(error) = &self.error {
            all.extend([
                ("KG_ERROR_CODE", error.code.to_string()),
                ("KG_ERROR_MESSAGE", error.message.clone()),
            ]);
        }
        // An environment variable cannot contain a zero byte.
        all.into_iter()
            .map(|(name, value)| (name, value.replace('\0', " ")))
            .collect()
    }

    /// All variables that [`Event::environment`] may set. A command must not inherit any of them.
    pub const VARIABLES: [&str; 7] = [
        "KG_BACKUP_EVENT",
        "KG_PROJECT",
        "KG_BACKUP_ID",
        "KG_BACKUP_PATH",
        "KG_BACKUP_INCOMPLETE",
        "KG_ERROR_CODE",
        "KG_ERROR_MESSAGE",
    ];
}

impl Saved {
    fn of(created: &Created) -> Self {
        let backup = &created.backup;
        Saved {
            id: backup.id.clone(),
            path: backup.archive.to_string(),
            kind: backup.kind,
            size: backup.size,
            checksum: backup.checksum.clone(),
            based_on: backup.based_on.clone(),
            integrity: backup.integrity.status,
            incomplete: backup.incomplete,
            warnings: backup
                .warnings
                .iter()
                .take(MOST_WARNINGS)
                .cloned()
                .collect(),
        }
    }
}

/// Returns a unique id of 128 bits.
fn unique() -> String {
    let mut bytes = [0; 16];
    // If the system has no random numbers, the time and the process id still make the id unique
    // here.
    if getrandom::fill(&mut bytes).is_err() {
        let now = Timestamp::now().as_nanosecond().to_le_bytes();
        bytes = now.map(|byte| byte ^ std::process::id().to_le_bytes()[0]);
    }
    hex(&bytes)
}
