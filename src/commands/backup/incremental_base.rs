//! Finds the base of an incremental backup, and checks that it can be one.

use std::{
    fs,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use super::page_cache::{self, PageCache};
use crate::{
    archive::{
        block::Compression,
        block_digest::is_as_written,
        encryption::{Keys, read::Closed},
        errors::checksum_mismatch,
        file_list::FileListSummary,
        file_record::FileRecord,
        manifest::{ArchiveRecord, BackupType, DIGEST_PREFIX, Manifest},
        reader::{Discard, read_archive, unreadable},
        reuse::ReuseSource,
        seal::SealedFile,
    },
    commands::own_backups::own_backups,
    error::{Code, Error, Result},
    place::{Archive, Bytes, Place},
    project::{
        Project,
        identity::{Kinship, Origin},
    },
    sqlite::page_hashes::PageFileWriter,
    store::{
        Backup, Store,
        chain::{self, ChainState},
        described_beside, manifest_beside,
    },
    util::{
        hex::hex,
        operation::{CancelToken, OperationContext, Phase},
    },
    worker::known_files::KnownFiles,
};

/// A backup that can be the base of an incremental one.
pub struct IncrementalBase {
    pub backup: Backup,
    manifest: Manifest,
    /// The archives of its chain, the full backup first.
    members: Vec<Archive>,
}

/// Returns the backup with that id as a base. Without an id, returns the newest good backup of the
/// project that can be a base, or `None`.
///
/// All members of a chain have the same recipients, so that a key opens all of them or none. Fails
/// with `KG_KEY_NEEDED` or `KG_KEY_WRONG` if the new backup would have others.
pub fn choose(
    store: &Store,
    project: &Project,
    id: Option<&str>,
    context: &OperationContext,
) -> Result<Option<IncrementalBase>> {
    if let Some(id) = id {
        return open(store.get(id)?, project, store, context).map(Some);
    }
    let can_be = |backup: &Backup| {
        backup.is_sound() && !backup.safety_backup && backup.encrypted == store.encrypts()
    };
    for backup in own_backups(store, project)?.into_iter().filter(can_be) {
        match open(backup, project, store, context) {
            // An older base does not help: the key would be as wrong for it.
            Err(error) if error.code == Code::Aborted || error.code.is_key_error() => {
                return Err(error);
            }
            // An older backup may still be usable.
            Err(_) => {}
            chosen => return chosen.map(Some),
        }
    }
    Ok(None)
}

/// Opens a backup as a base. `KG_BASE_UNUSABLE` if it cannot be one.
fn open(
    backup: Backup,
    project: &Project,
    store: &Store,
    context: &OperationContext,
) -> Result<IncrementalBase> {
    let unusable = |what: &str| unusable(&backup, what);
    let missing = || unusable("its manifest is missing");
    let mut manifest = described_beside(&backup.archive)?.ok_or_else(missing)?;
    if project.identity().kinship(manifest.origin().as_ref()) != Kinship::Own {
        return Err(unusable(
            "it belongs to another project, or this project was moved",
        ));
    }
    if backup.encrypted != store.encrypts() {
        let what = if backup.encrypted {
            "it is encrypted and the new backup is not"
        } else {
            "it is not encrypted and the new backup is"
        };
        return Err(unusable(what));
    }
    if backup.encrypted {
        let read = || {
            let json = manifest_beside(&backup.archive)?.ok_or_else(missing)?;
            read_archive(
                &backup.archive,
                store.keys(),
                Some(&json),
                &mut Discard,
                context,
                Phase::Verifying,
            )
        };
        manifest = match PageCache::of(project, store).manifest(&backup) {
            Some(kept) => kept,
            None if store.directory().is_none() => return Err(not_cached(&backup)),
            None => read()?.intact(&backup.archive)?.0,
        };
        assert_same_readers(store.keys(), &backup, &manifest)?;
    }
    let members = chain::members(&backup.archive, store.keys(), context)?;
    Ok(IncrementalBase {
        backup,
        manifest,
        members,
    })
}

/// Fails with `KG_KEY_WRONG` unless the new archive has the recipients of the base.
fn assert_same_readers(keys: &Keys, backup: &Backup, manifest: &Manifest) -> Result<()> {
    let is_the_same = match keys.passphrase()? {
        Some(passphrase) => {
            let opened = backup.archive.open();
            let file = opened.map_err(|cause| unreadable(&backup.archive, cause))?;
            manifest.recipients.is_empty() && opens(backup, file, &passphrase)?
        }
        None => manifest.recipients == keys.recipients()?,
    };
    if is_the_same {
        return Ok(());
    }
    let message = format!(
        "{} is encrypted with another key than the new backup",
        backup.id
    );
    Err(Error::new(
        Code::KeyWrong,
        message,
        "Make a full backup, or give the key that it was made with",
    ))
}

/// Returns whether `key` opens the backup. A damaged or unreadable archive is an error, not a wrong key.
fn opens(backup: &Backup, archive: Box<dyn Bytes>, key: &Keys) -> Result<bool> {
    match SealedFile::open(archive, key) {
        Ok(_) => Ok(true),
        Err(Closed::Key(error)) if error.code == Code::KeyWrong => Ok(false),
        Err(Closed::Key(error)) => Err(error),
        Err(Closed::Damaged(what)) => Err(unusable(backup, &format!("its archive {what}"))),
        Err(Closed::Io(cause)) => Err(unreadable(&backup.archive, cause)),
    }
}

fn unusable(backup: &Backup, what: &str) -> Error {
    let remedy = "Leave `basedOn` out, or make a full backup";
    Error::new(
        Code::BaseUnusable,
        format!("{} cannot be used as a base: {what}", backup.id),
        remedy,
    )
}

/// Returns the error for a base in an object store that would have to be downloaded as a whole.
fn not_cached(backup: &Backup) -> Error {
    let what = "it is in an object store, and what this project kept about it is missing";
    unusable(backup, what)
}

impl IncrementalBase {
    /// Returns how many members its chain has.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Reads the chain and fails with `KG_CHECKSUM_MISMATCH` if a member is damaged, because a
    /// backup that depends on it could not be restored.
    pub fn assert_whole(&self, context: &OperationContext) -> Result<()> {
        let mut before: Option<String> = None;
        for link in &self.members {
            let manifest =
                described_beside(link)?.filter(|manifest| manifest.based_on_checksum == before);
            let archive = manifest.and_then(|manifest| manifest.archive);
            let is_whole = archive
                .as_ref()
                .map(|archive| is_unchanged(link, archive, context));
            context.cancel.check()?;
            before = archive.map(|archive| format!("{DIGEST_PREFIX}{}", archive.sha256));
            if !is_whole
                .transpose()
                .map_err(|cause| unreadable(link, cause))?
                .unwrap_or(false)
            {
                let error = checksum_mismatch(format_args!(
                    "{link} is damaged and cannot be part of a chain"
                ));
                return Err(Error {
                    remedy: "Make a full backup now; see the damage with `kg diag verify`".into(),
                    ..error
                });
            }
        }
        Ok(())
    }

    /// Writes what the worker compares the project with into `scratch`, and returns the file.
    pub fn prepare(
        &self,
        project: &Project,
        store: &Store,
        scratch: &Path,
        context: &OperationContext,
    ) -> Result<PathBuf> {
        let cache = PageCache::of(project, store);
        let cached = self.manifest.file_list.and_then(|summary| {
            if !cache.copy_hashes(&self.backup, scratch) {
                return None;
            }
            let databases = cache.copy_files(&self.backup, summary, scratch)?;
            Some((summary, databases))
        });
        let (summary, databases) = match cached {
            Some(cached) => cached,
            None if store.directory().is_none() => return Err(not_cached(&self.backup)),
            None => self.read_chain(scratch, store.keys(), context)?,
        };
        page_cache::write_base(&self.manifest, summary, databases, scratch)
    }

    /// Computes the page hashes and the list of files of the base from its chain. Returns what
    /// identifies the list, and the records of its databases.
    fn read_chain(
        &self,
        scratch: &Path,
        keys: &Keys,
        context: &OperationContext,
    ) -> Result<(FileListSummary, Vec<FileRecord>)> {
        let (reports, state) = chain::read_state(&self.members, keys, context)?;
        for (report, link) in reports.into_iter().zip(&self.members) {
            report.intact(link)?;
        }
        let what = "the backups that it depends on do not match it";
        let ChainState { files, page_hashes } =
            state.ok_or_else(|| unusable(&self.backup, what))?;
        let create = |path: &Path| fs::File::create(path).map(BufWriter::new);
        let path = scratch.join(page_cache::HASHES_FILE);
        create(&path)
            .and_then(|out| PageFileWriter::write_all(out, &page_hashes))
            .map_err(|cause| Error::io("write", &path, cause))?;
        let path = scratch.join(page_cache::FILES_FILE);
        let summary = create(&path)
            .and_then(|out| KnownFiles::write(&files, out))
            .map_err(|cause| Error::io("write", &path, cause))?;
        let records = files.into_records().into_iter();
        Ok((summary, records.filter(|record| record.database).collect()))
    }
}

/// Returns whether an archive is the one that `record` describes. A directory may change it without
/// a trace, so it is read. An object store gives every new content another version.
fn is_unchanged(
    archive: &Archive,
    record: &ArchiveRecord,
    context: &OperationContext,
) -> io::Result<bool> {
    let (objects, version) = match (archive.place(), &record.object) {
        (Place::Directory(_), _) => {
            return is_as_written(&archive.path(), record, &context.cancel);
        }
        (Place::Objects(objects), Some(version)) => (objects, version),
        // It was copied there by other means.
        (Place::Objects(_), None) => {
            let facts = SealedFile::new(archive.open()?)?;
            let facts = facts.finish(|| context.cancel.is_cancelled())?;
            return Ok(hex(&facts.sha256) == record.sha256);
        }
    };
    // The lock keeps the listing true.
    let found = objects.find(archive.name()).map_err(io::Error::other)?;
    Ok(
        found
            .is_some_and(|found| found.size_bytes == record.size && found.version.is_same(version)),
    )
}

/// Returns the newest archive of the project that can contain the same blocks as a backup of that
/// type and compression.
pub fn reuse_source(
    store: &Store,
    origin: Option<&Origin>,
    kind: BackupType,
    compression: Compression,
    cancel: &CancelToken,
) -> Result<Option<ReuseSource>> {
    // An object store cannot share blocks, and reading them takes longer than compressing again.
    let Some(name) = compression.name().filter(|_| store.directory().is_some()) else {
        return Ok(None);
    };
    for backup in store.read()?.backups {
        let holds_all = backup.kind == BackupType::Full || backup.kind == kind;
        if kind == BackupType::Incremental || backup.kind == BackupType::Incremental || !holds_all {
            continue;
        }
        let is_alike = |manifest: &Manifest| {
            let is_similar = manifest
                .origin()
                .zip(origin)
                .is_some_and(|(of, origin)| of.resembles(origin));
            is_similar && manifest.compression.as_ref() == Some(&name)
        };
        let archive = described_beside(&backup.archive)?
            .filter(is_alike)
            .and_then(|manifest| manifest.archive);
        // Only the root digest lets one pass over the file prove that it is undamaged.
        if let Some(archive) = archive.filter(|archive| archive.root.is_some()) {
            return Ok(Some(ReuseSource::new(
                &backup.archive.path(),
                archive,
                cancel,
            )));
        }
    }
    Ok(None)
}
