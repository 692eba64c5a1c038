//! What a backup takes from earlier ones: which one an incremental backup rests on, whether it can be one, what is known of its
//! pages; and which archive a full one takes unchanged blocks from.
//!
//! The hashes of the newest backup's pages are kept in `.kg/cache/backup-pages/`, and of an encrypted one its whole manifest. They only save
//! time: where they are missing, damaged or of another archive, the chain itself is read, with the key where it is encrypted.

use std::{
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        block::Compression,
        block_digest::is_as_written,
        encryption::{Keys, read::Closed},
        manifest::{BackupType, DIGEST_PREFIX, Manifest},
        reader::{Discard, MAX_TEXT_BYTES, read_archive, unreadable},
        reuse::ReuseSource,
        seal::SealedFile,
    },
    error::{Code, Error, Result},
    project::{PAGE_CACHE_DIR, Project, STATE_DIR},
    sqlite::page_hashes::PageFile,
    store::{Backup, Store, chain, described_beside, is_id, manifest_beside},
    util::{
        atomic_file,
        hex::hex,
        operation::{CancelToken, OperationContext, Phase},
        regular_file,
    },
    worker::baseline::BaselineFile,
};

const BASE_FILE: &str = "base.json";
const BASE_HASHES_FILE: &str = "base-page-hashes";
/// After the id of a backup: its whole manifest.
const KEPT_MANIFEST: &str = ".manifest";

/// The backups of one project in a store that others may share, newest first.
pub fn own_backups(store: &Store, project: &Project) -> Result<Vec<Backup>> {
    Ok(own_among(store.read()?.backups, project))
}

/// Those of `backups` that are of this project.
pub fn own_among(backups: Vec<Backup>, project: &Project) -> Vec<Backup> {
    let own = project.id();
    backups
        .into_iter()
        .filter(|backup| backup.project.as_ref() == Some(&own))
        .collect()
}

/// A backup that an incremental one can rest on.
pub struct IncrementalBase {
    pub backup: Backup,
    manifest: Manifest,
    /// Full backup first.
    links: Vec<PathBuf>,
}

/// The backup of that id, or the newest good one of this project; `None` where there is none. `KG_KEY_NEEDED` and `KG_KEY_WRONG` where whoever
/// opens the new backup could not open that one.
///
/// A chain is encrypted as a whole, so that each key that opens one of its archives opens all of them, or not at all.
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
            // The one before it is not what was asked for; with another key it would be no better.
            Err(error) if error.code == Code::Aborted || error.code.is_key_error() => {
                return Err(error);
            }
            // One that cannot be rested on: perhaps the one before it can.
            Err(_) => {}
            chosen => return chosen.map(Some),
        }
    }
    Ok(None)
}

fn open(
    backup: Backup,
    project: &Project,
    store: &Store,
    context: &OperationContext,
) -> Result<IncrementalBase> {
    let unusable = |what: &str| unusable(&backup, what);
    let json = manifest_beside(&backup.path)?.ok_or_else(|| unusable("its manifest is gone"))?;
    let mut manifest = Manifest::parse(&json, &backup.id)?;
    if manifest.project.as_ref() != Some(&project.id()) {
        return Err(unusable(
            "it is of another project, or this one was moved since",
        ));
    }
    if backup.encrypted != store.encrypts() {
        let what = if backup.encrypted {
            "it is encrypted, and the new one is not to be"
        } else {
            "it is not encrypted"
        };
        return Err(unusable(what));
    }
    if backup.encrypted {
        let read = || {
            read_archive(
                &backup.path,
                store.keys(),
                Some(&json),
                &mut Discard,
                context,
                Phase::Verifying,
            )
        };
        manifest = match kept_manifest(project, &backup) {
            Some(kept) => kept,
            None => read()?.into_manifest(&backup.path)?,
        };
        assert_same_readers(store.keys(), &backup, &manifest)?;
    }
    let links = chain::links(&backup.path, store.keys(), context)?;
    Ok(IncrementalBase {
        backup,
        manifest,
        links,
    })
}

