//! Finds what is to be saved, and pins each database to a commit.

use std::{
    collections::{HashMap, HashSet},
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
        entry_names::EntryNames,
        file_state::FoundFile,
        source_list::SourceList,
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

/// Everything that is to be saved.
pub(super) struct SavePlan {
    pub sources: SourceList,
    /// Where the content of some sources is, by their paths. That of the others is where the source
    /// is.
    pub contents: HashMap<String, Content>,
    /// The entry names that the sources have in the archive.
    pub entries: EntryNames,
    pub bytes_total: u64,
    pub warnings: Vec<Warning>,
}

/// Where the content of a source is read.
pub(super) enum Content {
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
        let is_plain = |found: &FoundFile| known.is_some_and(|known| known.is_plain(found));
        let root = project.root();
        let (sources, entries) = discover(project, &request.selection, &is_plain, &mut warnings)?;
        warnings.extend(committed_elsewhere(root, &sources.others));
        let mut plan = SavePlan {
            sources,
            contents: HashMap::new(),
            entries,
            bytes_total: 0,
            warnings,
        };
        plan.pin_databases(root, request, cancel)?;
        for source in plan.sources.iter() {
            plan.bytes_total += size_bytes(root, &source, plan.contents.get(&source.path));
        }
        Ok(plan)
    }

    fn pin_databases(
        &mut self,
        root: &Path,
        request: &SaveRequest,
        cancel: &CancelToken,
    ) -> Result<()> {
        let sources = self.sources.others.iter();
        let databases = sources.filter(|source| source.is_database());
        let databases: Vec<Source> = databases.cloned().collect();
        // `ignores_commits` closes a descriptor of the file, so it must run before the file is
        // opened: closing ends the locks that this process has on it.
        let ignored: Vec<bool> = databases
            .iter()
            .map(|source| in_place::ignores_commits(&source.absolute(root)))
            .collect();
        let mut removed = HashSet::new();
        for (source, has_ignored_wal) in databases.into_iter().zip(ignored) {
            let absolute = source.absolute(root);
            match capture(&absolute, request, cancel) {
                Ok(content) => self.add(source, content, has_ignored_wal),
                // It was removed after it was found, so it is not part of the project any more.
                Err(_) if source.component != Component::Database && !absolute.exists() => {
                    removed.insert(source.path);
                }
                Err(error) => return Err(error),
            }
        }
        self.sources
            .others
            .retain(|source| !source.is_database() || !removed.contains(&source.path));
        // The WAL of a damaged database need not come directly after it.
        self.sources.sort();
        Ok(())
    }

    fn add(&mut self, source: Source, content: Capture, has_ignored_wal: bool) {
        let content = match content {
            Capture::Snapshot(snapshot) => Content::Snapshot {
                snapshot: Box::new(snapshot),
                has_ignored_wal,
            },
            Capture::Damaged(copy, error) => {
                let copy = Rc::new(copy);
                for (suffix, file) in copy.companions() {
                    let companion = source.companion(suffix, &mut self.entries);
                    let content = Content::Companion(copy.clone(), file);
                    self.contents.insert(companion.path.clone(), content);
                    self.sources.others.push(companion);
                }
                Content::Damaged(copy, error)
            }
        };
        self.contents.insert(source.path, content);
    }
}

fn size_bytes(root: &Path, source: &Source, content: Option<&Content>) -> u64 {
    match (content, &source.kind, source.found) {
        (Some(Content::Snapshot { snapshot, .. }), ..) => snapshot.size_bytes(),
        (_, SourceKind::Directory | SourceKind::Link(_), _) => 0,
        (.., Some(found)) => found.size,
        _ => fs::metadata(source.absolute(root)).map_or(0, |found| found.len()),
    }
}

/// Warns of databases whose users commit to other files than those that are saved.
fn committed_elsewhere(root: &Path, sources: &[Source]) -> Vec<Warning> {
    let databases: Vec<&Source> = sources
        .iter()
        .filter(|source| source.is_database())
        .collect();
    let paths: Vec<PathBuf> = databases
        .iter()
        .map(|source| source.absolute(root))
        .collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
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

fn capture(database: &Path, request: &SaveRequest, cancel: &CancelToken) -> Result<Capture> {
    let conditions = Conditions {
        scratch: &request.scratch,
        lock_timeout: Duration::from_millis(request.lock_timeout_ms),
        with_twin: request.check_source,
    };
    snapshot::take(database, conditions, cancel)
}
