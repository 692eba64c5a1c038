//! `kg diag drill`: restore a backup into a temporary directory, check the result, and report how
//! long a recovery takes.

use std::path::PathBuf;

use clap::Args;

use super::{
    Common, Waiting,
    integrity::print_issues,
    interrupt::Watched,
    key_args::KeyArgs,
    output::{Output, size},
    store,
};
use crate::{
    commands::drill::{DrillOptions, DrillResult, drill},
    config::Settings,
    error::{Code, Result},
    util::age::age,
    worker::client::WorkerMode,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag drill                                 rehearse a recovery from the newest backup
  kg diag drill --file ./backups/latest.tar.gz  use this backup
  kg diag drill --directory /mnt/large          use a directory with enough space

A drill does not touch the project and leaves nothing behind.
Exit status: 0 passed, 5 failed.")]
pub struct DrillArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: a file, an id, or `latest`
    #[arg(long, short, value_name = "FILE", default_value = "latest")]
    file: String,
    /// Directory of the backups, or URL such as s3://bucket/prefix [default: `backup.dir` of the
    /// settings, or .kg/backups]
    #[arg(long, value_name = "DIR")]
    backup_dir: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    /// Directory in which the temporary directory is created [default: the system's directory for
    /// temporary files]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    waiting: Waiting,
}

pub fn run(args: &DrillArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let mut unusable = Vec::new();
    let settings = Settings::read(&root, &mut unusable);
    output.late_warnings(&unusable);
    let store = args.keys.on(
        store(args.backup_dir.as_ref(), &root, &settings)?,
        &[],
        &settings,
        &root,
    );
    let archive = store.locate(&args.file)?;
    let store = args.keys.unlock(store, &archive, false)?;
    let options = DrillOptions {
        backup: args.file.clone(),
        directory: args.directory.clone(),
        lock_timeout: args.waiting.timeout(),
    };
    let watched = Watched::new(output);
    let mut result = drill(&store, &options, &WorkerMode::InProcess, &watched.context)?;
    drop(watched);
    print_result(&result, output);
    result.warnings.extend(unusable);
    output.result(&result);
    Ok(if result.passed {
        0
    } else {
        Code::ChecksumMismatch.exit_status()
    })
}

fn print_result(result: &DrillResult, output: &Output) {
    let DrillResult {
        id, nodes, edges, ..
    } = result;
    output.warnings(&result.warnings);
    let (files, bytes) = (result.files_restored, size(result.bytes_restored));
    output.line(format!("Drill with {id}"));
    output.line(format!(
        "  restored  {files} files ({bytes}) in {} ms",
        result.restore_ms
    ));
    output.line(format!("  checked   in {} ms", result.check_ms));
    output.line(format!("  nodes     {} of {}", nodes.found, nodes.expected));
    output.line(format!("  edges     {} of {}", edges.found, edges.expected));
    output.line(format!(
        "  lost      everything written in the {} since that backup",
        age(result.age_ms)
    ));
    print_issues(&result.issues, output);
    output.line(if result.passed {
        "Passed"
    } else {
        "FAILED: do not rely on this backup"
    });
}
