//! The actions on one existing backup: `kg diag pin`, `unpin`, `delete` and `consolidate`, which are
//! also flags of `kg diag backup`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{
    args::{Common, StoreDir, Waiting, settings},
    confirm,
    interrupt::Watched,
    key_args::KeyArgs,
    output::{Output, size},
    reference,
};
use crate::{
    archive::block::Compression,
    commands::{
        consolidate::consolidate,
        manage::{delete, pin, unpin},
    },
    config::backup_config::BackupConfig,
    error::{Result, WarningCode},
    store::{Backup, Store},
    util::wording,
};

#[derive(Debug, Args)]
pub struct PinArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: an id or the beginning of one, a file of the store, or `latest`
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Why the backup is pinned
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    store: StoreDir,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct UnpinArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: an id or the beginning of one, a file of the store, or `latest`
    #[arg(value_name = "BACKUP")]
    backup: String,
    #[command(flatten)]
    store: StoreDir,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: an id or the beginning of one, a file of the store, or `latest`
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Also remove the backups that depend on it
    #[arg(long)]
    cascade: bool,
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    store: StoreDir,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct ConsolidateArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: an id or the beginning of one, a file of the store, or `latest`
    #[arg(value_name = "BACKUP")]
    backup: String,
    #[command(flatten)]
    store: StoreDir,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    waiting: Waiting,
}

/// Returns the store of a command that opens no archive.
fn opened(common: &Common, dir: &StoreDir, output: &Output) -> Result<Store> {
    let root = common.root()?;
    dir.open(&root, &settings(&root, output))
}

pub fn run_pin(args: &PinArgs, output: &Output) -> Result<u8> {
    let store = opened(&args.common, &args.store, output)?;
    let action = Action::Pin(&args.backup, args.reason.clone());
    action.run(&store, args.waiting.timeout(), output)
}

pub fn run_unpin(args: &UnpinArgs, output: &Output) -> Result<u8> {
    let store = opened(&args.common, &args.store, output)?;
    Action::Unpin(&args.backup).run(&store, args.waiting.timeout(), output)
}

pub fn run_delete(args: &DeleteArgs, output: &Output) -> Result<u8> {
    let store = opened(&args.common, &args.store, output)?;
    let action = Action::Delete {
        backup: &args.backup,
        cascade: args.cascade,
        is_confirmed: args.yes,
    };
    action.run(&store, args.waiting.timeout(), output)
}

pub fn run_consolidate(args: &ConsolidateArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let settings = settings(&root, output);
    let store = args.store.open(&root, &settings)?;
    let store = args.keys.on(store, &[], &settings, &root);
    let compression = BackupConfig::of(&settings).compression();
    let action = Action::Consolidate(&args.backup, compression, &args.keys);
    action.run(&store, args.waiting.timeout(), output)
}

/// The actions as flags of `kg diag backup`.
#[derive(Debug, Args)]
pub struct ManageFlags {
    /// Remove a backup, as `kg diag delete` does
    #[arg(long, value_name = "ID", group = "instead")]
    delete: Option<String>,
    /// Also remove the backups that depend on it
    #[arg(long, requires = "delete")]
    cascade: bool,
    /// Do not ask on a terminal before --delete
    #[arg(long, requires = "delete")]
    yes: bool,
    /// Keep a backup until it is unpinned, as `kg diag pin` does
    #[arg(long, value_name = "ID", group = "instead")]
    pin: Option<String>,
    /// Why the backup is pinned
    #[arg(long, value_name = "TEXT", requires = "pin")]
    reason: Option<String>,
    /// Remove the pin of a backup, as `kg diag unpin` does
    #[arg(long, value_name = "ID", group = "instead")]
    unpin: Option<String>,
    /// Write a full backup from the chain of an incremental one, as `kg diag consolidate` does
    #[arg(long, value_name = "ID", group = "instead")]
    consolidate: Option<String>,
}

impl ManageFlags {
    /// Returns the action that the flags ask for.
    pub fn action<'a>(&'a self, compression: Compression, keys: &'a KeyArgs) -> Option<Action<'a>> {
        let delete = self.delete.as_deref().map(|backup| Action::Delete {
            backup,
            cascade: self.cascade,
            is_confirmed: self.yes,
        });
        let pin = || Some(Action::Pin(self.pin.as_deref()?, self.reason.clone()));
        let unpin = || self.unpin.as_deref().map(Action::Unpin);
        let consolidate = || {
            let id = self.consolidate.as_deref()?;
            Some(Action::Consolidate(id, compression, keys))
        };
        delete.or_else(pin).or_else(unpin).or_else(consolidate)
    }
}

