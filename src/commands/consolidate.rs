//! The command `consolidate`: writes a full backup from an incremental one and its chain, without
//! the project.
//!
//! The chain is unpacked into the scratch directory of the store and checked as for a restore. The
//! new full backup has the timestamp of the incremental one, so that `latest` and retention by age
//! remain correct. Existing backups are not changed. The chain can be deleted afterwards.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::{
    archive::{
        block::Compression,
        block_writer::Written,
        errors::{checksum_mismatch, not_a_backup},
        file_record::FileRecord,
        filter::EntryFilter,
        manifest::{BackupType, FORMAT, MANIFEST_VERSION, Manifest, Stats, Tool},
        reuse::ReuseSource,
        writer::{ArchiveWriter, EntryContent, Totals},
    },
    commands::{backup::reuse_source, manage::lock_known},
    error::{Code, Error, Result},
    store::{
        Backup, Store,
        chain::{self, Extent, Unpacked},
    },
    util::{
        operation::{OperationContext, Phase},
        progress::ByteProgress,
        regular_file, unsupported,
    },
};

/// The directory, in the scratch directory, into which the chain is unpacked.
const UNPACKED: &str = "unpacked";

/// Writes the full backup and returns when it is durable. A failure or an abort leaves nothing
/// behind.
///
/// Fails with `KG_INVALID_OPTION` if the backup is not incremental.
pub fn consolidate(
    store: &Store,
    id: &str,
    compression: Compression,
    lock_timeout: Duration,
    context: &OperationContext,
) -> Result<Backup> {
    let (lock, warnings) = lock_known(store, id, lock_timeout, context)?;
    let backup = store.get(id)?;
    if backup.based_on.is_none() {
        let message = format!("{id} depends on no other backup: there is nothing to consolidate");
        return Err(Error::invalid(
            message,
            "Name an incremental backup: `kg diag list`",
        ));
    }
    let at = Timestamp::from_millisecond(backup.timestamp).unwrap_or_else(|_| Timestamp::now());
    // Content that was encrypted stays encrypted, even if the call or the settings ask for
    // unencrypted backups.
    let store = &if backup.encrypted && store.may_be_plain() {
        store.clone().encrypting(true)
    } else {
        store.clone()
    };
    store.check_encryption_policy(false)?;
    let encrypts = store.encrypts();
    let new = store.begin(&lock, at, compression, encrypts)?;
    let dir = new.scratch().join(UNPACKED);
    fs::create_dir(&dir).map_err(|cause| Error::io("create", &dir, cause))?;
    let everything = EntryFilter::default();
    let mut state = chain::unpack(
        &backup.archive,
        &everything,
        Extent::Picked(&dir),
        None,
        store.keys(),
        context,
    )
    .map_err(no_room)?;
    add_digests(&mut state, &dir, context)?;
    // The full backup at the start of the chain contains most of the blocks.
    let earlier = reuse_source(
        store,
        state.manifest.origin().as_ref(),
        BackupType::Full,
        compression,
        &context.cancel,
    )?;
    // Each unpacked file is removed once it is in the archive, so writing cannot start again
    // without reuse. The earlier archive is therefore checked first.
    let earlier = earlier.filter(ReuseSource::is_as_written).map(Arc::new);
    let archive = ArchiveWriter::new(new.sink()?, compression, earlier, new.scratch())?;
    let recipients = new.recipients()?;
    let (manifest, written) = write(
        archive,
        &new.id,
        compression,
        recipients,
        &state,
        &dir,
        context,
    )
    .map_err(no_room)?;
    assert_same(&state, &manifest)?;
    context.cancel.check()?;
    let made = new.publish(manifest, written, |_, _, _| {})?;
    let warnings_of_keys = store.key_warnings(&made.archive);
    Ok(made
        .with_warnings(warnings)
        .with_warnings(unsupported::warnings(&[store.dir()]))
        .with_warnings(warnings_of_keys))
}

/// Replaces the remedy of a restore, which is to choose another directory and does not help here.
fn no_room(error: Error) -> Error {
    error.with_remedy_for(
        Code::NoSpace,
        "Nothing was changed; free space there for the unpacked project and the new archive, and \
         run it again",
    )
}

