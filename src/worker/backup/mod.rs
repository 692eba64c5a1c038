//! Streams the content of a backup to the client.
//!
//! | module | duty |
//! | --- | --- |
//! | [`plan`] | finds the sources, and pins each database to a commit |
//! | [`database`], [`blocks`] | send databases |
//! | [`file`] | sends plain files |
//! | [`unreadable`] | keeps what the base has of sources that cannot be read |
//! | [`findings`], [`records`] | what the manifest says |
//!
//! A database is closed as soon as its pages are sent and checked, so that its WAL can be
//! checkpointed again.

mod blocks;
mod database;
mod file;
mod findings;
mod plan;
mod records;
mod unreadable;

use std::{
    collections::HashSet,
    fs::{self, File, Metadata},
    io::{self, BufWriter},
    time::Duration,
};

use rusqlite::Connection;

use self::{
    plan::{PlannedSource, SavePlan},
    records::{owner, record},
};
use super::{
    baseline::Baseline,
    protocol::{Message, PAGE_HASHES_FILE, SaveRequest, Saved},
    restore::lock_against_restores,
};
use crate::{
    archive::manifest::{FileRecord, Storage},
    error::{Error, Result},
    project::{
        Component, Project,
        discover::{Source, SourceKind},
    },
    sqlite::{
        check::{Depth, Findings, Integrity, IntegrityStatus, refused},
        files::names_super_journal,
        page_hashes::PageFile,
        raw_copy::RawCopy,
        snapshot::Capture,
    },
    util::operation::CancelToken,
    worker::protocol::ResponseSink,
};

/// Sends everything that `request` asks for, and returns what the manifest says about it.
pub fn save(
    request: &SaveRequest,
    responses: &mut dyn ResponseSink,
    cancel: &CancelToken,
) -> Result<Saved> {
    let baseline = request.known.as_deref().map(Baseline::read).transpose()?;
    let project = Project::open(&request.root)?;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let _no_restore = lock_against_restores(&project.state_dir(), lock_timeout, cancel)?;
    let plan = SavePlan::new(&project, request, cancel)?;
    responses.message(Message::Planned {
        bytes_total: plan.bytes_total,
    })?;
    let mut saving = Saving {
        responses,
        cancel,
        check_source: request.check_source,
        erase: request.erase,
        block_bytes: request.block_bytes,
        takes_over: request.takes_over,
        known: baseline.as_ref(),
        base: baseline.as_ref().filter(|known| known.leaves_out()),
        hashes: PageFile::default(),
        entries: plan.entries,
        saved: Saved {
            integrity: Integrity::of(Findings::default(), Depth::All),
            node_count: 0,
            edge_count: 0,
            table_count: None,
            has_no_page: false,
            warnings: plan.warnings,
        },
    };
    for planned in plan.sources {
        cancel.check()?;
        saving.send(planned)?;
    }
    saving.keep_closed(&project, &request.selection)?;
    saving.write_page_hashes(request)?;
    if !request.check_source && saving.saved.integrity.status == IntegrityStatus::Ok {
        saving.saved.integrity.status = IntegrityStatus::Skipped;
        saving.saved.integrity.full_text = false;
    }
    Ok(saving.saved)
}

/// A backup that is being sent.
struct Saving<'a> {
    responses: &'a mut dyn ResponseSink,
    cancel: &'a CancelToken,
    check_source: bool,
    erase: bool,
    block_bytes: usize,
    takes_over: bool,
    /// The newest backup, to compare with.
    known: Option<&'a Baseline>,
    /// The same, if this backup is incremental: what did not change is left out.
    base: Option<&'a Baseline>,
    /// The page hashes of all databases so far.
    hashes: PageFile,
    /// The entry names that are in use in the archive.
    entries: HashSet<String>,
    saved: Saved,
}

impl Saving<'_> {
    fn send(&mut self, planned: PlannedSource) -> Result<()> {
        let PlannedSource {
            source,
            content,
            has_ignored_wal,
        } = planned;
        match content {
            Some(Capture::Snapshot(snapshot)) => {
                if has_ignored_wal {
                    self.ignored_wal(&source);
                }
                self.snapshot(&source, snapshot)
            }
            Some(Capture::Damaged(copy, error)) => self.damaged_database(&source, &copy, error),
            None if source.kind == SourceKind::File => self.file(&source, &source.absolute),
            None => self.node(&source),
        }
    }

    /// Sends the files of a database that SQLite refuses, as they are.
    fn damaged_database(&mut self, source: &Source, copy: &RawCopy, error: Error) -> Result<()> {
        let found = refused(&copy.database(), error, self.cancel)?;
        if source.component == Component::Database && found.damage.is_empty() {
            let opened = Connection::open(copy.database())
                .map_err(|cause| Error::sqlite("open a copy of", &source.absolute, cause))?;
            self.count(&opened)?;
        }
        self.found(&source.path, found, Depth::All);
        self.file(source, &copy.database())?;
        for (suffix, file) in copy.companions() {
            let companion = companion_of(source, suffix);
            let names_super_journal = File::open(&file)
                .is_ok_and(|journal| names_super_journal(&journal).unwrap_or(true));
            if names_super_journal {
                self.super_journal(&companion);
            } else {
                self.file(&companion, &file)?;
            }
        }
        Ok(())
    }

    /// Leaves the page hashes in the scratch directory, where the client takes them.
    fn write_page_hashes(&self, request: &SaveRequest) -> Result<()> {
        let path = request.scratch.join(PAGE_HASHES_FILE);
        let failed = |cause| Error::io("write", &path, cause);
        let file = File::create(&path).map_err(failed)?;
        self.hashes.write(BufWriter::new(file)).map_err(failed)
    }

    /// Announces an entry; `size` bytes of data follow it.
    fn entry(&mut self, source: &Source, found: &Metadata, size: u64) -> Result<()> {
        let record = record(source, found, size);
        self.responses.message(Message::Entry {
            record,
            owner: owner(found),
        })
    }

    /// Sends a directory or a link.
    fn node(&mut self, source: &Source) -> Result<()> {
        match fs::symlink_metadata(&source.absolute) {
            Ok(found) => {
                let record = record(source, &found, 0);
                if self.base.is_some_and(|base| base.has_node(&record)) {
                    let record = FileRecord {
                        stored: Storage::Unchanged,
                        ..record
                    };
                    return self.responses.message(Message::Unchanged { record });
                }
                self.entry(source, &found, 0)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => self.unreadable(source, &cause),
        }
    }
}

/// Returns the WAL or journal of a damaged database as a source of its own.
fn companion_of(source: &Source, suffix: &str) -> Source {
    Source {
        path: format!("{}{suffix}", source.path),
        entry: format!("{}{suffix}", source.entry),
        kind: SourceKind::File,
        ..source.clone()
    }
}
