//! Streams what a backup holds.
//!
//! All headers are looked at first, then all databases are opened and pinned to a commit, then everything is sent in the
//! order of the archive. A database is closed as soon as its pages are out and checked, so that a WAL is held up no
//! longer than needed.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::Duration,
};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{
    apply::lock_against_restores,
    base::Known,
    protocol::{DATA_CHUNK_BYTES, Message, PAGE_HASHES_FILE, SaveRequest, Saved},
    server::Answers,
};
use crate::{
    archive::{
        delta,
        manifest::{EntryKind, FileRecord, Pages, Stored, hex},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::{
        Component, Project,
        discover::{Kind, Source, discover, open_plain},
    },
    sqlite::{
        check::{Integrity, IntegrityStatus, quick_check},
        files::names_super_journal,
        pages::{PageFile, PageHashes},
        snapshot::{self, Conditions, Snapshot, Taken},
    },
    task::Cancel,
};

/// Files up to this size are read whole before they are sent, so that one that changes meanwhile is read again.
const WHOLE_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// How often a small file that changes while it is read is read again.
const READ_ATTEMPTS: u32 = 5;

pub fn save(request: &SaveRequest, answers: &mut dyn Answers, cancel: &Cancel) -> Result<Saved> {
    let base = request.base.as_deref().map(Known::read).transpose()?;
    let project = Project::open(&request.root)?;
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let _no_restore = lock_against_restores(&project.state_dir(), lock_timeout, cancel)?;
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
        base: base.as_ref(),
        hashes: PageFile::default(),
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
                    if File::open(&file).is_ok_and(|journal| names_super_journal(&journal).unwrap_or(true)) {
                        saving.super_journal(&beside(&source, suffix));
                        continue;
                    }
                    saving.file(&beside(&source, suffix), &file)?;
                }
            }
            None if source.kind == Kind::File => saving.file(&source, &source.absolute)?,
            None => saving.node(&source)?,
        }
    }
    let hashes = request.scratch.join(PAGE_HASHES_FILE);
    fs::write(&hashes, saving.hashes.encode()).map_err(|cause| Error::io("write", &hashes, cause))?;
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
    /// Of an incremental backup.
    base: Option<&'a Known>,
    /// Of all databases so far.
    hashes: PageFile,
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
        let hashes = match self.base.and_then(|base| base.pages(&source.path)) {
            Some(base) => self.changed_pages(source, snapshot, base)?,
            None => self.all_pages(source, snapshot)?,
        };
        self.hashes.databases.insert(source.path.clone(), hashes);
        if source.component == Component::Database {
            self.saved.node_count = snapshot.count_rows("nodes");
            self.saved.edge_count = snapshot.count_rows("edges");
        }
        Ok(())
    }

    fn all_pages(&mut self, source: &Source, snapshot: &Snapshot) -> Result<PageHashes> {
        self.entry(source, snapshot.metadata(), snapshot.size_bytes())?;
        let mut hashes = PageHashes::new(snapshot.page_size_bytes());
        let mut out = Chunks { answers: self.answers, chunk: Vec::new() };
        snapshot.pages(self.cancel, |page| {
            hashes.push(page);
            out.push(page)
        })?;
        out.finish()?;
        Ok(hashes)
    }

    /// The pages are read twice in the one transaction: first to see which of them changed, then those.
    fn changed_pages(&mut self, source: &Source, snapshot: &Snapshot, base: &PageHashes) -> Result<PageHashes> {
        let page_size = snapshot.page_size_bytes();
        let mut hashes = PageHashes::new(page_size);
        let mut whole = Sha256::new();
        snapshot.pages(self.cancel, |page| {
            hashes.push(page);
            whole.update(page);
            Ok(())
        })?;
        let size = snapshot.size_bytes();
        let changed = hashes.changed_since(base).unwrap_or_default();
        let is_other = base.page_size_bytes != page_size || delta::size_bytes(page_size, changed.len() as u64) >= size;
        if is_other {
            return self.all_pages(source, snapshot);
        }
        let mut record = record(source, snapshot.metadata(), size);
        record.sha256 = Some(hex(&whole.finalize()));
        if changed.is_empty() && hashes.hashes.len() == base.hashes.len() {
            record.stored = Stored::Base;
            self.answers.message(Message::Unchanged { record })?;
            return Ok(hashes);
        }
        record.stored = Stored::Pages;
        record.pages = Some(Pages { page_size, changed: changed.len() as u64, root: hashes.root() });
        let owner = (snapshot.metadata().uid(), snapshot.metadata().gid());
        self.answers.message(Message::Entry { record, owner })?;
        let mut out = Chunks { answers: self.answers, chunk: Vec::new() };
        out.push(&delta::header(page_size))?;
        snapshot.pages_of(&changed, self.cancel, |number, page| {
            out.push(&number.to_le_bytes())?;
            out.push(page)
        })?;
        out.finish()?;
        Ok(hashes)
    }

    /// Tells that a file is as it is in the base, where it is.
    fn is_unchanged(&mut self, source: &Source, found: &Metadata, size: u64, sha256: &str) -> Result<bool> {
        if !self.base.is_some_and(|base| base.has(&source.path, size, sha256)) {
            return Ok(false);
        }
        let record =
            FileRecord { stored: Stored::Base, sha256: Some(sha256.to_string()), ..record(source, found, size) };
        self.answers.message(Message::Unchanged { record })?;
        Ok(true)
    }

    /// Announces `size` bytes of data; everything else is taken from `found`.
    fn entry(&mut self, source: &Source, found: &Metadata, size: u64) -> Result<()> {
        let record = record(source, found, size);
        self.answers.message(Message::Entry { record, owner: (found.uid(), found.gid()) })
    }

    /// A directory or a link, which have no data.
    fn node(&mut self, source: &Source) -> Result<()> {
        match fs::symlink_metadata(&source.absolute) {
            Ok(found) => {
                let record = record(source, &found, 0);
                if self.base.is_some_and(|base| base.has_node(&record)) {
                    let record = FileRecord { stored: Stored::Base, ..record };
                    return self.answers.message(Message::Unchanged { record });
                }
                self.entry(source, &found, 0)
            }
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
            let size = content.len() as u64;
            let may_be_unchanged = self.base.is_some_and(|base| base.size(&source.path) == Some(size));
            if may_be_unchanged && self.is_unchanged(source, &after, size, &hex(&Sha256::digest(&content)))? {
                return Ok(());
            }
            self.entry(source, &after, size)?;
            for chunk in content.chunks(DATA_CHUNK_BYTES) {
                self.answers.data(chunk.to_vec())?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Sends as many bytes as the file had when it was opened, padded with zeros where it shrank.
    fn large_file(&mut self, source: &Source, mut file: File, found: &Metadata) -> Result<()> {
        if self.base.is_some_and(|base| base.size(&source.path) == Some(found.len())) {
            let mut whole = Sha256::new();
            let hashed =
                io::copy(&mut file.by_ref().take(found.len()), &mut Hashing { whole: &mut whole, cancel: self.cancel });
            let same_size = hashed.map_err(|cause| Error::io("read", &source.absolute, cause))? == found.len();
            self.cancel.check()?;
            let after = file.metadata().map_err(|cause| Error::io("read", &source.absolute, cause))?;
            let is_still = same_size && !has_changed(found, &after);
            if is_still && self.is_unchanged(source, found, found.len(), &hex(&whole.finalize()))? {
                return Ok(());
            }
            file.rewind().map_err(|cause| Error::io("read", &source.absolute, cause))?;
        }
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

    fn super_journal(&mut self, source: &Source) {
        let message = format!("{} was left out: it belongs to a transaction over several databases", source.path);
        self.saved.warnings.push(Warning::about(WarningCode::FileUnreadable, &source.path, message));
    }

    fn changed(&mut self, source: &Source) {
        let message = format!("{} changed while it was read; the backup may hold half of the change", source.path);
        self.saved.warnings.push(Warning::about(WarningCode::FileChanged, &source.path, message));
    }
}

/// Collects data into pieces of `DATA_CHUNK_BYTES`.
struct Chunks<'a> {
    answers: &'a mut dyn Answers,
    chunk: Vec<u8>,
}

impl Chunks<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if self.chunk.len() + bytes.len() > DATA_CHUNK_BYTES {
            self.answers.data(std::mem::take(&mut self.chunk))?;
        }
        if self.chunk.capacity() == 0 {
            self.chunk.reserve(DATA_CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if self.chunk.is_empty() { Ok(()) } else { self.answers.data(self.chunk) }
    }
}

struct Hashing<'a> {
    whole: &'a mut Sha256,
    cancel: &'a Cancel,
}

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.whole.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        stored: Stored::Whole,
        sha256: None,
        pages: None,
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