/// Computes the SHA-256 that a full backup has of a database, and a backup of its pages has not.
fn add_digests(state: &mut Unpacked, dir: &Path, context: &OperationContext) -> Result<()> {
    let records = state.files.records_mut().enumerate();
    for (number, record) in
        records.filter(|(_, record)| record.kind.is_file() && record.sha256.is_none())
    {
        let path = dir.join(number.to_string());
        let progress = ByteProgress::new(context, Phase::Unpacking, record.size);
        let mut hasher = Sha256::new();
        progress.read(&path, |piece| hasher.update(piece))?;
        record.sha256 = Some(hasher.finalize().into());
    }
    Ok(())
}

fn write(
    mut archive: ArchiveWriter,
    id: &str,
    compression: Compression,
    recipients: Vec<String>,
    state: &Unpacked,
    dir: &Path,
    context: &OperationContext,
) -> Result<(Manifest, Written)> {
    let progress = ByteProgress::new(context, Phase::Saving, state.manifest.stats.total_size);
    let mut entries = HashSet::new();
    for (number, record) in state.files.records().iter().enumerate() {
        if !entries.insert(&record.entry) {
            let message = format!(
                "{} describes {} twice, so it is not a valid backup",
                state.manifest.id, record.entry
            );
            return Err(not_a_backup(message));
        }
        // The writer computes the digest anew.
        let whole = FileRecord {
            sha256: None,
            ..record.clone()
        };
        let owner = state.owners.get(number).copied().unwrap_or_default();
        if !record.kind.is_file() {
            archive.add(whole, owner, io::empty())?;
            continue;
        }
        let path = dir.join(number.to_string());
        let file =
            regular_file::open_linked(&path).map_err(|cause| Error::io("read", &path, cause))?;
        archive.add(
            whole,
            owner,
            BufReader::with_capacity(
                compression.block_bytes(),
                Reported {
                    file,
                    progress: &progress,
                },
            ),
        )?;
        // The file is in the archive now, so its disk space is freed.
        fs::remove_file(&path).map_err(|cause| Error::io("remove", &path, cause))?;
    }
    archive.finish(|totals| describe(id, compression, recipients, state, totals))
}

/// Returns the manifest of a full backup with the content that `incremental` describes.
fn describe(
    id: &str,
    compression: Compression,
    recipients: Vec<String>,
    state: &Unpacked,
    totals: Totals,
) -> Manifest {
    let incremental = &state.manifest;
    Manifest {
        version: MANIFEST_VERSION.to_string(),
        format: FORMAT,
        id: id.to_string(),
        kind: BackupType::Full,
        stats: Stats {
            compressed_size: totals.compressed_bytes,
            ..incremental.stats
        },
        checksums: totals.checksums,
        file_list: Some(totals.file_list),
        based_on: None,
        based_on_checksum: None,
        consolidated_from: Some(incremental.id.clone()),
        compression: compression.name(),
        recipients,
        tool: Tool::this(),
        archive: None,
        ..incremental.clone()
    }
}

/// Fails with `KG_CHECKSUM_MISMATCH` if the written files differ from those that the chain
/// describes. This also finds errors of the disk between unpacking and writing.
fn assert_same(state: &Unpacked, full: &Manifest) -> Result<()> {
    if full.file_list == Some(state.files.summary()) {
        return Ok(());
    }
    Err(Error {
        remedy: "Nothing was changed; check the disk of the backups, then run it again".into(),
        ..checksum_mismatch(format_args!(
            "{} was not written as {} describes it",
            full.id, state.manifest.id
        ))
    })
}

/// A file that reports progress while it is read. Reading fails once the operation is cancelled.
struct Reported<'a> {
    file: File,
    progress: &'a ByteProgress,
}

impl Read for Reported<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.progress
            .advance(read as u64)
            .map_err(io::Error::other)?;
        Ok(read)
    }
}

impl EntryContent for BufReader<Reported<'_>> {}
