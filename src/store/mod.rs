//! The store: a directory, or a prefix of an object store, that holds archives.
//!
//! ```text
//! kg-backup-20240115-020000.tar.gz                  an archive (.enc.tar.gz if encrypted)
//! kg-backup-20240115-020000.tar.gz.manifest.json    its sidecar: manifest, archive size and digest
//! latest.tar.gz                                     a link to the newest good archive
//! kg-backup-20240115-020000.tar.gz.pin.json         its pin: the backup is never removed
//! .kg-store.lock                                    held by the one process that writes
//! .kg-partial-…, .kg-snapshot-…                     temporary files of a run
//! ```
//!
//! Every file is written under a temporary name, synced and renamed; then the directory is synced.
//! The sidecar is written last. A backup is listed only if both its archive and its sidecar exist,
//! so a listed backup is always complete. Files that a killed run leaves are not listed, and the
//! next run removes them. Processes that only read need no lock.

mod archive_file;
mod catalog;
pub mod chain;
mod copy;
mod draft;
mod encryption_policy;
pub mod known_stores;
mod lease;
mod lock;
mod names;
mod pins;
pub mod retention;
pub mod shared;
mod sidecar;
mod sidecar_cache;
mod sweep;
mod tombstone;
mod usable;
mod write;
mod write_behind;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

#[cfg(not(without_internals))]
pub use self::archive_file::ArchiveFile;
pub use self::{
    catalog::{Flaw, Listing, Unlisted, is_latest, sort},
    encryption_policy::EncryptionPolicy,
    lock::StoreLock,
    names::{ID_PREFIX, is_id},
    pins::Pin,
    sidecar::{described_beside, manifest_beside},
    usable::{broken_chains, good, newest_good, passed_over, passed_over_warning},
    write::{NewBackup, Removal},
};
use self::{lease::Lease, lock::FileLock};
use crate::{
    archive::{
        encryption::{self, Keys, read::is_encrypted},
        manifest::{Contents, Manifest, Stats},
    },
    error::{Code, Error, Result, Warning, WarningCode, first_and_more},
    objects::{Conditions, Location, StorageOptions, Version},
    place::{self, Archive, FileState, Place},
    project::{
        BACKUPS_DIR, Project, STATE_DIR,
        identity::{Identity, Origin},
    },
    sqlite::check::Integrity,
    system::paths::{self, resolve},
    util::{atomic_file, hex::hex, operation::OperationContext, ownership},
};

/// The tolerated difference between the clocks of machines that share a store.
const CLOCK_TOLERANCE_MS: i64 = 10 * 60 * 1000;

/// The length of [`Store::cache_name`] in bytes; it has two digits for each.
pub const CACHE_NAME_BYTES: usize = 8;

/// What to do if it is unclear how to encrypt a backup.
pub const NAME_THE_READERS: &str = "name who can read this backup with `encryption.recipients` or \
                                    `encryption.passphraseFile`, or use `encrypt: false`";

/// A directory or a prefix of backups.
#[derive(Debug, Clone)]
pub struct Store {
    place: Place,
    /// The project whose backups are requested.
    project: Option<Identity>,
    /// That project, if it exists.
    home: Option<Project>,
    keys: Keys,
    encrypts: EncryptionPolicy,
    /// Permissions of new archives and of the files next to them.
    mode: Option<u32>,
    doubt: Option<Doubt>,
}

/// A reason to suspect that this is not the intended store. Nothing is written to such a store.
#[derive(Debug, Clone)]
pub struct Doubt {
    pub why: Error,
    /// Another store is likely to be the intended one, so nothing is read from this one either.
    pub hides_another: bool,
}

