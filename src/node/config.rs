//! The configuration of a manager: parsed from the JSON that JavaScript sends, and completed by the
//! project's settings. The parsing helpers for all options are here too.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use age::secrecy::{ExposeSecret, SecretString};
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    archive::{
        block::Compression,
        encryption::{Keys, parse_recipient},
        manifest::BackupType,
    },
    commands::{
        backup::DEFAULT_LOCK_TIMEOUT,
        credentials::{KeySource, assert_passphrase},
        scheduled::{self, CallerEncryption},
    },
    config::{self, Settings},
    error::{Code, Error, Result},
    schedule::cron::Cadence,
    store::{
        Store,
        retention::{Keep, Policy},
    },
    worker::{client::WorkerMode, restore::undo::DEFAULT_RETENTION_DAYS},
};

/// The configuration of a `BackupManager`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    pub project_root: PathBuf,
    backup_dir: Option<PathBuf>,
    pub(super) compression: Option<Value>,
    pub(super) compression_level: Option<f64>,
    pub(super) include_vectors: Option<bool>,
    pub(super) include_plugin_data: Option<bool>,
    pub(super) exclude_patterns: Option<Vec<String>>,
    pub(super) check_source: Option<bool>,
    /// The time to wait for locks, in milliseconds.
    lock_timeout: Option<f64>,
    retention_days: Option<f64>,
    max_backups: Option<f64>,
    keep: Option<KeepOptions>,
    pub(super) max_chain_length: Option<f64>,
    undo_retention_days: Option<f64>,
    pub(super) strict: Option<bool>,
    /// The backup type of the project's settings. A manager has no such option.
    #[serde(skip)]
    pub(super) kind: Option<BackupType>,
    schedule: Option<String>,
    storage_options: Option<Value>,
    encryption: Option<Encryption>,
    /// The time zone of the project's settings.
    #[serde(skip)]
    zone: Option<TimeZone>,
    /// The settings of the project; empty until [`Config::complete`] was called.
    #[serde(skip)]
    settings: Settings,
    /// The `kg` executable that runs as the worker.
    kg_path: PathBuf,
}

impl Config {
    pub fn parse(json: &str) -> Result<Self> {
        let config: Config = parse(json)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if self.storage_options.is_some() {
            let message = "This release does not support `storageOptions`";
            return Err(Error::new(Code::Unsupported, message, "Leave it out"));
        }
        self.encryption.as_ref().map_or(Ok(()), Encryption::check)?;
        compression(self.compression.as_ref(), self.compression_level)?;
        whole(
            "lockTimeout",
            self.lock_timeout,
            0,
            "a number of milliseconds",
        )?;
        whole("retentionDays", self.retention_days, 1, "a number of days")?;
        whole("maxBackups", self.max_backups, 1, "a number of backups")?;
        self.keep.as_ref().map_or(Ok(()), KeepOptions::check)?;
        whole(
            "maxChainLength",
            self.max_chain_length,
            1,
            "a number of backups",
        )?;
        self.schedule.as_ref().map_or(Ok(()), |schedule| {
            Cadence::parse(schedule, None).map(|_| ())
        })?;
        whole(
            "undoRetentionDays",
            self.undo_retention_days,
            1,
            "a number of days",
        )?;
        self.store().map(|_| ())
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
        let store = scheduled::store(
            &self.settings,
            root,
            self.backup_dir.as_deref(),
            said,
            &self.launch(),
        )?;
        let keys = match self.encryption.as_ref().and_then(Encryption::keys) {
            Some(options) => options.keys(root, &self.launch()),
            None => KeySource::keys_of_project(root, &self.launch()),
        };
        Ok(store.with_keys(keys))
    }

    /// Fails if the settings about retention are unusable. Nothing may be removed then.
    pub fn assert_retention_known(&self) -> Result<()> {
        self.settings.doubt_of_retention().map_or(Ok(()), Err)
    }

