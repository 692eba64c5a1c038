//! Streams the content of a backup to the client.
//!
//! | module | duty |
//! | --- | --- |
//! | [`plan`] | finds the sources, and pins each database to a commit |
//! | [`database`], [`blocks`] | send databases |
//! | [`file`] | sends plain files |
//! | [`probe`] | reads some of the files that look unchanged |
//! | [`unreadable`] | keeps what the base has of sources that cannot be read |
//! | [`listing`], [`records`] | the list of files, and what differs from the base |
//! | [`findings`] | what the manifest says |
//!
//! A database is closed as soon as its pages are sent and checked, so that its WAL can be
//! checkpointed again.

mod blocks;
mod database;
mod file;
mod findings;
mod listing;
mod plan;
mod probe;
mod records;
mod unreadable;

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::Path,
    time::Duration,
};

use rusqlite::Connection;

use self::{
    blocks::PageHashesOut,
    listing::{Listing, Passed},
    plan::{Content, SavePlan},
    records::{owner, record},
};
use super::{
    baseline::Baseline,
    known_files::{KnownFile, KnownFiles},
    protocol::{KNOWN_FILES_FILE, Message, PAGE_HASHES_FILE, SaveRequest, Saved},
    restore::lock_against_restores,
};
use crate::{
    archive::file_record::{FileRecord, Storage},
    error::{Error, Result, Warning},
    project::{
        Component, Project,
        discover::{Source, SourceKind},
        entry_names::EntryNames,
        file_state::FileState,
    },
    sqlite::{
        check::{Depth, Findings, Integrity, IntegrityStatus, refused},
        files::names_super_journal,
        page_hashes::PageFileWriter,
        raw_copy::RawCopy,
    },
    util::operation::CancelToken,
    worker::protocol::ResponseSink,
};

/// The size of unchanged files that one message reports.
const PASSED_AT_ONCE: u64 = 4 * 1024 * 1024;

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
    let base = baseline.as_ref().and_then(Baseline::known_files);
    let root = project.root();
    let trusted = base.filter(|_| !request.force_read);
    let plan = SavePlan::new(&project, request, trusted, cancel)?;
    responses.message(Message::Planned {
        bytes_total: plan.bytes_total,
    })?;
    let mut contents = plan.contents;
    let mut saving = Saving {
        root,
        responses,
        cancel,
        check_source: request.check_source,
        erase: request.erase,
        block_bytes: request.block_bytes,
        takes_over: request.takes_over,
        known: baseline.as_ref(),
        base: baseline.as_ref().filter(|_| base.is_some()),
        trusted,
        listing: Listing::new(&request.scratch.join(KNOWN_FILES_FILE), base)?,
        passed_bytes: 0,
        hashes: hashes_file(&request.scratch)?,
        entries: plan.entries,
        integrity: Integrity::of(Findings::default(), Depth::All),
        counts: Counts::default(),
        warnings: plan.warnings,
    };
    saving.keep_closed(&project, &request.selection)?;
    saving.probe()?;
    for source in plan.sources.iter() {
        cancel.check()?;
        saving.send(&source, contents.remove(&source.path))?;
    }
    saving.pass(None)?;
    saving.tell_kept();
    saving.finish()
}

/// A backup that is being sent.
struct Saving<'a> {
    /// The root of the project.
    root: &'a Path,
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
    /// The files of the base, if those that look unchanged are not read.
    trusted: Option<&'a KnownFiles>,
    listing: Listing,
    /// The size of files that are as in the base, as far as the client does not know it yet.
    passed_bytes: u64,
    /// The page hashes of all databases so far, in the scratch directory, where the client takes
    /// them.
    hashes: PageHashesOut,
    /// The entry names that are in use in the archive.
    entries: EntryNames,
    integrity: Integrity,
    counts: Counts,
    warnings: Vec<Warning>,
}

fn hashes_file(scratch: &Path) -> Result<PageHashesOut> {
    let file = File::create(scratch.join(PAGE_HASHES_FILE));
    file.and_then(|file| PageFileWriter::new(BufWriter::new(file), ""))
        .map_err(hashes_failed)
}

fn hashes_failed(cause: io::Error) -> Error {
    Error::io("write", PAGE_HASHES_FILE.as_ref(), cause)
}

/// What the graph database contains.
#[derive(Default)]
struct Counts {
    nodes: u64,
    edges: u64,
    tables: Option<u64>,
    has_no_page: bool,
}