/// A backup in the store, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: crate::archive::manifest::BackupType,
    /// The archive; serialized as its absolute path.
    #[serde(rename = "path")]
    pub archive: Archive,
    /// Size of the archive in bytes.
    pub size: u64,
    /// Size of the sidecar in bytes.
    pub sidecar_size: u64,
    /// Digest of the archive: `sha256:` and hexadecimal digits.
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
    /// Digest of the base archive, with its prefix.
    #[serde(skip)]
    pub based_on_checksum: Option<String>,
    /// The incremental backup that this full backup was consolidated from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consolidated_from: Option<String>,
    /// Whether the backup was made before a repair, from the state that was about to be repaired.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub safety_backup: bool,
    /// Whether the backup lacks a part of the project or may contain half of a change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Whether the graph database has 0 bytes, or has no table although an earlier good backup of
    /// the project has some.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub emptied: bool,
    /// Whether a key is required to open the archive. The details are stored inside the archive
    /// only, so lists show no description and no warnings.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// The pin, if the backup is pinned. A pinned backup is never removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pin>,
    /// The archive itself, if the store contains only a link to it.
    #[serde(skip)]
    pub linked_to: Option<PathBuf>,
    /// Whether the object of the archive is another one than was written. Its content may be the
    /// same, for example after a copy between stores.
    #[serde(skip)]
    pub is_replaced: bool,
    /// The id of the project, which distinguishes projects that share a store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// The id of the project, and the path that it had.
    #[serde(skip)]
    pub origin: Option<Origin>,
}

impl Store {
    /// Returns the store at `dir`, a directory that need not exist yet, or the URL of an object
    /// store. `KG_BACKUP_DIR_INVALID` for a file, and for a URL that is not valid.
    ///
    /// Credentials and other options of an object store come from the environment.
    pub fn at(dir: &Path) -> Result<Self> {
        Store::open(dir, &StorageOptions::default())
    }

    /// Works like [`Store::at`], with the options of an object store. A directory ignores them.
    pub fn open(dir: &Path, options: &StorageOptions) -> Result<Self> {
        if let Some(location) = location(dir)? {
            let objects = place::connect(&location, options)?;
            return Ok(Store::of(&Place::Objects(objects)));
        }
        let dir = paths::absolute(dir).map_err(|cause| Error::io("resolve", dir, cause))?;
        match fs::metadata(&dir) {
            Ok(found) if !found.is_dir() => Err(dir_invalid(&dir, "is a file")),
            _ => Ok(Store::of(&Place::Directory(dir))),
        }
    }

    /// Returns the store at a place that is known to be one.
    pub fn of(place: &Place) -> Self {
        Store {
            place: place.clone(),
            project: None,
            home: None,
            keys: Keys::default(),
            encrypts: EncryptionPolicy::default(),
            mode: None,
            doubt: None,
        }
    }

    /// Returns the same store with requests limited to the project at `root`, because other
    /// projects may use the store too. The project need not exist: its backups are needed most when
    /// its `.kg` is lost.
    pub fn for_project(self, root: &Path) -> Self {
        Store {
            project: paths::absolute(root).ok().map(|root| Identity::at(&root)),
            home: Project::open(root).ok(),
            ..self
        }
    }

    /// Returns the project whose backups are requested, if it exists.
    pub fn home(&self) -> Option<&Project> {
        self.home.as_ref()
    }

    /// Returns the same store with the keys that open its encrypted archives.
    pub fn with_keys(self, keys: Keys) -> Self {
        Store { keys, ..self }
    }

    /// Returns the same store with the caller's decision whether new archives are encrypted.
    pub fn encrypting(self, encrypts: bool) -> Self {
        self.as_set(if encrypts {
            EncryptionPolicy::Yes
        } else {
            EncryptionPolicy::Never
        })
    }

    pub fn as_set(self, encrypts: EncryptionPolicy) -> Self {
        Store { encrypts, ..self }
    }

    /// Returns the same store with these permissions for new archives. For `None`,
    /// [`atomic_file::TempFile::in_store`] chooses them.
    pub fn with_mode(self, mode: Option<u32>) -> Self {
        Store { mode, ..self }
    }

    pub fn doubted(self, doubt: Option<Doubt>) -> Self {
        Store { doubt, ..self }
    }

    /// Fails if another store may be the intended one; nothing may be written here then.
    pub fn assert_undoubted(&self) -> Result<()> {
        self.doubt
            .as_ref()
            .map_or(Ok(()), |doubt| Err(doubt.why.clone()))
    }

