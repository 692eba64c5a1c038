//! The command `kg`.
//!
//! Each subcommand has a file, which turns its arguments into a call of a function in `commands`
//! and prints the result. [`output`] writes everything to the terminal. [`interrupt`] connects an
//! operation to Ctrl-C and a progress bar.

mod backup;
mod config;
mod copy;
mod drill;
mod graph;
mod health;
mod hook_reporter;
mod integrity;
mod interrupt;
mod key_args;
mod manage;
mod option_flags;
mod output;
mod prune;
mod restore;
mod serve;
mod status;
mod store;
mod usage;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::output::Output;
use crate::{
    commands::configured::{self, CallerEncryption},
    config::{
        Settings,
        backup_config::{BackupConfig, DEFAULT_LOCK_TIMEOUT},
    },
    error::{Code, Error, Result},
    project::Project,
    store::{Store, retention},
    util::unsupported,
    worker::client::WorkerMode,
};

/// Back up and restore knowledge-graph projects.
#[derive(Debug, Parser)]
#[command(
    name = "kg",
    version,
    propagate_version = true,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Kg {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, for as long as the process lives"
)]
enum Command {
    /// Back up, verify and restore
    #[command(subcommand, arg_required_else_help = true)]
    Diag(Diag),
    /// Read and change backup settings in .kg/config.json, and hooks
    Config(config::ConfigArgs),
    /// Find the nodes that have no vector, and run the command that creates vectors
    Graph(graph::GraphArgs),
    /// Run the project's services: scheduled backups
    Serve(serve::ServeArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, for as long as the process lives"
)]
enum Diag {
    /// Make a backup, or manage existing ones
    Backup(backup::BackupArgs),
    /// Restore a project, or a part of it, from a backup
    Restore(restore::RestoreArgs),
    /// Remove backups that are too old or too many
    Prune(prune::PruneArgs),
    /// Print the state of the project and its backups
    Health(health::HealthArgs),
    /// Check database, files and vectors
    Integrity(integrity::IntegrityArgs),
    /// Repair what can be repaired, after making a backup
    Repair(integrity::RepairArgs),
    /// Check the place of the backups: a directory or an object store
    Store(store::StoreArgs),
    /// Run a drill: restore a backup into a temporary directory and check it
    Drill(drill::DrillArgs),
}

/// The arguments that every subcommand has.
#[derive(Debug, Args)]
struct Common {
    /// The project: the directory that contains .kg/ [default: the nearest one at or above the
    /// working directory]
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    /// Print only errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

impl Common {
    /// Returns the project's root. Before a restore, it may not exist yet.
    fn root(&self) -> Result<PathBuf> {
        if let Some(project) = &self.project {
            return Ok(project.clone());
        }
        let here = working_dir()?;
        Ok(Project::find_root(&here).unwrap_or(here))
    }
}

/// The time that a command waits for other processes.
#[derive(Debug, Args)]
struct Waiting {
    /// How long to wait for another writer of backups, a restore, or a lock on a database, such as
    /// 30s or 5m [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    lock_timeout: Option<Duration>,
}

impl Waiting {
    fn timeout(&self) -> Duration {
        self.lock_timeout.unwrap_or(DEFAULT_LOCK_TIMEOUT)
    }
}

/// Parses a duration as [`health::parse_duration`] does; a number without a unit is in seconds.
fn parse_wait(text: &str) -> std::result::Result<Duration, String> {
    text.parse()
        .map(Duration::from_secs)
        .or_else(|_| health::parse_duration(text))
}

/// Returns the store that the arguments name, else the one that the settings name, else
/// `.kg/backups`.
fn store(output: Option<&PathBuf>, root: &Path, settings: &Settings) -> Result<Store> {
    configured::store(
        settings,
        root,
        configured::NamedStore {
            dir: output.map(PathBuf::as_path),
            options: None,
        },
        CallerEncryption::Nothing,
        &WorkerMode::InProcess,
    )
}

/// The arguments of retention.
#[derive(Debug, Args)]
struct Keep {
    /// Remove backups older than this; the newest good one is always kept
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    retention_days: Option<u32>,
    /// Keep at most this many backups
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    max_backups: Option<u32>,
    /// Keep this many of the newest good backups, whatever the limits say
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_last: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER hours that have one
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_hourly: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER days, in `backup.timezone` or UTC, that
    /// have one
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_daily: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER ISO weeks that have one
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_weekly: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER months that have one
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_monthly: Option<u32>,
    /// Keep the newest backup of each of the last NUMBER years that have one
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    keep_yearly: Option<u32>,
}

impl Keep {
    /// Returns what the arguments set. A rule of `keep` replaces that of the next level alone.
    fn set(&self, lower: &BackupConfig) -> BackupConfig {
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

fn working_dir() -> Result<PathBuf> {
    std::env::current_dir()
        .map_err(|cause| Error::io("find", Path::new("the working directory"), cause))
}

/// Returns the definition of `kg`, from which its reference is made.
#[cfg(not(without_internals))]
pub fn command() -> clap::Command {
    Kg::command()
}

/// Runs the command.
///
/// Exit statuses: 0 success, 1 error, 2 usage, 3 database, 4 file system or store, 5 verification
/// failed, 6 done but incomplete, 130 interrupted.
pub fn main() -> ExitCode {
    let code = match Kg::try_parse() {
        Ok(kg) => run(kg.command),
        Err(stop) => usage::stop(&stop),
    };
    output::exit_code_after_output(code)
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Kg::command(), "kg", &mut script);
            Output::default().raw(&script);
            ExitCode::SUCCESS
        }
        Command::Config(args) => config::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Diag(Diag::Backup(args)) => {
            let output = Output::new(&args.common);
            finish_with(&output, backup::run(&args, &output))
        }
        Command::Diag(Diag::Restore(args)) => {
            let output = Output::new(&args.common);
            finish(&output, restore::run(&args, &output))
        }
        Command::Diag(Diag::Prune(args)) => {
            let output = Output::new(&args.common);
            finish(&output, prune::run(&args, &output))
        }
        Command::Diag(Diag::Health(args)) => {
            let output = Output::new(&args.common);
            finish_with(&output, health::run(&args, &output))
        }
        Command::Diag(Diag::Integrity(args)) => {
            let output = Output::new(&args.common);
            finish_with(&output, integrity::run(&args, &output))
        }
        Command::Diag(Diag::Repair(args)) => {
            let output = Output::new(&args.common);
            finish_with(&output, integrity::run_repair(&args, &output))
        }
        Command::Diag(Diag::Store(args)) => {
            let output = Output::new(&args.common);
            finish_with(&output, store::run(&args, &output))
        }
        Command::Diag(Diag::Drill(args)) => {
            let output = Output::new(&args.common);
            finish_with(&output, drill::run(&args, &output))
        }
    }
}

/// Returns the exit status. `Ok(false)` is a verification that found damage.
fn finish(output: &Output, result: Result<bool>) -> ExitCode {
    finish_with(
        output,
        result.map(|good| {
            if good {
                0
            } else {
                Code::ChecksumMismatch.exit_status()
            }
        }),
    )
}

/// Returns the exit status that the command chose, or prints its error and returns the status of
/// that.
fn finish_with(output: &Output, result: Result<u8>) -> ExitCode {
    // Warnings that no result contained.
    output.late_warnings(&unsupported::untold());
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.code.exit_status())
        }
    }
}
