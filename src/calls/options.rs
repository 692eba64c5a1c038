//! The options of each call, parsed and checked field by field. A field that is not set takes its
//! value from the [`Config`].
//!
//! Unknown fields are refused: a backup tool must not ignore a misspelt option.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::{
    config::{
        Config, Encryption, KeepOptions, compression, compression_level, lock_timeout, parse,
        storage, whole, worker_mode,
    },
    schedule::NextRun,
};
use crate::{
    archive::{block::Compression, manifest::BackupType},
    commands::{
        configured::{self, NamedStore},
        copy::CopyOptions,
        drill::DrillOptions,
        restore::RestoreOptions,
        undo::UndoOptions,
    },
    config::backup_config::{BackupConfig, BackupOptions, DEFAULT_LOCK_TIMEOUT},
    error::{Error, Result},
    integrity::{Scope, target::CheckTarget},
    objects::StorageOptions,
    project::{Component, Project},
    store::{Store, is_remote},
    worker::client::{Worker, WorkerMode},
};

/// A call of a `BackupManager` or an `IntegrityChecker`.
#[derive(Debug, Deserialize)]
#[serde(tag = "call", rename_all = "camelCase")]
pub enum Call {
    CreateBackup {
        config: Config,
        options: CreateOptions,
    },
    ListBackups {
        config: Config,
    },
    NewestGood {
        config: Config,
    },
    GetBackup {
        config: Config,
        id: String,
    },
    GetLatestBackup {
        config: Config,
    },
    DeleteBackup {
        config: Config,
        id: String,
        options: DeleteOptions,
    },
    Pin {
        config: Config,
        id: String,
        reason: Option<String>,
    },
    Unpin {
        config: Config,
        id: String,
    },
    Consolidate {
        config: Config,
        id: String,
        options: ConsolidateOptions,
    },
    CopyTo {
        config: Config,
        target: PathBuf,
        options: Copying,
    },
    /// Copies to the second store that the settings name.
    CopyConfigured {
        config: Config,
    },
    CheckBackup {
        config: Config,
        backup: String,
        #[serde(default, rename = "listFiles")]
        list_files: bool,
    },
    Restore {
        config: Config,
        options: Restoration,
    },
    UndoRestore {
        config: Config,
        options: UndoRestoration,
    },
    Prune {
        config: Config,
        options: PruneOptions,
    },
    Rehearse {
        config: Config,
        options: Rehearsal,
    },
    RunChecks {
        config: Checker,
        options: Checks,
    },
    Repair {
        config: Checker,
        codes: Vec<String>,
    },
    NextRun {
        config: Config,
        options: NextRun,
    },
}

/// Whose call it is.
enum Owner<'a> {
    Manager(&'a mut Config),
    Checker(&'a mut Checker),
}

impl Call {
    pub fn parse(json: &str) -> Result<Self> {
        parse(json)
    }

    /// Returns the executable that must carry out the call, because a host does not connect to
    /// object stores; `None` if the host itself can.
    pub fn forward_to(&mut self) -> Result<Option<PathBuf>> {
        // These calls use no store.
        if matches!(self, Call::UndoRestore { .. }) {
            return Ok(None);
        }
        let may_repair = match self {
            Call::RunChecks { options, .. } => options.scope()?.is_none(),
            _ => true,
        };
        let has_remote_target = match self {
            Call::CopyTo { target, .. } => is_remote(target),
            Call::CopyConfigured { config } => config.copies_remotely()?,
            _ => false,
        };
        let (is_remote, kg_path) = match self.owner() {
            Owner::Manager(config) => (has_remote_target || config.is_remote()?, config.kg_path()),
            Owner::Checker(checker) => (may_repair && checker.is_remote()?, checker.kg_path()),
        };
        Ok(is_remote.then(|| kg_path.to_path_buf()))
    }

    /// Marks this process as `kg`.
    pub fn run_in_kg(&mut self) {
        match self.owner() {
            Owner::Manager(config) => config.is_in_kg = true,
            Owner::Checker(checker) => checker.is_in_kg = true,
        }
    }

    fn owner(&mut self) -> Owner<'_> {
        match self {
            Call::CreateBackup { config, .. }
            | Call::ListBackups { config }
            | Call::NewestGood { config }
            | Call::GetBackup { config, .. }
            | Call::GetLatestBackup { config }
            | Call::DeleteBackup { config, .. }
            | Call::Pin { config, .. }
            | Call::Unpin { config, .. }
            | Call::Consolidate { config, .. }
            | Call::CopyTo { config, .. }
            | Call::CopyConfigured { config }
            | Call::CheckBackup { config, .. }
            | Call::Restore { config, .. }
            | Call::UndoRestore { config, .. }
            | Call::Prune { config, .. }
            | Call::Rehearse { config, .. }
            | Call::NextRun { config, .. } => Owner::Manager(config),
            Call::RunChecks { config, .. } | Call::Repair { config, .. } => Owner::Checker(config),
        }
    }
}