    /// Fails if another store is likely to be the intended one. The contents of this store are not
    /// meaningful then.
    pub fn assert_meant(&self) -> Result<()> {
        let doubt = self.doubt.as_ref().filter(|doubt| doubt.hides_another);
        doubt.map_or(Ok(()), |doubt| Err(doubt.why.clone()))
    }

    /// Returns the same store for the backup before a repair, which must be possible while the
    /// settings are broken. A plain backup still never follows an encrypted one.
    pub fn for_recovery(self) -> Self {
        let encrypts = match self.encrypts {
            EncryptionPolicy::Unread(error) => EncryptionPolicy::UnreadInRecovery(error),
            decided => decided,
        };
        Store {
            encrypts,
            doubt: None,
            ..self
        }
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns warnings about exposed key files among those used so far, for the store or for
    /// `archive`.
    pub fn key_warnings(&self, archive: &Archive) -> Vec<Warning> {
        let dirs = [&self.place, archive.place()].map(|place| place.directory().map(resolve));
        let warnings = self.keys.files().into_iter().filter_map(|file| {
            let path = resolve(&file.path);
            let is_here = dirs.iter().flatten().any(|dir| path.starts_with(dir));
            let where_it_is = "it lies in the directory of the backups that it opens".to_string();
            let why = file.exposed.or(is_here.then_some(where_it_is))?;
            let message = format!(
                "The key in {} does not protect the backups: {why}",
                file.path.display()
            );
            Some(Warning::new(WarningCode::KeyExposed, message))
        });
        warnings.collect()
    }

    /// Warns that an archive is plain although keys were given or new archives are encrypted. An
    /// attacker may have replaced the encrypted archive.
    pub fn plain_warning(&self, archive: &Archive) -> Option<Warning> {
        let is_expected = self.keys.are_given() || self.encrypts();
        let is_plain = || {
            archive
                .open()
                .and_then(|file| is_encrypted(&*file))
                .is_ok_and(|encrypted| !encrypted)
        };
        let message = format!(
            "{archive} is not encrypted, so no key proves where it comes from; \
             `encryption.requireEncryption` refuses such a backup"
        );
        (is_expected && is_plain()).then(|| Warning::new(WarningCode::NotEncrypted, message))
    }

    /// Returns `.kg/backups` of the project.
    pub fn default_dir(project_root: &Path) -> PathBuf {
        project_root.join(STATE_DIR).join(BACKUPS_DIR)
    }

    /// Returns the directory or the URL, for messages and results.
    pub fn dir(&self) -> &Path {
        self.place.address()
    }

    /// Returns the name of what a project keeps about this store.
    pub fn cache_name(&self) -> String {
        let digest = Sha256::digest(self.dir().as_os_str().as_encoded_bytes());
        hex(&digest[..CACHE_NAME_BYTES])
    }

    /// Returns the directory, unless the store is in an object store.
    pub fn directory(&self) -> Option<&Path> {
        self.place.directory()
    }

    /// Fails with `KG_UNSUPPORTED` if the storage class of archives delays their reading by hours: a
    /// restore would need each of a chain.
    pub fn assert_takes_chains(&self) -> Result<()> {
        match &self.place {
            Place::Objects(objects) if objects.freezes() => Err(Error::new(
                Code::Unsupported,
                format!(
                    "The storage class of {} delays the reading of archives, so it is not for \
                     incremental backups",
                    self.dir().display()
                ),
                "Make full backups, or choose another `storageClass`",
            )),
            _ => Ok(()),
        }
    }

    /// Warns that removed backups still take space, if the bucket is known to keep versions.
    pub fn versions_warning(&self) -> Option<Warning> {
        let Place::Objects(objects) = &self.place else {
            return None;
        };
        let message = format!(
            "The bucket of {} keeps versions, so what was removed still takes space: add a \
             lifecycle rule that expires noncurrent versions",
            self.dir().display()
        );
        let keeps = objects.client().keeps_versions();
        keeps.then(|| Warning::new(WarningCode::Store, message))
    }

    /// Returns a warning if the service of a new store supports no conditions on writes. The lock
    /// object tells later runs. A store that has
    /// archives is not asked.
    pub fn unconditional_warning(&self) -> Result<Option<Warning>> {
        let Place::Objects(objects) = &self.place else {
            return Ok(None);
        };
        if !self.archive_names()?.is_empty() {
            return Ok(None);
        }
        let Conditions { create, replace } = objects.client().conditions()?;
        if create && replace {
            return Ok(None);
        }
        objects.client().drop_conditions();
        let message = format!(
            "The service of {} supports no conditions on writes, so two processes that write there \
             at the same time may not notice each other: let only one write there",
            self.dir().display()
        );
        Ok(Some(Warning::new(WarningCode::Store, message)))
    }

    /// Refuses a directory below `.kg/` whose archives the next backup would save
    /// (`KG_BACKUP_DIR_IN_PROJECT`).
    pub fn assert_outside(&self, project: &Project) -> Result<()> {
        let Some(dir) = self.place.directory() else {
            return Ok(());
        };
        let dir = resolve(dir);
        let inside = dir.strip_prefix(resolve(&project.state_dir())).ok();
        if inside.is_none_or(|inside| inside.starts_with(BACKUPS_DIR)) {
            return Ok(());
        }
        Err(Error::new(
            Code::BackupDirInProject,
            format!(
                "Backups in {} would be backed up into themselves",
                self.dir().display()
            ),
            format!("Use a directory outside {STATE_DIR}, or {STATE_DIR}/{BACKUPS_DIR}"),
        ))
    }

    /// Creates the directory and waits, at most `timeout`, until this process is the only writer.
    pub fn lock(&self, timeout: Duration, context: &OperationContext) -> Result<StoreLock> {
        self.assert_undoubted()?;
        match &self.place {
            Place::Directory(dir) => {
                let home = self.home.as_ref();
                let shared = home.and_then(|home| ownership::share(dir, &home.state_dir()));
                self.create(dir)?;
                let lock = FileLock::acquire(dir, shared, timeout, context)?;
                Ok(StoreLock::File { _lock: lock })
            }
            Place::Objects(objects) => {
                let lease = Lease::acquire(objects, timeout, context)?;
                // The process that held it before may have written.
                objects.forget_listing();
                Ok(StoreLock::Lease(lease))
            }
        }
    }

    /// Returns why this user could not lock the store, judging by permissions only.
    pub fn refusal_to_lock(&self) -> Option<Error> {
        self.place.directory().and_then(lock::refusal)
    }

    /// Returns whether a process is making or removing backups now, as far as can be determined.
    pub fn is_in_use(&self) -> bool {
        match &self.place {
            Place::Directory(dir) => lock::is_held(dir),
            Place::Objects(objects) => matches!(lease::holder(objects), Ok(Some(_))),
        }
    }

    /// Returns whether the directory exists, or an error if that cannot be determined.
    pub fn exists(&self) -> Result<bool> {
        let Some(dir) = self.place.directory() else {
            return Ok(true);
        };
        match dir.try_exists() {
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => Ok(false),
            exists => exists.map_err(|cause| Error::io("look at", dir, cause)),
        }
    }

    fn create(&self, dir: &Path) -> Result<()> {
        // A killed run may have left the default directory empty.
        let is_default = || {
            self.home()
                .is_some_and(|home| dir == Store::default_dir(home.root()))
        };
        if self.exists()? && !(is_default() && atomic_file::is_new_or_empty(dir)) {
            return Ok(());
        }
        atomic_file::create_unversioned_dirs(dir).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                dir_invalid(dir, "lies below a file")
            }
            _ => Error::io("create", dir, cause),
        })
    }
}

