//! Streams what a backup holds.
//!
//! All headers are looked at first, then all databases are opened and pinned to a commit, then everything is sent in the
//! order of the archive. A database is closed as soon as its pages are out and checked, so that a WAL is held up no
//! longer than needed.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    protocol::{DATA_CHUNK_BYTES, Message, SaveRequest, Saved},
    server::Answers,
};
use crate::{
    archive::manifest::{EntryKind, FileRecord},
    error::{Code, Error, Result, Warning, WarningCode},
    project::{
        Component, Project,
        discover::{Kind, Source, discover, open_plain},
    },
    sqlite::{
        check::{Integrity, IntegrityStatus, quick_check},
        snapshot::{self, Conditions, Snapshot, Taken},
    },
    task::Cancel,
};

/// Files up to this size are read whole before they are sent, so that one that changes meanwhile is read again.
const WHOLE_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// How often a small file that changes while it is read is read again.
const READ_ATTEMPTS: u32 = 5;

pub fn save(request: &SaveRequest, answers: &mut dyn Answers, cancel: &Cancel) -> Result<Saved> {
    let project = Project::open(&request.root)?;
    let mut warnings = Vec::new();
    let sources = discover(&project, &request.selection, &mut warnings)?;
    let mut planned = Vec::new();
    let mut bytes_total = 0;
    for source in sources {
        let content = match source.is_database().then(|| take(&source, request, cancel)) {
            // Removed since it was found: it is not part of the project any more.
            Some(Err(_)) if source.component != Component::Database && !source.absolute.exists() => continue,
            taken => taken.transpose()?,
        };
        bytes_total += match (&content, &source.kind) {
            (Some(Taken::Snapshot(snapshot)), _) => snapshot.size_bytes(),
            (_, Kind::Directory | Kind::Link(_)) => 0,
            _ => fs::metadata(&source.absolute).map_or(0, |found| found.len()),
        };
        planned.push((source, content));
    }
    answers.message(Message::Planned { bytes_total })?;
    let mut saving = Saving {
        answers,
        cancel,
        check_source: request.check_source,
        saved: Saved {
            integrity: Integrity { status: IntegrityStatus::Ok, messages: Vec::new() },
            node_count: 0,
            edge_count: 0,
            warnings,
        },
    };
    for (source, content) in planned {
        cancel.check()?;
        match content {
            Some(Taken::Snapshot(snapshot)) => saving.snapshot(&source, snapshot)?,
            Some(Taken::Damaged(copy, error)) => {
                saving.damaged(&source.path, vec![error.message]);
                saving.file(&source, &copy.database())?;
                for (suffix, file) in copy.companions() {
                    saving.file(&beside(&source, suffix), &file)?;
                }
            }
            None if source.kind == Kind::File => saving.file(&source, &source.absolute)?,
            None => saving.node(&source)?,
        }
    }
    if !request.check_source && saving.saved.integrity.status == IntegrityStatus::Ok {
        saving.saved.integrity.status = IntegrityStatus::Skipped;
    }
    Ok(saving.saved)
}

fn check_panicked() -> Error {
    Error::new(Code::Internal, "The check of the database panicked", "Please report this")
}

fn take(source: &Source, request: &SaveRequest, cancel: &Cancel) -> Result<Taken> {
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
        kind: Kind::File,
        ..source.clone()
    }
}

struct Saving<'a> {
    answers: &'a mut dyn Answers,
    cancel: &'a Cancel,
    check_source: bool,
    saved: Saved,
}

