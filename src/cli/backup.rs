//! `kg diag backup`: make a backup, list them, verify one, tell how things stand.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::{
    Common, Keep,
    manage::Manage,
    output::{Output, code_of, size},
    watch::Watched,
};
use crate::{
    archive::{block::Compression, manifest::BackupType},
    backup::{BackupOptions, Created, DEFAULT_MAX_CHAIN_LENGTH, create_backup},
    error::{Code, Result},
    reader::client::Launch,
    sqlite::check::IntegrityStatus,
    store::{Backup, Store},
    verify::check_backup,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag backup --output ./backups                save the project into ./backups
  kg diag backup --type snapshot                   the database alone, into .kg/backups
  kg diag backup --list                            the backups that exist, newest first
  kg diag backup --pin ID --reason 'before 2.0'    nothing removes it until it is unpinned
  kg diag backup --consolidate ID                  a full backup out of an incremental one
  kg diag backup --delete ID --cascade             remove one, and those that rest on it
  kg diag backup --verify ./backups/latest.tar.gz  check every byte of one")]
pub struct BackupArgs {
    #[command(flatten)]
    pub common: Common,
    /// The directory of the backups [default: .kg/backups of the project]
    #[arg(long, short, value_name = "DIR", alias = "backup-dir")]
    output: Option<PathBuf>,
    /// What to save
    #[arg(long = "type", value_name = "TYPE", default_value = "full")]
    kind: Kind,
    /// The backup that an incremental one rests on [default: the newest good one]
    #[arg(long, value_name = "ID")]
    base_backup: Option<String>,
    /// Save vector embeddings (this is the default)
    #[arg(long)]
    include_vectors: bool,
    /// Leave vector embeddings out
    #[arg(long, conflicts_with = "include_vectors")]
    no_vectors: bool,
    /// Leave plugin data out
    #[arg(long)]
    no_plugins: bool,
    /// Leave out what matches, as in .gitignore, relative to the project; may be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// A note that is kept with the backup
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// How to compress
    #[arg(long, value_name = "FORMAT", default_value = "gzip")]
    compression: Format,
    /// How hard to compress: 1 (fast) to 9 (small) [default: 6 for gzip, 3 for zstd]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=9))]
    level: Option<u8>,
    /// Fail where a file could not be read, changed meanwhile, or a database is damaged
    #[arg(long)]
    strict: bool,
    /// Do not check the database that is saved
    #[arg(long)]
    no_check: bool,
    #[command(flatten)]
    keep: Keep,
    /// Make a full backup where an incremental one would make a chain of more backups than this
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_MAX_CHAIN_LENGTH, value_parser = clap::value_parser!(u32).range(1..))]
    max_chain: u32,
    /// Tell how the backups of this project stand
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
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Everything below .kg/
    Full,
    /// The database alone
    Snapshot,
    /// What changed since another backup
    Incremental,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// .tar.gz, which every system reads
    Gzip,
    /// .tar.zst: faster and smaller, for systems with zstd
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

pub fn run(args: &BackupArgs, output: &Output) -> Result<bool> {
    let root = args.common.root()?;
    let store = Store::at(&args.output.clone().unwrap_or_else(|| Store::default_dir(&root)))?;
    if let Some(reference) = &args.verify {
        return verify(&store, reference, output);
    }
    if let Some(done) = args.manage.run(&store, args.compression(), output) {
        return done.map(|()| true);
    }
    if args.list {
        list(&store, output)?;
    } else if args.status {
        status(&store, output)?;
    } else {
        let watched = Watched::new(output);
        let created = create_backup(&root, &store, &Launch::Thread, &args.options(), &watched.task)?;
        drop(watched);
        tell(&created, output);
    }
    Ok(true)
}

impl BackupArgs {
    fn compression(&self) -> Compression {
        let compression = self.compression.compression();
        self.level.map_or(compression, |level| compression.at(level))
    }

    fn options(&self) -> BackupOptions {
        BackupOptions {
            kind: match self.kind {
                Kind::Full => BackupType::Full,
                Kind::Snapshot => BackupType::Snapshot,
                Kind::Incremental => BackupType::Incremental,
            },
            based_on: self.base_backup.clone(),
            max_chain_length: self.max_chain,
            description: self.description.clone(),
            include_vectors: !self.no_vectors,
            include_plugin_data: !self.no_plugins,
            exclude_patterns: self.exclude.clone(),
            compression: self.compression(),
            check_source: !self.no_check,
            strict: self.strict,
            retention: self.keep.policy(),
            ..BackupOptions::default()
        }
    }
}

