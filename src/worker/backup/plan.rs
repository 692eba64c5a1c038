//! Finds what is to be saved, and pins each database to a commit.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use crate::{
    error::{Error, Result, Warning, WarningCode},
    project::{
        Component, Project,
        discover::{Source, SourceKind, discover},
        file_state::FoundFile,
    },
    sqlite::{
        in_place,
        raw_copy::RawCopy,
        snapshot::{self, Capture, Conditions, Snapshot},
        wal_in_use,
    },
    util::operation::CancelToken,
    worker::{known_files::KnownFiles, protocol::SaveRequest},
};

/// Everything that is to be saved, in the order of the archive.
pub(super) struct SavePlan {
    pub sources: Vec<PlannedSource>,
    /// The entry names that the sources have in the archive.
    pub entries: HashSet<String>,
    pub bytes_total: u64,
    pub warnings: Vec<Warning>,
}

pub(super) struct PlannedSource {
    pub source: Source,
    pub content: Content,
}

/// Where the content of a source is read.
pub(super) enum Content {
    /// At the path of the source.
    AtSource,
    Snapshot {
        snapshot: Box<Snapshot>,
        /// SQLite ignores the WAL of this database, although it may contain commits.
        has_ignored_wal: bool,
    },
    /// A copy of a database that SQLite refuses.
    Damaged(Rc<RawCopy>, Error),
    /// The WAL or journal of such a database, in the copy.
    Companion(Rc<RawCopy>, PathBuf),
}

impl SavePlan {
    /// Pins all databases to a commit before the first is read, so that their states are as close
    /// together as possible.
    ///
    /// What has not changed since `known` is not read.
    pub fn new(
        project: &Project,
        request: &SaveRequest,
        known: Option<&KnownFiles>,
        cancel: &CancelToken,
    ) -> Result<SavePlan> {
        let mut warnings = Vec::new();
        let is_plain = |component: Component, path: &str, found: &FoundFile| {
            known.is_some_and(|known| known.unchanged(component, path, found).is_some())
        };
        let found = discover(project, &request.selection, &is_plain, &mut warnings)?;
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
            plan.add(source, content, has_ignored_wal);
        }
        // The WAL of a damaged database need not come directly after it.
        plan.sources
            .sort_by(|one, other| one.source.order(&other.source));
        Ok(plan)
    }

    fn add(&mut self, source: Source, content: Option<Capture>, has_ignored_wal: bool) {
        let content = match content {
            None => Content::AtSource,
            Some(Capture::Snapshot(snapshot)) => Content::Snapshot {
                snapshot: Box::new(snapshot),
                has_ignored_wal,
            },
            Some(Capture::Damaged(copy, error)) => {
                let copy = Rc::new(copy);
                for (suffix, file) in copy.companions() {
                    self.sources.push(PlannedSource {
                        source: companion_of(&source, suffix),
                        content: Content::Companion(copy.clone(), file),
                    });
                }
                Content::Damaged(copy, error)
            }
        };
        self.sources.push(PlannedSource { source, content });
    }
}

/// Returns the WAL or journal of a damaged database as a source of its own.
fn companion_of(source: &Source, suffix: &str) -> Source {
    Source {
        path: format!("{}{suffix}", source.path),
        entry: format!("{}{suffix}", source.entry),
        kind: SourceKind::File,
        found: None,
        ..source.clone()
    }
}

fn size_bytes(source: &Source, content: Option<&Capture>) -> u64 {
    match (content, &source.kind) {
        (Some(Capture::Snapshot(snapshot)), _) => snapshot.size_bytes(),
        (_, SourceKind::Directory | SourceKind::Link(_)) => 0,
        _ => {
            let size = || fs::metadata(&source.absolute).map_or(0, |found| found.len());
            source.found.map_or_else(size, |found| found.size)
        }
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
