//! Remembers the newest backup of each store for the next one, in `.kg/cache/backup-pages/`: the
//! page hashes of its databases and its list of files.
//!
//! ```text
//! backup-pages/{store}/{id}           page hashes
//!                     /{id}.files     list of files
//!                     /{id}.manifest  manifest of an encrypted backup
//! ```
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
    project::{PAGE_CACHE_DIR, Project, STATE_DIR, identity::Kinship},
    sqlite::page_hashes::PageFile,
    store::{Backup, CACHE_NAME_BYTES, Store, described_beside, is_id},
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
/// The maximum number of stores whose newest backup is remembered. A cache takes about 4 MB for
/// each GB of databases.
const MAX_STORES: usize = 4;

/// Writes the baseline of the cached backup into `scratch`, for a full backup or a snapshot.
/// A database whose pages are those of a sound backup is not checked again.
///
/// Returns the file and the checksum of that backup, or `None` if the cache has nothing usable.
pub(super) fn load(
    store: &Store,
    project: &Project,
    scratch: &Path,
) -> Result<Option<(PathBuf, String)>> {
    let (own, cache) = (project.identity(), PageCache::of(project, store));
    for backup in store.read()?.backups {
        if !cache.copy_hashes(&backup, scratch) {
            continue;
        }
        let manifest = if backup.encrypted {
            cache.manifest(&backup)
        } else {
            described_beside(&backup.archive)?
        };
        let manifest =
            manifest.filter(|manifest| own.kinship(manifest.origin().as_ref()) == Kinship::Own);
        let summary = manifest.as_ref().and_then(|manifest| manifest.file_list);
        let Some((manifest, summary)) = manifest.zip(summary) else {
            return Ok(None);
        };
        let Some(databases) = cache.copy_list(&backup, summary, io::sink()) else {
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

/// The cache of one store.
pub(super) struct PageCache {
    dir: PathBuf,
}

impl PageCache {
    pub fn of(project: &Project, store: &Store) -> Self {
        PageCache {
            dir: all_of(project).join(store.cache_name()),
        }
    }

    /// Copies the cached list of files of `backup` into `scratch`, and returns the records of its
    /// databases. `None` if there is none, or if it is not the expected one.
    pub fn copy_files(
        &self,
        backup: &Backup,
        expected: FileListSummary,
        scratch: &Path,
    ) -> Option<Vec<FileRecord>> {
        let copy = fs::File::create(scratch.join(FILES_FILE)).ok()?;
        self.copy_list(backup, expected, copy)
    }

    fn copy_list(
        &self,
        backup: &Backup,
        expected: FileListSummary,
        out: impl Write,
    ) -> Option<Vec<FileRecord>> {
        let kept = regular_file::open(&self.files_file(backup)).ok()?;
        let (summary, databases) = KnownFiles::copy(kept, out)?;
        (summary == expected).then_some(databases)
    }

    /// Copies the cached page hashes of `backup` into `scratch`. Returns `false` if there are none,
    /// or if they are damaged.
    pub fn copy_hashes(&self, backup: &Backup, scratch: &Path) -> bool {
        let taken = || {
            let kept = regular_file::open(&self.hashes_file(backup))?;
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
    pub fn store(&self, backup: &Backup, manifest: &Manifest, hashes: fs::File, files: fs::File) {
        let older = names_in(&self.dir);
        let keep = || {
            atomic_file::create_unversioned_dirs(&self.dir).ok()?;
            atomic_file::sweep_partials(&self.dir);
            if backup.encrypted {
                self.store_manifest(backup, manifest).ok()?;
            }
            let mut file = atomic_file::TempFile::in_store(&self.dir, None).ok()?;
            KnownFiles::copy(files, &mut file)?;
            file.persist(&self.files_file(backup)).ok()?;
            let mut file = atomic_file::TempFile::in_store(&self.dir, None).ok()?;
            PageFile::copy(&hashes, &mut file, &backup.checksum).ok()??;
            file.persist(&self.hashes_file(backup)).ok()
        };
        if keep().is_none() {
            return;
        }
        let is_old = |name: &&String| id_of(name).is_some_and(|id| id != backup.id);
        for old in older.iter().filter(is_old) {
            let _ = atomic_file::remove(&self.dir.join(old));
        }
        self.remove_other_stores();
    }

    /// Removes the caches of all but the [`MAX_STORES`] stores that were used last.
    fn remove_other_stores(&self) {
        let Some(all) = self.dir.parent() else { return };
        let mut others: Vec<_> = stores_in(all)
            .filter(|dir| *dir != self.dir)
            // Ids have a resolution of a second, and two stores can have the same.
            .map(|dir| (fs::metadata(&dir).and_then(|dir| dir.modified()).ok(), dir))
            .collect();
        others.sort_unstable();
        others.reverse();
        for (_, dir) in others.iter().skip(MAX_STORES - 1) {
            let files = names_in(dir).into_iter();
            for name in files.filter(|name| id_of(name).is_some() || name == atomic_file::GITIGNORE)
            {
                let _ = atomic_file::remove(&dir.join(name));
            }
            let _ = fs::remove_dir(dir);
        }
    }

    /// Writes the manifest after a line with its digest and the checksum of the archive.
    fn store_manifest(&self, backup: &Backup, manifest: &Manifest) -> Result<()> {
        let json = manifest.to_json();
        let line = format!("{} {}\n", hex(&Sha256::digest(&json)), backup.checksum);
        let text = [line.as_bytes(), &json].concat();
        atomic_file::write_in_store(&self.manifest_file(backup), &text, None)
    }

    /// Returns the cached manifest of an encrypted backup, or `None` if it is missing or damaged.
    pub fn manifest(&self, backup: &Backup) -> Option<Manifest> {
        let kept = regular_file::open(&self.manifest_file(backup))
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

    fn manifest_file(&self, backup: &Backup) -> PathBuf {
        self.dir.join(format!("{}{MANIFEST_SUFFIX}", backup.id))
    }

    fn files_file(&self, backup: &Backup) -> PathBuf {
        self.dir.join(format!("{}{FILES_SUFFIX}", backup.id))
    }

    fn hashes_file(&self, backup: &Backup) -> PathBuf {
        self.dir.join(&backup.id)
    }
}

/// Returns whether the newest cached backup of all stores is encrypted.
pub fn is_of_encrypted(project: &Project) -> bool {
    let all = all_of(project);
    let newest = stores_in(&all).filter_map(|dir| newest_in(&dir)).max();
    newest.is_some_and(|(_, is_encrypted)| is_encrypted)
}

/// Returns the id of the newest cached backup of a store, and whether it is encrypted.
fn newest_in(dir: &Path) -> Option<(String, bool)> {
    let names = names_in(dir);
    let newest = names.iter().filter_map(|name| id_of(name)).max()?;
    let manifest = format!("{newest}{MANIFEST_SUFFIX}");
    Some((newest.to_string(), names.contains(&manifest)))
}

/// Returns the id of the backup to which a cached file of that name belongs.
fn id_of(name: &str) -> Option<&str> {
    let mut suffixes = [MANIFEST_SUFFIX, FILES_SUFFIX].iter();
    let id = suffixes.find_map(|suffix| name.strip_suffix(suffix));
    Some(id.unwrap_or(name)).filter(|id| is_id(id))
}

/// Returns the directories of all stores.
fn stores_in(all: &Path) -> impl Iterator<Item = PathBuf> {
    let is_store = |name: &String| {
        name.len() == 2 * CACHE_NAME_BYTES && name.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    let names = names_in(all).into_iter().filter(is_store);
    names.map(|name| all.join(name))
}

fn all_of(project: &Project) -> PathBuf {
    project.root().join(STATE_DIR).join(PAGE_CACHE_DIR)
}

/// Returns the names in a directory. None if it cannot be read.
fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
