//! The configuration of a manager: parsed from the JSON that JavaScript sends, and completed by the
//! project's settings. The parsing helpers for all options are here too.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use age::secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    archive::{
        block::Compression,
        encryption::{Keys, parse_recipient},
    },
    commands::{
        configured::{self, CallerEncryption, NamedStore},
        credentials::{KeySource, assert_passphrase},
    },
    config::{
        self, Settings,
        backup_config::{BackupConfig, BackupOptions},
    },
    error::{Code, Error, Result, Warning},
    objects::StorageOptions,
    schedule::cron::Cadence,
    store::{Store, is_remote, location, retention::Keep},
    worker::client::{Worker, WorkerMode},
};

/// The configuration of a `BackupManager`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    pub project_root: PathBuf,
    backup_dir: Option<PathBuf>,
    compression: Option<Value>,
    compression_level: Option<f64>,
    include_vectors: Option<bool>,
    include_plugin_data: Option<bool>,
    exclude_patterns: Option<Vec<String>>,
    check_source: Option<bool>,
    /// The time to wait for locks, in milliseconds.
    lock_timeout: Option<f64>,
    retention_days: Option<f64>,
    max_backups: Option<f64>,
    keep: Option<KeepOptions>,
    max_chain_length: Option<f64>,
    undo_retention_days: Option<f64>,
    strict: Option<bool>,
    force_read: Option<bool>,
    schedule: Option<String>,
    storage_options: Option<Value>,
    encryption: Option<Encryption>,
    /// The settings of the project, which complete the options; empty until they are read.
    #[serde(skip)]
    pub(super) settings: Settings,
    /// Warnings about the settings, once they are read.
    #[serde(skip)]
    settings_warnings: Option<Vec<Warning>>,
    /// The `kg` executable that runs as the worker.
    kg_path: PathBuf,
    /// This process is `kg`, which needs no other worker.
    #[serde(skip)]
    pub(super) is_in_kg: bool,
}

impl Config {
    pub fn parse(json: &str) -> Result<Self> {
        let config: Config = parse(json)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let is_local = self
            .backup_dir
            .as_deref()
            .map(location)
            .transpose()?
            .flatten()
            .is_none();
        let is_named = self.backup_dir.is_some();
        if is_named && is_local && self.storage()? != StorageOptions::default() {
            return Err(Error::invalid(
                "`storageOptions` is given, but `backupDir` is a directory",
                "Leave it out, or give the URL of an object store as `backupDir`",
            ));
        }
        self.encryption.as_ref().map_or(Ok(()), Encryption::check)?;
        self.set()?;
        self.schedule.as_ref().map_or(Ok(()), |schedule| {
            Cadence::parse(schedule, None).map(|_| ())
        })?;
        if is_local {
            self.store().map(|_| ())
        } else {
            self.storage().map(|_| ())
        }
    }

    /// Returns the options of an object store.
    fn storage(&self) -> Result<StorageOptions> {
        storage(self.storage_options.as_ref())
    }

    /// Returns whether the backups are in an object store, so that a host must have `kg` carry out
    /// the call. Reads the settings if the configuration names no store.
    pub fn is_remote(&mut self) -> Result<bool> {
        let dir = match &self.backup_dir {
            Some(dir) => Some(dir.clone()),
            None => {
                self.settle()?;
                self.settings.dir(&self.project_root)
            }
        };
        Ok(dir.is_some_and(|dir| is_remote(&dir)))
    }

    /// Returns whether the second store that the settings name is an object store.
    pub fn copies_remotely(&mut self) -> Result<bool> {
        self.settle()?;
        let target = self.settings.copy_to(&self.project_root);
        Ok(target.is_some_and(|target| is_remote(&target)))
    }

    /// Completes the configuration from the settings of the project, once.
    pub fn settle(&mut self) -> Result<()> {
        if self.settings_warnings.is_none() {
            let (settings, warnings) = Worker::settings(&self.launch(), &self.project_root)?;
            (self.settings, self.settings_warnings) = (settings, Some(warnings));
        }
        Ok(())
    }

    /// Returns warnings about settings that cannot be used.
    pub fn settings_warnings(&self) -> Vec<Warning> {
        self.settings_warnings.clone().unwrap_or_default()
    }