/// The argument of `createBackup`. A field that is not set takes its value from the configuration.
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
    force_read: Option<bool>,
    based_on: Option<String>,
    encrypt: Option<bool>,
}

impl CreateOptions {
    /// Returns the store, with the encryption that this backup asks for.
    pub fn store(&self, config: &Config) -> Result<Store> {
        config.store_for(self.encrypt)
    }

    /// Returns the options of the backup: those of the call, completed by the configuration of the
    /// manager and the settings.
    pub fn resolve(self, config: &Config, store: &Store) -> Result<BackupOptions> {
        let call = BackupConfig {
            backup_type: self.kind,
            include_vectors: self.include_vectors,
            include_plugin_data: self.include_plugin_data,
            exclude_patterns: self.exclude_patterns,
            compression: compression(self.compression.as_ref())?,
            compression_level: compression_level(self.compression_level)?,
            check_source: self.check_source,
            strict: self.strict,
            force_read: self.force_read,
            ..BackupConfig::default()
        };
        let options = configured::options(
            call.over(config.set()?),
            &config.settings,
            &config.project_root,
            store,
            Timestamp::now(),
        )?;
        Ok(BackupOptions {
            based_on: self.based_on,
            description: self.description,
            ..options
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

/// The second argument of `consolidate`. A field that is not set takes its value from the
/// configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsolidateOptions {
    compression: Option<Value>,
    compression_level: Option<f64>,
}

impl ConsolidateOptions {
    pub fn compression(&self, config: &Config) -> Result<Compression> {
        let call = BackupConfig {
            compression: compression(self.compression.as_ref())?,
            compression_level: compression_level(self.compression_level)?,
            ..BackupConfig::default()
        };
        Ok(call.over(config.merged()?).compression())
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

/// The second argument of `copyTo`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Copying {
    storage_options: Option<Value>,
    backup_ids: Option<Vec<String>>,
    retention_days: Option<f64>,
    max_backups: Option<f64>,
    keep: Option<KeepOptions>,
    dry_run: Option<bool>,
}

impl Copying {
    /// Returns the store that receives the copies.
    pub fn target(&self, config: &Config, target: &Path) -> Result<Store> {
        let storage = storage(self.storage_options.as_ref())?;
        if !is_remote(target) && storage != StorageOptions::default() {
            return Err(Error::invalid(
                "`storageOptions` is given, but the target is a directory",
                "Leave it out, or give the URL of an object store",
            ));
        }
        Ok(Store::open(target, &storage)?
            .for_project(&config.project_root)
            .with_mode(config.settings.archive_mode()))
    }

    pub fn resolve(self, config: &Config) -> Result<CopyOptions> {
        let limits = BackupConfig {
            retention_days: whole("retentionDays", self.retention_days, 1, "a number of days")?,
            max_backups: whole("maxBackups", self.max_backups, 1, "a number of backups")?,
            keep: self.keep.as_ref().map(KeepOptions::rules).transpose()?,
            zone: config.settings.zone(),
            lock_timeout: Some(config.resolved()?.lock_timeout),
            ..BackupConfig::default()
        };
        Ok(CopyOptions {
            ids: self.backup_ids,
            dry_run: self.dry_run.unwrap_or(false),
            ..CopyOptions::with_limits(limits)
        })
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
    keep_settings: Option<bool>,
    dry_run: Option<bool>,
}

impl Restoration {
    /// Returns the reference of the backup, and the options of the restore. Fails with
    /// `KG_INVALID_OPTION`.
    pub fn resolve(self, config: &Config) -> Result<(String, RestoreOptions)> {
        let set = config.resolved()?;
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
            return Err(Error::invalid(
                "`only` is empty",
                "Name the parts to restore, or leave it out for all",
            ));
        }
        if self.paths.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid(
                "`paths` is empty",
                "Name what to restore, or leave it out for all",
            ));
        }
        if self
            .target_dir
            .as_ref()
            .is_some_and(|dir| dir.as_os_str().is_empty())
        {
            return Err(Error::invalid(
                "`targetDir` is empty",
                "Name a directory, or leave it out for the project",
            ));
        }
        let options = RestoreOptions {
            target: self
                .target_dir
                .unwrap_or_else(|| config.project_root.clone()),
            only: self.only,
            paths: self.paths,
            force: self.force.unwrap_or(false),
            overwrite: self.overwrite.unwrap_or(false),
            keep_settings: self.keep_settings.unwrap_or(false),
            dry_run: self.dry_run.unwrap_or(false),
            lock_timeout: set.lock_timeout,
            undo_retention_days: set.undo_retention_days,
        };
        Ok((reference, options))
    }
}

/// The argument of `undoRestore`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoRestoration {
    target_dir: Option<PathBuf>,
    earlier: Option<bool>,
    force: Option<bool>,
    dry_run: Option<bool>,
}

impl UndoRestoration {
    /// Returns the root of the project, and the options of the undo.
    pub fn resolve(self, config: &Config) -> Result<(PathBuf, UndoOptions)> {
        let set = config.resolved()?;
        let options = UndoOptions {
            earlier: self.earlier.unwrap_or(false),
            force: self.force.unwrap_or(false),
            dry_run: self.dry_run.unwrap_or(false),
            lock_timeout: set.lock_timeout,
            undo_retention_days: set.undo_retention_days,
        };
        let root = self.target_dir;
        Ok((root.unwrap_or_else(|| config.project_root.clone()), options))
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
    pub fn resolve(self, config: &Config) -> Result<DrillOptions> {
        Ok(DrillOptions {
            backup: self.backup.unwrap_or_else(|| "latest".into()),
            directory: self.directory,
            lock_timeout: config.resolved()?.lock_timeout,
        })
    }
}

/// The configuration of an `IntegrityChecker`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checker {
    /// The path of a database, or of the root of a project.
    path: PathBuf,
    project_root: Option<PathBuf>,
    backup_dir: Option<PathBuf>,
    storage_options: Option<Value>,
    encryption: Option<Encryption>,
    /// The time to wait for locks, in milliseconds.
    lock_timeout: Option<f64>,
    kg_path: PathBuf,
    /// This process is `kg`, which needs no other worker.
    #[serde(skip)]
    pub(super) is_in_kg: bool,
}

impl Checker {
    /// Returns whether the backup before a repair goes into an object store; see
    /// [`Config::is_remote`].
    pub fn is_remote(&self) -> Result<bool> {
        let root = self.subject().root;
        let dir = match (&self.backup_dir, root) {
            (Some(dir), _) => Some(dir.clone()),
            (None, Some(root)) => Worker::settings(&self.launch(), &root)?.0.dir(&root),
            (None, None) => None,
        };
        Ok(dir.is_some_and(|dir| is_remote(&dir)))
    }