impl Saving<'_> {
    fn snapshot(&mut self, source: &Source, mut snapshot: Snapshot) -> Result<()> {
        let cancel = self.cancel;
        let check = self.check_source;
        // The check costs most of a second a gigabyte: beside the compression of the pages nobody waits for it.
        let twin = snapshot.twin();
        let (sent, checked) = thread::scope(|threads| {
            let checking = twin.map(|twin| threads.spawn(|| quick_check(twin, cancel)));
            let sent = self.pages(source, &snapshot);
            (sent, checking.map(|checking| checking.join().unwrap_or_else(|_| Err(check_panicked()))))
        });
        sent?;
        let integrity = match checked {
            Some(checked) => checked?,
            None if check => {
                let (connection, _scratch) = snapshot.into_connection();
                quick_check(connection, cancel)?
            }
            None => return Ok(()),
        };
        if integrity.status == IntegrityStatus::Failed {
            self.damaged(&source.path, integrity.messages);
        }
        Ok(())
    }

    fn pages(&mut self, source: &Source, snapshot: &Snapshot) -> Result<()> {
        self.entry(source, snapshot.metadata(), snapshot.size_bytes())?;
        let mut chunk = Vec::with_capacity(DATA_CHUNK_BYTES);
        snapshot.pages(self.cancel, |page| {
            if chunk.len() + page.len() > DATA_CHUNK_BYTES {
                self.answers.data(std::mem::replace(&mut chunk, Vec::with_capacity(DATA_CHUNK_BYTES)))?;
            }
            chunk.extend_from_slice(page);
            Ok(())
        })?;
        if !chunk.is_empty() {
            self.answers.data(chunk)?;
        }
        if source.component == Component::Database {
            self.saved.node_count = snapshot.count_rows("nodes");
            self.saved.edge_count = snapshot.count_rows("edges");
        }
        Ok(())
    }

    /// Announces `size` bytes of data; everything else is taken from `found`.
    fn entry(&mut self, source: &Source, found: &Metadata, size: u64) -> Result<()> {
        let record = record(source, found, size);
        self.answers.message(Message::Entry { record, owner: (found.uid(), found.gid()) })
    }

    /// A directory or a link, which have no data.
    fn node(&mut self, source: &Source) -> Result<()> {
        match fs::symlink_metadata(&source.absolute) {
            Ok(found) => self.entry(source, &found, 0),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => {
                self.unreadable(source, &cause);
                Ok(())
            }
        }
    }

    fn damaged(&mut self, path: &str, messages: Vec<String>) {
        let first = messages.first().map_or("", String::as_str);
        let message = format!("{path} is damaged ({first}); the backup holds it as it is");
        self.saved.warnings.push(Warning::about(WarningCode::SourceDamaged, path, message));
        self.saved.integrity.status = IntegrityStatus::Failed;
        self.saved.integrity.messages.extend(messages.into_iter().map(|message| format!("{path}: {message}")));
    }

    /// Sends a file; `from` is where its bytes are, which for a copied-out one is not where it lies.
    fn file(&mut self, source: &Source, from: &Path) -> Result<()> {
        let opened = open_plain(from).and_then(|file| file.metadata().map(|found| (file, found)));
        let (file, found) = match opened {
            Ok(opened) => opened,
            // Removed since it was found: it is not part of the project any more.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => {
                self.unreadable(source, &cause);
                return Ok(());
            }
        };
        if found.len() <= WHOLE_FILE_BYTES {
            self.whole_file(source, from)
        } else {
            self.large_file(source, file, &found)
        }
    }

    fn whole_file(&mut self, source: &Source, from: &Path) -> Result<()> {
        for attempt in 1..=READ_ATTEMPTS {
            let (content, before, after) = match read_whole(from) {
                Ok(read) => read,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(cause) => {
                    self.unreadable(source, &cause);
                    return Ok(());
                }
            };
            let changed = has_changed(&before, &after) || content.len() as u64 != after.len();
            if changed && attempt < READ_ATTEMPTS {
                continue;
            }
            if changed {
                self.changed(source);
            }
            self.entry(source, &after, content.len() as u64)?;
            for chunk in content.chunks(DATA_CHUNK_BYTES) {
                self.answers.data(chunk.to_vec())?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Sends as many bytes as the file had when it was opened, padded with zeros where it shrank.
    fn large_file(&mut self, source: &Source, mut file: File, found: &Metadata) -> Result<()> {
        self.entry(source, found, found.len())?;
        let mut left = found.len();
        let mut shrank = false;
        while left > 0 {
            self.cancel.check()?;
            let mut chunk = Vec::with_capacity(DATA_CHUNK_BYTES);
            let most = left.min(DATA_CHUNK_BYTES as u64);
            let read = file.by_ref().take(most).read_to_end(&mut chunk);
            if let Err(cause) = read {
                return Err(Error::io("read", &source.absolute, cause));
            }
            if chunk.is_empty() {
                shrank = true;
                chunk.resize(most as usize, 0);
            }
            left -= chunk.len() as u64;
            self.answers.data(chunk)?;
        }
        let after = file.metadata().map_err(|cause| Error::io("read", &source.absolute, cause))?;
        if shrank || has_changed(found, &after) {
            self.changed(source);
        }
        Ok(())
    }

    fn unreadable(&mut self, source: &Source, cause: &io::Error) {
        let message = format!("{} could not be read and was left out: {cause}", source.path);
        self.saved.warnings.push(Warning::about(WarningCode::FileUnreadable, &source.path, message));
    }

    fn changed(&mut self, source: &Source) {
        let message = format!("{} changed while it was read; the backup may hold half of the change", source.path);
        self.saved.warnings.push(Warning::about(WarningCode::FileChanged, &source.path, message));
    }
}

fn read_whole(path: &Path) -> io::Result<(Vec<u8>, Metadata, Metadata)> {
    let mut file = open_plain(path)?;
    let before = file.metadata()?;
    let mut content = Vec::with_capacity(before.len() as usize);
    // A file that grows without end must not fill the memory.
    file.by_ref().take(2 * WHOLE_FILE_BYTES).read_to_end(&mut content)?;
    let after = file.metadata()?;
    Ok((content, before, after))
}

fn has_changed(before: &Metadata, after: &Metadata) -> bool {
    let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
    state(before) != state(after)
}

fn record(source: &Source, found: &Metadata, size: u64) -> FileRecord {
    FileRecord {
        entry: source.entry.clone(),
        path: source.path.clone(),
        component: source.component,
        kind: match source.kind {
            Kind::Database | Kind::File => EntryKind::File,
            Kind::Directory => EntryKind::Directory,
            Kind::Link(_) => EntryKind::Link,
        },
        target: match &source.kind {
            Kind::Link(target) => Some(target.clone()),
            _ => None,
        },
        database: source.is_database(),
        size,
        mode: found.mode() & 0o7777,
        mtime: Timestamp::new(found.mtime(), found.mtime_nsec() as i32).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}
