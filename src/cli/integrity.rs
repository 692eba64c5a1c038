//! `kg diag integrity` and `kg diag repair`: check a project, and repair what can be repaired.

use std::path::PathBuf;

use clap::Args;

use super::{
    args::{Common, Waiting, settings, store},
    confirm,
    interrupt::Watched,
    key_args::{KeyArgs, lockable},
    option_flags::translate,
    output::{LESS, Output, code_of},
};
use crate::{
    commands::{
        check::{Inspection, Repair, inspect, repair},
        configured,
    },
    error::{Code, Error, Result},
    integrity::{
        Scope,
        issue::{Issue, Part, Severity},
        repair::{Salvage, is_damage},
        target::CheckTarget,
    },
    project::Project,
    salvage::report::LostBy,
    store::Store,
    util::{age::duration, wording},
    worker::client::WorkerMode,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag integrity                      check database, files and vectors of this project
  kg diag integrity .kg/knowledge.db     check one database and its project
  kg diag integrity --repair             make a backup, then repair what can be repaired

Without --repair, nothing is changed.
Exit status: 0 healthy, 3 problems in the database or vectors, 4 in files.")]
pub struct IntegrityArgs {
    #[command(flatten)]
    pub common: Common,
    /// The path of a database or of a project's directory [default: the project]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Do not check the database
    #[arg(long)]
    no_database: bool,
    /// Do not check configuration, documents and permissions
    #[arg(long)]
    no_files: bool,
    /// Do not check vectors
    #[arg(long)]
    no_vectors: bool,
    /// Repair what can be repaired, after making a backup
    #[arg(long, conflicts_with_all = ["no_database", "no_files", "no_vectors"])]
    repair: bool,
    /// Directory for the backup before a repair [default: $KG_BACKUP_DIR, `backup.dir` of the
    /// settings, or .kg/backups]
    #[arg(long, value_name = "DIR")]
    backup_dir: Option<PathBuf>,
    /// Do not encrypt the backup before a repair, whatever the settings say
    #[arg(long)]
    no_encrypt: bool,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag repair           check, list the repairs, and ask on a terminal
  kg diag repair --auto    repair without asking
  kg diag repair /var/lib/graph.db --project .    a database outside of the project that is named

kg makes a backup first. It keeps removed rows in the table kg_repair_removed.
It salvages a damaged database into a new one, if no other process has it open. The damaged
one stays in .kg/restore-undo for 7 days; `kg diag restore --undo` puts it back.
Exit status: 0 healthy afterwards, 3 problems in the database or vectors, 4 in files,
6 healthy, but some content was lost.")]
pub struct RepairArgs {
    #[command(flatten)]
    pub common: Common,
    /// The path of a database or of a project's directory [default: the project]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// Repair without asking
    #[arg(long)]
    auto: bool,
    /// Directory for the backup before the repair [default: $KG_BACKUP_DIR, `backup.dir` of the
    /// settings, or .kg/backups]
    #[arg(long, value_name = "DIR")]
    backup_dir: Option<PathBuf>,
    /// Do not encrypt the backup before a repair, whatever the settings say
    #[arg(long)]
    no_encrypt: bool,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    waiting: Waiting,
}

pub fn run(args: &IntegrityArgs, output: &Output) -> Result<u8> {
    let target = check_target(&args.common, args.path.as_ref())?;
    let watched = Watched::new(output);
    let inspection = if args.repair {
        let store = safety_store(
            &target,
            args.backup_dir.as_ref(),
            &args.keys,
            args.no_encrypt,
            output,
        )?;
        repair(
            &target,
            None,
            store.as_ref(),
            args.waiting.timeout(),
            &WorkerMode::InProcess,
            &watched.context,
        )?
    } else {
        let scope = Scope {
            database: !args.no_database,
            files: !args.no_files,
            vectors: !args.no_vectors,
            quick: false,
        };
        inspect(
            &target,
            scope,
            args.waiting.timeout(),
            &WorkerMode::InProcess,
            &watched.context,
        )?
    };
    drop(watched);
    output.result(&inspection);
    inspection
        .repair
        .iter()
        .for_each(|repair| print_repair(repair, output));
    print_inspection(&inspection, output);
    Ok(status_after(&inspection))
}

pub fn run_repair(args: &RepairArgs, output: &Output) -> Result<u8> {
    let target = check_target(&args.common, args.path.as_ref())?;
    let watched = Watched::new(output);
    if !args.auto {
        let before = inspect(
            &target,
            Scope::ALL,
            args.waiting.timeout(),
            &WorkerMode::InProcess,
            &watched.context,
        )?;
        let can_do = before
            .issues
            .iter()
            .filter(|issue| issue.repairable)
            .count();
        let may_ask = can_do > 0 && !output.is_json() && confirm::may_ask();
        if may_ask {
            print_inspection(&before, output);
        }
        if !may_ask
            || !confirm::answered_yes(&format!("Repair {can_do} of these, after a backup?"))?
        {
            drop(watched);
            if !may_ask {
                output.result(&before);
                print_inspection(&before, output);
            }
            output.line(if can_do > 0 {
                "Nothing was changed. To repair, run `kg diag repair --auto`"
            } else {
                "There is nothing to repair"
            });
            return Ok(status_of(&before.issues));
        }
    }
    let store = safety_store(
        &target,
        args.backup_dir.as_ref(),
        &args.keys,
        args.no_encrypt,
        output,
    )?;
    let after = repair(
        &target,
        None,
        store.as_ref(),
        args.waiting.timeout(),
        &WorkerMode::InProcess,
        &watched.context,
    )?;
    drop(watched);
    output.result(&after);
    after
        .repair
        .iter()
        .for_each(|repair| print_repair(repair, output));
    print_inspection(&after, output);
    Ok(status_after(&after))
}

/// Returns the store for the backup before a repair; `None` if the database belongs to no project
/// and no directory is named. That backup is encrypted if other backups would be, or if a key is
/// given.
fn safety_store(
    target: &CheckTarget,
    dir: Option<&PathBuf>,
    keys: &KeyArgs,
    no_encrypt: bool,
    output: &Output,
) -> Result<Option<Store>> {
    let Some(root) = target
        .root
        .as_ref()
        .filter(|root| Project::open(root).is_ok())
    else {
        return dir.map(|dir| Store::at(dir)).transpose();
    };
    let settings = settings(root, output);
    let said = keys.said(&[], false, no_encrypt);
    let store = store(dir.map(PathBuf::as_path), root, &settings)?
        .as_set(configured::encrypts(&settings, said));
    lockable(keys.on(store, &[], &settings, root).for_recovery()).map(Some)
}

fn check_target(common: &Common, path: Option<&PathBuf>) -> Result<CheckTarget> {
    Ok(match (path, &common.named_project()) {
        (Some(path), Some(_)) if path.is_dir() => {
            return Err(Error::invalid(
                "PATH is a directory, and `--project` names one too",
                "Omit one of them",
            ));
        }
        (Some(path), Some(root)) => CheckTarget::of(root, CheckTarget::at(path).database),
        (Some(path), None) => CheckTarget::at(path),
        (None, _) => CheckTarget::of(&common.root()?, None),
    })
}

/// Returns the exit status of a repair. Issues that remain come first, then whether everything was
/// recovered.
fn status_after(inspection: &Inspection) -> u8 {
    match status_of(&inspection.issues) {
        0 if inspection
            .repair
            .as_ref()
            .is_some_and(|repair| !repair.is_complete()) =>
        {
            LESS
        }
        status => status,
    }
}

/// Returns the exit status for the first error among the issues, or 0 if there is none.
pub fn status_of(issues: &[Issue]) -> u8 {
    let error = issues
        .iter()
        .find(|issue| issue.severity == Severity::Error);
    error.map_or(0, |issue| {
        match issue.component {
            Part::Database | Part::Vectors => Code::DatabaseDamaged,
            Part::Files => Code::Io,
            Part::Backups => issue.code.of_backups(),
        }
        .exit_status()
    })
}

fn print_inspection(inspection: &Inspection, output: &Output) {
    print_issues(&inspection.issues, output);
    let checked = &inspection.checked;
    let what = format!(
        "{}, {}, {}",
        wording::count(checked.nodes, "node"),
        wording::count(checked.edges, "edge"),
        wording::count(checked.vectors, "vector")
    );
    let verdict = if inspection.healthy {
        "is healthy"
    } else {
        "is NOT HEALTHY"
    };
    output.line(format!(
        "{} {verdict} ({what}; {})",
        checked.database.display(),
        duration(inspection.duration_ms)
    ));
}

pub fn print_issues(issues: &[Issue], output: &Output) {
    for issue in issues {
        output.line(format!(
            "{:7} {} [{}]",
            code_of(&issue.severity),
            translate(&issue.message),
            issue.code.as_str()
        ));
        for example in issue.examples.iter().take(3) {
            output.line(format!("          {example}"));
        }
        if issue.examples.len() > 3 {
            output.line(format!("          … of {}", issue.count));
        }
        if let Some(repair) = &issue.repair {
            output.line(format!("        repair would: {repair}"));
        }
        // For damaged pages, restoring a backup recovers more than a repair.
        if issue.repair.is_none() || is_damage(issue) {
            output.line(format!("        to do: {}", translate(&issue.remedy)));
        }
    }
}

fn print_repair(repair: &Repair, output: &Output) {
    if let Some(backup) = &repair.safety_backup {
        output.line(format!(
            "Saved before the repair: {}",
            backup.path.display()
        ));
    }
    if let Some(copy) = &repair.safety_copy {
        output.line(format!("Saved before the repair: {}", copy.display()));
    }
    for action in &repair.actions {
        let moved = if action.rows_removed > 0 {
            format!(": {}", wording::count(action.rows_removed, "row"))
        } else {
            String::new()
        };
        output.line(format!(
            "  {} {}{moved}",
            if action.done { "done  " } else { "FAILED" },
            action.action
        ));
        action
            .salvage
            .iter()
            .for_each(|salvage| print_salvage(salvage, output));
        if let Some(error) = &action.error {
            output.line(format!("         {}", translate(&error.to_string())));
        }
    }
    output.line(format!(
        "{} fixed, {} failed, {} not repairable",
        repair.fixed, repair.failed, repair.skipped
    ));
}

/// Prints what was and was not salvaged of each table.
fn print_salvage(salvage: &Salvage, output: &Output) {
    let report = &salvage.report;
    for table in &report.tables {
        let lost = match table.rows_lost_by {
            LostBy::Nothing => "none lost".to_string(),
            LostBy::Aside | LostBy::Index => format!("{} lost", table.rows_lost),
            LostBy::AtLeast => format!("at least {} lost", table.rows_lost),
            LostBy::Estimate => format!("about {} lost", table.rows_lost),
        };
        output.line(format!(
            "         {}: {} saved, {lost}",
            table.name,
            wording::count(table.rows_recovered, "row")
        ));
    }
    if let Some(found) = &report.lost_and_found {
        output.line(format!(
            "         {}: {} of an unknown table",
            found.table,
            wording::count(found.rows, "row")
        ));
    }
    for object in &report.objects {
        if let Some(reason) = &object.failed {
            output.line(format!(
                "         the {} {} was not created: {reason}",
                object.kind, object.name
            ));
        }
    }
    report
        .warnings
        .iter()
        .for_each(|warning| output.line(format!("         {warning}")));
    output.line(format!(
        "         The damaged database is {}",
        salvage.kept.display()
    ));
}
