//! Sends a plain file, which may change or vanish while it is read.

use std::{
    fs::{File, Metadata},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{Saving, records::record};
use crate::{
    archive::manifest::{FileRecord, Storage},
    error::{Error, Result},
    project::discover::Source,
    util::{hex::hex, operation::CancelToken, regular_file},
    worker::protocol::{DATA_CHUNK_BYTES, Message},
};

/// Files up to this size are read completely before they are sent, so that a file that changes
/// meanwhile can be read again.
const WHOLE_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// How often a small file is read if it changes meanwhile.
const READ_ATTEMPTS: u32 = 5;

impl Saving<'_> {
    /// Sends a file. `from` is where to read it; for a copied database that is not its own path.
    pub(super) fn file(&mut self, source: &Source, from: &Path) -> Result<()> {
        let opened =
            regular_file::open(from).and_then(|file| file.metadata().map(|found| (file, found)));
        let (file, found) = match opened {
            Ok(opened) => opened,
            // It was removed after it was found, so it is not part of the project any more.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return self.unreadable(source, &cause),
        };
        if found.len() <= WHOLE_FILE_BYTES {
            self.whole_file(source, from)
        } else {
            let shown = attributes(source, from, found.clone());
            self.large_file(source, file, &found, &shown)
        }
    }

    fn whole_file(&mut self, source: &Source, from: &Path) -> Result<()> {
        for attempt in 1..=READ_ATTEMPTS {
            let (content, before, after) = match read_whole(from) {
                Ok(read) => read,
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(cause) => return self.unreadable(source, &cause),
            };
            let changed = has_changed(&before, &after) || content.len() as u64 != after.len();
            if changed && attempt < READ_ATTEMPTS {
                continue;
            }
            if changed {
                self.changed(source);
            }
            let after = attributes(source, from, after);
            let size = content.len() as u64;
            let may_be_unchanged = self
                .base
                .is_some_and(|base| base.size(&source.path) == Some(size));
            if may_be_unchanged
                && self.is_unchanged(source, &after, size, &hex(&Sha256::digest(&content)))?
            {
                return Ok(());
            }
            self.entry(source, &after, size)?;
            for chunk in content.chunks(DATA_CHUNK_BYTES) {
                self.responses.data(chunk.to_vec())?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Sends as many bytes as the file had when it was opened. If it shrank, zeros fill the rest.
    fn large_file(
        &mut self,
        source: &Source,
        mut file: File,
        found: &Metadata,
        shown: &Metadata,
    ) -> Result<()> {
        if self
            .base
            .is_some_and(|base| base.size(&source.path) == Some(found.len()))
        {
            let mut whole = Sha256::new();
            let hashed = io::copy(
                &mut file.by_ref().take(found.len()),
                &mut Hashing {
                    whole: &mut whole,
                    cancel: self.cancel,
                },
            );
            let same_size =
                hashed.map_err(|cause| Error::io("read", &source.absolute, cause))? == found.len();
            self.cancel.check()?;
            let after = file
                .metadata()
                .map_err(|cause| Error::io("read", &source.absolute, cause))?;
            let is_still = same_size && !has_changed(found, &after);
            if is_still && self.is_unchanged(source, shown, found.len(), &hex(&whole.finalize()))? {
                return Ok(());
            }
            file.rewind()
                .map_err(|cause| Error::io("read", &source.absolute, cause))?;
        }
        self.entry(source, shown, found.len())?;
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
            self.responses.data(chunk)?;
        }
        let after = file
            .metadata()
            .map_err(|cause| Error::io("read", &source.absolute, cause))?;
        if shrank || has_changed(found, &after) {
            self.changed(source);
        }
        Ok(())
    }

    /// If the file is unchanged since the base, sends that and returns `true`.
    fn is_unchanged(
        &mut self,
        source: &Source,
        found: &Metadata,
        size: u64,
        sha256: &str,
    ) -> Result<bool> {
        if !self
            .base
            .is_some_and(|base| base.has(&source.path, size, sha256))
        {
            return Ok(false);
        }
        let record = FileRecord {
            stored: Storage::Unchanged,
            sha256: Some(sha256.to_string()),
            ..record(source, found, size)
        };
        self.responses.message(Message::Unchanged { record })?;
        Ok(true)
    }
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
fn attributes(source: &Source, from: &Path, found: Metadata) -> Metadata {
    if from == source.absolute {
        found
    } else {
        std::fs::metadata(&source.absolute).unwrap_or(found)
    }
}

fn read_whole(path: &Path) -> io::Result<(Vec<u8>, Metadata, Metadata)> {
    let mut file = regular_file::open(path)?;
    let before = file.metadata()?;
    let mut content = Vec::with_capacity(before.len() as usize);
    // The limit protects the memory from a file that keeps growing.
    file.by_ref()
        .take(2 * WHOLE_FILE_BYTES)
        .read_to_end(&mut content)?;
    let after = file.metadata()?;
    Ok((content, before, after))
}

fn has_changed(before: &Metadata, after: &Metadata) -> bool {
    let state = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec());
    state(before) != state(after)
}
