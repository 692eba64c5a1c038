//! Remembers the newest backup for the next one, in `.kg/cache/backup-pages/`: the page hashes of
//! its databases and its list of files.
//!
//! The cache of an encrypted backup also has its complete manifest, because the sidecar holds only
//! the public part. The cache only saves time. If it is missing, damaged or belongs to another
//! archive, the chain itself is read, with its key.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        file_list::FileListSummary, file_record::FileRecord, manifest::Manifest,
        reader::MAX_TEXT_BYTES,
    },
    error::Result,
    project::{PAGE_CACHE_DIR, Project, STATE_DIR},
    sqlite::page_hashes::PageFile,
    store::{Backup, Store, described_beside, is_id},
    util::{atomic_file, hex::hex, regular_file},
    worker::{baseline::BaselineFile, known_files::KnownFiles},
};

/// The name of the page hashes in a scratch directory.
pub(super) const HASHES_FILE: &str = "base-page-hashes";
/// The name of the list of files in a scratch directory.
pub(super) const FILES_FILE: &str = "base-known-files";
/// The name of what the worker is told about the base, in a scratch directory.
const BASELINE_FILE: &str = "base.json";
/// The suffix of a cached manifest, after the id of the backup.
const MANIFEST_SUFFIX: &str = ".manifest";
/// The suffix of a cached list of files.
const FILES_SUFFIX: &str = ".files";

/// Writes the baseline of the cached backup into `scratch`, for a full backup or a snapshot.
/// A database whose pages are those of a sound backup is not checked again.
///
/// Returns the file and the checksum of that backup, or `None` if the cache has nothing usable.
pub(super) fn load(
    store: &Store,
    project: &Project,
    scratch: &Path,
) -> Result<Option<(PathBuf, String)>> {
    let own = project.id();
    for backup in store.read()?.backups {
        if !copy_hashes(project, &backup, scratch) {
            continue;
        }
        let manifest = if backup.encrypted {
            manifest(project, &backup)
        } else {
            described_beside(&backup.path)?
        };
        let manifest = manifest.filter(|manifest| manifest.project.as_ref() == Some(&own));
        let summary = manifest.as_ref().and_then(|manifest| manifest.file_list);
        let Some((manifest, summary)) = manifest.zip(summary) else {
            return Ok(None);
        };
        let Some(databases) = copy_list(project, &backup, summary, io::sink()) else {
            return Ok(None);
        };
        let baseline = BaselineFile::new(&manifest, databases, HASHES_FILE);
        return Ok(Some((write(&baseline, scratch)?, backup.checksum)));
    }
    Ok(None)
}

/// Writes the baseline of the base of an incremental backup, whose page hashes and list of files
/// are already in `scratch`.
pub(super) fn write_base(
    manifest: &Manifest,
    summary: FileListSummary,
    databases: Vec<FileRecord>,
    scratch: &Path,
) -> Result<PathBuf> {
    let baseline = BaselineFile::new(manifest, databases, HASHES_FILE);
    write(&baseline.with_known_files(FILES_FILE, summary), scratch)
}

fn write(baseline: &BaselineFile, scratch: &Path) -> Result<PathBuf> {
    let path = scratch.join(BASELINE_FILE);
    baseline.write(&path)?;
    Ok(path)
}

/// Copies the cached list of files of `backup` into `scratch`, and returns the records of its
/// databases. `None` if there is none, or if it is not the expected one.
pub(super) fn copy_files(
    project: &Project,
    backup: &Backup,
    expected: FileListSummary,
    scratch: &Path,
) -> Option<Vec<FileRecord>> {
    let copy = fs::File::create(scratch.join(FILES_FILE)).ok()?;
    copy_list(project, backup, expected, copy)
}

fn copy_list(
    project: &Project,
    backup: &Backup,
    expected: FileListSummary,
    out: impl Write,
) -> Option<Vec<FileRecord>> {
    let kept = regular_file::open(&files_file(project, backup)).ok()?;
    let (summary, databases) = KnownFiles::copy(kept, out)?;
    (summary == expected).then_some(databases)
}

