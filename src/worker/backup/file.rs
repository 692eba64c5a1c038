//! Sends a plain file, which may change or vanish while it is read.

use std::{
    fs::{File, Metadata},
    io::{self, Read, Seek},
    path::Path,
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use super::{
    Saving,
    records::{owner, record},
};
use crate::{
    archive::file_record::FileRecord,
    error::{Error, Result},
    project::{
        discover::Source,
        file_state::{FileState, FoundFile},
    },
    system::portable::MetadataExt,
    util::{digest::Sha256Digest, operation::CancelToken, regular_file},
    worker::{
        known_files::{KnownFile, is_as_found},
        protocol::{DATA_CHUNK_BYTES, Message},
    },
};

/// Files up to this size are read completely before they are sent, so that a file that changes
/// meanwhile can be read again.
const WHOLE_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// How often a small file is read if it changes meanwhile.
const READ_ATTEMPTS: u32 = 5;

impl Saving<'_> {
    /// Sends a file. `from` is where to read it; for a copied database that is not its own path.
    pub(super) fn file(&mut self, source: &Source, from: &Path) -> Result<()> {
        let base = self.reach(source)?;
        if let (Some(known), Some(found), Some(_)) = (&base, source.found, self.trusted)
            && known.0.entry == source.entry()
            && is_as_found(known, &found)
        {
            return self.same(&known.0, known.1);
        }
        let opened = Opened::new(from);
        match opened {
            Ok(opened) if opened.before.len() <= WHOLE_FILE_BYTES => {
                self.whole_file(source, base, from, opened)
            }
            Ok(opened) => {
                let shown = attributes(self.root, source, from, opened.before.clone());
                self.large_file(source, base, opened, &shown)
            }
            // It was removed after it was found, so it is not part of the project any more.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => self.vanished(base),
            Err(cause) => self.unreadable(source, base, &cause),
        }
    }

    fn whole_file(
        &mut self,
        source: &Source,
        base: Option<KnownFile>,
        from: &Path,
        opened: Opened,
    ) -> Result<()> {
        let mut attempt: io::Result<Opened> = Ok(opened);
        for number in 1.. {
            let read = attempt.and_then(|opened| Ok((opened.read_at, opened.read()?)));
            let (read_at, (content, before, after)) = match read {
                Ok(read) => read,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    return self.vanished(base);
                }
                Err(cause) => return self.unreadable(source, base, &cause),
            };
            let changed = has_changed(&before, &after) || content.len() as u64 != after.len();
            if changed && number < READ_ATTEMPTS {
                attempt = Opened::new(from);
                continue;
            }
            if changed {
                self.changed(source);
            }
            let state = FoundFile::new(&after).settled(read_at);
            let shown = attributes(self.root, source, from, after);
            let record = FileRecord {
                sha256: Some(Sha256Digest::of(&content)),
                ..record(source, &shown, content.len() as u64)
            };
            let state = state.filter(|_| !changed);
            return self.read_file(base, record, state, &shown, content);
        }
        Ok(())
    }

    /// Sends a file that was read completely.
    fn read_file(
        &mut self,
        base: Option<KnownFile>,
        record: FileRecord,
        state: Option<FileState>,
        found: &Metadata,
        content: Vec<u8>,
    ) -> Result<()> {
        match base {
            Some((base, _)) if base == record => self.same(&record, state),
            Some((base, _)) if has_content(&base, &record) => self.same_content(record, state),
            _ => {
                self.listing.push(&record, state)?;
                self.responses.message(Message::Entry {
                    record,
                    owner: owner(found),
                })?;
                for chunk in content.chunks(DATA_CHUNK_BYTES) {
                    self.responses.data(chunk.to_vec())?;
                }
                Ok(())
            }
        }
    }

    /// Sends as many bytes as the file had when it was opened. If it shrank, zeros fill the rest.
    fn large_file(
        &mut self,
        source: &Source,
        base: Option<KnownFile>,
        Opened {
            mut file,
            before: found,
            read_at,
        }: Opened,
        shown: &Metadata,
    ) -> Result<()> {
        let found = &found;
        let base = base.map(|(base, _)| base);
        let plain = record(source, shown, found.len());
        if let Some(base) = base.filter(|base| base.kind.is_file() && base.size == found.len()) {
            let digest = self.digest_of(source, &mut file, found)?;
            let record = FileRecord {
                sha256: digest,
                ..plain.clone()
            };
            let state = FoundFile::new(found).settled(read_at);
            if digest.is_some() && base == record {
                return self.same(&record, state);
            }
            if digest.is_some() && base.sha256 == digest {
                return self.same_content(record, state);
            }
            file.rewind()
                .map_err(|cause| Error::io("read", &source.absolute(self.root), cause))?;
        }
        self.responses.message(Message::Entry {
            record: plain.clone(),
            owner: owner(shown),
        })?;
        let mut whole = Sha256::new();
        let mut left = found.len();
        let mut shrank = false;
        while left > 0 {
            self.cancel.check()?;
            let mut chunk = Vec::with_capacity(DATA_CHUNK_BYTES);
            let most = left.min(DATA_CHUNK_BYTES as u64);
            let read = file.by_ref().take(most).read_to_end(&mut chunk);
            if let Err(cause) = read {
                return Err(Error::io("read", &source.absolute(self.root), cause));
            }
            if chunk.is_empty() {
                shrank = true;
                chunk.resize(most as usize, 0);
            }
            left -= chunk.len() as u64;
            whole.update(&chunk);
            self.responses.data(chunk)?;
        }
        let after = file
            .metadata()
            .map_err(|cause| Error::io("read", &source.absolute(self.root), cause))?;
        let changed = shrank || has_changed(found, &after);
        if changed {
            self.changed(source);
        }
        let state = FoundFile::new(&after).settled(read_at);
        let sha256 = whole.finalize().into();
        self.responses.message(Message::FileEnd { sha256 })?;
        let record = FileRecord {
            sha256: Some(sha256),
            ..plain
        };
        self.listing.push(&record, state.filter(|_| !changed))
    }

    /// Returns the digest of a file, or `None` if it changed while it was read.
    fn digest_of(
        &self,
        source: &Source,
        file: &mut File,
        found: &Metadata,
    ) -> Result<Option<Sha256Digest>> {
        let failed = |cause| Error::io("read", &source.absolute(self.root), cause);
        let mut whole = Sha256::new();
        let mut hashing = Hashing {
            whole: &mut whole,
            cancel: self.cancel,
        };
        let hashed = io::copy(&mut file.by_ref().take(found.len()), &mut hashing);
        let hashed = hashed.map_err(failed)?;
        self.cancel.check()?;
        let after = file.metadata().map_err(failed)?;
        let is_still = hashed == found.len() && !has_changed(found, &after);
        Ok(is_still.then(|| whole.finalize().into()))
    }
}