    /// Completes options that are not set from the project's settings. Relative paths in the
    /// settings are resolved against the project's root.
    pub fn complete(&mut self, settings: &Settings) {
        let set = settings.policy();
        let number = |value: Option<u32>| value.map(f64::from);
        self.settings = settings.clone();
        self.kind = settings.kind();
        self.zone = settings.zone();
        self.compression = self
            .compression
            .take()
            .or_else(|| settings.get("backup.compression").cloned());
        self.compression_level = self
            .compression_level
            .or(number(settings.whole("backup.compressionLevel")));
        self.max_chain_length = self
            .max_chain_length
            .or(number(settings.whole("backup.maxChainLength")));
        self.include_vectors = self
            .include_vectors
            .or(settings.bool("backup.includeVectors"));
        self.include_plugin_data = self
            .include_plugin_data
            .or(settings.bool("backup.includePluginData"));
        self.exclude_patterns = self
            .exclude_patterns
            .take()
            .or_else(|| settings.list("backup.excludePatterns"));
        self.check_source = self.check_source.or(settings.bool("backup.checkSource"));
        self.strict = self.strict.or(settings.bool("backup.strict"));
        self.retention_days = self.retention_days.or(number(set.retention_days));
        self.max_backups = self.max_backups.or(number(set.max_backups));
        if self.keep.is_none() && set.keep != Keep::default() {
            self.keep = Some(KeepOptions::from(set.keep));
        }
    }

    pub fn names_a_store(&self) -> bool {
        self.backup_dir.is_some()
    }

    /// Returns the retention policy. The casts are safe because [`Config::parse`] has checked that
    /// all numbers are whole.
    pub fn retention(&self) -> Policy {
        if self.assert_retention_known().is_err() {
            return Policy::default();
        }
        let whole = |value: Option<f64>| value.map(|value| value as u32);
        let keep = self
            .keep
            .as_ref()
            .map_or(Keep::default(), KeepOptions::resolve);
        let zone = self.zone.clone().unwrap_or(TimeZone::UTC);
        Policy {
            retention_days: whole(self.retention_days),
            max_backups: whole(self.max_backups),
            keep,
            zone,
        }
    }

    pub fn undo_retention_days(&self) -> u32 {
        self.undo_retention_days
            .map_or(DEFAULT_RETENTION_DAYS, |days| days as u32)
    }

    pub fn launch(&self) -> WorkerMode {
        WorkerMode::Subprocess(self.kg_path.clone())
    }

    pub fn lock_timeout(&self) -> Duration {
        self.lock_timeout
            .map_or(DEFAULT_LOCK_TIMEOUT, |milliseconds| {
                Duration::from_millis(milliseconds as u64)
            })
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

impl From<Keep> for KeepOptions {
    fn from(keep: Keep) -> Self {
        let [last, hourly, daily, weekly, monthly, yearly] = [
            keep.last,
            keep.hourly,
            keep.daily,
            keep.weekly,
            keep.monthly,
            keep.yearly,
        ]
        .map(|value| value.map(f64::from));
        KeepOptions {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        }
    }
}

impl KeepOptions {
    fn named(&self) -> [(&'static str, Option<f64>); 6] {
        let KeepOptions {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        } = *self;
        [
            ("keep.last", last),
            ("keep.hourly", hourly),
            ("keep.daily", daily),
            ("keep.weekly", weekly),
            ("keep.monthly", monthly),
            ("keep.yearly", yearly),
        ]
    }

    fn check(&self) -> Result<()> {
        self.named()
            .into_iter()
            .try_for_each(|(name, value)| whole(name, value, 1, "a number of backups"))
    }

    fn resolve(&self) -> Keep {
        let [last, hourly, daily, weekly, monthly, yearly] = self
            .named()
            .map(|(_, value)| value.map(|value| value as u32));
        Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|cause| {
        // serde_json appends a position in the JSON text, which the caller in JavaScript has never
        // seen.
        let text = cause.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        Error::invalid(
            format!("The options cannot be used: {what}"),
            "See index.d.ts for the options and their types",
        )
    })
}

/// Combines `compression` and `compressionLevel`. Fails with `KG_INVALID_OPTION`.
pub(super) fn compression(kind: Option<&Value>, level: Option<f64>) -> Result<Compression> {
    let kind = match kind {
        None => Compression::GZIP,
        Some(given) => config::compression(given).ok_or_else(|| {
            let message =
                format!("`compression` is {given}, not true, false, \"gzip\" or \"zstd\"");
            Error::invalid(message, "Leave it out for gzip")
        })?,
    };
    match level {
        None => Ok(kind),
        Some(level) if level.fract() == 0.0 && (1.0..=9.0).contains(&level) => {
            Ok(kind.at(level as u8))
        }
        Some(level) => Err(Error::invalid(
            format!("`compressionLevel` is {level}, not a whole number from 1 to 9"),
            "Use 1 for speed, 9 for size, or leave it out",
        )),
    }
}

pub(super) fn whole(name: &str, value: Option<f64>, least: u32, what: &str) -> Result<()> {
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
        _ => Ok(()),
    }
}
