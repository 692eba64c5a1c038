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

mod archive_file;
mod catalog;
pub mod chain;
pub mod known_stores;
mod lock;
mod names;
mod pins;
pub mod retention;
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

pub use self::{
    archive_file::ArchiveFile,
    catalog::{Flaw, Listing, Unlisted, described_beside, manifest_beside},
    lock::StoreLock,
    names::is_id,
    pins::Pin,
    usable::{broken_chains, good, newest_good, passed_over, passed_over_warning},
    write::{NewBackup, Removal},
};
use crate::{
    archive::{
        encryption::{self, Keys, read::is_encrypted},
        manifest::{Contents, Manifest, Stats},
    },
    error::{Code, Error, Result, Warning, WarningCode, first_and_more},
    project::{BACKUPS_DIR, Project, STATE_DIR},
    sqlite::check::Integrity,
    system::paths::{self, resolve},
    util::{atomic_file, operation::OperationContext, ownership, regular_file},
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
    encrypts: EncryptionPolicy,
    /// Permissions of new archives, and of what stands beside them.
    mode: Option<u32>,
    doubt: Option<Doubt>,
}

/// That this may not be the store that is meant: nothing is written to it.
#[derive(Debug, Clone)]
pub struct Doubt {
    pub why: Error,
    /// Another one may well be: nothing is taken from this one either.
    pub hides_another: bool,
}