/// Returns whether the base has a file with the content of `record`.
fn has_content(base: &FileRecord, record: &FileRecord) -> bool {
    base.kind.is_file() && (base.size, base.sha256) == (record.size, record.sha256)
}

struct Hashing<'a> {
    whole: &'a mut Sha256,
    cancel: &'a CancelToken,
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

/// Returns the attributes of the file itself, because the copy of a damaged database has others.
fn attributes(root: &Path, source: &Source, from: &Path, found: Metadata) -> Metadata {
    let absolute = source.absolute(root);
    if from == absolute {
        found
    } else {
        std::fs::metadata(&absolute).unwrap_or(found)
    }
}

/// A file that is about to be read.
pub(super) struct Opened {
    file: File,
    before: Metadata,
    read_at: SystemTime,
}

impl Opened {
    pub fn new(path: &Path) -> io::Result<Self> {
        let read_at = SystemTime::now();
        let file = regular_file::open(path)?;
        Ok(Opened {
            before: file.metadata()?,
            file,
            read_at,
        })
    }

    /// Returns the content, and what the system says of the file before and after.
    pub fn read(mut self) -> io::Result<(Vec<u8>, Metadata, Metadata)> {
        let mut content = Vec::with_capacity(self.before.len() as usize + 1);
        // The limit protects the memory from a file that keeps growing.
        self.file
            .by_ref()
            .take(2 * WHOLE_FILE_BYTES)
            .read_to_end(&mut content)?;
        let after = self.file.metadata()?;
        Ok((content, self.before, after))
    }
}

fn has_changed(before: &Metadata, after: &Metadata) -> bool {
    let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
    state(before) != state(after)
}