/// Copies the cached page hashes of `backup` into `scratch`. Returns `false` if there are none, or
/// if they are damaged.
pub(super) fn copy_hashes(project: &Project, backup: &Backup, scratch: &Path) -> bool {
    let taken = || {
        let kept = regular_file::open(&cache_file(project, &backup.id))?;
        PageFile::copy(
            &kept,
            fs::File::create(scratch.join(HASHES_FILE))?,
            &backup.checksum,
        )
    };
    matches!(taken(), Ok(Some(archive)) if archive == backup.checksum)
}

/// Replaces the cache with the page hashes and the list of files of `backup`, which the worker
/// wrote. An error is ignored, because the cache only saves time.
pub(super) fn store(
    project: &Project,
    backup: &Backup,
    manifest: &Manifest,
    hashes: fs::File,
    files: fs::File,
) {
    let path = cache_file(project, &backup.id);
    let Some(dir) = path.parent() else { return };
    let older: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let listed = files_file(project, backup);
    let mut kept = vec![path.clone(), listed.clone()];
    let keep = || {
        atomic_file::create_dirs(dir).ok()?;
        atomic_file::sweep_partials(dir);
        if backup.encrypted {
            store_manifest(project, backup, manifest).ok()?;
        }
        let mut file = atomic_file::TempFile::in_store(dir, None).ok()?;
        KnownFiles::copy(files, &mut file)?;
        file.persist(&listed).ok()?;
        let mut file = atomic_file::TempFile::in_store(dir, None).ok()?;
        PageFile::copy(&hashes, &mut file, &backup.checksum).ok()??;
        file.persist(&path).ok()
    };
    if keep().is_none() {
        return;
    }
    kept.extend(backup.encrypted.then(|| manifest_file(project, backup)));
    let is_old = |old: &&PathBuf| {
        let name = old.file_name().unwrap_or_default().to_string_lossy();
        let id = [MANIFEST_SUFFIX, FILES_SUFFIX]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        !kept.contains(old) && is_id(id.unwrap_or(&name))
    };
    for old in older.iter().filter(is_old) {
        let _ = atomic_file::remove(old);
    }
}

/// Returns whether the cached backup is encrypted, in any store.
pub fn is_of_encrypted(project: &Project) -> bool {
    let kept = fs::read_dir(project.root().join(STATE_DIR).join(PAGE_CACHE_DIR))
        .into_iter()
        .flatten()
        .flatten();
    kept.map(|entry| entry.file_name())
        .any(|name| name.to_string_lossy().ends_with(MANIFEST_SUFFIX))
}

/// Writes the manifest after a line with its digest and the checksum of the archive.
fn store_manifest(project: &Project, backup: &Backup, manifest: &Manifest) -> Result<()> {
    let path = manifest_file(project, backup);
    let json = manifest.to_json();
    let line = format!("{} {}\n", hex(&Sha256::digest(&json)), backup.checksum);
    atomic_file::write_in_store(&path, &[line.as_bytes(), &json].concat(), None)
}

/// Returns the cached manifest of an encrypted backup, or `None` if it is missing or damaged.
pub(super) fn manifest(project: &Project, backup: &Backup) -> Option<Manifest> {
    let path = manifest_file(project, backup);
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

fn manifest_file(project: &Project, backup: &Backup) -> PathBuf {
    cache_file(project, &format!("{}{MANIFEST_SUFFIX}", backup.id))
}

fn files_file(project: &Project, backup: &Backup) -> PathBuf {
    cache_file(project, &format!("{}{FILES_SUFFIX}", backup.id))
}

fn cache_file(project: &Project, id: &str) -> PathBuf {
    project.root().join(STATE_DIR).join(PAGE_CACHE_DIR).join(id)
}
