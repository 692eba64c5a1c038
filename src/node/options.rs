//! What JavaScript gives: configuration and options, checked field by field.
//!
//! Unknown fields are refused: an option that is misspelt must not be ignored in a backup tool.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::schedule::NextRun;
use crate::{
    archive::{block::Compression, manifest::BackupType},
    backup::{BackupOptions, DEFAULT_LOCK_TIMEOUT, DEFAULT_MAX_CHAIN_LENGTH},
    cron::Cadence,
    error::{Code, Error, Result},
    integrity::{Scope, subject::Subject},
    project::Component,
    reader::{apply::undo::DEFAULT_RETENTION_DAYS, client::Launch},
    rehearse::RehearseOptions,
    restore::RestoreOptions,
    retention::{Keep, Policy},
    settings::{self, Settings},
    store::Store,
    undo::UndoOptions,
};

/// One call of a `BackupManager`.
#[derive(Debug, Deserialize)]
#[serde(tag = "call", rename_all = "camelCase")]
pub enum Call {
    CreateBackup { config: Config, options: CreateOptions },
    ListBackups { config: Config },
    GetBackup { config: Config, id: String },
    GetLatestBackup { config: Config },
    DeleteBackup { config: Config, id: String, options: DeleteOptions },
    Pin { config: Config, id: String, reason: Option<String> },
    Unpin { config: Config, id: String },
    Consolidate { config: Config, id: String, options: ConsolidateOptions },
    CheckBackup { config: Config, backup: String },
    Restore { config: Config, options: Restoration },
    UndoRestore { config: Config, options: UndoRestoration },
    Prune { config: Config, options: PruneOptions },
    Rehearse { config: Config, options: Rehearsal },
    RunChecks { config: Checker, options: Checks },
    Repair { config: Checker, codes: Vec<String> },
    NextRun { config: Config, options: NextRun },
}

impl Call {
    pub fn parse(json: &str) -> Result<Self> {
        parse(json)
    }
}

/// The configuration of a manager.
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
    /// In milliseconds.
    lock_timeout: Option<f64>,
    retention_days: Option<f64>,
    max_backups: Option<f64>,
    keep: Option<KeepOptions>,
    max_chain_length: Option<f64>,
    undo_retention_days: Option<f64>,
    strict: Option<bool>,
    /// Of the settings: a manager has no type of its own.
    #[serde(skip)]
    kind: Option<BackupType>,
    schedule: Option<String>,
    storage_options: Option<Value>,
    encryption: Option<Value>,
    /// The `kg` executable that serves as reader.
    kg_path: PathBuf,
}

impl Config {
    pub fn parse(json: &str) -> Result<Self> {
        let config: Config = parse(json)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let later = [("storageOptions", &self.storage_options), ("encryption", &self.encryption)];
        for (name, value) in later {
            if value.is_some() {
                return Err(Error::new(
                    Code::Unsupported,
                    format!("This release does not know `{name}`"),
                    "Leave it out",
                ));
            }
        }
        compression(self.compression.as_ref(), self.compression_level)?;
        whole("lockTimeout", self.lock_timeout, 0, "a number of milliseconds")?;
        whole("retentionDays", self.retention_days, 1, "a number of days")?;
        whole("maxBackups", self.max_backups, 1, "a number of backups")?;
        self.keep.as_ref().map_or(Ok(()), KeepOptions::check)?;
        whole("maxChainLength", self.max_chain_length, 1, "a number of backups")?;
        self.schedule.as_ref().map_or(Ok(()), |schedule| Cadence::parse(schedule, None).map(|_| ()))?;
        whole("undoRetentionDays", self.undo_retention_days, 1, "a number of days")?;
        self.store().map(|_| ())
    }

    pub fn store(&self) -> Result<Store> {
        match &self.backup_dir {
            Some(dir) if dir.as_os_str().is_empty() => {
                Err(Error::invalid("`backupDir` is empty", "Name a directory, or leave it out for .kg/backups"))
            }
            Some(dir) => Store::at(dir),
            None => Store::at(&Store::default_dir(&self.project_root)),
        }
    }

