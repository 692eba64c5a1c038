//! Streams what a backup holds: [`database`] sends databases, which [`blocks`] reads, [`file`] plain files.
//!
//! All headers are looked at first, then all databases are opened and pinned to a commit, then everything is sent in the
//! order of the archive. A database is closed as soon as its pages are out and checked, so that a WAL is held up no
//! longer than needed.

mod blocks;
mod database;
mod file;

use std::{
    collections::HashSet,
    fs::{self, File, Metadata},
    io::{self, BufWriter},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::Connection;

use super::{
    baseline::Baseline,
    protocol::{Message, PAGE_HASHES_FILE, SaveRequest, Saved},
    restore::lock_against_restores,
};
use crate::{
    archive::manifest::{EntryKind, FileRecord, Owner, Storage},
    error::{Error, Result, Warning, WarningCode, first_and_more},
    integrity::rows,
    project::{
        Component, Project,
        discover::{Selection, Source, SourceKind, discover},
        exclude::Exclusion,
        names,
    },
    sqlite::{
        check::{Depth, Findings, Integrity, IntegrityStatus, read_schema, refused},
        files::{COMPANIONS, names_super_journal},
        in_place,
        page_hashes::PageFile,
        snapshot::{self, Capture, Conditions},
        wal_in_use,
    },
    util::operation::CancelToken,
    worker::protocol::ResponseSink,
};

pub fn save(
    request: &SaveRequest,
    answers: &mut dyn ResponseSink,
    cancel: &CancelToken,
) -> Result<Saved> {
    let known = request.known.as_deref().map(Baseline::read).transpose()?;
    let project = Project::open(&request.root)?;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let _no_restore = lock_against_restores(&project.state_dir(), lock_timeout, cancel)?;
    let mut warnings = Vec::new();
    let sources = discover(&project, &request.selection, &mut warnings)?;
    warnings.extend(committed_elsewhere(&sources));
    // Asked before any of them is opened, see `look`.
    let ignored = sources
        .iter()
        .filter(|source| source.is_database() && in_place::ignores_commits(&source.absolute));
    let ignored: HashSet<String> = ignored.map(|source| source.path.clone()).collect();
    let entries = sources.iter().map(|source| source.entry.clone()).collect();
    let mut planned = Vec::new();
    let mut bytes_total = 0;
    for source in sources {
        let content = match source.is_database().then(|| take(&source, request, cancel)) {
            // Removed since it was found: it is not part of the project any more.
            Some(Err(_))
                if source.component != Component::Database && !source.absolute.exists() =>
            {
                continue;
            }
            taken => taken.transpose()?,
        };
        bytes_total += match (&content, &source.kind) {
            (Some(Capture::Snapshot(snapshot)), _) => snapshot.size_bytes(),
            (_, SourceKind::Directory | SourceKind::Link(_)) => 0,
            _ => fs::metadata(&source.absolute).map_or(0, |found| found.len()),
        };
        planned.push((source, content));
    }
    answers.message(Message::Planned { bytes_total })?;
    let mut saving = Saving {
        answers,
        cancel,
        check_source: request.check_source,
        erase: request.erase,
        block_bytes: request.block_bytes,
        takes_over: request.takes_over,
        known: known.as_ref(),
        base: known.as_ref().filter(|known| known.leaves_out()),
        hashes: PageFile::default(),
        entries,
        saved: Saved {
            integrity: Integrity::of(Findings::default(), Depth::All),
            node_count: 0,
            edge_count: 0,
            table_count: None,
            has_no_page: false,
            warnings,
        },
    };
    for (source, content) in planned {
        cancel.check()?;
        match content {
            Some(Capture::Snapshot(snapshot)) => {
                if ignored.contains(&source.path) {
                    saving.ignored_wal(&source);
                }
                saving.snapshot(&source, snapshot)?;
            }
            Some(Capture::Damaged(copy, error)) => {
                let found = refused(&copy.database(), error, cancel)?;
                if source.component == Component::Database && found.damage.is_empty() {
                    saving.count(&Connection::open(copy.database()).map_err(|cause| {
                        Error::sqlite("open a copy of", &source.absolute, cause)
                    })?)?;
                }
                saving.found(&source.path, found, Depth::All);
                saving.file(&source, &copy.database())?;
                for (suffix, file) in copy.companions() {
                    if File::open(&file)
                        .is_ok_and(|journal| names_super_journal(&journal).unwrap_or(true))
                    {
                        saving.super_journal(&beside(&source, suffix));
                        continue;
                    }
                    saving.file(&beside(&source, suffix), &file)?;
                }
            }
            None if source.kind == SourceKind::File => saving.file(&source, &source.absolute)?,
            None => saving.node(&source)?,
        }
    }
    saving.keep_closed(&project, &request.selection)?;
    let hashes = request.scratch.join(PAGE_HASHES_FILE);
    let failed = |cause| Error::io("write", &hashes, cause);
    saving
        .hashes
        .write(BufWriter::new(File::create(&hashes).map_err(failed)?))
        .map_err(failed)?;
    if !request.check_source && saving.saved.integrity.status == IntegrityStatus::Ok {
        saving.saved.integrity.status = IntegrityStatus::Skipped;
        saving.saved.integrity.full_text = false;
    }
    Ok(saving.saved)
}

/// Databases whose users commit to other files than those that are saved.
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

fn take(source: &Source, request: &SaveRequest, cancel: &CancelToken) -> Result<Capture> {
    let conditions = Conditions {
        scratch: &request.scratch,
        lock_timeout: Duration::from_millis(request.lock_timeout_ms),
        with_twin: request.check_source,
    };
    snapshot::take(&source.absolute, conditions, cancel)
}

/// The WAL or journal of a damaged database, saved as a file beside it.
fn beside(source: &Source, suffix: &str) -> Source {
    Source {
        path: format!("{}{suffix}", source.path),
        entry: format!("{}{suffix}", source.entry),
        kind: SourceKind::File,
        ..source.clone()
    }
}

struct Saving<'a> {
    answers: &'a mut dyn ResponseSink,
    cancel: &'a CancelToken,
    check_source: bool,
    erase: bool,
    block_bytes: usize,
    takes_over: bool,
    /// An earlier backup.
    known: Option<&'a Baseline>,
    /// The same, of an incremental backup.
    base: Option<&'a Baseline>,
    /// Of all databases so far.
    hashes: PageFile,
    /// Names that are taken in the archive.
    entries: HashSet<String>,
    saved: Saved,
}