fn tell(created: &Created, output: &Output) {
    output.result(created);
    let backup = &created.backup;
    output.warnings(&backup.warnings);
    output.line(format!("Backup created: {}", backup.path.display()));
    output.line(format!("  id        {}", backup.id));
    let (files, from) = (backup.stats.total_files, size(backup.stats.total_size));
    output.line(format!("  size      {} ({files} files, {from} before compression)", size(backup.size)));
    output.line(format!("  holds     {}", holds(backup)));
    output.line(format!("  database  {}", integrity(backup)));
    output.line(format!("  checksum  {}", backup.checksum));
    if created.reused_bytes > 0 {
        output.line(format!("  unchanged {} taken over from an earlier backup", size(created.reused_bytes)));
    }
    if let Some(retention) = &created.retention {
        let removed = retention.decisions.iter().filter(|decision| !decision.kept).count();
        let kept = retention.decisions.len() - removed;
        output.line(format!("  kept      {kept} backups; {removed} removed, {} freed", size(retention.bytes_freed)));
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
    let held: Vec<&str> = parts.iter().filter(|(held, _)| *held).map(|(_, name)| *name).collect();
    let stats = &backup.stats;
    format!("{}; {} nodes, {} edges", held.join(", "), stats.node_count, stats.edge_count)
}

fn integrity(backup: &Backup) -> &'static str {
    match backup.integrity.status {
        IntegrityStatus::Ok => "ok when it was saved",
        IntegrityStatus::Failed => "DAMAGED when it was saved",
        IntegrityStatus::Skipped => "not checked",
    }
}

fn verify(store: &Store, reference: &str, output: &Output) -> Result<bool> {
    let watched = Watched::new(output);
    let report = check_backup(store, reference, &watched.task)?;
    drop(watched);
    output.result(&report);
    let path = report.path.display();
    if report.valid {
        output.line(format!(
            "{path}: every byte is as it was written ({}, {} ms)",
            size(report.size),
            report.duration_ms
        ));
        return Ok(true);
    }
    output.line(format!("{path}: checksum mismatch, this backup is DAMAGED"));
    for problem in &report.problems {
        output.line(format!("  {} [{}]", problem.message, code_of(&problem.code)));
        if !problem.affects.is_empty() {
            output.line(format!("    affects: {}", problem.affects.join(", ")));
        }
        output.line(format!("    to do: {}", problem.remedy));
    }
    Ok(false)
}

fn list(store: &Store, output: &Output) -> Result<()> {
    let backups = store.list()?;
    output.result(&backups);
    if backups.is_empty() {
        output.line(format!("{} holds no backup", store.dir().display()));
        return Ok(());
    }
    output.line(format!("{:32} {:9} {:>9} {:20} {}", "ID", "TYPE", "SIZE", "MADE (UTC)", "DESCRIPTION"));
    for backup in backups {
        let description = backup.description.as_deref().unwrap_or("");
        let damaged = if backup.integrity.status == IntegrityStatus::Failed { "[source damaged] " } else { "" };
        let pinned = match backup.pinned.as_ref().map(|pin| &pin.reason) {
            None => String::new(),
            Some(None) => "[pinned] ".into(),
            Some(Some(reason)) => format!("[pinned: {reason}] "),
        };
        output.line(format!(
            "{:32} {:9} {:>9} {:20} {damaged}{pinned}{description}",
            backup.id,
            code_of(&backup.kind),
            size(backup.size),
            made(&backup),
        ));
    }
    Ok(())
}

fn made(backup: &Backup) -> String {
    let at = Timestamp::from_millisecond(backup.timestamp).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn status(store: &Store, output: &Output) -> Result<()> {
    let backups = store.list()?;
    let latest = match store.latest() {
        Err(error) if error.code == Code::NoBackups => None,
        latest => Some(latest?),
    };
    let total: u64 = backups.iter().map(|backup| backup.size).sum();
    output.result(&json!({ "backupDir": store.dir(), "count": backups.len(), "totalSize": total, "latest": latest }));
    output.line(format!("Backups in {}", store.dir().display()));
    match &latest {
        None => output.line("  none yet: make one with `kg diag backup`"),
        Some(backup) => {
            output.line(format!("  last      {} UTC, {} ({})", made(backup), age(backup.timestamp), backup.id));
            output.line(format!("  database  {}", integrity(backup)));
            output.line(format!("  kept      {} backups, {}", backups.len(), size(total)));
        }
    }
    Ok(())
}

/// `3 h ago`.
fn age(timestamp: i64) -> String {
    let seconds = (Timestamp::now().as_millisecond() - timestamp).max(0) / 1000;
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    match units.iter().find(|(length, _)| seconds >= *length) {
        Some((length, unit)) => format!("{} {unit} ago", seconds / length),
        None => format!("{seconds} s ago"),
    }
}