    /// What is not configured, as the settings of the project have it; relative paths there start at its root.
    pub fn complete(&mut self, settings: &Settings) {
        let set = settings.policy();
        let number = |value: Option<u32>| value.map(f64::from);
        self.backup_dir = self.backup_dir.take().or_else(|| settings.dir(&self.project_root));
        self.kind = settings.kind();
        self.compression = self.compression.take().or_else(|| settings.get("backup.compression").cloned());
        self.compression_level = self.compression_level.or(number(settings.whole("backup.compressionLevel")));
        self.max_chain_length = self.max_chain_length.or(number(settings.whole("backup.maxChainLength")));
        self.include_vectors = self.include_vectors.or(settings.bool("backup.includeVectors"));
        self.include_plugin_data = self.include_plugin_data.or(settings.bool("backup.includePluginData"));
        self.exclude_patterns = self.exclude_patterns.take().or_else(|| settings.list("backup.excludePatterns"));
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

    /// All numbers were checked to be whole.
    pub fn retention(&self) -> Policy {
        let whole = |value: Option<f64>| value.map(|value| value as u32);
        let keep = self.keep.as_ref().map_or(Keep::default(), KeepOptions::resolve);
        Policy { retention_days: whole(self.retention_days), max_backups: whole(self.max_backups), keep }
    }

    fn undo_retention_days(&self) -> u32 {
        self.undo_retention_days.map_or(DEFAULT_RETENTION_DAYS, |days| days as u32)
    }

    pub fn launch(&self) -> Launch {
        Launch::Process(self.kg_path.clone())
    }

    pub fn lock_timeout(&self) -> Duration {
        self.lock_timeout.map_or(DEFAULT_LOCK_TIMEOUT, |milliseconds| Duration::from_millis(milliseconds as u64))
    }
}

/// `keep` of the configuration.
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
        let [last, hourly, daily, weekly, monthly, yearly] =
            [keep.last, keep.hourly, keep.daily, keep.weekly, keep.monthly, keep.yearly]
                .map(|value| value.map(f64::from));
        KeepOptions { last, hourly, daily, weekly, monthly, yearly }
    }
}

impl KeepOptions {
    fn named(&self) -> [(&'static str, Option<f64>); 6] {
        let KeepOptions { last, hourly, daily, weekly, monthly, yearly } = *self;
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
        self.named().into_iter().try_for_each(|(name, value)| whole(name, value, 1, "a number of backups"))
    }

    fn resolve(&self) -> Keep {
        let [last, hourly, daily, weekly, monthly, yearly] =
            self.named().map(|(_, value)| value.map(|value| value as u32));
        Keep { last, hourly, daily, weekly, monthly, yearly }
    }
}

/// The argument of `createBackup`; each field that is absent comes from the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateOptions {
    #[serde(rename = "type")]
    kind: Option<BackupType>,
    description: Option<String>,
    include_vectors: Option<bool>,
    include_plugin_data: Option<bool>,
    exclude_patterns: Option<Vec<String>>,
    compression: Option<Value>,
    compression_level: Option<f64>,
    check_source: Option<bool>,
    strict: Option<bool>,
    based_on: Option<String>,
}

impl CreateOptions {
    pub fn resolve(self, config: &Config) -> Result<BackupOptions> {
        let level = self.compression_level.or(config.compression_level);
        Ok(BackupOptions {
            is_safety_backup: false,
            kind: self.kind.or(config.kind).unwrap_or(BackupType::Full),
            based_on: self.based_on,
            max_chain_length: config.max_chain_length.map_or(DEFAULT_MAX_CHAIN_LENGTH, |length| length as u32),
            description: self.description,
            include_vectors: self.include_vectors.or(config.include_vectors).unwrap_or(true),
            include_plugin_data: self.include_plugin_data.or(config.include_plugin_data).unwrap_or(true),
            exclude_patterns: self.exclude_patterns.or_else(|| config.exclude_patterns.clone()).unwrap_or_default(),
            compression: compression(self.compression.as_ref().or(config.compression.as_ref()), level)?,
            check_source: self.check_source.or(config.check_source).unwrap_or(true),
            lock_timeout: config.lock_timeout(),
            retention: config.retention(),
            strict: self.strict.or(config.strict).unwrap_or(false),
            undo_retention_days: config.undo_retention_days(),
        })
    }
}

/// The second argument of `deleteBackup`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeleteOptions {
    cascade: Option<bool>,
}

impl DeleteOptions {
    pub fn cascade(&self) -> bool {
        self.cascade.unwrap_or(false)
    }
}

/// The second argument of `consolidate`; what is absent comes from the configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsolidateOptions {
    compression: Option<Value>,
    compression_level: Option<f64>,
}

impl ConsolidateOptions {
    pub fn compression(&self, config: &Config) -> Result<Compression> {
        let level = self.compression_level.or(config.compression_level);
        compression(self.compression.as_ref().or(config.compression.as_ref()), level)
    }
}

/// The argument of `prune`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PruneOptions {
    dry_run: Option<bool>,
}

impl PruneOptions {
    pub fn dry_run(&self) -> bool {
        self.dry_run.unwrap_or(false)
    }
}

/// The argument of `restore`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restoration {
    backup_path: Option<String>,
    backup_id: Option<String>,
    target_dir: Option<PathBuf>,
    overwrite: Option<bool>,
    only: Option<Vec<Component>>,
    paths: Option<Vec<String>>,
    force: Option<bool>,
    dry_run: Option<bool>,
}