impl Saving<'_> {
    /// Announces `size` bytes of data; everything else is taken from `found`.
    fn entry(&mut self, source: &Source, found: &Metadata, size: u64) -> Result<()> {
        let record = record(source, found, size);
        self.answers.message(Message::Entry {
            record,
            owner: owner(found),
        })
    }

    /// A directory or a link, which have no data.
    fn node(&mut self, source: &Source) -> Result<()> {
        match fs::symlink_metadata(&source.absolute) {
            Ok(found) => {
                let record = record(source, &found, 0);
                if self.base.is_some_and(|base| base.has_node(&record)) {
                    let record = FileRecord {
                        stored: Storage::Unchanged,
                        ..record
                    };
                    return self.answers.message(Message::Unchanged { record });
                }
                self.entry(source, &found, 0)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => self.unreadable(source, &cause),
        }
    }

    /// Counts what is in the graph database. What cannot be read counts as nothing.
    fn count(&mut self, connection: &Connection) -> Result<()> {
        read_schema(connection, self.cancel)?;
        self.saved.node_count = rows::count(connection, "nodes").unwrap_or(0);
        self.saved.edge_count = rows::count(connection, "edges").unwrap_or(0);
        self.saved.table_count = rows::table_count(connection).ok();
        let page_count = connection.query_row("PRAGMA page_count", [], |row| row.get::<_, u64>(0));
        self.saved.has_no_page = page_count.is_ok_and(|count| count == 0);
        Ok(())
    }

    /// Adds what was found in one database.
    fn found(&mut self, path: &str, found: Findings, depth: Depth) {
        if let Some(rows) = first_and_more(&found.rows) {
            let message = format!(
                "Rows of {path} break what their table declares ({rows}); the backup holds them as they are, and \
                 `kg diag integrity` names them"
            );
            self.saved
                .warnings
                .push(Warning::about(WarningCode::Constraint, path, message));
        }
        let found = Integrity::of(found, depth);
        let Integrity {
            messages,
            not_checked,
            full_text,
            ..
        } = found;
        let integrity = &mut self.saved.integrity;
        integrity.full_text &= full_text;
        if let Some(left) = first_and_more(&not_checked) {
            let message =
                format!("{path} was not checked as a whole: {left}; the backup holds all of it");
            self.saved
                .warnings
                .push(Warning::about(WarningCode::NotChecked, path, message));
            if integrity.status == IntegrityStatus::Ok {
                integrity.status = IntegrityStatus::Partial;
            }
            integrity.not_checked.extend(
                not_checked
                    .into_iter()
                    .map(|what| format!("{path}: {what}")),
            );
        }
        if !messages.is_empty() {
            self.damaged(path, messages);
        }
    }

    fn damaged(&mut self, path: &str, messages: Vec<String>) {
        let first = messages.first().map_or("", String::as_str);
        let message = format!("{path} is damaged ({first}); the backup holds it as it is");
        self.saved
            .warnings
            .push(Warning::about(WarningCode::SourceDamaged, path, message));
        self.saved.integrity.status = IntegrityStatus::Failed;
        self.saved.integrity.messages.extend(
            messages
                .into_iter()
                .map(|message| format!("{path}: {message}")),
        );
    }

    /// It is there, so an incremental backup does not take it for one that is no more: what the base has is better than nothing.
    fn unreadable(&mut self, source: &Source, cause: &io::Error) -> Result<()> {
        let kept = self.base.and_then(|base| base.at(&source.path));
        let what = if kept.is_some() {
            "is kept as it was in the backup before"
        } else {
            "was left out"
        };
        let message = format!("{} could not be read and {what}: {cause}", source.path);
        self.saved.warnings.push(Warning::about(
            WarningCode::FileUnreadable,
            &source.path,
            message,
        ));
        let Some(kept) = kept else { return Ok(()) };
        self.keep(FileRecord {
            entry: source.entry.clone(),
            ..kept.clone()
        })?;
        // The WAL or journal of a database that was damaged then belongs to it.
        let of_damaged = COMPANIONS
            .iter()
            .filter(|_| kept.database)
            .map(|suffix| format!("{}{suffix}", source.path));
        let companions: Vec<&FileRecord> =
            of_damaged.filter_map(|path| self.base?.at(&path)).collect();
        companions
            .into_iter()
            .try_for_each(|record| self.keep_under_free_name(record))
    }

    /// Sends that something is as it was in the base.
    fn keep(&mut self, record: FileRecord) -> Result<()> {
        if let Some(hashes) = self.base.and_then(|base| base.hashes(&record.path)) {
            self.hashes
                .databases
                .insert(record.path.clone(), hashes.clone());
        }
        self.answers.message(Message::Unchanged {
            record: FileRecord {
                stored: Storage::Unchanged,
                ..record
            },
        })
    }

    fn keep_under_free_name(&mut self, record: &FileRecord) -> Result<()> {
        let mut entry = record.entry.clone();
        let mut number = 2;
        while !self.entries.insert(entry.clone()) {
            entry = format!("{}~{number}", record.entry);
            number += 1;
        }
        self.keep(FileRecord {
            entry,
            ..record.clone()
        })
    }

    /// A directory that could not be read is there, and so may be all that the base has below it.
    fn keep_closed(&mut self, project: &Project, selection: &Selection) -> Result<()> {
        let Some(base) = self.base else { return Ok(()) };
        let exclusion = Exclusion::new(project.root(), &selection.exclude_patterns)?;
        let mut done = HashSet::new();
        let mut warnings = std::mem::take(&mut self.saved.warnings);
        for warning in warnings
            .iter_mut()
            .filter(|warning| warning.code == WarningCode::FileUnreadable)
        {
            let Some(path) = warning
                .path
                .clone()
                .filter(|path| done.insert(path.clone()))
            else {
                continue;
            };
            let mut kept = base.below(&path);
            kept.retain(|record| {
                selection.wants(record.component) && !is_excluded(&exclusion, record)
            });
            if !kept.is_empty() {
                warning
                    .message
                    .push_str("; what the backup before holds of it is kept");
            }
            kept.into_iter()
                .try_for_each(|record| self.keep_under_free_name(record))?;
        }
        self.saved.warnings = warnings;
        Ok(())
    }

    fn super_journal(&mut self, source: &Source) {
        let message = format!(
            "{} was left out: it belongs to a transaction over several databases",
            source.path
        );
        self.saved.warnings.push(Warning::about(
            WarningCode::FileUnreadable,
            &source.path,
            message,
        ));
    }

    fn ignored_wal(&mut self, source: &Source) {
        let path = &source.path;
        let message = format!(
            "SQLite ignores {path}-wal, which does not begin as a WAL does: what was committed to it is not in the backup"
        );
        self.saved
            .warnings
            .push(Warning::about(WarningCode::WalNotInUse, path, message));
    }

    fn changed(&mut self, source: &Source) {
        let message = format!(
            "{} changed while it was read; the backup may hold half of the change",
            source.path
        );
        self.saved.warnings.push(Warning::about(
            WarningCode::FileChanged,
            &source.path,
            message,
        ));
    }
}