/// Whether new archives are encrypted, as the call and the settings say together: `schedule::automatic::encrypts` decides it.
///
/// Unless the call itself asks for a plain archive, none is made after an encrypted one.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum EncryptionPolicy {
    /// Nothing asks for it.
    #[default]
    Unasked,
    /// Nothing but a key of the settings: they name who could read it.
    KeyAlone,
    /// The settings turn it off. They may do so for one store while another one is encrypted.
    TurnedOff,
    /// The call asks for a plain archive.
    Never,
    Yes,
    /// The settings cannot be read: refused with this.
    Unread(Error),
    /// The settings cannot be read, and a backup before a repair is made all the same.
    UnreadInRecovery(Error),
    /// An encryption setting is present but invalid: refused with this.
    Undecided(Error),
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
    /// Its graph database has 0 bytes, or no table while an earlier good backup of the project has some.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub emptied: bool,
    /// Only a key opens it. What it holds is named inside alone: in lists it has no description and no warnings.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Nothing removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pin>,
    /// The archive itself, if what lies in the store is a link to it.
    #[serde(skip)]
    pub linked_to: Option<PathBuf>,
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
                format!(
                    "{} is not a directory: this release keeps backups in local directories only",
                    dir.display()
                ),
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
            _ => Ok(Store {
                dir,
                project: None,
                home: None,
                keys: Keys::default(),
                encrypts: EncryptionPolicy::default(),
                mode: None,
                doubt: None,
            }),
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

    /// The same store, whose new archives are encrypted, or are not, because the caller says so.
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

    /// The same store, whose new archives have these permissions; without any, those of [`atomic_file::TempFile::in_store`].
    pub fn with_mode(self, mode: Option<u32>) -> Self {
        Store { mode, ..self }
    }

    pub fn doubted(self, doubt: Option<Doubt>) -> Self {
        Store { doubt, ..self }
    }

    /// Fails if another store may be meant: nothing is written here then.
    pub fn assert_undoubted(&self) -> Result<()> {
        self.doubt
            .as_ref()
            .map_or(Ok(()), |doubt| Err(doubt.why.clone()))
    }

    /// Fails if another store is likely to be meant: what is newest here, or what is here at all, says nothing then.
    pub fn assert_meant(&self) -> Result<()> {
        let doubt = self.doubt.as_ref().filter(|doubt| doubt.hides_another);
        doubt.map_or(Ok(()), |doubt| Err(doubt.why.clone()))
    }

    /// The same store for the backup before a repair, which must be possible while the settings are broken. An encrypted
    /// backup is still not followed by a plain one.
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

    /// What is to be said of the files of keys that were used so far, for `archive`.
    pub fn key_warnings(&self, archive: &Path) -> Vec<Warning> {
        let dirs = [Some(self.dir.as_path()), archive.parent()].map(|dir| dir.map(resolve));
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

    /// That an archive is not encrypted although keys were given or new ones are encrypted. It may have been put there in the place
    /// of another one.
    pub fn plain_warning(&self, archive: &Path) -> Option<Warning> {
        let is_expected = self.keys.are_given() || self.encrypts();
        let is_plain = || {
            regular_file::open_linked(archive)
                .and_then(|file| is_encrypted(&file))
                .is_ok_and(|encrypted| !encrypted)
        };
        let message = format!(
            "{} is not encrypted, so no key proves where it comes from; `--decrypt` and `--require-encryption` \
             (`requireEncryption`) refuse such a backup",
            archive.display()
        );
        (is_expected && is_plain()).then(|| Warning::new(WarningCode::NotEncrypted, message))
    }

    pub fn encrypts(&self) -> bool {
        self.encrypts == EncryptionPolicy::Yes
    }

    /// Whether a new archive is plain unless something forbids it.
    pub fn may_be_plain(&self) -> bool {
        use EncryptionPolicy::{KeyAlone, Never, TurnedOff, Unasked, UnreadInRecovery};
        matches!(
            self.encrypts,
            Unasked | KeyAlone | UnreadInRecovery(_) | TurnedOff | Never
        )
    }

    /// Fails if a new archive could be read by others than those who are meant, or could not be encrypted. `was_encrypted`
    /// says what the project remembers of its newest backup, which may lie in another store.
    pub fn check_encryption_policy(&self, was_encrypted: bool) -> Result<()> {
        let follows_encrypted = |remembered: bool| -> Result<bool> {
            Ok((remembered && was_encrypted)
                || self.newest_own()?.is_some_and(|newest| newest.encrypted))
        };
        match &self.encrypts {
            EncryptionPolicy::Never => Ok(()),
            EncryptionPolicy::Yes => self.keys.assert_encrypting(),
            EncryptionPolicy::Undecided(error) => Err(error.clone()),
            EncryptionPolicy::Unread(error) | EncryptionPolicy::UnreadInRecovery(error)
                if follows_encrypted(true)? =>
            {
                Err(first_plain(Some(error)))
            }
            EncryptionPolicy::Unasked | EncryptionPolicy::KeyAlone if follows_encrypted(true)? => {
                Err(first_plain(None))
            }
            EncryptionPolicy::TurnedOff if follows_encrypted(false)? => Err(first_plain(None)),
            EncryptionPolicy::Unread(error) => Err(error.clone()),
            EncryptionPolicy::Unasked
            | EncryptionPolicy::KeyAlone
            | EncryptionPolicy::UnreadInRecovery(_)
            | EncryptionPolicy::TurnedOff => Ok(()),
        }
    }

    /// That a plain backup is made although the settings name a key for it.
    pub fn key_without_encryption(&self) -> Option<Warning> {
        let message = "It is not encrypted: the settings name who could read it (`backup.passphraseFile`, `backup.recipients`), and \
                       nothing asks for encryption. `kg config set backup.encrypt true` does, `false` says that plain backups are meant";
        (self.encrypts == EncryptionPolicy::KeyAlone)
            .then(|| Warning::new(WarningCode::NotEncrypted, message))
    }

    /// The newest backup that the project made for itself. The backup before a repair counts only if there is no other.
    fn newest_own(&self) -> Result<Option<Backup>> {
        // What cannot be made a directory is refused when it is to be made.
        if !self.dir.is_dir() {
            return Ok(None);
        }
        let Listing {
            backups: listed,
            unlisted,
        } = self.read()?;
        let mut own: Vec<Backup> = listed
            .iter()
            .filter(|backup| self.is_own(backup))
            .cloned()
            .collect();
        // What lies in a project is of that project, also if it was moved.
        if own.is_empty() && self.dir.ends_with(Path::new(STATE_DIR).join(BACKUPS_DIR)) {
            own = listed;
        }
        let regular = own
            .iter()
            .position(|backup| !backup.safety_backup)
            .unwrap_or(0);
        let newest = own.into_iter().nth(regular);
        // The name alone tells that an archive is encrypted.
        let encrypted = unlisted
            .into_iter()
            .filter(Unlisted::is_encrypted)
            .collect::<Vec<_>>();
        catalog::assert_none_unread_after(&encrypted, newest.as_ref())?;
        Ok(newest)
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
            format!(
                "Backups in {} would be backed up into themselves",
                self.dir.display()
            ),
            format!("Use a directory outside {STATE_DIR}, or {STATE_DIR}/{BACKUPS_DIR}"),
        ))
    }

    /// Whether it lies in the state of the project.
    pub fn is_inside(&self, project: &Project) -> bool {
        resolve(&self.dir).starts_with(resolve(&project.state_dir()))
    }

    /// Makes the directory and waits, at most `timeout`, until this process is the only one that writes to it.
    pub fn lock(&self, timeout: Duration, context: &OperationContext) -> Result<StoreLock> {
        self.assert_undoubted()?;
        let shared = self
            .home
            .as_ref()
            .and_then(|home| ownership::share(&self.dir, &home.state_dir()));
        self.create()?;
        StoreLock::acquire(&self.dir, shared, timeout, context)
    }

    /// Why this user could not lock the store, as far as permissions tell.
    pub fn refusal_to_lock(&self) -> Option<Error> {
        lock::refusal(&self.dir)
    }

    /// Whether somebody makes or removes backups now, as far as that can be told.
    pub fn is_in_use(&self) -> bool {
        lock::is_held(&self.dir)
    }

    /// Whether its directory is there; an error if that cannot be told.
    pub fn exists(&self) -> Result<bool> {
        match self.dir.try_exists() {
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => Ok(false),
            exists => exists.map_err(|cause| Error::io("look at", &self.dir, cause)),
        }
    }

    fn create(&self) -> Result<()> {
        if self.exists()? {
            return Ok(());
        }
        atomic_file::create_dirs(&self.dir).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Error::new(
                Code::BackupDirInvalid,
                format!(
                    "The backup directory {} lies below a file",
                    self.dir.display()
                ),
                "Name a directory",
            ),
            _ => Error::io("create", &self.dir, cause),
        })
    }
}

