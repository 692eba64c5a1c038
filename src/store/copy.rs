//! Copies a backup from another store, byte for byte.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::{
    Backup, Store, StoreLock, described_beside,
    draft::Draft,
    write::{publish, publish_sidecar},
};
use crate::{
    archive::{
        block_writer::Sink,
        errors::backup_not_found,
        manifest::{ArchiveRecord, BackupType, Manifest},
    },
    error::{Code, Error, Result},
    objects::Object,
    place::{Archive, Bytes, Place},
    util::{hex::hex, operation::CancelToken, progress::ByteProgress},
};

const CHUNK_BYTES: usize = 1024 * 1024;

impl Store {
    /// Copies a backup of another store into this one. Its base, if it has one, must be here
    /// already.
    ///
    /// The archive is read once. It is published only if its bytes have the digest that its sidecar
    /// records, so no damage is passed on. An object store confirms the digest of each part that
    /// arrives.
    ///
    /// Within one service of S3, the service copies the archive itself if it can prove the copy: the
    /// ETag is the one that the sidecar records of the upload. `KG_CHECKSUM_MISMATCH` if the archive is damaged, `KG_BACKUP_EXISTS` if an archive
    /// of that name is here.
    pub fn add_copy(
        &self,
        lock: &StoreLock,
        original: &Backup,
        progress: &ByteProgress,
    ) -> Result<Backup> {
        if original.kind == BackupType::Incremental {
            self.assert_takes_chains()?;
        }
        let archive = self.place.archive(original.archive.name());
        let (manifest, record) = recorded(original)?;
        if self.has_file(archive.name())? {
            return self.complete_copy(lock, archive, manifest, &record, progress);
        }
        let mut progress = Counter::new(progress);
        let copied = self.copied_by_service(&original.archive, &record, &archive, &mut progress);
        let copied = copied.map_err(|error| {
            CancelToken::despite_cancellation(|| self.withdraw(&archive, lock, error))
        })?;
        if let Some(object) = copied {
            let draft = Draft::Copied(object);
            return publish(self, lock, draft, archive, manifest).map(|(backup, _)| backup);
        }
        progress.start_again();
        let source = original.archive.open();
        let mut source =
            source.map_err(|cause| Error::io("read", &original.archive.path(), cause))?;
        let draft = Draft::begin(self, &archive)?;
        draft.plan(record.size);
        let mut sink = draft.sink(self, &archive, false)?;
        let copied = transfer(
            (&original.archive, &mut *source),
            (&archive, &mut *sink),
            &mut progress,
        )?;
        if copied != (record.size, record.sha256) {
            return Err(damaged(original));
        }
        drop(sink);
        publish(self, lock, draft, archive, manifest).map(|(backup, _)| backup)
    }

    /// Lets the service of both stores copy an archive. Returns `None` if there is no such service, or
    /// it cannot prove its copy.
    fn copied_by_service(
        &self,
        original: &Archive,
        record: &ArchiveRecord,
        copy: &Archive,
        progress: &mut Counter,
    ) -> Result<Option<Object>> {
        let (Place::Objects(from), Place::Objects(to)) = (original.place(), &self.place) else {
            return Ok(None);
        };
        let (Some(listed), Some(version)) = (from.find(original.name())?, &record.object) else {
            return Ok(None);
        };
        // An archive that was replaced is read, and then found to be another one.
        if listed.size_bytes != record.size || !listed.version.is_same(version) {
            return Ok(None);
        }
        let known = Object {
            version: version.clone(),
            ..listed
        };
        let Some(source) = from.client().copy_source(&known) else {
            return Ok(None);
        };
        let mut advance = |bytes| progress.advance(bytes);
        to.client().copy_from(copy.name(), &source, &mut advance)
    }
}

/// Counts the bytes of one archive, also if its copy starts again.
struct Counter<'a> {
    progress: &'a ByteProgress,
    /// The bytes of this archive that were counted.
    counted: u64,
    /// The bytes that were copied since the last start.
    done: u64,
}

impl Counter<'_> {
    fn new(progress: &ByteProgress) -> Counter<'_> {
        Counter {
            progress,
            counted: 0,
            done: 0,
        }
    }

    /// Bytes that were counted before count no second time.
    fn start_again(&mut self) {
        self.done = 0;
    }

    fn advance(&mut self, bytes: u64) -> Result<()> {
        self.done = self.done.saturating_add(bytes);
        let new = self.done.saturating_sub(self.counted);
        self.counted = self.counted.saturating_add(new);
        self.progress.advance(new)
    }
}

impl Store {
    /// Adds the sidecar to the archive of a copy that was killed, or that a user copied. A plain
    /// archive without a sidecar is completed by the next run of any command, but an encrypted one
    /// is not, because it cannot be read without its key.
    fn complete_copy(
        &self,
        lock: &StoreLock,
        archive: Archive,
        manifest: Manifest,
        record: &ArchiveRecord,
        progress: &ByteProgress,
    ) -> Result<Backup> {
        let failed = |cause| Error::io("read", &archive.path(), cause);
        let mut file = archive.open().map_err(failed)?;
        if file.size_bytes().map_err(failed)? != record.size {
            return Err(exists(&archive));
        }
        let nowhere = (&archive, &mut Nowhere as &mut dyn Sink);
        let mut progress = Counter::new(progress);
        if transfer((&archive, &mut *file), nowhere, &mut progress)?.1 != record.sha256 {
            return Err(exists(&archive));
        }
        drop(file);
        publish_sidecar(self, lock, archive, manifest).map(|(backup, _)| backup)
    }
}

/// Takes bytes that are only hashed.
struct Nowhere;

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Nowhere {}

/// Returns what the sidecar of a backup says.
fn recorded(original: &Backup) -> Result<(Manifest, ArchiveRecord)> {
    let manifest = described_beside(&original.archive)?;
    let record = manifest
        .as_ref()
        .and_then(|manifest| manifest.archive.clone());
    manifest
        .zip(record)
        .ok_or_else(|| backup_not_found(format!("{} was removed meanwhile", original.archive)))
}

/// Copies all bytes and returns their number and digest.
fn transfer(
    (from, source): (&Archive, &mut dyn Bytes),
    (to, sink): (&Archive, &mut dyn Sink),
    progress: &mut Counter,
) -> Result<(u64, String)> {
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = source.read(&mut chunk);
        let read = read.map_err(|cause| Error::io("read", &from.path(), cause))?;
        if read == 0 {
            break;
        }
        hasher.update(&chunk[..read]);
        let written = sink.write_all(&chunk[..read]);
        written.map_err(|cause| Error::io("write", &to.path(), cause))?;
        size += read as u64;
        progress.advance(read as u64)?;
    }
    let finished = sink.finish();
    finished.map_err(|cause| Error::io("write", &to.path(), cause))?;
    Ok((size, hex(&hasher.finalize())))
}

fn exists(archive: &Archive) -> Error {
    Error::new(
        Code::BackupExists,
        format!("{archive} exists, and it is not a copy of the backup of that name"),
        "Remove it if it is damaged. If it belongs to another project, copy into a directory or \
         prefix of this project alone: backups that begin in the same second have the same name",
    )
}

fn damaged(original: &Backup) -> Error {
    Error::new(
        Code::ChecksumMismatch,
        format!(
            "{} is not what was written, so it was not copied",
            original.archive
        ),
        format!(
            "Make a new backup; `kg diag verify {}` tells what is damaged",
            original.id
        ),
    )
}
