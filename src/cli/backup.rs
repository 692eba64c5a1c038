//! `kg diag backup`: make a backup. The flags of the guide that concern existing backups, such as
//! `--list`, call the commands of the same names.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{
    args::{Common, Keep, OutputDir, Waiting, parse_count},
    copy::CopyArgs,
    hook_reporter::HookReporter,
    interrupt::Watched,
    key_args::{KeyArgs, lockable},
    list,
    manage::ManageFlags,
    output::{LESS, Output, integrity, size},
    reference, status, verify,
};
use crate::{
    archive::{block::Compression, manifest::BackupType},
    commands::{
        backup::{Created, create_backup},
        configured,
    },
    config::{
        Settings,
        backup_config::{BackupConfig, BackupOptions},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::Project,
    schedule::plan::Trigger,
    service::{
        self,
        history::{Began, History, Run},
        metrics,
        run_marker::RunMarker,
    },
    store::{Backup, Store},
    util::{operation::OperationContext, wording},
    worker::client::WorkerMode,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag backup --output ./backups                save the project into ./backups
  kg diag backup --type snapshot                   save only the database, into .kg/backups
  kg diag backup --encrypt --passphrase-file ./key encrypt it with a passphrase
  kg diag backup --copy-to /mnt/usb/backups        copy what is missing there

Exit status of a backup: 0 made, 1 to 5 not made. 6 made, but incomplete (a file could not be
read, or changed meanwhile, or a link leads out of the project), or old backups were not removed
because some could not be read. A list exits with 6 if it could not read everything, and a copy if
one of the backups could not be copied.")]
pub struct BackupArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    store: OutputDir,
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
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
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
    #[arg(long, value_name = "NUMBER", value_parser = parse_count::<u32>)]
    max_chain: Option<u32>,
    /// Print the status of this project's backups, as `kg diag status` does
    #[arg(long, group = "instead")]
    status: bool,
    /// List the backups, as `kg diag list` does
    #[arg(long, group = "instead")]
    list: bool,
    /// Check every byte of a backup, as `kg diag verify` does: a file, an id, or `latest`
    #[arg(long, value_name = "FILE", group = "instead")]
    verify: Option<String>,
    #[command(flatten)]
    manage: ManageFlags,
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

/// Runs the command and returns its exit status.
pub fn run(args: &BackupArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let mut unusable = Vec::new();
    let settings = Settings::read(&root, &mut unusable);
    let store = args.store(&root, &settings);
    if args.status {
        let store = store?;
        status::assert_meant(&args.common, &root, &store, args.store.is_named())?;
        return status::status(&root, &store, &settings, &unusable, output);
    }
    let set = args.set(&settings).over(BackupConfig::of(&settings));
    if let Some(action) = args.manage.action(set.compression(), &args.keys) {
        output.warnings(&unusable);
        return action.run(&store?, args.waiting.timeout(), output);
    }
    if let Some(reference) = &args.verify {
        output.warnings(&unusable);
        return verify::verify(store?, reference, &args.keys, output);
    }
    if args.copying.is_asked_for() {
        output.warnings(&unusable);
        let limits = (&args.keep, &args.waiting);
        let is_complete = args
            .copying
            .run(&store?, &root, &settings, limits, output)?;
        return Ok(if is_complete { 0 } else { LESS });
    }
    if args.list {
        output.warnings(&unusable);
        return list::list(&store?, &root, output);
    }
    // The passphrase is asked for here, before the backup begins, so that no question interrupts
    // it.
    let store = store.and_then(lockable);
    Ok(make(args, &root, &settings, store, unusable, output))
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
        &service::status::status(Some(&project), store, settings, Timestamp::now())?,
    )
}

impl BackupArgs {
    /// Returns the store with the keys that are named. It encrypts new backups if the call or the
    /// settings ask for that.
    fn store(&self, root: &Path, settings: &Settings) -> Result<Store> {
        let said = self
            .keys
            .said(&self.recipient, self.encrypt, self.no_encrypt);
        let store = self
            .store
            .open(root, settings)?
            .as_set(configured::encrypts(settings, said));
        Ok(self.keys.on(store, &self.recipient, settings, root))
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
        let base = self.base_backup.as_deref();
        Ok(BackupOptions {
            based_on: base.map(|base| reference::id(store, base)).transpose()?,
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
    let files = wording::count(backup.stats.total_files, "file");
    let from = size(backup.stats.total_size);
    output.line(format!(
        "  size      {} ({files}, {from} before compression)",
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
            "  kept      {}; {removed} removed, {} freed",
            wording::count(kept, "backup"),
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
        "{}; {}, {}",
        held.join(", "),
        wording::count(stats.node_count, "node"),
        wording::count(stats.edge_count, "edge")
    )
}

fn parse_level(text: &str) -> std::result::Result<u8, String> {
    let level = text.parse().ok().filter(|level| (1..=9).contains(level));
    level.ok_or_else(|| "it must be a whole number from 1 to 9".into())
}