/// Returns the location that `dir` names if it is a URL. Sends no request.
pub fn location(dir: &Path) -> Result<Option<Location>> {
    let url = dir.to_str().filter(|dir| Location::is_url(dir));
    url.map(Location::parse).transpose()
}

/// Returns whether `dir` is the URL of an object store. Opening one that is not valid is an error.
pub fn is_remote(dir: &Path) -> bool {
    matches!(location(dir), Ok(Some(_)))
}

/// Returns the name of a store as [`Store::dir`] does, without opening it.
pub fn full_name(dir: &Path) -> PathBuf {
    match location(dir) {
        Ok(Some(location)) => location.to_string().into(),
        _ => paths::absolute(dir).unwrap_or_else(|_| dir.to_path_buf()),
    }
}

/// Returns whether an object of a listing has another version than its sidecar says.
fn is_replaced(archive: &Archive, written: Option<&Version>) -> bool {
    let Some((written, state)) = written.zip(archive.state()) else {
        return false;
    };
    matches!(state, FileState::Object(now) if !now.is_same(written))
}

/// Returns what a backup with these warnings lacks, or `None` if no warning means that it is
/// incomplete.
pub fn lacks(warnings: &[Warning]) -> Option<String> {
    let lacking = warnings
        .iter()
        .filter(|warning| warning.code.means_incomplete());
    first_and_more(lacking.map(|warning| &warning.message))
}