/// What a backup with these warnings lacks; `None` if they do not name anything.
pub fn lacks(warnings: &[Warning]) -> Option<String> {
    let lacking = warnings
        .iter()
        .filter(|warning| warning.code.means_incomplete());
    first_and_more(lacking.map(|warning| &warning.message))
}

/// A plain archive would follow encrypted ones, and the caller did not ask for that. `cause` is why the settings do not count.
fn first_plain(cause: Option<&Error>) -> Error {
    let (why, remedy) = match cause {
        Some(cause) => (format!("{}. ", cause.message), cause.remedy.as_str()),
        None => (
            String::new(),
            "Mend `backup.encrypt` and the keys of the settings (`kg config show`)",
        ),
    };
    Error::new(
        Code::KeyInvalid,
        format!(
            "{why}The newest backup of this project is encrypted, and nothing says how to encrypt the next one"
        ),
        format!(
            "{remedy}; or give `--recipient` or `--passphrase-file` (`encryption` in the API). `--no-encrypt` \
             (`encrypt: false`) makes a plain backup"
        ),
    )
}

impl Backup {
    /// `manifest` is one that stood beside the archive at `path`.
    fn new(path: PathBuf, manifest: Manifest) -> Option<Self> {
        let archive = manifest.archive?;
        let pinned = pins::pin_beside(&path);
        // The name says it too, should the manifest not.
        let is_named = path
            .file_name()
            .is_some_and(|name| encryption::is_named(&name.to_string_lossy()));
        Some(Backup {
            id: manifest.id,
            kind: manifest.kind,
            size: archive.size,
            sidecar_size: fs::metadata(catalog::manifest_path(&path))
                .map_or(0, |found| found.len()),
            checksum: format!(
                "{}{}",
                crate::archive::manifest::DIGEST_PREFIX,
                archive.sha256
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
            path,
            project: manifest.project,
        })
    }

    /// What it takes on the disk: its archive and its sidecar.
    pub fn disk_size(&self) -> u64 {
        self.size.saturating_add(self.sidecar_size)
    }

    /// What its removal frees: of an archive that is linked into the store, only the link is removed.
    pub fn removable_size(&self) -> u64 {
        if self.linked_to.is_some() {
            self.sidecar_size
        } else {
            self.disk_size()
        }
    }

    /// That its removal leaves the archive itself, where that is linked into the store.
    pub fn left_behind(&self) -> Option<Warning> {
        let archive = self.linked_to.as_ref()?.display();
        let message = format!(
            "Of {} the link in the store is removed; the archive itself stays: {archive}",
            self.id
        );
        Some(Warning::new(WarningCode::Store, message))
    }

    /// Whether it is dated later than can be.
    pub fn is_ahead(&self, now: Timestamp) -> bool {
        self.timestamp > now.as_millisecond() + CLOCK_TOLERANCE_MS
    }

    /// What an incomplete backup lacks: the first of it, and how much more there is.
    pub fn lacks(&self) -> String {
        let inside =
            || "what it lacks is named inside the encrypted archive, and by a restore of it".into();
        lacks(&self.warnings).unwrap_or_else(inside)
    }

    /// With what is to be said of the store that it is in.
    pub fn with_warnings(mut self, warnings: Vec<Warning>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}