    /// Returns what the manager sets. Fails with `KG_INVALID_OPTION`.
    pub(super) fn set(&self) -> Result<BackupConfig> {
        let days = "a number of days";
        let backups = "a number of backups";
        Ok(BackupConfig {
            compression: compression(self.compression.as_ref())?,
            compression_level: compression_level(self.compression_level)?,
            lock_timeout: lock_timeout(self.lock_timeout)?,
            retention_days: whole("retentionDays", self.retention_days, 1, days)?,
            max_backups: whole("maxBackups", self.max_backups, 1, backups)?,
            keep: self.keep.as_ref().map(KeepOptions::rules).transpose()?,
            max_chain_length: whole("maxChainLength", self.max_chain_length, 1, backups)?,
            undo_retention_days: whole("undoRetentionDays", self.undo_retention_days, 1, days)?,
            include_vectors: self.include_vectors,
            include_plugin_data: self.include_plugin_data,
            exclude_patterns: self.exclude_patterns.clone(),
            check_source: self.check_source,
            strict: self.strict,
            force_read: self.force_read,
            ..BackupConfig::default()
        })
    }

    /// Returns what the manager and the settings of the project set.
    pub(super) fn merged(&self) -> Result<BackupConfig> {
        Ok(self.set()?.over(BackupConfig::of(&self.settings)))
    }

    /// Returns the value of every option.
    pub(super) fn resolved(&self) -> Result<BackupOptions> {
        Ok(self.merged()?.resolve())
    }

    pub fn store(&self) -> Result<Store> {
        self.store_for(None)
    }

    /// Returns the store for a new backup. `encrypt` is the option of the call.
    pub fn store_for(&self, encrypt: Option<bool>) -> Result<Store> {
        let root = &self.project_root;
        if self
            .backup_dir
            .as_ref()
            .is_some_and(|dir| dir.as_os_str().is_empty())
        {
            return Err(Error::invalid(
                "`backupDir` is empty",
                "Name a directory, or leave it out for .kg/backups",
            ));
        }
        let said = Encryption::said(self.encryption.as_ref(), encrypt);
        let storage = self.storage()?;
        let named = NamedStore {
            dir: self.backup_dir.as_deref(),
            options: Some(&storage),
        };
        let store = configured::store(&self.settings, root, named, said, &self.launch())?;
        let keys = match self.encryption.as_ref().and_then(Encryption::keys) {
            Some(options) => options.keys(root, &self.launch()),
            None => KeySource::keys_of_project(root, &self.launch()),
        };
        Ok(store.with_keys(keys))
    }

    pub fn names_a_store(&self) -> bool {
        self.backup_dir.is_some()
    }

    pub fn kg_path(&self) -> &Path {
        &self.kg_path
    }

    pub fn launch(&self) -> WorkerMode {
        worker_mode(self.is_in_kg, &self.kg_path)
    }
}

/// Parses the option `storageOptions`.
pub(super) fn storage(given: Option<&Value>) -> Result<StorageOptions> {
    given.map_or(Ok(StorageOptions::default()), StorageOptions::from_json)
}

pub(super) fn worker_mode(is_in_kg: bool, kg_path: &Path) -> WorkerMode {
    if is_in_kg {
        WorkerMode::InProcess
    } else {
        WorkerMode::Subprocess(kg_path.to_path_buf())
    }
}

/// The option `encryption`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Encryption {
    /// `false`: new backups are not encrypted. The keys of the settings open existing backups.
    Is(bool),
    Keys(EncryptionOptions),
}

impl Encryption {
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Encryption::Is(false) => Ok(()),
            Encryption::Is(true) => Err(Error::invalid(
                "`encryption` is true, but names no key",
                "Give the keys",
            )),
            Encryption::Keys(options) => options.check(),
        }
    }

    pub(super) fn keys(&self) -> Option<&EncryptionOptions> {
        match self {
            Encryption::Is(_) => None,
            Encryption::Keys(options) => Some(options),
        }
    }

    /// Combines the configuration of a manager with the option of one call into a decision about a
    /// new backup.
    pub(super) fn said(configured: Option<&Encryption>, encrypt: Option<bool>) -> CallerEncryption {
        match (encrypt, configured) {
            (Some(false), _) | (None, Some(Encryption::Is(_))) => CallerEncryption::Plain,
            (_, Some(Encryption::Keys(_))) => CallerEncryption::EncryptedTo,
            (Some(true), _) => CallerEncryption::Encrypted,
            (None, None) => CallerEncryption::Nothing,
        }
    }
}

/// The keys that `encryption` names.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionOptions {
    #[serde(default, deserialize_with = "secret")]
    passphrase: Option<SecretString>,
    passphrase_file: Option<PathBuf>,
    identity_file: Option<PathBuf>,
    recipients: Option<Vec<String>>,
    #[serde(default)]
    require_encryption: bool,
}

/// Deserializes a secret into a type whose `Debug` output does not reveal it.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Option::<String>::deserialize(deserializer).map(|text| text.map(SecretString::from))
}

