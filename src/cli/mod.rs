//! The command `kg`.
//!
//! Each subcommand has a file, which turns its arguments into a call of a function in `commands`
//! and prints the result. [`output`] writes everything to the terminal. [`interrupt`] connects an
//! operation to Ctrl-C and a progress bar.

mod args;
mod backup;
mod config;
mod confirm;
mod copy;
mod drill;
mod graph;
mod health;
mod hook_reporter;
mod host;
mod integrity;
mod interrupt;
mod key_args;
mod list;
mod manage;
mod option_flags;
mod output;
mod prune;
mod reference;
mod restore;
mod serve;
mod status;
mod store;
mod table;
mod usage;
mod verify;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::{args::Common, output::Output};
use crate::{error::Result, util::unsupported};

/// Back up and restore knowledge-graph projects.
#[derive(Debug, Parser)]
#[command(
    name = "kg",
    version,
    propagate_version = true,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = host::HELP
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
    /// Print the versions of kg, its interfaces and SQLite
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, for as long as the process lives"
)]
enum Diag {
    /// Make a backup
    Backup(backup::BackupArgs),
    /// List the backups, newest first
    List(list::ListArgs),
    /// Print the status of this project's backups
    Status(status::StatusArgs),
    /// Check every byte of a backup
    Verify(verify::VerifyArgs),
    /// Restore a project, or a part of it, from a backup
    Restore(restore::RestoreArgs),
    /// Keep a backup until it is unpinned; retention and deletion do not remove it
    Pin(manage::PinArgs),
    /// Remove the pin of a backup
    Unpin(manage::UnpinArgs),
    /// Remove a backup
    Delete(manage::DeleteArgs),
    /// Remove backups that are too old or too many
    Prune(prune::PruneArgs),
    /// Write a full backup from the chain of an incremental one
    Consolidate(manage::ConsolidateArgs),
    /// Run a drill: restore a backup into a temporary directory and check it
    Drill(drill::DrillArgs),
    /// Print the state of the project and its backups
    Health(health::HealthArgs),
    /// Check database, files and vectors
    Integrity(integrity::IntegrityArgs),
    /// Repair what can be repaired, after making a backup
    Repair(integrity::RepairArgs),
    /// Check the place of the backups: a directory or an object store
    Store(store::StoreArgs),
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
    let mut command = host::described(Kg::command());
    let parsed = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Kg::from_arg_matches(&matches));
    let code = match parsed {
        Ok(kg) => run(kg.command),
        Err(stop) => host::hand_over(stop, &command).unwrap_or_else(usage::stop),
    };
    output::exit_code_after_output(code)
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Kg::command(), "kg", &mut script);
            output::raw(&script);
            ExitCode::SUCCESS
        }
        Command::Config(args) => {
            let (name, common) = args.called();
            answer(name, common, |output| config::run(&args, output))
        }
        Command::Graph(args) => answer("graph", &args.common, |output| graph::run(&args, output)),
        Command::Serve(args) => answer("serve", &args.common, |output| serve::run(&args, output)),
        Command::Version(args) => answer("version", &args.common, |output| {
            version::run(&args, output)
        }),
        Command::Diag(command) => diag(command),
    }
}

fn diag(command: Diag) -> ExitCode {
    macro_rules! run {
        ($name:literal, $args:ident, $run:path) => {
            answer(concat!("diag ", $name), &$args.common, |output| {
                $run(&$args, output)
            })
        };
    }
    match command {
        Diag::Backup(args) => run!("backup", args, backup::run),
        Diag::List(args) => run!("list", args, list::run),
        Diag::Status(args) => run!("status", args, status::run),
        Diag::Verify(args) => run!("verify", args, verify::run),
        Diag::Pin(args) => run!("pin", args, manage::run_pin),
        Diag::Unpin(args) => run!("unpin", args, manage::run_unpin),
        Diag::Delete(args) => run!("delete", args, manage::run_delete),
        Diag::Consolidate(args) => run!("consolidate", args, manage::run_consolidate),
        Diag::Restore(args) => run!("restore", args, restore::run),
        Diag::Prune(args) => run!("prune", args, prune::run),
        Diag::Health(args) => run!("health", args, health::run),
        Diag::Integrity(args) => run!("integrity", args, integrity::run),
        Diag::Repair(args) => run!("repair", args, integrity::run_repair),
        Diag::Store(args) => run!("store", args, store::run),
        Diag::Drill(args) => run!("drill", args, drill::run),
    }
}

/// Runs a command, which prints its result and returns its exit status. Prints its error.
fn answer(name: &str, common: &Common, command: impl FnOnce(&Output) -> Result<u8>) -> ExitCode {
    let output = Output::new(name, common);
    let done = command(&output);
    // Warnings that no result contained.
    output.warnings(&unsupported::untold());
    let status = done.unwrap_or_else(|error| {
        output.error(&error);
        error.code.exit_status()
    });
    output.end(status);
    ExitCode::from(status)
}