    pub fn kg_path(&self) -> &Path {
        &self.kg_path
    }

    pub fn subject(&self) -> CheckTarget {
        match &self.project_root {
            Some(root) => CheckTarget::of(root, CheckTarget::at(&self.path).database),
            None => CheckTarget::at(&self.path),
        }
    }

    /// Returns the store for the backup before a repair; `None` if the database belongs to no
    /// project and no directory is named. That backup is encrypted if other backups would be, or if
    /// a key is given.
    pub fn store(&self) -> Result<Option<Store>> {
        self.encryption.as_ref().map_or(Ok(()), Encryption::check)?;
        let storage = storage(self.storage_options.as_ref())?;
        let Some(root) = self
            .subject()
            .root
            .filter(|root| Project::open(root).is_ok())
        else {
            let open = |dir: &Path| Store::open(dir, &storage);
            return self.backup_dir.as_deref().map(open).transpose();
        };
        let (settings, _) = Worker::settings(&self.launch(), &root)?;
        let said = Encryption::said(self.encryption.as_ref(), None);
        let store = configured::store(
            &settings,
            &root,
            NamedStore {
                dir: self.backup_dir.as_deref(),
                options: Some(&storage),
            },
            said,
            &self.launch(),
        )?
        .for_recovery();
        Ok(Some(
            match self.encryption.as_ref().and_then(Encryption::keys) {
                Some(options) => store.with_keys(options.keys(&root, &self.launch())),
                None => store,
            },
        ))
    }

    pub fn lock_timeout(&self) -> Result<Duration> {
        Ok(lock_timeout(self.lock_timeout)?.unwrap_or(DEFAULT_LOCK_TIMEOUT))
    }

    pub fn launch(&self) -> WorkerMode {
        worker_mode(self.is_in_kg, &self.kg_path)
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
    /// Returns what to check, or `None` if everything is to be checked and then repaired. Fails
    /// with `KG_INVALID_OPTION` if `repairMode` is combined with a part of the checks.
    pub fn scope(&self) -> Result<Option<Scope>> {
        let scope = Scope {
            database: self.check_database.unwrap_or(true),
            files: self.check_files.unwrap_or(true),
            vectors: self.check_vectors.unwrap_or(true),
            quick: false,
        };
        match self.repair_mode {
            Some(true) if scope != Scope::ALL => Err(Error::invalid(
                "`repairMode` requires all checks",
                "Leave `checkDatabase`, `checkFiles` and `checkVectors` out, or pass the issues to \
                 repair()",
            )),
            Some(true) => Ok(None),
            _ => Ok(Some(scope)),
        }
    }
}