/// Whether a pattern leaves it out, or a directory that it lies in.
fn is_excluded(exclusion: &Exclusion, record: &FileRecord) -> bool {
    let Some(path) = names::decode(&record.path) else {
        return false;
    };
    let mut ancestors = path
        .ancestors()
        .enumerate()
        .filter(|(_, path)| *path != Path::new(""));
    ancestors.any(|(above, path)| {
        exclusion.excludes(path, above > 0 || record.kind == EntryKind::Directory)
    })
}

fn owner(found: &Metadata) -> Owner {
    (found.uid(), found.gid())
}

fn record(source: &Source, found: &Metadata, size: u64) -> FileRecord {
    FileRecord {
        entry: source.entry.clone(),
        stored: Storage::Full,
        sha256: None,
        pages: None,
        blocks: None,
        path: source.path.clone(),
        component: source.component,
        kind: match source.kind {
            SourceKind::Database | SourceKind::File => EntryKind::File,
            SourceKind::Directory => EntryKind::Directory,
            SourceKind::Link(_) => EntryKind::Link,
        },
        target: match &source.kind {
            SourceKind::Link(target) => Some(target.clone()),
            _ => None,
        },
        database: source.is_database(),
        size,
        mode: found.mode() & 0o7777,
        mtime: Timestamp::new(found.mtime(), found.mtime_nsec() as i32)
            .unwrap_or(Timestamp::UNIX_EPOCH),
    }
}
