//! `kg diag store`: check the place of the backups before it is needed.

use std::path::PathBuf;

use clap::Args;

use super::{
    args::{Common, StoreDir, settings, store},
    interrupt::Watched,
    option_flags::translate,
    output::{LESS, Output, size},
};
use crate::{
    commands::store_check::{Need, Operation, Outcome, StoreCheck, Tried, check_store},
    error::{Code, Error, Result},
    project::Project,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag store --check                        check `backup.dir` of the settings
  kg diag store --check s3://bucket/prefix     check an object store
  kg diag store --check /mnt/backups           check a directory

The check writes below a name of its own, .kg-check-…, and removes that at the end.
Exit status: 0 backups and retention work, 2 an option is wrong, 4 the URL is wrong or backups do not
work or it cannot tell, 6 only retention does not.")]
pub struct StoreArgs {
    #[command(flatten)]
    pub common: Common,
    /// Try what backups, restores and retention do, at a URL such as s3://bucket/prefix or in a
    /// directory [default: $KG_BACKUP_DIR, `backup.dir` of the settings, or .kg/backups]
    #[arg(long, value_name = "URL", num_args = 0..=1, required = true)]
    check: Option<Option<PathBuf>>,
    #[command(flatten)]
    store: StoreDir,
}

pub fn run(args: &StoreArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let settings = settings(&root, output);
    let checked = args.check.as_ref().and_then(Option::as_deref);
    let named = match (checked, args.store.named()) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid(
                "Two stores are named",
                "Name one: `--check DIR`, or `--check --backup-dir DIR`",
            ));
        }
        (checked, named) => checked.or(named),
    };
    if named.is_none() {
        // Without a project, there are no settings that could name a store.
        Project::open(&root)?;
    }
    let store = store(named, &root, &settings)?;
    let watched = Watched::new(output);
    let checked = check_store(&store, &watched.context)?;
    drop(watched);
    output.result(&checked);
    print_check(&checked, output);
    Ok(
        match (checked.backups.is_good(), checked.retention.is_good()) {
            (true, true) => 0,
            (true, false) => LESS,
            (false, _) => Code::StoreUnreachable.exit_status(),
        },
    )
}

fn print_check(checked: &StoreCheck, output: &Output) {
    output.line(format!("Store {}", checked.store));
    output.line(format!("  {}", described(&checked.tried)));
    for (need, title) in [
        (Need::Backups, "Needed for backups, restores and the lock"),
        (Need::Retention, "Needed for retention"),
        (Need::Advice, "Advice"),
    ] {
        output.line(title);
        let operations = checked.operations.iter();
        for operation in operations.filter(|one| one.needed_for == need) {
            print_operation(operation, output);
        }
    }
    for remaining in &checked.remaining {
        output.line(format!("REMAINS, and you may delete it: {remaining}"));
    }
    output.line(
        match (checked.backups.is_good(), checked.retention.is_good()) {
            (true, true) => "Ready: backups and retention work",
            (true, false) => "READY FOR BACKUPS ONLY: retention does not work",
            (false, _) if checked.backups == Outcome::CannotTell => "CANNOT TELL if backups work",
            (false, _) => "NOT READY: backups do not work",
        },
    );
}

fn print_operation(operation: &Operation, output: &Output) {
    let word = match operation.outcome {
        Outcome::Works => "works",
        Outcome::Warning => "warning",
        Outcome::CannotTell => "cannot tell",
        Outcome::NotTried => "not tried",
        Outcome::Fails => "FAILS",
    };
    let details = &operation.details;
    let is_short = matches!(operation.outcome, Outcome::Works | Outcome::NotTried);
    let title = operation.title;
    output.line(match details.message.as_deref().filter(|_| is_short) {
        Some(message) => format!("  {word:<12} {title} ({message})"),
        None => format!("  {word:<12} {title}"),
    });
    let more = [&details.message, &details.remedy].into_iter().flatten();
    for text in more.filter(|_| !is_short) {
        output.line(format!("{:15}{}.", "", translate(text)));
    }
}

fn described(tried: &Tried) -> String {
    let mut parts = vec![match &tried.host {
        Some(host) => format!("{} at {host}", tried.service),
        None => tried.service.to_string(),
    }];
    let region = tried.region.as_ref().map(|one| format!("region {one}"));
    parts.extend(region);
    parts.extend(tried.file_system.clone());
    parts.extend(tried.free_bytes.map(|free| format!("{} free", size(free))));
    if tried.bucket.is_some() {
        let source = tried.credentials.as_deref().unwrap_or("an unknown source");
        parts.push(format!("credentials: {source}"));
    }
    parts.join(", ")
}
