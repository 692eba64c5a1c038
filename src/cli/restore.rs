//! `kg diag restore`: restore a project, or a part of it, from a backup.

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};

use super::{
    args::{Common, StoreDir, Waiting, settings, working_dir},
    confirm,
    interrupt::Watched,
    key_args::KeyArgs,
    output::{Output, shell_word, size},
    reference,
};
use crate::{
    commands::{
        restore::{RestoreOptions, RestoreResult, restore},
        undo::{UndoOptions, UndoResult, undo_restore},
    },
    config::backup_config::DEFAULT_UNDO_RETENTION_DAYS,
    error::{Error, Result},
    place::Archive,
    project::{Component, Project, STATE_DIR, identity::Kinship},
    store::described_beside,
    util::{age::duration, wording},
    worker::{client::WorkerMode, restore::salvage::UNDO_OF},
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag restore --file latest                          restore the newest backup into this project
  kg diag restore --file ./backups/latest.tar.gz         use another directory of backups
  kg diag restore --file latest.tar.gz --target ./test   restore into another directory
  kg diag restore --file latest --db-only                restore only the database
  kg diag restore --file latest --path 'plugins/glossary/**'
                                                         restore the data of one plugin
  kg diag restore --file latest --dry-run                check it and print what would happen
  kg diag restore --undo                                 put back what the last restore replaced
  kg diag restore --undo --earlier                       then what the restore before it replaced

The files that a restore replaces stay in .kg/restore-undo/ of the target for 7 days.")]
pub struct RestoreArgs {
    #[command(flatten)]
    pub common: Common,
    /// The backup: a file, an id or the beginning of one, or `latest`
    #[arg(long, short, value_name = "FILE", required_unless_present = "undo")]
    file: Option<String>,
    /// Put back the files that the last restore replaced, and remove those that it added
    #[arg(long, conflicts_with_all = ["file", "config_only", "db_only", "path", "backup_dir"])]
    undo: bool,
    /// With --undo: undo the newest restore that is not yet undone, and never an undo; repeat it to
    /// go back to before the first restore
    #[arg(long, requires = "undo")]
    earlier: bool,
    /// Directory to restore into [default: the project]
    #[arg(long, value_name = "DIR")]
    target: Option<PathBuf>,
    #[command(flatten)]
    store: StoreDir,
    /// Restore only an encrypted backup, and ask for its passphrase on a terminal, whatever the
    /// settings name, unless a key is given here or by $KG_PASSPHRASE_FILE. Encrypted backups are
    /// recognized without this flag too
    #[arg(long)]
    decrypt: bool,
    #[command(flatten)]
    keys: KeyArgs,
    /// Restore only the configuration
    #[arg(long)]
    config_only: bool,
    /// Restore only the database
    #[arg(long, conflicts_with = "config_only")]
    db_only: bool,
    /// Restore only files that match, as in .gitignore, relative to the project or .kg, such as
    /// plugins/glossary; may be repeated
    #[arg(long, value_name = "PATTERN")]
    path: Vec<String>,
    /// Replace a damaged database even while another process has it open
    #[arg(long)]
    force: bool,
    /// Replace existing files without asking
    #[arg(long)]
    overwrite: bool,
    /// Keep the backup settings of the project (`backup.*`), and restore the rest of the
    /// configuration
    #[arg(long, conflicts_with = "undo")]
    keep_settings: bool,
    /// Check everything and print what would happen, without changing anything
    #[arg(long)]
    dry_run: bool,
    /// Answer yes to every question
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub fn run(args: &RestoreArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let Some(file) = &args.file else {
        return undo(args, root, output);
    };
    // Warns before anything can fail: an unusable setting may name a directory other than the one
    // that is searched.
    let settings = settings(&root, output);
    let store = args.store.open(&root, &settings)?;
    // Without a project, the store is asked for the backups of the project that is restored.
    let store = match &args.target {
        Some(target) if store.home().is_none() => store.for_project(target),
        _ => store,
    };
    // The archive is located first, so that no question is asked about a backup that does not
    // exist.
    let store = args.keys.on(store, &[], &settings, &root);
    let file = reference::complete(&store, file)?;
    let archive = store.locate_holding(&file, args.only().as_deref())?;
    if args.target.is_none() && args.common.named_project().is_none() {
        assert_meant(&root, &archive)?;
    }
    let mut store = args.keys.unlock(store, &archive, args.decrypt)?;
    if args.decrypt {
        let keys = store.keys().clone().given().requiring_encryption(true);
        store = store.with_keys(keys);
    }
    let target = args.target.clone().unwrap_or(root);
    let question = format!(
        "Restore over the project in {}? Replaced files are kept.",
        target.display()
    );
    args.confirm(&target, &question)?;
    let options = RestoreOptions {
        only: args.only(),
        paths: (!args.path.is_empty()).then(|| args.path.clone()),
        force: args.force,
        // The replaced files are kept, and the result states where.
        overwrite: true,
        keep_settings: args.keep_settings,
        dry_run: args.dry_run,
        lock_timeout: args.waiting.timeout(),
        ..RestoreOptions::new(target)
    };
    let watched = Watched::new(output);
    let result = restore(
        &store,
        &file,
        &WorkerMode::InProcess,
        &options,
        &watched.context,
    )?;
    drop(watched);
    print_result(&result, output);
    output.result(&result);
    Ok(0)
}

/// Fails with `KG_INVALID_OPTION` if the project was found above the working directory and the
/// backup is not known to belong to it. If `.kg` was lost, the user probably means the working
/// directory.
fn assert_meant(root: &Path, archive: &Archive) -> Result<()> {
    let Ok(project) = Project::open(root) else {
        return Ok(());
    };
    if dunce::canonicalize(working_dir()?).is_ok_and(|here| here == project.root()) {
        return Ok(());
    }
    let origin = described_beside(archive)?.and_then(|manifest| manifest.origin());
    if project.identity().kinship(origin.as_ref()) != Kinship::Other {
        return Ok(());
    }
    let message = format!(
        "This directory contains no .kg, and {archive} is not known to belong to {}, the nearest \
         project above it",
        project.root().display()
    );
    Err(Error::invalid(
        message,
        "Name the target: `--target .` restores into this directory, `--project DIR` over that \
         project",
    ))
}

fn undo(args: &RestoreArgs, root: PathBuf, output: &Output) -> Result<u8> {
    let target = args.target.clone().unwrap_or(root);
    let question = format!(
        "Undo the last restore into {}? Replaced files are kept.",
        target.display()
    );
    args.confirm(&target, &question)?;
    let options = UndoOptions {
        earlier: args.earlier,
        force: args.force,
        dry_run: args.dry_run,
        lock_timeout: args.waiting.timeout(),
        undo_retention_days: DEFAULT_UNDO_RETENTION_DAYS,
    };
    let watched = Watched::new(output);
    let result = undo_restore(&target, &WorkerMode::InProcess, &options, &watched.context)?;
    drop(watched);
    output.result(&result);
    output.warnings(&result.warnings);
    let back = wording::count(result.files_restored, "file");
    let away = result.files_removed;
    if result.dry_run {
        output.line(format!(
            "An undo would put back {back} and remove {away}, to restore the state before the"
        ));
        output.line(format!("  {}. Nothing was changed.", undone(&result)));
        return Ok(0);
    }
    output.line(format!("Undid the {}", undone(&result)));
    output.line(format!("  {back} put back, {away} removed"));
    if let Some(kept) = &result.safety_copy {
        output.line(format!(
            "  the previous files are kept in {}; `--undo --earlier` undoes the restore before",
            kept.display()
        ));
        output.line(format!("To undo this: {}", undo_command(&target)));
    }
    Ok(0)
}

/// Describes what was undone, with the time at which it had been done.
fn undone(result: &UndoResult) -> String {
    let at = time(result.restored_at);
    if result.id == UNDO_OF {
        format!("repair at {at}")
    } else {
        format!("restore of {} at {at}", result.id)
    }
}

/// Formats a time in UTC, to the second.
fn time(milliseconds: i64) -> String {
    let at = Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%d %H:%M:%S UTC")
        .to_string()
}

impl RestoreArgs {
    fn only(&self) -> Option<Vec<Component>> {
        match (self.config_only, self.db_only) {
            (true, _) => Some(vec![Component::Config]),
            (_, true) => Some(vec![Component::Database]),
            _ => None,
        }
    }

    /// Asks before a project is replaced. Fails with `KG_NOT_CONFIRMED` if the answer is no.
    fn confirm(&self, target: &Path, question: &str) -> Result<()> {
        if self.yes || self.dry_run || !target.join(STATE_DIR).exists() {
            return Ok(());
        }
        if self.overwrite {
            return confirm::without_question();
        }
        confirm::ask(question)
    }
}

fn print_result(result: &RestoreResult, output: &Output) {
    output.warnings(&result.warnings);
    let files = wording::count(result.files_restored, "file");
    let bytes = size(result.bytes_restored);
    let target = result.target_dir.display();
    if result.dry_run {
        output.line(format!(
            "{} is intact. A restore would write {files} ({bytes}) to {target}",
            result.id
        ));
        output.line(format!(
            "  and replace {} of them. Nothing was changed.",
            result.files_replaced
        ));
        return;
    }
    output.line(format!(
        "Restored {files} ({bytes}) of {} to {target} in {}",
        result.id,
        duration(result.duration_ms)
    ));
    if let Some(kept) = &result.safety_copy {
        output.line(format!(
            "  {} replaced; the previous files are kept in {}",
            wording::count(result.files_replaced, "file"),
            kept.display()
        ));
    }
    if result.can_undo {
        output.line(format!(
            "To undo this: {}",
            undo_command(&result.target_dir)
        ));
    }
}

/// Returns the command that undoes the last change of a project.
fn undo_command(target: &Path) -> String {
    let yes = confirm::flag_where_required();
    let target = target.to_string_lossy();
    format!(
        "kg diag restore --undo{yes} --target {}",
        shell_word(&target)
    )
}