impl Saving<'_> {
    fn send(&mut self, source: &Source, content: Option<Content>) -> Result<()> {
        match content {
            Some(Content::Snapshot {
                snapshot,
                has_ignored_wal,
            }) => {
                if has_ignored_wal {
                    self.ignored_wal(source);
                }
                self.snapshot(source, *snapshot)
            }
            Some(Content::Damaged(copy, error)) => self.damaged_database(source, &copy, error),
            Some(Content::Companion(_copy, file)) => self.companion(source, &file),
            None if source.kind == SourceKind::File => {
                self.file(source, &source.absolute(self.root))
            }
            None => self.node(source),
        }
    }

    fn finish(mut self) -> Result<Saved> {
        self.tell_passed()?;
        self.hashes.finish().map_err(hashes_failed)?;
        if !self.check_source && self.integrity.status == IntegrityStatus::Ok {
            self.integrity.status = IntegrityStatus::Skipped;
            self.integrity.full_text = false;
        }
        let Counts {
            nodes,
            edges,
            tables,
            has_no_page,
        } = self.counts;
        Ok(Saved {
            integrity: self.integrity,
            node_count: nodes,
            edge_count: edges,
            table_count: tables,
            has_no_page,
            listed: self.listing.finish()?,
            warnings: self.warnings,
        })
    }

    /// Sends the files of a database that SQLite refuses, as they are.
    fn damaged_database(&mut self, source: &Source, copy: &RawCopy, error: Error) -> Result<()> {
        let found = refused(&copy.database(), error, self.cancel)?;
        if source.component == Component::Database && found.damage.is_empty() {
            let opened = Connection::open(copy.database()).map_err(|cause| {
                Error::sqlite("open a copy of", &source.absolute(self.root), cause)
            })?;
            self.count(&opened)?;
        }
        self.found(&source.path, found, Depth::All);
        self.file(source, &copy.database())
    }

    /// Sends the WAL or journal of a damaged database.
    fn companion(&mut self, source: &Source, file: &Path) -> Result<()> {
        let names_super_journal =
            File::open(file).is_ok_and(|journal| names_super_journal(&journal).unwrap_or(true));
        if names_super_journal {
            self.super_journal(source);
            return Ok(());
        }
        self.file(source, file)
    }

    /// Returns what the base has at the place of a source, after everything before it. The sources
    /// come in the order of the list.
    fn reach(&mut self, source: &Source) -> Result<Option<KnownFile>> {
        let place = (source.component, source.path.as_str());
        self.pass(Some(place))?;
        self.listing.take(place.0, place.1)
    }

    /// Sends what the base has before that place, or before the end, and this backup has not.
    fn pass(&mut self, until: Option<(Component, &str)>) -> Result<()> {
        while let Some(passed) = self.listing.pass(until)? {
            match passed {
                Passed::Deleted(base) => self.vanished(Some(base))?,
                Passed::Kept(base) => self.keep_under_free_name(base)?,
            }
        }
        Ok(())
    }

    /// Sends that this backup lacks what the base has there.
    fn vanished(&mut self, base: Option<KnownFile>) -> Result<()> {
        let Some((record, _)) = base else {
            return Ok(());
        };
        self.unstored(FileRecord {
            stored: Storage::Deleted,
            ..record
        })
    }

    /// Adds a record that is the same in the base.
    fn same(&mut self, record: &FileRecord, state: Option<FileState>) -> Result<()> {
        self.passed_bytes += record.size;
        if self.passed_bytes >= PASSED_AT_ONCE {
            self.tell_passed()?;
        }
        self.listing.push(record, state)
    }

    /// Adds the record of a file whose content is that of the base.
    fn same_content(&mut self, record: FileRecord, state: Option<FileState>) -> Result<()> {
        self.listing.push(&record, state)?;
        self.unstored(FileRecord {
            stored: Storage::Unchanged,
            ..record
        })
    }

    fn unstored(&mut self, record: FileRecord) -> Result<()> {
        self.responses.message(Message::Unstored { record })
    }

    fn tell_passed(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.passed_bytes);
        if bytes == 0 {
            return Ok(());
        }
        self.responses.message(Message::Passed { bytes })
    }

    /// Sends a directory or a link.
    fn node(&mut self, source: &Source) -> Result<()> {
        let base = self.reach(source)?;
        let found = match fs::symlink_metadata(source.absolute(self.root)) {
            Ok(found) => found,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return self.vanished(base),
            Err(cause) => return self.unreadable(source, base, &cause),
        };
        let record = record(source, &found, 0);
        if base.is_some_and(|(base, _)| base == record) {
            return self.same(&record, None);
        }
        self.listing.push(&record, None)?;
        self.responses.message(Message::Entry {
            record,
            owner: owner(&found),
        })
    }
}