fn dir_invalid(dir: &Path, what: &str) -> Error {
    Error::new(
        Code::BackupDirInvalid,
        format!("The backup directory {} {what}", dir.display()),
        "Name a directory, or remove that file",
    )
}

/// Returns the error for a plain archive that would follow encrypted ones without the caller's
/// request. `cause` is why the settings do not count.
impl Backup {
    /// Builds the backup from the sidecar of its archive, or returns `None` if the manifest does not
    /// describe the archive.
    fn new(archive: Archive, manifest: Manifest) -> Option<Self> {
        let origin = manifest.origin();
        let record = manifest.archive?;
        let pinned = pins::pin_beside(&archive);
        // The name also marks an encrypted archive, in case the manifest does not.
        let is_named = encryption::is_named(archive.name());
        Some(Backup {
            id: manifest.id,
            kind: manifest.kind,
            size: record.size,
            sidecar_size: archive
                .beside(names::MANIFEST_SUFFIX)
                .size_bytes()
                .ok()
                .flatten()
                .unwrap_or(0),
            checksum: format!(
                "{}{}",
                crate::archive::manifest::DIGEST_PREFIX,
                record.sha256
            ),
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
            emptied: manifest.emptied,
            encrypted: manifest.encrypted || is_named,
            pinned,
            linked_to: None,
            is_replaced: is_replaced(&archive, record.object.as_ref()),
            archive,
            project_id: manifest.project.clone(),
            origin,
        })
    }

    /// Returns the size of the archive and its sidecar in bytes.
    pub fn disk_size(&self) -> u64 {
        self.size.saturating_add(self.sidecar_size)
    }

    /// Returns the bytes that removing the backup frees. If the archive is linked into the store,
    /// only the link and the sidecar are removed.
    pub fn removable_size(&self) -> u64 {
        if self.linked_to.is_some() {
            self.sidecar_size
        } else {
            self.disk_size()
        }
    }

    /// Warns that removing a linked backup leaves the archive itself in place.
    pub fn left_behind(&self) -> Option<Warning> {
        let archive = self.linked_to.as_ref()?.display();
        let message = format!(
            "Only the link to {} in the store is removed; the archive itself stays: {archive}",
            self.id
        );
        Some(Warning::new(WarningCode::Store, message))
    }

    /// Returns whether the backup is dated in the future by more than the clock tolerance.
    pub fn is_ahead(&self, now: Timestamp) -> bool {
        self.timestamp > now.as_millisecond() + CLOCK_TOLERANCE_MS
    }

    /// Describes what an incomplete backup lacks: the first item and the number of others.
    pub fn lacks(&self) -> String {
        let inside =
            || "the encrypted archive lists what it lacks, and a restore reports it".into();
        lacks(&self.warnings).unwrap_or_else(inside)
    }

    /// Adds warnings about the store that contains the backup.
    pub fn with_warnings(mut self, warnings: Vec<Warning>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

#[cfg(test)]
mod tests;