impl Restoration {
    /// Which backup, and how.
    pub fn resolve(self, config: &Config) -> Result<(String, RestoreOptions)> {
        let reference = match (self.backup_path, self.backup_id) {
            (Some(reference), None) | (None, Some(reference)) => reference,
            _ => {
                return Err(Error::invalid(
                    "A restore needs either `backupPath` or `backupId`",
                    "Give one of them; `latest` as the id means the newest backup",
                ));
            }
        };
        if self.only.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("`only` is empty", "Name the parts to restore, or leave it out for all"));
        }
        if self.paths.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("`paths` is empty", "Name what to restore, or leave it out for all"));
        }
        let options = RestoreOptions {
            target: self.target_dir.unwrap_or_else(|| config.project_root.clone()),
            only: self.only,
            paths: self.paths,
            force: self.force.unwrap_or(false),
            overwrite: self.overwrite.unwrap_or(false),
            dry_run: self.dry_run.unwrap_or(false),
            lock_timeout: config.lock_timeout(),
            undo_retention_days: config.undo_retention_days(),
        };
        Ok((reference, options))
    }
}

/// The argument of `undoRestore`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoRestoration {
    target_dir: Option<PathBuf>,
    force: Option<bool>,
    dry_run: Option<bool>,
}

impl UndoRestoration {
    /// Into which project, and how.
    pub fn resolve(self, config: &Config) -> (PathBuf, UndoOptions) {
        let options = UndoOptions {
            force: self.force.unwrap_or(false),
            dry_run: self.dry_run.unwrap_or(false),
            lock_timeout: config.lock_timeout(),
            undo_retention_days: config.undo_retention_days(),
        };
        (self.target_dir.unwrap_or_else(|| config.project_root.clone()), options)
    }
}

/// The argument of `rehearse`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rehearsal {
    backup: Option<String>,
    directory: Option<PathBuf>,
}

impl Rehearsal {
    pub fn resolve(self, config: &Config) -> RehearseOptions {
        RehearseOptions {
            backup: self.backup.unwrap_or_else(|| "latest".into()),
            directory: self.directory,
            lock_timeout: config.lock_timeout(),
        }
    }
}

/// What an `IntegrityChecker` was made of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checker {
    /// A database, or the root of a project.
    path: PathBuf,
    project_root: Option<PathBuf>,
    backup_dir: Option<PathBuf>,
    /// In milliseconds.
    lock_timeout: Option<f64>,
    kg_path: PathBuf,
}

impl Checker {
    pub fn subject(&self) -> Subject {
        match &self.project_root {
            Some(root) => Subject::of(root, Subject::at(&self.path).database),
            None => Subject::at(&self.path),
        }
    }

    /// Of the backup before a repair; `None` for the project's own.
    pub fn store(&self) -> Result<Option<Store>> {
        self.backup_dir.as_deref().map(Store::at).transpose()
    }

    pub fn lock_timeout(&self) -> Result<Duration> {
        whole("lockTimeout", self.lock_timeout, 0, "a number of milliseconds")?;
        Ok(self.lock_timeout.map_or(DEFAULT_LOCK_TIMEOUT, |milliseconds| Duration::from_millis(milliseconds as u64)))
    }

    pub fn launch(&self) -> Launch {
        Launch::Process(self.kg_path.clone())
    }
}

/// The argument of `runChecks`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checks {
    check_database: Option<bool>,
    check_files: Option<bool>,
    check_vectors: Option<bool>,
    repair_mode: Option<bool>,
}

impl Checks {
    /// `None` where everything is checked and then repaired.
    pub fn scope(&self) -> Result<Option<Scope>> {
        let scope = Scope {
            database: self.check_database.unwrap_or(true),
            files: self.check_files.unwrap_or(true),
            vectors: self.check_vectors.unwrap_or(true),
            quick: false,
        };
        match self.repair_mode {
            Some(true) if scope != Scope::ALL => Err(Error::invalid(
                "`repairMode` goes with all of the checks",
                "Leave `checkDatabase`, `checkFiles` and `checkVectors` out, or hand what you want repaired to repair()",
            )),
            Some(true) => Ok(None),
            _ => Ok(Some(scope)),
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|cause| {
        // serde_json ends its sentence with a place in the text, which JavaScript's caller never saw.
        let text = cause.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        Error::invalid(format!("The options cannot be used: {what}"), "See index.d.ts for the options and their types")
    })
}

/// `compression` and `compressionLevel` together.
fn compression(kind: Option<&Value>, level: Option<f64>) -> Result<Compression> {
    let kind = match kind {
        None => Compression::GZIP,
        Some(given) => settings::compression(given).ok_or_else(|| {
            let message = format!("`compression` is {given}, none of true, false, \"gzip\" and \"zstd\"");
            Error::invalid(message, "Leave it out for gzip")
        })?,
    };
    match level {
        None => Ok(kind),
        Some(level) if level.fract() == 0.0 && (1.0..=9.0).contains(&level) => Ok(kind.at(level as u8)),
        Some(level) => Err(Error::invalid(
            format!("`compressionLevel` is {level}, not a whole number from 1 to 9"),
            "Use 1 for speed, 9 for size, or leave it out",
        )),
    }
}

pub(super) fn whole(name: &str, value: Option<f64>, least: u32, what: &str) -> Result<()> {
    match value {
        Some(value) if value.fract() != 0.0 || value < f64::from(least) || value > f64::from(u32::MAX) => {
            Err(Error::invalid(format!("`{name}` is {value}, not {what} of at least {least}"), "Give a whole number"))
        }
        _ => Ok(()),
    }
}
