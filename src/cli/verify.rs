//! `kg diag verify`: check every byte of a backup.

use clap::Args;

use super::{
    args::{Common, StoreDir, settings},
    interrupt::Watched,
    key_args::KeyArgs,
    option_flags::translate,
    output::{Output, code_of, size},
    reference,
};
use crate::{
    archive::report::ProblemCode,
    commands::verify::check_backup,
    error::{Code, Result},
    store::Store,
    util::age::duration,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag verify                               check the newest good backup
  kg diag verify 20260115                      check the only backup of that day
  kg diag verify ./backups/latest.tar.gz       check an archive by its path

Exit status: 0 every byte is as it was written, 5 the backup is damaged.")]
pub struct VerifyArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: a file, an id or the beginning of one, or `latest`
    #[arg(value_name = "BACKUP", default_value = "latest")]
    backup: String,
    #[command(flatten)]
    store: StoreDir,
    #[command(flatten)]
    keys: KeyArgs,
}

pub fn run(args: &VerifyArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let settings = settings(&root, output);
    let store = args.store.open(&root, &settings)?;
    let store = args.keys.on(store, &[], &settings, &root);
    verify(store, &args.backup, &args.keys, output)
}

/// Verifies a backup and returns the exit status.
pub fn verify(store: Store, reference: &str, keys: &KeyArgs, output: &Output) -> Result<u8> {
    let reference = &reference::complete(&store, reference)?;
    let archive = store.locate(reference)?;
    let store = keys.unlock(store, &archive, false)?;
    let watched = Watched::new(output);
    let report = check_backup(&store, reference, false, &watched.context)?;
    drop(watched);
    output.result(&report);
    output.warnings(&report.warnings);
    let path = &report.path;
    if report.valid {
        output.line(format!(
            "{path}: every byte is as it was written ({}, {})",
            size(report.size),
            duration(report.duration_ms)
        ));
        return Ok(0);
    }
    let is_whole_itself = report
        .problems
        .iter()
        .all(|problem| problem.code == ProblemCode::Chain);
    output.line(if is_whole_itself {
        format!(
            "{path}: cannot be restored, because a backup that it depends on is missing or DAMAGED"
        )
    } else {
        format!("{path}: checksum mismatch, this backup is DAMAGED")
    });
    for problem in &report.problems {
        output.line(format!(
            "  {} [{}]",
            translate(&problem.message),
            code_of(&problem.code)
        ));
        if !problem.affects.is_empty() {
            output.line(format!("    affects: {}", problem.affects.join(", ")));
        }
        output.line(format!("    to do: {}", translate(&problem.remedy)));
    }
    Ok(Code::ChecksumMismatch.exit_status())
}
