//! The state of the second store, `backup.copyTo`, as the record of the last copy describes it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use crate::{
    commands::copy::record::{self, Lag},
    config::Settings,
    error::{Error, Result},
    project::Project,
    store::{Backup, full_name},
    util::{age::age, wording},
};

/// How long a backup may be without a copy before someone has to look. A copy follows each
/// scheduled backup, and a failed one is repeated within that time.
const MAX_LAG: Duration = Duration::from_secs(60 * 60);

/// Times are milliseconds since the epoch.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Copies {
    pub target: PathBuf,
    /// The id of the newest copy that is known.
    pub newest: Option<String>,
    /// When the newest copied backup was made.
    pub newest_timestamp: Option<i64>,
    /// The number of backups that are newer than the newest copy.
    pub missing: usize,
    /// For how long, in milliseconds, the oldest of them has been without a copy.
    pub lag_ms: i64,
    /// Why the last copy failed.
    pub last_error: Option<Error>,
}

impl Copies {
    /// Describes the second store of the settings. Returns `None` if they name none.
    pub fn of(
        project: &Project,
        settings: &Settings,
        own: &[Backup],
        now: i64,
    ) -> Option<Result<Self>> {
        let target = full_name(&settings.copy_to(project.root())?);
        Some(record::read(project, &target).map(|last| {
            let newest = last.as_ref().and_then(|last| last.newest.clone());
            let lag = Lag::of(own, newest.as_ref());
            Copies {
                target,
                missing: lag.missing,
                lag_ms: lag.since.map_or(0, |since| now.saturating_sub(since)),
                newest_timestamp: newest.as_ref().map(|newest| newest.timestamp),
                newest: newest.map(|newest| newest.id),
                last_error: last.and_then(|last| last.error),
            }
        }))
    }

    /// Returns what needs attention.
    pub fn problem(&self) -> Option<String> {
        let target = self.target.display();
        if let Some(error) = &self.last_error {
            return Some(format!(
                "the last copy to {target} failed: {} [{}]",
                error.message, error.code
            ));
        }
        let behind = behind(&self.target, self.missing, self.lag_ms)?;
        Some(format!("{behind}: copy with `kg diag backup --copy-to`"))
    }
}

/// Describes a second store that has lacked `missing` backups for longer than [`MAX_LAG`].
pub fn behind(target: &Path, missing: usize, lag_ms: i64) -> Option<String> {
    let lag_ms = u64::try_from(lag_ms).unwrap_or(0);
    if missing == 0 || u128::from(lag_ms) <= MAX_LAG.as_millis() {
        return None;
    }
    let backups = match missing {
        1 => "backup".into(),
        missing => wording::count(missing, "backup"),
    };
    Some(format!(
        "{} lacks the newest {backups} of this project, for {}",
        target.display(),
        age(lag_ms)
    ))
}