/// Fails unless the new archive is for those who can open that one.
fn assert_same_readers(keys: &Keys, backup: &Backup, manifest: &Manifest) -> Result<()> {
    let is_the_same = match keys.passphrase()? {
        Some(passphrase) => {
            let file = regular_file::open_linked(&backup.path)
                .map_err(|cause| unreadable(&backup.path, cause))?;
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
fn opens(backup: &Backup, archive: fs::File, key: &Keys) -> Result<bool> {
    match SealedFile::open(archive, key) {
        Ok(_) => Ok(true),
        Err(Closed::Key(error)) if error.code == Code::KeyWrong => Ok(false),
        Err(Closed::Key(error)) => Err(error),
        Err(Closed::Damaged(what)) => Err(unusable(backup, &format!("its archive {what}"))),
        Err(Closed::Io(cause)) => Err(unreadable(&backup.path, cause)),
    }
}

fn unusable(backup: &Backup, what: &str) -> Error {
    let remedy = "Leave `basedOn` (`--base-backup`) out, or make a full backup";
    Error::new(
        Code::BaseUnusable,
        format!("No backup can be based on {}: {what}", backup.id),
        remedy,
    )
}

impl IncrementalBase {
    /// Of how many archives its chain is.
    pub fn chain_links(&self) -> usize {
        self.links.len()
    }

    /// Fails where an archive of the chain is not what was written: whatever rested on it could never be restored.
    pub fn assert_whole(&self, context: &OperationContext) -> Result<()> {
        let mut before: Option<String> = None;
        for link in &self.links {
            let manifest =
                described_beside(link)?.filter(|manifest| manifest.based_on_checksum == before);
            let archive = manifest.and_then(|manifest| manifest.archive);
            let is_whole = archive
                .as_ref()
                .map(|archive| is_as_written(link, archive, &context.cancel));
            context.cancel.check()?;
            before = archive.map(|archive| format!("{DIGEST_PREFIX}{}", archive.sha256));
            if !is_whole
                .transpose()
                .map_err(|cause| unreadable(link, cause))?
                .unwrap_or(false)
            {
                return Err(Error::new(
                    Code::ChecksumMismatch,
                    format!(
                        "Checksum mismatch: {} is not what was written, and nothing may rest on it",
                        link.display()
                    ),
                    "Make a full backup now; see the damage with `kg diag backup --verify`",
                ));
            }
        }
        Ok(())
    }

    /// Writes what the reader compares with into `scratch`; the file for its request.
    pub fn prepare(
        &self,
        project: &Project,
        scratch: &Path,
        keys: &Keys,
        context: &OperationContext,
    ) -> Result<PathBuf> {
        if !take_cached(project, &self.backup, scratch) {
            let (hashes, path) = (
                self.read_hashes(keys, context)?,
                scratch.join(BASE_HASHES_FILE),
            );
            let failed = |cause| Error::io("write", &path, cause);
            hashes
                .write(BufWriter::new(fs::File::create(&path).map_err(failed)?))
                .map_err(failed)?;
        }
        write(&self.manifest, true, scratch)
    }

    /// Paths of this backup that are not among those of `newer`.
    pub fn deleted(&self, newer: &Manifest) -> Vec<String> {
        let kept: std::collections::HashSet<&str> = newer
            .files
            .iter()
            .map(|record| record.path.as_str())
            .collect();
        let paths = self
            .manifest
            .files
            .iter()
            .map(|record| record.path.as_str());
        paths
            .filter(|path| !kept.contains(path))
            .map(str::to_string)
            .collect()
    }

    fn read_hashes(&self, keys: &Keys, context: &OperationContext) -> Result<PageFile> {
        let (reports, hashes) = chain::hash_pages(&self.links, keys, context)?;
        for (report, link) in reports.into_iter().zip(&self.links) {
            report.into_manifest(link)?;
        }
        hashes.ok_or_else(|| {
            let message = format!("The backups that {} rests on do not fit it", self.backup.id);
            Error::new(Code::BaseUnusable, message, "Make a full backup")
        })
    }
}

/// Writes what is known of the newest backup's databases into `scratch`, for a backup that leaves nothing out: one that has the
/// very pages that were found sound is not checked again. The file for the reader's request, and the backup's checksum; `None` where
/// nothing is known.
pub fn load_page_cache(
    store: &Store,
    project: &Project,
    scratch: &Path,
) -> Result<Option<(PathBuf, String)>> {
    let own = project.id();
    for backup in store.read()?.backups {
        if take_cached(project, &backup, scratch) {
            let manifest = if backup.encrypted {
                kept_manifest(project, &backup)
            } else {
                described_beside(&backup.path)?
            };
            let manifest = manifest.filter(|manifest| manifest.project.as_ref() == Some(&own));
            let written = manifest
                .map(|manifest| write(&manifest, false, scratch))
                .transpose()?;
            return Ok(written.map(|file| (file, backup.checksum)));
        }
    }
    Ok(None)
}

/// The newest archive of that project that can hold the same blocks as a backup of that kind and compression.
pub fn earlier(
    store: &Store,
    project: Option<&str>,
    kind: BackupType,
    compression: Compression,
    cancel: &CancelToken,
) -> Result<Option<ReuseSource>> {
    let Some(name) = compression.name() else {
        return Ok(None);
    };
    for backup in store.read()?.backups {
        let holds_all = backup.kind == BackupType::Full || backup.kind == kind;
        if kind == BackupType::Incremental || backup.kind == BackupType::Incremental || !holds_all {
            continue;
        }
        let is_alike = |manifest: &Manifest| {
            manifest.project.as_deref() == project && manifest.compression.as_ref() == Some(&name)
        };
        let archive = described_beside(&backup.path)?
            .filter(is_alike)
            .and_then(|manifest| manifest.archive);
        // Without, it could not be told in one reading whether it is what was written.
        if let Some(archive) = archive.filter(|archive| archive.root.is_some()) {
            return Ok(Some(ReuseSource::new(&backup.path, archive, cancel)));
        }
    }
    Ok(None)
}

/// The hashes are there.
fn write(manifest: &Manifest, leave_out: bool, scratch: &Path) -> Result<PathBuf> {
    let base = scratch.join(BASE_FILE);
    BaselineFile::new(manifest, BASE_HASHES_FILE.to_string(), leave_out).write(&base)?;
    Ok(base)
}

/// Copies the hashes of the pages of `backup` into `scratch`, where they were kept and are whole.
fn take_cached(project: &Project, backup: &Backup, scratch: &Path) -> bool {
    let taken = || {
        let kept = regular_file::open(&cache_file(project, &backup.id))?;
        PageFile::copy(
            kept,
            fs::File::create(scratch.join(BASE_HASHES_FILE))?,
            &backup.checksum,
        )
    };
    matches!(taken(), Ok(Some(archive)) if archive == backup.checksum)
}

/// Keeps the hashes that a reader left for the next incremental backup, in the place of older ones, and the manifest that no one can read
/// beside an encrypted archive.
///
/// They are no more than a saving of time, so a project that cannot take them is no reason to fail.
pub fn store_page_cache(project: &Project, backup: &Backup, manifest: &Manifest, hashes: fs::File) {
    let path = cache_file(project, &backup.id);
    let Some(dir) = path.parent() else { return };
    let older: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let mut kept = vec![path.clone()];
    let keep = || {
        atomic_file::create_dirs(dir).ok()?;
        atomic_file::sweep_partials(dir);
        if backup.encrypted {
            keep_manifest(project, backup, manifest).ok()?;
        }
        let mut file = atomic_file::TempFile::in_store(dir, None).ok()?;
        PageFile::copy(hashes, &mut file, &backup.checksum).ok()??;
        file.persist(&path).ok()
    };
    if keep().is_none() {
        return;
    }
    kept.extend(
        backup
            .encrypted
            .then(|| kept_manifest_file(project, backup)),
    );
    let is_old = |old: &&PathBuf| {
        let name = old.file_name().unwrap_or_default().to_string_lossy();
        !kept.contains(old) && is_id(name.strip_suffix(KEPT_MANIFEST).unwrap_or(&name))
    };
    for old in older.iter().filter(is_old) {
        let _ = atomic_file::remove(old);
    }
}

/// Whether the newest backup that is remembered is encrypted, whatever store it is in.
pub fn remembers_encrypted(project: &Project) -> bool {
    let kept = fs::read_dir(project.root().join(STATE_DIR).join(PAGE_CACHE_DIR))
        .into_iter()
        .flatten()
        .flatten();
    kept.map(|entry| entry.file_name())
        .any(|name| name.to_string_lossy().ends_with(KEPT_MANIFEST))
}

/// A line with its digest and that of the archive, then the manifest.
fn keep_manifest(project: &Project, backup: &Backup, manifest: &Manifest) -> Result<()> {
    let path = kept_manifest_file(project, backup);
    let json = manifest.to_json();
    let line = format!("{} {}\n", hex(&Sha256::digest(&json)), backup.checksum);
    atomic_file::write_in_store(&path, &[line.as_bytes(), &json].concat(), None)
}

/// The whole manifest of an encrypted backup, where it was kept and is whole.
fn kept_manifest(project: &Project, backup: &Backup) -> Option<Manifest> {
    let path = kept_manifest_file(project, backup);
    let kept = regular_file::open(&path)
        .and_then(|file| regular_file::read(&file, MAX_TEXT_BYTES))
        .ok()?;
    let end = kept.iter().position(|byte| *byte == b'\n')?;
    let (line, json) = (&kept[..end], &kept[end + 1..]);
    let expected = format!("{} {}", hex(&Sha256::digest(json)), backup.checksum);
    if line != expected.as_bytes() {
        return None;
    }
    Manifest::parse(json, &backup.id).ok()
}

fn kept_manifest_file(project: &Project, backup: &Backup) -> PathBuf {
    cache_file(project, &format!("{}{KEPT_MANIFEST}", backup.id))
}

fn cache_file(project: &Project, id: &str) -> PathBuf {
    project.root().join(STATE_DIR).join(PAGE_CACHE_DIR).join(id)
}
