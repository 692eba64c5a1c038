//! Where archives are kept: a directory.
//!
//! ```text
//! kg-backup-20240115-020000.tar.gz                  an archive; of an encrypted one .enc.tar.gz
//! kg-backup-20240115-020000.tar.gz.manifest.json    its manifest, with the archive's size and digest
//! latest.tar.gz                                     a link to the newest good archive
//! kg-backup-20240115-020000.tar.gz.pin.json         it is pinned: nothing removes it
//! .kg-store.lock                                    locked by the one process that writes
//! .kg-partial-…, .kg-snapshot-…                     what a run is writing; the next run removes what a killed one left
//! ```
//!
//! Everything is written under a temporary name, synced, renamed, and the directory synced; the manifest comes last. A
//! backup is listed while both archive and manifest are there, so at every instant a listed backup is whole, and what a
//! killed run leaves is not listed. Readers need no lock.

mod catalog;
mod good;
pub mod held;
mod lock;
mod names;
mod pins;
mod sink;
mod write;
mod write_behind;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

pub use self::{
    catalog::{Flaw, Unlisted, described_beside, manifest_beside},
    good::{broken_chains, good, newest_good, passed_over, passed_over_warning},
    lock::StoreLock,
    names::is_id,
    pins::Pin,
    sink::ArchiveFile,
    write::NewBackup,
};
use crate::{
    archive::{
        encryption::Keys,
        manifest::{Contents, Manifest, Stats},
    },
    durable,
    error::{Code, Error, Result, Warning},
    paths::{self, resolve},
    project::{BACKUPS_DIR, Project, STATE_DIR},
    sqlite::check::Integrity,
    task::Task,
};

/// By so much the clocks of machines may differ that share a store.
const CLOCK_TOLERANCE_MS: i64 = 10 * 60 * 1000;

/// A directory of backups.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    /// The id of the project that it is asked for.
    project: Option<String>,
    /// That project, if it exists.
    home: Option<Project>,
    keys: Keys,
    encrypts: Encrypts,
}

/// Whether new archives are encrypted.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Encrypts {
    #[default]
    No,
    Yes,
    /// Nobody knows: refused with this where the newest backup of the project is encrypted.
    AsBefore(Error),
    /// Nobody knows, and it was to be said: refused.
    Unclear(Error),
}

/// A backup of the store, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: crate::archive::manifest::BackupType,
    /// Of the archive, absolute.
    pub path: PathBuf,
    /// Of the archive, in bytes.
    pub size: u64,
    /// Of its sidecar.
    pub sidecar_size: u64,
    /// Of the archive: `sha256:` and the hexadecimal digest.
    pub checksum: String,
    /// When the backup began, in milliseconds since the epoch.
    pub timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub contents: Contents,
    pub stats: Stats,
    pub integrity: Integrity,
    pub warnings: Vec<Warning>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub based_on: Option<String>,
    /// The digest of that archive, with its prefix.
    #[serde(skip)]
    pub based_on_checksum: Option<String>,
    /// The incremental backup that this full one was put together from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consolidated_from: Option<String>,
    /// It was made before a repair, of what was about to be repaired.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub safety_backup: bool,
    /// It lacks something of the project, or may hold half of a change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Only a key opens it. What it holds is named inside alone: in lists it has no description and no warnings.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Nothing removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pin>,
    /// Tells projects apart that share a store.
    #[serde(skip)]
    pub project: Option<String>,
}

impl Store {
    /// The store at `dir`, which need not exist yet.
    pub fn at(dir: &Path) -> Result<Self> {
        if dir.to_str().is_some_and(|dir| dir.contains("://")) {
            return Err(Error::new(
                Code::Unsupported,
                format!("{} is not a directory: this release keeps backups in local directories only", dir.display()),
                "Give a directory as `backupDir`, for example one that is synchronised to the object store",
            ));
        }
        let dir = paths::absolute(dir).map_err(|cause| Error::io("resolve", dir, cause))?;
        match fs::metadata(&dir) {
            Ok(found) if !found.is_dir() => Err(Error::new(
                Code::BackupDirInvalid,
                format!("The backup directory {} is a file", dir.display()),
                "Name a directory, or remove that file",
            )),
            _ => Ok(Store { dir, project: None, home: None, keys: Keys::default(), encrypts: Encrypts::No }),
        }
    }

    /// The same store, asked for the project at `root`: others may keep their backups here too. The project need not exist: where its `.kg` was
    /// lost, its backups are what is asked for.
    pub fn for_project(self, root: &Path) -> Self {
        Store {
            project: paths::absolute(root).ok().map(|root| Project::id_at(&root)),
            home: Project::open(root).ok(),
            ..self
        }
    }

    /// The project that it is asked for, if that exists.
    pub fn home(&self) -> Option<&Project> {
        self.home.as_ref()
    }

    /// The same store, whose encrypted archives `keys` open.
    pub fn with_keys(self, keys: Keys) -> Self {
        Store { keys, ..self }
    }

    /// The same store, whose new archives are encrypted, or are not.
    pub fn encrypting(self, encrypts: bool) -> Self {
        self.as_set(if encrypts { Encrypts::Yes } else { Encrypts::No })
    }

