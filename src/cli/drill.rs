//! `kg diag drill`: restore a backup into a temporary directory, check the result, and report how
//! long a recovery takes.

use std::path::PathBuf;

use clap::Args;

use super::{
    args::{Common, StoreDir, Waiting, settings},
    integrity::print_issues,
    interrupt::Watched,
    key_args::KeyArgs,
    output::{Output, size},
    reference,
};
use crate::{
    commands::drill::{DrillOptions, DrillResult, drill},
    error::{Code, Result},
    util::{
        age::{age, duration},
        wording,
    },
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
    /// The backup: a file, an id or the beginning of one, or `latest`
    #[arg(long, short, value_name = "FILE", default_value = "latest")]
    file: String,
    #[command(flatten)]
    store: StoreDir,
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
    let settings = settings(&root, output);
    let store = args.store.open(&root, &settings)?;
    let store = args.keys.on(store, &[], &settings, &root);
    let backup = reference::complete(&store, &args.file)?;
    let archive = store.locate(&backup)?;
    let store = args.keys.unlock(store, &archive, false)?;
    let options = DrillOptions {
        backup,
        directory: args.directory.clone(),
        lock_timeout: args.waiting.timeout(),
    };
    let watched = Watched::new(output);
    let result = drill(&store, &options, &WorkerMode::InProcess, &watched.context)?;
    drop(watched);
    print_result(&result, output);
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
    let files = wording::count(result.files_restored, "file");
    let bytes = size(result.bytes_restored);
    output.line(format!("Drill with {id}"));
    output.line(format!(
        "  restored  {files} ({bytes}) in {}",
        duration(result.restore_ms)
    ));
    output.line(format!("  checked   in {}", duration(result.check_ms)));
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
