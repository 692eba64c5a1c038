//! The arguments that several subcommands share, and the environment variables that complete them.

use std::{
    env,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;

use super::{health::parse_duration, output::Output};
use crate::{
    commands::configured::{self, CallerEncryption},
    config::{
        Settings,
        backup_config::{BackupConfig, DEFAULT_LOCK_TIMEOUT},
    },
    error::{Error, Result},
    project::Project,
    store::{Store, retention},
    worker::client::WorkerMode,
};

const PROJECT: &str = "KG_PROJECT";
const BACKUP_DIR: &str = "KG_BACKUP_DIR";

/// The arguments that every subcommand has.
#[derive(Debug, Args)]
pub struct Common {
    /// The project: the directory that contains .kg/ [default: $KG_PROJECT, or the nearest one at
    /// or above the working directory]
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// Print one JSON object: the result or the error, the warnings and the exit status
    #[arg(long)]
    pub json: bool,
    /// Print only errors
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
}

impl Common {
    /// Returns the project's root. Before a restore, it may not exist yet.
    pub fn root(&self) -> Result<PathBuf> {
        if let Some(project) = self.named_project() {
            return Ok(project);
        }
        let here = working_dir()?;
        Ok(Project::find_root(&here).unwrap_or(here))
    }

    /// Returns the project that the user named, by the flag or in the environment.
    pub fn named_project(&self) -> Option<PathBuf> {
        self.project.clone().or_else(|| of_environment(PROJECT))
    }

    /// Returns the environment variable that names the project, if the flag does not.
    pub fn project_variable(&self) -> Option<&'static str> {
        let is_named = self.project.is_none() && of_environment(PROJECT).is_some();
        is_named.then_some(PROJECT)
    }
}

const STORE_HELP: &str = "Directory of the backups, or URL such as s3://bucket/prefix [default: \
                          $KG_BACKUP_DIR, `backup.dir` of the settings, or .kg/backups]";

/// The store of a command on existing backups.
#[derive(Debug, Args)]
pub struct StoreDir {
    #[arg(long, value_name = "DIR", help = STORE_HELP)]
    backup_dir: Option<PathBuf>,
}

impl StoreDir {
    pub fn named(&self) -> Option<&Path> {
        self.backup_dir.as_deref()
    }

    /// Returns whether the user named the store, by the flag or in the environment.
    pub fn is_named(&self) -> bool {
        is_store_named(self.backup_dir.as_deref())
    }

    pub fn open(&self, root: &Path, settings: &Settings) -> Result<Store> {
        store(self.backup_dir.as_deref(), root, settings)
    }
}

/// The store of a command that the guide calls with `--output`.
#[derive(Debug, Args)]
pub struct OutputDir {
    #[arg(long, short = 'o', visible_alias = "output", value_name = "DIR", help = STORE_HELP)]
    backup_dir: Option<PathBuf>,
}

impl OutputDir {
    /// Returns whether the user named the store, by the flag or in the environment.
    pub fn is_named(&self) -> bool {
        is_store_named(self.backup_dir.as_deref())
    }

    pub fn open(&self, root: &Path, settings: &Settings) -> Result<Store> {
        store(self.backup_dir.as_deref(), root, settings)
    }
}

fn is_store_named(flag: Option<&Path>) -> bool {
    flag.is_some() || of_environment(BACKUP_DIR).is_some()
}

/// Returns the store that the flag names, else the environment, else the settings, else
/// `.kg/backups`.
pub fn store(flag: Option<&Path>, root: &Path, settings: &Settings) -> Result<Store> {
    let variable = of_environment(BACKUP_DIR);
    store_at(flag.or(variable.as_deref()), root, settings)
}

/// Returns the store that a caller names, else the one of the settings, else `.kg/backups`.
pub fn store_at(dir: Option<&Path>, root: &Path, settings: &Settings) -> Result<Store> {
    configured::store(
        settings,
        root,
        configured::NamedStore { dir, options: None },
        CallerEncryption::Nothing,
        &WorkerMode::InProcess,
    )
}

/// Returns the settings of a project. Prints warnings about those that are unusable.
pub fn settings(root: &Path, output: &Output) -> Settings {
    let mut unusable = Vec::new();
    let settings = Settings::read(root, &mut unusable);
    output.warnings(&unusable);
    settings
}

/// The time that a command waits for other processes.
#[derive(Debug, Args)]
pub struct Waiting {
    /// How long to wait for another writer of backups, a restore, or a lock on a database, such as
    /// 30s or 5m [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    lock_timeout: Option<Duration>,
}

impl Waiting {
    pub fn timeout(&self) -> Duration {
        self.lock_timeout.unwrap_or(DEFAULT_LOCK_TIMEOUT)
    }
}

/// Parses a whole number that is not 0.
pub fn parse_count<T: FromStr + From<bool> + PartialOrd>(
    text: &str,
) -> std::result::Result<T, String> {
    let number = text.parse().ok().filter(|number| *number >= T::from(true));
    number.ok_or_else(|| "it must be a whole number, 1 or more".into())
}

/// Parses a duration as [`parse_duration`] does; a number without a unit is in seconds.
fn parse_wait(text: &str) -> std::result::Result<Duration, String> {
    text.parse()
        .map(Duration::from_secs)
        .or_else(|_| parse_duration(text))
}

/// The arguments of retention.
#[derive(Debug, Args)]
pub struct Keep {
    /// Remove backups older than this; the newest good one is always kept
    #[arg(long, value_name = "DAYS", value_parser = parse_count::<u32>)]
    retention_days: Option<u32>,
    /// Keep at most this many backups
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    max_backups: Option<u32>,
    /// Keep this many of the newest good backups, whatever the limits say
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    keep_last: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER hours that have one
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    keep_hourly: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER days, in `backup.timezone` or UTC, that
    /// have one
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    keep_daily: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER ISO weeks that have one
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    keep_weekly: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER months that have one
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    keep_monthly: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER years that have one
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    keep_yearly: Option<u32>,
}

impl Keep {
    /// Returns what the arguments set. A rule of `keep` replaces that of the next level alone.
    pub fn set(&self, lower: &BackupConfig) -> BackupConfig {
        let rules = retention::Keep {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
        };
        BackupConfig {
            retention_days: self.retention_days,
            max_backups: self.max_backups,
            keep: Some(rules.over(lower.keep.unwrap_or_default())),
            ..BackupConfig::default()
        }
    }
}

pub fn working_dir() -> Result<PathBuf> {
    env::current_dir().map_err(|cause| Error::io("find", Path::new("the working directory"), cause))
}

/// Returns the path that an environment variable names. An empty one names none.
pub fn of_environment(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}
