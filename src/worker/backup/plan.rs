//! Finds what is to be saved, and pins each database to a commit.

use std::{collections::HashSet, fs, path::Path, time::Duration};

use crate::{
    error::{Result, Warning, WarningCode},
    project::{
        Component, Project,
        discover::{Source, SourceKind, discover},
    },
    sqlite::{
        in_place,
        snapshot::{self, Capture, Conditions},
        wal_in_use,
    },
    util::operation::CancelToken,
    worker::protocol::SaveRequest,
};

/// Everything that is to be saved, in the order of the archive.
pub(super) struct SavePlan {
    pub sources: Vec<PlannedSource>,
    /// The entry names that the sources have in the archive.
    pub entries: HashSet<String>,
    pub bytes_total: u64,
    pub warnings: Vec<Warning>,
}

/// One source, with its content if that is a database.
pub(super) struct PlannedSource {
    pub source: Source,
    pub content: Option<Capture>,
    /// SQLite ignores the WAL of this database, although it may contain commits.
    pub has_ignored_wal: bool,
}

impl SavePlan {
    /// Pins all databases to a commit before the first is read, so that their states are as close
    /// together as possible.
    pub fn new(project: &Project, request: &SaveRequest, cancel: &CancelToken) -> Result<SavePlan> {
        let mut warnings = Vec::new();
        let found = discover(project, &request.selection, &mut warnings)?;
        warnings.extend(committed_elsewhere(&found));
        // `ignores_commits` closes a descriptor of the file, so it must run before the file is
        // opened: closing ends the locks that this process has on it.
        let ignored: Vec<bool> = found
            .iter()
            .map(|source| source.is_database() && in_place::ignores_commits(&source.absolute))
            .collect();
        let mut plan = SavePlan {
            sources: Vec::new(),
            entries: found.iter().map(|source| source.entry.clone()).collect(),
            bytes_total: 0,
            warnings,
        };
        for (source, has_ignored_wal) in found.into_iter().zip(ignored) {
            let content = match source
                .is_database()
                .then(|| capture(&source, request, cancel))
            {
                // It was removed after it was found, so it is not part of the project any more.
                Some(Err(_))
                    if source.component != Component::Database && !source.absolute.exists() =>
                {
                    continue;
                }
                captured => captured.transpose()?,
            };
            plan.bytes_total += size_bytes(&source, content.as_ref());
            plan.sources.push(PlannedSource {
                source,
                content,
                has_ignored_wal,
            });
        }
        Ok(plan)
    }
}

fn size_bytes(source: &Source, content: Option<&Capture>) -> u64 {
    match (content, &source.kind) {
        (Some(Capture::Snapshot(snapshot)), _) => snapshot.size_bytes(),
        (_, SourceKind::Directory | SourceKind::Link(_)) => 0,
        _ => fs::metadata(&source.absolute).map_or(0, |found| found.len()),
    }
}

/// Warns of databases whose users commit to other files than those that are saved.
fn committed_elsewhere(sources: &[Source]) -> Vec<Warning> {
    let databases: Vec<&Source> = sources
        .iter()
        .filter(|source| source.is_database())
        .collect();
    let paths: Vec<&Path> = databases
        .iter()
        .map(|source| source.absolute.as_path())
        .collect();
    let found = wal_in_use::find_all(&paths).into_iter();
    let found = found.filter_map(|(number, found)| Some((databases.get(number)?, found)));
    found
        .map(|(source, found)| {
            Warning::about(
                WarningCode::WalNotInUse,
                &source.path,
                found.says(&source.path),
            )
        })
        .collect()
}

fn capture(source: &Source, request: &SaveRequest, cancel: &CancelToken) -> Result<Capture> {
    let conditions = Conditions {
        scratch: &request.scratch,
        lock_timeout: Duration::from_millis(request.lock_timeout_ms),
        with_twin: request.check_source,
    };
    snapshot::take(&source.absolute, conditions, cancel)
}
