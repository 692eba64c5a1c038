//! `kg diag backup`: make a backup, list backups, verify one, print their status.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::{
    Common, Keep, Waiting,
    copy::CopyArgs,
    hook_reporter::HookReporter,
    interrupt::Watched,
    key_args::{KeyArgs, lockable},
    manage::Manage,
    option_flags::translate,
    output::{Output, code_of, integrity, size},
    status::date,
    store,
};
use crate::{
    archive::{block::Compression, manifest::BackupType, report::ProblemCode},
    commands::{
        backup::{Created, create_backup},
        configured,
        verify::check_backup,
    },
    config::{
        Settings,
        backup_config::{BackupConfig, BackupOptions},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::Project,
    schedule::plan::Trigger,
    service::{
        Holder,
        history::{Began, History, Run},
        metrics,
        run_marker::RunMarker,
        status,
    },
    store::{Backup, Flaw, Listing, Store, broken_chains, known_stores, newest_good},
    util::operation::OperationContext,
    worker::client::WorkerMode,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag backup --output ./backups                save the project into ./backups
  kg diag backup --type snapshot                   save only the database, into .kg/backups
  kg diag backup --encrypt --passphrase-file ./key encrypt it with a passphrase
  kg diag backup --list                            list the backups, newest first
  kg diag backup --pin ID --reason 'before 2.0'    protect it until it is unpinned
  kg diag backup --consolidate ID                  make a full backup of an incremental one
  kg diag backup --delete ID --cascade             delete it and all that depend on it
  kg diag backup --copy-to /mnt/usb/backups        copy what is missing there
  kg diag backup --verify ./backups/latest.tar.gz  check every byte of it

Exit status of a backup: 0 made, 1 to 5 not made. 6 made, but incomplete (a file could not be
read, or changed meanwhile, or a link leads out of the project), or old backups were not removed
because some could not be read. A list exits with 6 if it could not read everything, and a copy if
one of the backups could not be copied.")]
pub struct BackupArgs {
    #[command(flatten)]
    pub common: Common,
    /// Directory of the backups, or URL such as s3://bucket/prefix [default: `backup.dir` of the
    /// settings, or .kg/backups]
    #[arg(long, short, value_name = "DIR", alias = "backup-dir")]
    output: Option<PathBuf>,
    /// What to save [default: full]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<TypeArgument>,
    /// The base of an incremental backup [default: the newest good one]
    #[arg(long, value_name = "ID")]
    base_backup: Option<String>,
    /// Save vector embeddings (this is the default)
    #[arg(long)]
    include_vectors: bool,
    /// Do not save vector embeddings
    #[arg(long, conflicts_with = "include_vectors")]
    no_vectors: bool,
    /// Do not save plugin data
    #[arg(long)]
    no_plugins: bool,
    /// Exclude files that match, as in .gitignore, relative to the project or .kg; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// A note that is stored with the backup
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The compression format [default: gzip]
    #[arg(long, value_name = "FORMAT")]
    compression: Option<Format>,
    /// The compression level, from 1 (fast) to 9 (small) [default: 6 for gzip, 3 for zstd]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=9))]
    level: Option<u8>,
    /// Fail if a file cannot be read or changes during the backup, or if a database is damaged
    #[arg(long)]
    strict: bool,
    /// Read every file for an incremental backup, also those that look unchanged
    #[arg(long)]
    force_read: bool,
    /// Do not check the saved database
    #[arg(long)]
    no_check: bool,
    /// Write metrics for node_exporter's textfile collector after the backup
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,
    /// Encrypt the backup, as `age` does; implied by a key that is given here [default:
    /// `backup.encrypt` of the settings]
    #[arg(long)]
    encrypt: bool,
    /// Do not encrypt the backup, whatever the settings say
    #[arg(long, conflicts_with = "encrypt")]
    no_encrypt: bool,
    #[command(flatten)]
    keys: KeyArgs,
    /// Encrypt to this public key of age (age1…) instead of a passphrase; may be repeated [default:
    /// `backup.recipients` of the settings]
    #[arg(long, short, value_name = "KEY", conflicts_with = "no_encrypt")]
    recipient: Vec<String>,
    #[command(flatten)]
    keep: Keep,
    #[command(flatten)]
    waiting: Waiting,
    /// Make a full backup if an incremental one would make its chain longer than this number of
    /// backups [default: 64]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    max_chain: Option<u32>,
    /// Print the status of this project's backups
    #[arg(long, group = "instead")]
    status: bool,
    /// List the backups, newest first
    #[arg(long, group = "instead")]
    list: bool,
    /// Check every byte of a backup: a file, an id, or `latest`
    #[arg(long, value_name = "FILE", group = "instead")]
    verify: Option<String>,
    #[command(flatten)]
    manage: Manage,
    #[command(flatten)]
    copying: CopyArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TypeArgument {
    /// Everything below .kg/
    Full,
    /// Only the database
    Snapshot,
    /// The changes since another backup
    Incremental,
}

impl TypeArgument {
    fn backup_type(self) -> BackupType {
        match self {
            TypeArgument::Full => BackupType::Full,
            TypeArgument::Snapshot => BackupType::Snapshot,
            TypeArgument::Incremental => BackupType::Incremental,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A .tar.gz, which every system can read
    Gzip,
    /// A .tar.zst, which is faster and smaller but needs zstd
    Zstd,
    /// A plain .tar
    None,
}

impl Format {
    fn compression(self) -> Compression {
        match self {
            Format::Gzip => Compression::GZIP,
            Format::Zstd => Compression::ZSTD,
            Format::None => Compression::None,
        }
    }
}

/// The exit status if the result is incomplete: a backup lacks a part of the project, retention
/// could not examine old backups, or a list lacks backups that cannot be read.
const LESS: u8 = 6;

/// Runs the command and returns its exit status.
pub fn run(args: &BackupArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let mut unusable = Vec::new();
    let settings = Settings::read(&root, &mut unusable);
    let store = args.store(&root, &settings);
    if !args.is_about_others() {
        // The passphrase is asked for here, before the backup begins, so that no question
        // interrupts it.
        return Ok(make(
            args,
            &root,
            &settings,
            store.and_then(lockable),
            unusable,
            output,
        ));
    }
    let store = store?;
    let store = match args.opens() {
        Some(reference) => {
            let archive = store.locate(reference)?;
            args.keys.unlock(store, &archive, false)?
        }
        None => store,
    };
    if !args.status {
        output.late_warnings(&unusable);
    }
    if let Some(reference) = &args.verify {
        let is_good = verify(&store, reference, output)?;
        return Ok(if is_good {
            0
        } else {
            Code::ChecksumMismatch.exit_status()
        });
    }
    if let Some(done) = args.manage.run(
        &store,
        args.set(&settings)
            .over(BackupConfig::of(&settings))
            .compression(),
        args.waiting.timeout(),
        output,
    ) {
        return done.map(|()| 0);
    }
    if args.copying.is_asked_for() {
        let limits = (&args.keep, &args.waiting);
        let is_complete = args.copying.run(&store, &root, &settings, limits, output)?;
        return Ok(if is_complete { 0 } else { LESS });
    }
    if args.list {
        return list(&store, output);
    }
    status(&root, &store, &settings, &unusable, output)?;
    Ok(0)
}

/// Makes a backup and reports it, first on the terminal and then to the hooks. The hooks do not
/// change the exit status.
fn make(
    args: &BackupArgs,
    root: &Path,
    settings: &Settings,
    store: Result<Store>,
    unusable: Vec<Warning>,
    output: &Output,
) -> u8 {
    let watched = Watched::new(output);
    let cancel = watched.context.cancel.clone();
    let hooks = HookReporter::start(root);
    let began = Began::now();
    let mut made = attempt(args, root, settings, store, &watched.context, output);
    let duration_ms = began.duration_ms();
    drop(watched);
    let status = match &mut made {
        Ok(created) => {
            created.backup.warnings.extend(unusable);
            print_created(created, output);
            if created.backup.incomplete || created.retention_error.is_some() {
                LESS
            } else {
                0
            }
        }
        Err(error) => {
            output.error(error);
            error.code.exit_status()
        }
    };
    hooks.end(&made, duration_ms, &cancel, output);
    status
}

fn attempt(
    args: &BackupArgs,
    root: &Path,
    settings: &Settings,
    store: Result<Store>,
    context: &OperationContext,
    output: &Output,
) -> Result<Created> {
    let began = Began::now();
    let mut kind = args
        .kind
        .map_or(configured::wanted_kind(settings), TypeArgument::backup_type);
    let started = RunMarker::begin(
        Project::open(root).ok().as_ref(),
        kind,
        Trigger::Manual,
        began,
    );
    let mut made = store.as_ref().map_err(Error::clone).and_then(|store| {
        let options = args.options(settings, root, store)?;
        kind = options.kind;
        create_backup(root, store, &WorkerMode::InProcess, &options, context)
    });
    match (remember(root, &made, kind, began), &mut made) {
        (Some(unwritten), Ok(created)) => created.backup.warnings.push(unwritten),
        (unwritten, _) => output.warnings(&Vec::from_iter(unwritten)),
    }
    started.end();
    let Ok(store) = store else { return made };
    let unwritten = args
        .metrics_file
        .as_ref()
        .and_then(|path| measure(path, root, &store, settings).err());
    if let Some(error) = unwritten {
        let message = format!("The metrics could not be written: {}", error.message);
        output.warnings(&[Warning::new(WarningCode::Store, message)]);
    }
    made
}

/// Records the run for `--status` and the metrics. An interrupted run is not recorded.
///
/// Returns a warning if the run could not be recorded. The run counts nevertheless, but status and
/// metrics do not know of it.
fn remember(
    root: &Path,
    made: &Result<Created>,
    kind: BackupType,
    began: Began,
) -> Option<Warning> {
    if made
        .as_ref()
        .is_err_and(|error| error.code == Code::Aborted)
    {
        return None;
    }
    let run = Run::of(made, kind, Trigger::Manual, began);
    let project = Project::open(root).ok()?;
    let error = History::update(&project, |history| history.runs.push(run)).err()?;
    Some(Warning::new(
        WarningCode::Store,
        format!("This run could not be recorded: {}", error.message),
    ))
}

fn measure(path: &Path, root: &Path, store: &Store, settings: &Settings) -> Result<()> {
    let project = Project::open(root)?;
    metrics::write(
        path,
        &project,
        &status::status(Some(&project), store, settings, Timestamp::now())?,
    )
}

impl BackupArgs {
    /// Returns whether the command concerns existing backups instead of making one.
    fn is_about_others(&self) -> bool {
        self.list
            || self.status
            || self.verify.is_some()
            || self.manage.is_asked_for()
            || self.copying.is_asked_for()
    }

    /// Returns the store with the keys that are named. It encrypts new backups if the call or the
    /// settings ask for that.
    fn store(&self, root: &Path, settings: &Settings) -> Result<Store> {
        let said = self
            .keys
            .said(&self.recipient, self.encrypt, self.no_encrypt);
        let store = store(self.output.as_ref(), root, settings)?
            .as_set(configured::encrypts(settings, said));
        Ok(self.keys.on(store, &self.recipient, settings, root))
    }

    /// Returns the backup that the command opens.
    fn opens(&self) -> Option<&str> {
        self.verify.as_deref().or(self.manage.opens())
    }

    /// Returns what the arguments set.
    fn set(&self, settings: &Settings) -> BackupConfig {
        let include_vectors = self
            .include_vectors
            .then_some(true)
            .or(self.no_vectors.then_some(false));
        BackupConfig {
            backup_type: self.kind.map(TypeArgument::backup_type),
            max_chain_length: self.max_chain,
            include_vectors,
            include_plugin_data: self.no_plugins.then_some(false),
            exclude_patterns: Some(self.exclude.clone()).filter(|patterns| !patterns.is_empty()),
            compression: self.compression.map(Format::compression),
            compression_level: self.level,
            check_source: self.no_check.then_some(false),
            strict: self.strict.then_some(true),
            force_read: self.force_read.then_some(true),
            lock_timeout: Some(self.waiting.timeout()),
            ..self.keep.set(&BackupConfig::of(settings))
        }
    }

    /// Returns the options of the backup. The settings complete what the arguments do not set.
    fn options(&self, settings: &Settings, root: &Path, store: &Store) -> Result<BackupOptions> {
        let set = self.set(settings);
        Ok(BackupOptions {
            based_on: self.base_backup.clone(),
            description: self.description.clone(),
            ..configured::options(set, settings, root, store, Timestamp::now())?
        })
    }
}

fn print_created(created: &Created, output: &Output) {
    output.result(created);
    let backup = &created.backup;
    output.warnings(&backup.warnings);
    output.line(format!("Backup created: {}", backup.archive));
    output.line(format!("  id        {}", backup.id));
    let (files, from) = (backup.stats.total_files, size(backup.stats.total_size));
    output.line(format!(
        "  size      {} ({files} files, {from} before compression)",
        size(backup.disk_size())
    ));
    output.line(format!("  contains  {}", holds(backup)));
    output.line(format!("  database  {}", integrity(backup)));
    output.line(format!("  checksum  {}", backup.checksum));
    if backup.incomplete {
        output.line(
            "  INCOMPLETE: the warnings name what is missing; use --exclude to leave it out on purpose",
        );
    }
    if backup.encrypted {
        output.line("  encrypted only its key opens it: keep a copy of the key elsewhere");
    }
    if created.reused_bytes > 0 {
        output.line(format!(
            "  reused    {} from an earlier backup",
            size(created.reused_bytes)
        ));
    }
    if let Some(retention) = &created.retention {
        let removed = retention
            .decisions
            .iter()
            .filter(|decision| !decision.kept)
            .count();
        let kept = retention.decisions.len() - removed;
        output.line(format!(
            "  kept      {kept} backups; {removed} removed, {} freed",
            size(retention.bytes_freed)
        ));
    }
}

fn holds(backup: &Backup) -> String {
    let contents = &backup.contents;
    let parts = [
        (contents.database, "database"),
        (contents.config, "config"),
        (contents.vectors, "vectors"),
        (contents.plugins, "plugins"),
    ];
    let held: Vec<&str> = parts
        .iter()
        .filter(|(held, _)| *held)
        .map(|(_, name)| *name)
        .collect();
    let stats = &backup.stats;
    format!(
        "{}; {} nodes, {} edges",
        held.join(", "),
        stats.node_count,
        stats.edge_count
    )
}

fn verify(store: &Store, reference: &str, output: &Output) -> Result<bool> {
    let watched = Watched::new(output);
    let report = check_backup(store, reference, false, &watched.context)?;
    drop(watched);
    output.result(&report);
    output.warnings(&report.warnings);
    let path = &report.path;
    if report.valid {
        output.line(format!(
            "{path}: every byte is as it was written ({}, {} ms)",
            size(report.size),
            report.duration_ms
        ));
        return Ok(true);
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
    Ok(false)
}

/// Lists the backups and returns the exit status.
fn list(store: &Store, output: &Output) -> Result<u8> {
    store.assert_meant()?;
    let listing = store.read()?;
    let status = if listing.unread().next().is_some() {
        LESS
    } else {
        0
    };
    output.result(&listing.backups);
    output.late_warnings(&list_warnings(store, &listing));
    let Listing { backups, unlisted } = listing;
    if backups.is_empty() && unlisted.is_empty() {
        output.line(format!("{} contains no backup", store.dir().display()));
        return Ok(status);
    }
    output.line(format!(
        "{:32} {:9} {:>9} {:20} {}",
        "ID", "TYPE", "SIZE", "MADE (UTC)", "DESCRIPTION"
    ));
    for unlisted in &unlisted {
        output.line(format!(
            "{:32} {:9} {:>9} {:20} {}",
            unlisted.id,
            "-",
            "-",
            "-",
            mark(&unlisted.flaw)
        ));
    }
    let broken = broken_chains(&backups);
    for backup in &backups {
        let why = broken.get(&backup.id).map(String::as_str);
        output.line(format!(
            "{:32} {:9} {:>9} {:20} {}{}",
            backup.id,
            code_of(&backup.kind),
            size(backup.disk_size()),
            date(backup.timestamp, &TimeZone::UTC),
            marks(backup, store, why),
            one_line(backup.description.as_deref().unwrap_or("")),
        ));
    }
    Ok(status)
}

/// Returns the warnings about files that are not backups, about a store that lost its backups, and
/// about the backup that `latest` selects.
fn list_warnings(store: &Store, listing: &Listing) -> Vec<Warning> {
    let Listing { backups, unlisted } = listing;
    let mut warnings = Vec::new();
    if let Some(first) = unlisted.first() {
        let (count, dir) = (unlisted.len(), store.dir().display());
        let message = format!(
            "{count} archives or manifests in {dir} cannot be used as backups; the first: {}: {}",
            first.archive,
            first.why()
        );
        warnings.push(Warning::new(WarningCode::Store, message));
    }
    let own: Vec<Backup> = backups
        .iter()
        .filter(|backup| store.is_own(backup))
        .cloned()
        .collect();
    let emptied = store
        .home()
        .and_then(|home| known_stores::emptied(home, store, &own));
    warnings.extend(emptied);
    let preferred = store.preferred(backups.to_vec());
    if let Some(latest) = newest_good(&preferred) {
        warnings.extend(store.doubts("latest", &latest.archive, None));
    }
    warnings
}

/// Returns the mark of a file that cannot be used as a backup.
fn mark(flaw: &Flaw) -> &'static str {
    match flaw {
        Flaw::NoManifest => "[no manifest]",
        Flaw::Misfit => "[archive does not match its manifest]",
        Flaw::NoArchive => "[archive missing]",
        Flaw::Unread(_) => "[cannot be read]",
    }
}

/// Returns the marks of a backup, each with a space after it. `broken` says why its chain is broken.
fn marks(backup: &Backup, store: &Store, broken: Option<&str>) -> String {
    let is_other = store.home().is_some() && !store.is_of_project(backup);
    let is_same_path = store.home().is_some() && store.is_of_path(backup);
    let is_moved = store.home().is_some() && !is_other && !is_same_path && !store.is_own(backup);
    let chain = broken.map(|why| {
        format!(
            "[chain broken: {}] ",
            why.strip_prefix(&format!("{} ", backup.id)).unwrap_or(why)
        )
    });
    let pinned = backup.pinned.as_ref().map(|pin| match &pin.reason {
        None => "[pinned] ".into(),
        Some(reason) => format!("[pinned: {}] ", one_line(reason)),
    });
    let marks = [
        is_other.then(|| of_other(backup)),
        is_moved.then(|| "[other path] ".into()),
        is_same_path.then(|| of_path(backup)),
        backup.encrypted.then(|| "[encrypted] ".into()),
        backup.safety_backup.then(|| "[safety backup] ".into()),
        backup
            .flaw_of_source()
            .map(|flaw| format!("[source {flaw}] ")),
        chain,
        backup.incomplete.then(|| "[incomplete] ".into()),
        pinned,
    ];
    marks.into_iter().flatten().collect()
}

/// Names the project of a backup that may or may not be the present one.
fn of_path(backup: &Backup) -> String {
    let id = backup.project_id.as_deref().unwrap_or_default();
    format!("[project {id}] ")
}

fn of_other(backup: &Backup) -> String {
    match &backup.project_id {
        Some(id) => format!("[other project: {id}] "),
        None => "[other project] ".into(),
    }
}

/// Joins the lines of a text that a user wrote, so that none of them can look like a backup in the
/// list.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn status(
    root: &Path,
    store: &Store,
    settings: &Settings,
    warnings: &[Warning],
    output: &Output,
) -> Result<()> {
    let project = Project::open(root).ok();
    let mut status = status::status(project.as_ref(), store, settings, Timestamp::now())?;
    let found = project.as_ref().map(Holder::find).transpose();
    if let Err(error) = &found {
        status.health.ok = false;
        status.health.messages.push(format!(
            "whether a service is running cannot be determined: {}",
            error.message
        ));
    }
    let service = found.unwrap_or_default().flatten();
    // The store is in use: by the scheduled run, or by the writer that it waits for.
    let is_in_progress = service.is_some() && store.is_in_use();
    if is_in_progress {
        status.health = status.health_when(false);
    }
    // An unusable setting may be one that backups depend on.
    status.health.ok &= warnings.is_empty();
    status
        .health
        .messages
        .extend(warnings.iter().map(|warning| warning.message.clone()));
    for message in &mut status.health.messages {
        *message = translate(message);
    }
    let mut result = serde_json::to_value(&status).unwrap_or_default();
    result["service"] = json!(service);
    result["inProgress"] = json!(is_in_progress);
    result["warnings"] = json!(warnings);
    output.result(&result);
    output.warnings(warnings);
    let shown = project
        .as_ref()
        .zip(service.as_ref())
        .map(|(project, service)| service.shown(project));
    super::status::print_status(&status, shown.as_deref(), is_in_progress, output);
    Ok(())
}