    pub fn as_set(self, encrypts: Encrypts) -> Self {
        Store { encrypts, ..self }
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    pub fn encrypts(&self) -> bool {
        self.encrypts == Encrypts::Yes
    }

    /// Fails where a new archive could come to be read by whom it must not, or could not be encrypted. `was_encrypted` says what is known of the
    /// newest backup of the project otherwise: where the settings cannot be read, this may be another store.
    pub fn assert_locked_as_meant(&self, was_encrypted: bool) -> Result<()> {
        match &self.encrypts {
            Encrypts::No => Ok(()),
            Encrypts::Yes => self.keys.assert_encrypting(),
            Encrypts::Unclear(error) => Err(error.clone()),
            Encrypts::AsBefore(error) => {
                let newest = self.list()?.into_iter().find(|backup| self.is_own(backup));
                if was_encrypted || newest.is_some_and(|newest| newest.encrypted) { Err(error.clone()) } else { Ok(()) }
            }
        }
    }

    /// `.kg/backups` of the project.
    pub fn default_dir(project_root: &Path) -> PathBuf {
        project_root.join(STATE_DIR).join(BACKUPS_DIR)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses a directory below `.kg/` whose archives the next backup would save.
    pub fn assert_outside(&self, project: &Project) -> Result<()> {
        let dir = resolve(&self.dir);
        let inside = dir.strip_prefix(resolve(&project.state_dir())).ok();
        if inside.is_none_or(|inside| inside.starts_with(BACKUPS_DIR)) {
            return Ok(());
        }
        Err(Error::new(
            Code::BackupDirInProject,
            format!("Backups in {} would be backed up into themselves", self.dir.display()),
            format!("Use a directory outside {STATE_DIR}, or {STATE_DIR}/{BACKUPS_DIR}"),
        ))
    }

    /// Whether it lies in the state of the project.
    pub fn is_inside(&self, project: &Project) -> bool {
        resolve(&self.dir).starts_with(resolve(&project.state_dir()))
    }

    /// Makes the directory and waits, at most `timeout`, until this process is the only one that writes to it.
    pub fn lock(&self, timeout: Duration, task: &Task) -> Result<StoreLock> {
        self.create()?;
        StoreLock::acquire(&self.dir, timeout, task)
    }

    /// Whether somebody makes or removes backups now, as far as that can be told.
    pub fn is_in_use(&self) -> bool {
        lock::is_held(&self.dir)
    }

    fn create(&self) -> Result<()> {
        durable::create_dirs(&self.dir).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Error::new(
                Code::BackupDirInvalid,
                format!("The backup directory {} lies below a file", self.dir.display()),
                "Name a directory",
            ),
            _ => Error::io("create", &self.dir, cause),
        })
    }
}

/// What a backup with these warnings lacks; `None` if they do not name anything.
pub fn lacks(warnings: &[Warning]) -> Option<String> {
    let mut lacking = warnings.iter().filter(|warning| warning.code.means_incomplete());
    let first = lacking.next()?.message.clone();
    match lacking.count() {
        0 => Some(first),
        more => Some(format!("{first}, and {more} more")),
    }
}

impl Backup {
    /// `manifest` is one that stood beside the archive at `path`.
    fn new(path: PathBuf, manifest: Manifest) -> Option<Self> {
        let archive = manifest.archive?;
        let pinned = pins::pin_beside(&path);
        // The name says it too, should the manifest not.
        let is_named = path.file_name().is_some_and(|name| names::is_encrypted(&name.to_string_lossy()));
        Some(Backup {
            id: manifest.id,
            kind: manifest.kind,
            size: archive.size,
            sidecar_size: fs::metadata(catalog::manifest_path(&path)).map_or(0, |found| found.len()),
            checksum: format!("{}{}", crate::archive::manifest::DIGEST_PREFIX, archive.sha256),
            timestamp: manifest.timestamp.as_millisecond(),
            description: manifest.description,
            contents: manifest.contents,
            stats: manifest.stats,
            integrity: manifest.integrity,
            warnings: manifest.warnings,
            based_on: manifest.based_on,
            based_on_checksum: manifest.based_on_checksum,
            consolidated_from: manifest.consolidated_from,
            safety_backup: manifest.safety_backup,
            incomplete: manifest.incomplete,
            encrypted: manifest.encrypted || is_named,
            pinned,
            path,
            project: manifest.project,
        })
    }

    /// What it takes on the disk: its archive and its sidecar.
    pub fn disk_size(&self) -> u64 {
        self.size.saturating_add(self.sidecar_size)
    }

    /// Whether it is dated later than can be.
    pub fn is_ahead(&self, now: Timestamp) -> bool {
        self.timestamp > now.as_millisecond() + CLOCK_TOLERANCE_MS
    }

    /// What an incomplete backup lacks: the first of it, and how much more there is.
    pub fn lacks(&self) -> String {
        let inside = || "what it lacks is named inside the encrypted archive, and by a restore of it".into();
        lacks(&self.warnings).unwrap_or_else(inside)
    }

    /// With what is to be said of the store that it is in.
    pub fn with_warnings(mut self, warnings: Vec<Warning>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}