impl EncryptionOptions {
    fn source(&self) -> KeySource {
        KeySource {
            passphrase: self.passphrase.clone(),
            passphrase_files: self.passphrase_file.iter().cloned().collect(),
            identity_files: self.identity_file.iter().cloned().collect(),
            recipients: self.recipients.clone().unwrap_or_default(),
        }
    }

    pub(super) fn keys(&self, root: &Path, worker_mode: &WorkerMode) -> Keys {
        self.source()
            .keys(root, worker_mode)
            .given()
            .requiring_encryption(self.require_encryption)
    }

    pub(super) fn check(&self) -> Result<()> {
        let source = self.source();
        if source.is_empty() {
            let remedy = "Give `passphrase`, `passphraseFile`, `recipients` or `identityFile`, or \
                          leave `encryption` out";
            return Err(Error::new(
                Code::KeyNeeded,
                "`encryption` names no key",
                remedy,
            ));
        }
        if let Some(passphrase) = &source.passphrase {
            assert_passphrase(passphrase.expose_secret()).map_err(|what| {
                Error::new(
                    Code::KeyInvalid,
                    format!("`passphrase` {what}"),
                    "Give another one",
                )
            })?;
        }
        if self.passphrase.is_some() && self.passphrase_file.is_some() {
            return Err(Error::invalid(
                "`passphrase` and `passphraseFile` are both given",
                "Give one of them",
            ));
        }
        source
            .recipients
            .iter()
            .try_for_each(|recipient| parse_recipient(recipient).map(drop))
    }
}

/// The option `keep`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeepOptions {
    last: Option<f64>,
    hourly: Option<f64>,
    daily: Option<f64>,
    weekly: Option<f64>,
    monthly: Option<f64>,
    yearly: Option<f64>,
}

impl KeepOptions {
    pub(super) fn rules(&self) -> Result<Keep> {
        let rule = |name, value| whole(name, value, 1, "a number of backups");
        Ok(Keep {
            last: rule("keep.last", self.last)?,
            hourly: rule("keep.hourly", self.hourly)?,
            daily: rule("keep.daily", self.daily)?,
            weekly: rule("keep.weekly", self.weekly)?,
            monthly: rule("keep.monthly", self.monthly)?,
            yearly: rule("keep.yearly", self.yearly)?,
        })
    }
}

pub(super) fn parse<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|cause| {
        // serde_json uses the words of Rust, and appends a position in the JSON text, which the caller
        // in JavaScript has never seen.
        let text = cause.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        let what = what
            .replace("unknown field", "unknown option")
            .replace("unknown variant", "unknown value")
            .replace("invalid type", "wrong type");
        Error::invalid(
            format!("The options cannot be used: {what}"),
            "See index.d.ts for the options and their types",
        )
    })
}

/// Returns the format that `compression` names.
pub(super) fn compression(given: Option<&Value>) -> Result<Option<Compression>> {
    let parse = |given: &Value| {
        config::compression(given).ok_or_else(|| {
            let message =
                format!("`compression` is {given}, not true, false, \"gzip\" or \"zstd\"");
            Error::invalid(message, "Leave it out for gzip")
        })
    };
    given.map(parse).transpose()
}

pub(super) fn compression_level(level: Option<f64>) -> Result<Option<u8>> {
    match level {
        Some(level) if level.fract() != 0.0 || !(1.0..=9.0).contains(&level) => {
            Err(Error::invalid(
                format!("`compressionLevel` is {level}, not a whole number from 1 to 9"),
                "Use 1 for speed, 9 for size, or leave it out",
            ))
        }
        level => Ok(level.map(|level| level as u8)),
    }
}

/// Returns the time to wait for locks, which JavaScript gives in milliseconds.
pub(super) fn lock_timeout(given: Option<f64>) -> Result<Option<Duration>> {
    let milliseconds = whole("lockTimeout", given, 0, "a number of milliseconds")?;
    Ok(milliseconds.map(|milliseconds| Duration::from_millis(milliseconds.into())))
}

/// Returns the number, which is not negative. Fails with `KG_INVALID_OPTION` if it is not whole, or
/// smaller than `least`.
pub(super) fn whole(name: &str, value: Option<f64>, least: u32, what: &str) -> Result<Option<u32>> {
    match value {
        Some(value)
            if value.fract() != 0.0 || value < f64::from(least) || value > f64::from(u32::MAX) =>
        {
            let message = format!(
                "`{name}` is {value}, not {what} from {least} to {}",
                u32::MAX
            );
            Err(Error::invalid(message, "Give a whole number"))
        }
        value => Ok(value.map(|value| value as u32)),
    }
}
