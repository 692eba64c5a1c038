//! `kg diag prune`: remove backups that are too old or too many.

use clap::Args;

use super::{
    args::{Common, Keep, OutputDir, Waiting, settings},
    confirm,
    interrupt::Watched,
    list,
    output::{Output, code_of, size},
};
use crate::{
    commands::prune::{PruneResult, prune},
    config::backup_config::BackupConfig,
    error::{Error, Result},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag prune --retention-days 30 --dry-run   print what would be removed, and why
  kg diag prune --max-backups 5                 keep the 5 newest backups")]
pub struct PruneArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    store: OutputDir,
    #[command(flatten)]
    keep: Keep,
    /// Print what would be removed without removing it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub fn run(args: &PruneArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let settings = settings(&root, output);
    let config = args
        .keep
        .set(&BackupConfig::of(&settings))
        .over(BackupConfig::of(&settings));
    // An unusable setting may be one that keeps a backup.
    config.assert_retention_known()?;
    let store = args.store.open(&root, &settings)?;
    list::assert_exists(&store, &root)?;
    if !args.yes && !args.dry_run {
        confirm::ask(&format!(
            "Remove the backups in {} that no rule keeps?",
            store.dir().display()
        ))?;
    }
    let watched = Watched::new(output);
    let result = prune(
        &store,
        &config.retention(),
        args.dry_run,
        args.waiting.timeout(),
        &watched.context,
    )?;
    drop(watched);
    print_result(&result, output);
    match result
        .decisions
        .iter()
        .find_map(|decision| decision.error.clone())
    {
        Some(error) => Err(Error {
            message: format!("Not everything could be removed: {}", error.message),
            ..error
        }),
        None => Ok(0),
    }
}

fn print_result(result: &PruneResult, output: &Output) {
    output.result(result);
    output.warnings(&result.warnings);
    for decision in &result.decisions {
        let fate = match (decision.kept, result.dry_run) {
            (true, _) => "kept",
            (false, true) => "would be removed",
            (false, false) => "removed",
        };
        output.line(format!(
            "{:32} {fate}: {}",
            decision.id,
            code_of(&decision.reason)
        ));
    }
    let freed = if result.dry_run {
        "would be freed"
    } else {
        "freed"
    };
    output.line(format!("{} {freed}", size(result.bytes_freed)));
}
