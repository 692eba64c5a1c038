//! What a backup takes from earlier ones: which one an incremental backup rests on, whether it can be one, what is known of its
//! pages; and which archive a full one takes unchanged blocks from.
//!
//! The hashes of the newest backup's pages are kept in `.kg/cache/backup-pages/`. They only save time: where they are missing,
//! damaged or of another archive, the chain itself is read.

use std::{
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use crate::{
    archive::{
        as_written::is_as_written,
        block::Compression,
        earlier::Earlier,
        manifest::{BackupType, DIGEST_PREFIX, Manifest},
        read::unreadable,
    },
    chain, durable,
    error::{Code, Error, Result},
    project::{Project, STATE_DIR},
    reader::{apply::journal::give_to_owner, base::Base},
    sqlite::pages::PageFile,
    store::{Backup, Store, is_id, manifest_beside},
    task::{Cancel, Task},
};

const CACHE: &str = "cache/backup-pages";
const BASE_FILE: &str = "base.json";
const BASE_HASHES_FILE: &str = "base-page-hashes";

/// The backups of one project in a store that others may share, newest first.
pub fn own_backups(store: &Store, project: &Project) -> Result<Vec<Backup>> {
    Ok(own_among(store.list()?, project))
}

/// Those of `backups` that are of this project.
pub fn own_among(backups: Vec<Backup>, project: &Project) -> Vec<Backup> {
    let own = project.id();
    backups.into_iter().filter(|backup| backup.project.as_ref() == Some(&own)).collect()
}

/// A backup that an incremental one can rest on.
pub struct Chosen {
    pub backup: Backup,
    manifest: Manifest,
    /// Full backup first.
    links: Vec<PathBuf>,
}

/// The backup of that id, or the newest good one of this project; `None` where there is none.
pub fn choose(store: &Store, project: &Project, id: Option<&str>, task: &Task) -> Result<Option<Chosen>> {
    let own = project.id();
    if let Some(id) = id {
        return open(store.get(id)?, &own, task).map(Some);
    }
    for backup in store.list()?.into_iter().filter(|backup| backup.is_sound() && !backup.safety_backup) {
        match open(backup, &own, task) {
            Err(error) if error.code == Code::Aborted => return Err(error),
            // One that cannot be rested on: perhaps the one before it can.
            Err(_) => {}
            chosen => return chosen.map(Some),
        }
    }
    Ok(None)
}

fn open(backup: Backup, project: &str, task: &Task) -> Result<Chosen> {
    let unusable = |what: &str| {
        let remedy = "Leave `basedOn` (`--base-backup`) out, or make a full backup";
        Error::new(Code::BaseUnusable, format!("Nothing can rest on {}: {what}", backup.id), remedy)
    };
    let json = manifest_beside(&backup.path).ok_or_else(|| unusable("its manifest is gone"))?;
    let manifest = Manifest::parse(&json, &backup.id)?;
    if manifest.project.as_deref() != Some(project) {
        return Err(unusable("it is of another project, or this one was moved since"));
    }
    let links = chain::links(&backup.path, task)?;
    Ok(Chosen { backup, manifest, links })
}

impl Chosen {
    /// Of how many archives its chain is.
    pub fn chain_links(&self) -> usize {
        self.links.len()
    }

    /// Fails where an archive of the chain is not what was written: whatever rested on it could never be restored.
    pub fn assert_whole(&self, task: &Task) -> Result<()> {
        let mut before: Option<String> = None;
        for link in &self.links {
            let manifest = manifest_beside(link).and_then(|json| Manifest::parse(&json, "its manifest").ok());
            let manifest = manifest.filter(|manifest| manifest.based_on_checksum == before);
            let archive = manifest.and_then(|manifest| manifest.archive);
            let is_whole = archive.as_ref().map(|archive| is_as_written(link, archive, &task.cancel));
            task.cancel.check()?;
            before = archive.map(|archive| format!("{DIGEST_PREFIX}{}", archive.sha256));
            if !is_whole.transpose().map_err(|cause| unreadable(link, cause))?.unwrap_or(false) {
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
    pub fn prepare(&self, project: &Project, scratch: &Path, task: &Task) -> Result<PathBuf> {
        if !take_cached(project, &self.backup, scratch) {
            let (hashes, path) = (self.read_hashes(task)?, scratch.join(BASE_HASHES_FILE));
            let failed = |cause| Error::io("write", &path, cause);
            hashes.write(BufWriter::new(fs::File::create(&path).map_err(failed)?)).map_err(failed)?;
        }
        write(&self.manifest, true, scratch)
    }

    /// Paths of this backup that are not among those of `newer`.
    pub fn deleted(&self, newer: &Manifest) -> Vec<String> {
        let kept: std::collections::HashSet<&str> = newer.files.iter().map(|record| record.path.as_str()).collect();
        let paths = self.manifest.files.iter().map(|record| record.path.as_str());
        paths.filter(|path| !kept.contains(path)).map(str::to_string).collect()
    }

    fn read_hashes(&self, task: &Task) -> Result<PageFile> {
        let (reports, hashes) = chain::hash_pages(&self.links, task)?;
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
pub fn prepare_known(store: &Store, project: &Project, scratch: &Path) -> Result<Option<(PathBuf, String)>> {
    let own = project.id();
    for backup in store.list()? {
        if take_cached(project, &backup, scratch) {
            let manifest = manifest_of(&backup).filter(|manifest| manifest.project.as_ref() == Some(&own));
            let written = manifest.map(|manifest| write(&manifest, false, scratch)).transpose()?;
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
    cancel: &Cancel,
) -> Result<Option<Earlier>> {
    let Some(name) = compression.name() else { return Ok(None) };
    for backup in store.list()? {
        let holds_all = backup.kind == BackupType::Full || backup.kind == kind;
        if kind == BackupType::Incremental || backup.kind == BackupType::Incremental || !holds_all {
            continue;
        }
        let is_alike = |manifest: &Manifest| {
            manifest.project.as_deref() == project && manifest.compression.as_ref() == Some(&name)
        };
        let archive = manifest_of(&backup).filter(is_alike).and_then(|manifest| manifest.archive);
        // Without, it could not be told in one reading whether it is what was written.
        if let Some(archive) = archive.filter(|archive| archive.root.is_some()) {
            return Ok(Some(Earlier::new(&backup.path, archive, cancel)));
        }
    }
    Ok(None)
}

fn manifest_of(backup: &Backup) -> Option<Manifest> {
    manifest_beside(&backup.path).and_then(|json| Manifest::parse(&json, &backup.id).ok())
}

/// The hashes are there.
fn write(manifest: &Manifest, leave_out: bool, scratch: &Path) -> Result<PathBuf> {
    let base = scratch.join(BASE_FILE);
    Base::new(manifest, BASE_HASHES_FILE.to_string(), leave_out).write(&base)?;
    Ok(base)
}

/// Copies the hashes of the pages of `backup` into `scratch`, where they were kept and are whole.
fn take_cached(project: &Project, backup: &Backup, scratch: &Path) -> bool {
    let taken = || {
        let kept = fs::File::open(cache_file(project, &backup.id))?;
        PageFile::copy(kept, fs::File::create(scratch.join(BASE_HASHES_FILE))?, &backup.checksum)
    };
    matches!(taken(), Ok(Some(archive)) if archive == backup.checksum)
}

/// Keeps the hashes that a reader left for the next incremental backup, in the place of older ones.
///
/// They are no more than a saving of time, so a project that cannot take them is no reason to fail.
pub fn remember(project: &Project, backup: &Backup, hashes: fs::File) {
    let path = cache_file(project, &backup.id);
    let Some(dir) = path.parent() else { return };
    let older: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let keep = || {
        durable::create_dirs(dir).ok()?;
        let mut file = durable::partial(dir).ok()?;
        PageFile::copy(hashes, &mut file, &backup.checksum).ok()??;
        durable::publish(file, &path).ok()
    };
    if keep().is_none() {
        return;
    }
    for made in [&path, dir].into_iter().chain(dir.parent()) {
        let _ = give_to_owner(project.root(), made);
    }
    let is_old =
        |old: &&PathBuf| **old != path && old.file_name().is_some_and(|name| is_id(name.to_string_lossy().as_ref()));
    for old in older.iter().filter(is_old) {
        let _ = fs::remove_file(old);
    }
}

fn cache_file(project: &Project, id: &str) -> PathBuf {
    project.root().join(STATE_DIR).join(CACHE).join(id)
}