/// An action on the backup that a user names.
pub enum Action<'a> {
    Delete {
        backup: &'a str,
        /// Whether the backups that depend on it go too.
        cascade: bool,
        /// Whether no question is asked.
        is_confirmed: bool,
    },
    Pin(&'a str, Option<String>),
    Unpin(&'a str),
    Consolidate(&'a str, Compression, &'a KeyArgs),
}

impl Action<'_> {
    /// Runs the action and returns the exit status.
    pub fn run(self, store: &Store, lock_timeout: Duration, output: &Output) -> Result<u8> {
        let (Action::Delete { backup: named, .. }
        | Action::Pin(named, _)
        | Action::Unpin(named)
        | Action::Consolidate(named, ..)) = &self;
        let id = reference::id(store, named)?;
        match self {
            Action::Delete {
                cascade,
                is_confirmed,
                ..
            } => {
                if !is_confirmed {
                    let dir = store.dir().display();
                    confirm::ask(&format!("Delete {id} in {dir} for good?"))?;
                }
                delete_backup(store, &id, cascade, lock_timeout, output)
            }
            Action::Pin(_, reason) => pin_backup(store, &id, reason, lock_timeout, output),
            Action::Unpin(_) => unpin_backup(store, &id, lock_timeout, output),
            Action::Consolidate(_, compression, keys) => {
                let archive = store.locate(&id)?;
                let store = keys.unlock(store.clone(), &archive, false)?;
                consolidate_backup(&store, &id, compression, lock_timeout, output)
            }
        }?;
        Ok(0)
    }
}

fn delete_backup(
    store: &Store,
    id: &str,
    cascade: bool,
    lock_timeout: Duration,
    output: &Output,
) -> Result<()> {
    let watched = Watched::new(output);
    let before = store.read()?.backups;
    let deleted = delete(store, id, cascade, lock_timeout, &watched.context)?;
    drop(watched);
    output.result(&json!({ "deleted": deleted }));
    deleted
        .iter()
        .for_each(|id| output.line(format!("Deleted {id}")));
    let linked = before
        .iter()
        .filter(|backup| deleted.contains(&backup.id))
        .filter_map(Backup::left_behind);
    output.warnings(&Vec::from_iter(linked));
    Ok(())
}

fn pin_backup(
    store: &Store,
    id: &str,
    reason: Option<String>,
    lock_timeout: Duration,
    output: &Output,
) -> Result<()> {
    let watched = Watched::new(output);
    let backup = pin(store, id, reason, lock_timeout, &watched.context)?;
    drop(watched);
    output.result(&backup);
    print_store_warnings(&backup, output);
    output.line(format!(
        "Pinned {}: nothing removes it until `kg diag unpin` with the same id and options",
        backup.id
    ));
    Ok(())
}

fn unpin_backup(store: &Store, id: &str, lock_timeout: Duration, output: &Output) -> Result<()> {
    let watched = Watched::new(output);
    let backup = unpin(store, id, lock_timeout, &watched.context)?;
    drop(watched);
    output.result(&backup);
    print_store_warnings(&backup, output);
    output.line(format!("Unpinned {}", backup.id));
    Ok(())
}

/// Prints warnings about the store. Warnings from the time of the backup are not repeated.
fn print_store_warnings(backup: &Backup, output: &Output) {
    let is_of_store = |code| matches!(code, WarningCode::Store | WarningCode::KeyExposed);
    let warnings = backup
        .warnings
        .iter()
        .filter(|warning| is_of_store(warning.code));
    output.warnings(&warnings.cloned().collect::<Vec<_>>());
}

fn consolidate_backup(
    store: &Store,
    id: &str,
    compression: Compression,
    lock_timeout: Duration,
    output: &Output,
) -> Result<()> {
    let watched = Watched::new(output);
    let backup = consolidate(store, id, compression, lock_timeout, &watched.context)?;
    drop(watched);
    output.result(&backup);
    print_store_warnings(&backup, output);
    output.line(format!("Backup created: {}", backup.archive));
    output.line(format!(
        "  id        {}, with the content of {id} and without a base",
        backup.id
    ));
    let files = wording::count(backup.stats.total_files, "file");
    let from = size(backup.stats.total_size);
    output.line(format!(
        "  size      {} ({files}, {from} before compression)",
        size(backup.size)
    ));
    output.line(format!("  checksum  {}", backup.checksum));
    Ok(())
}
