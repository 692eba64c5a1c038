//! The verb `backup`: saves a project into a new archive of a store.

use std::{
    fs,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    archive::{
        block::Compression,
        manifest::{BackupType, Contents, FORMAT_VERSION, Manifest, Stats, Tool},
        writer::{ArchiveWriter, DatabaseEntry, Totals, checksums},
    },
    commands::{
        incremental_base::{self, IncrementalBase, own_among, own_backups},
        prune::{self, PruneResult},
    },
    error::{Code, Error, Result, Warning, WarningCode, first_and_more},
    project::{
        Component, Project,
        discover::{Scope, Selection},
        exclude::Exclusion,
    },
    store::{Backup, Store, StoreLock, good, known_stores, retention::Policy},
    util::{
        operation::{OperationContext, Phase},
        threads::start_in,
        unsupported,
    },
    worker::{
        client::{Response, Worker, WorkerMode, protocol_violation},
        protocol::{Message, PAGE_HASHES_FILE, SaveRequest, Saved},
        restore::undo::DEFAULT_RETENTION_DAYS,
    },
};

/// Of `lockTimeout`.
pub const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Of `maxChainLength`: a restore and each further backup read all archives of a chain, and none of them can be removed before the
/// last one is.
pub const DEFAULT_MAX_CHAIN_LENGTH: u32 = 64;

/// What to save, and how.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    pub kind: BackupType,
    /// The id of the backup that an incremental one rests on; the newest good one where absent.
    pub based_on: Option<String>,
    /// Where nobody chose the base, no chain gets longer than this many archives: a full backup is made instead.
    pub max_chain_length: u32,
    pub description: Option<String>,
    /// It holds what is about to be repaired: nothing takes it for the newest backup.
    pub is_safety_backup: bool,
    pub include_vectors: bool,
    pub include_plugin_data: bool,
    /// As in `.gitignore`, relative to the project's root.
    pub exclude_patterns: Vec<String>,
    pub compression: Compression,
    /// Look for what `quick_check` finds in the snapshot, and write that into the manifest.
    pub check_source: bool,
    /// How long to wait for another writer of the store, and for a lock on a database.
    pub lock_timeout: Duration,
    /// What to keep after this backup succeeded.
    pub retention: Policy,
    /// Fail where something of the project would not be in the backup as it is.
    pub strict: bool,
    /// What restores replaced longer ago than this is removed.
    pub undo_retention_days: u32,
}

impl Default for BackupOptions {
    fn default() -> Self {
        BackupOptions {
            kind: BackupType::Full,
            based_on: None,
            max_chain_length: DEFAULT_MAX_CHAIN_LENGTH,
            description: None,
            is_safety_backup: false,
            include_vectors: true,
            include_plugin_data: true,
            exclude_patterns: Vec::new(),
            compression: Compression::GZIP,
            check_source: true,
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
            retention: Policy::default(),
            strict: false,
            undo_retention_days: DEFAULT_RETENTION_DAYS,
        }
    }
}

/// A new backup, and what its success removed.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    #[serde(flatten)]
    pub backup: Backup,
    /// How much of the archive was taken over from an earlier one.
    #[serde(rename = "reusedBytes")]
    pub reused_bytes: u64,
    /// Absent where no limit is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<PruneResult>,
    /// Why the limits were not applied, where they are set and could not be.
    #[serde(rename = "retentionError", skip_serializing_if = "Option::is_none")]
    pub retention_error: Option<Error>,
}

/// Saves the project at `root` and returns when the backup is on the disk. A failure or an abort leaves nothing of it.
pub fn create_backup(
    root: &Path,
    store: &Store,
    worker_mode: &WorkerMode,
    options: &BackupOptions,
    context: &OperationContext,
) -> Result<Created> {
    // The reader opens and checks these too; here they fail before a directory is made.
    let project = Project::open(root)?;
    Exclusion::new(project.root(), &options.exclude_patterns)?;
    store.assert_outside(&project)?;
    store.check_encryption_policy(incremental_base::remembers_encrypted(&project))?;
    let recovered = Worker::recover_interrupted(
        worker_mode,
        project.root(),
        options.lock_timeout,
        options.undo_retention_days,
        context,
    )?;
    let lock = store.lock(options.lock_timeout, context)?;
    let store_warnings = store.clean_up(&lock, context)?;
    let mut options = options.clone();
    let mut warnings: Vec<Warning> = recovered.into_iter().chain(store_warnings).collect();
    let emptied = known_stores::emptied(&project, store, &own_backups(store, &project)?);
    warnings.extend(emptied.clone());
    let base = choose_base(store, &project, &mut options, &mut warnings, context)?;
    let run = Run {
        project: &project,
        store,
        lock: &lock,
        worker_mode,
        context,
    };
    let (mut backup, reused_bytes) = match run.save(
        &options,
        base.as_ref().map_or(Reuse::Previous, Reuse::Incremental),
    ) {
        // Nobody chose that base: a full backup is what helps now.
        Err(error)
            if base.is_some()
                && options.based_on.is_none()
                && (is_base_error(&error) || error.code.is_key_error()) =>
        {
            let message = format!(
                "A full backup was made, for nothing can rest on the newest one: {}",
                error.message
            );
            warnings.push(Warning::new(WarningCode::Full, message));
            options.kind = BackupType::Full;
            run.save(&options, Reuse::None)?
        }
        // The archive that it could have taken from is damaged: it only saves time.
        Err(error) if base.is_none() && is_base_error(&error) => {
            let message = format!(
                "{}, so nothing was: see the damage with `kg diag backup --verify`",
                error.message
            );
            warnings.push(Warning::new(WarningCode::Store, message));
            run.save(&options, Reuse::None)?
        }
        saved => saved?,
    };
    // What is to be said of the whole comes before what is to be said of single files: hooks are told the first of it.
    backup.warnings.splice(0..0, warnings);
    backup.warnings.extend(store.key_warnings(&backup.path));
    backup.warnings.extend(store.key_without_encryption());
    // The backup is there: whatever goes wrong from here on is a warning of it.
    let (mut retention, mut retention_error) = (None, None);
    match store.list() {
        Ok(listed) => {
            backup.warnings.extend(dated_ahead(&listed));
            // Where others should be that are not seen, nothing is removed.
            let prunes = !options.retention.keeps_everything() && emptied.is_none();
            let mut count = own_among(listed.clone(), &project).len();
            if prunes {
                let pruned = prune_after(store, &lock, &options.retention, listed, &mut backup);
                count = count.saturating_sub(
                    pruned
                        .decisions
                        .iter()
                        .filter(|decision| !decision.kept)
                        .count(),
                );
                retention = Some(pruned);
            }
            backup
                .warnings
                .extend(known_stores::remember(&project, store, count));
        }
        Err(error) => {
            let prunes = !options.retention.keeps_everything();
            let consequence = if prunes { ", and none was removed" } else { "" };
            let message = format!(
                "The backup is made, but the others could not be looked at{consequence}: {}",
                error.message
            );
            backup
                .warnings
                .push(Warning::new(WarningCode::Store, message));
            retention_error = Some(error).filter(|_| prunes);
        }
    }
    backup
        .warnings
        .extend(unsupported::warnings(&[store.dir(), &project.state_dir()]));
    Ok(Created {
        backup,
        reused_bytes,
        retention,
        retention_error,
    })
}

/// A clock that was wrong once must not go unnoticed: what is dated ahead is the newest backup to whoever looks at names alone.
fn dated_ahead(listed: &[Backup]) -> Option<Warning> {
    let now = Timestamp::now();
    let ahead: Vec<&Backup> = listed
        .iter()
        .filter(|backup| backup.is_ahead(now))
        .collect();
    let first = ahead.first()?;
    let more = if ahead.len() > 1 {
        format!(" (and {} more)", ahead.len() - 1)
    } else {
        String::new()
    };
    let message = format!(
        "{}{more} is dated ahead of now: a clock was wrong then, or is now. It counts as older than all others; delete it when you do not need \
         it (`kg diag backup --delete {}`)",
        first.id, first.id
    );
    Some(Warning::new(WarningCode::Store, message))
}

/// Where one backup is made, and with what.
struct Run<'a> {
    project: &'a Project,
    store: &'a Store,
    lock: &'a StoreLock,
    worker_mode: &'a WorkerMode,
    context: &'a OperationContext,
}

/// What a backup makes use of that earlier ones left.
#[derive(Clone, Copy)]
enum Reuse<'a> {
    None,
    /// It leaves nothing out, and takes over what is the same.
    Previous,
    Incremental(&'a IncrementalBase),
}

impl Run<'_> {
    fn save(&self, options: &BackupOptions, before: Reuse<'_>) -> Result<(Backup, u64)> {
        match self.save_once(options, before) {
            // Damage is saved as it is, and fails nothing. SQLite calls a read that fails once damage too.
            Err(error) if error.code == Code::DatabaseDamaged => self.save_once(options, before),
            saved => saved,
        }
    }

    fn save_once(&self, options: &BackupOptions, before: Reuse<'_>) -> Result<(Backup, u64)> {
        let Run {
            project,
            store,
            lock,
            worker_mode,
            context,
        } = *self;
        let at = Timestamp::now();
        let new = store.begin(lock, at, options.compression, store.encrypts())?;
        let own = project.id();
        let mut request = save_request(project.root().to_path_buf(), new.scratch(), options);
        let (mut base, mut earlier) = (None, None);
        match before {
            Reuse::None => {}
            Reuse::Previous => {
                earlier = incremental_base::earlier(
                    store,
                    Some(&own),
                    options.kind,
                    options.compression,
                    &context.cancel,
                )?
                .map(Arc::new);
                if let Some((known, checksum)) =
                    incremental_base::load_page_cache(store, project, new.scratch())?
                {
                    request.known = Some(known);
                    request.takes_over = earlier
                        .as_ref()
                        .is_some_and(|earlier| earlier.is(&checksum));
                }
            }
            Reuse::Incremental(chosen) => {
                request.known =
                    Some(chosen.prepare(project, new.scratch(), store.keys(), context)?);
                base = Some(chosen);
            }
        }
        let mut archive = ArchiveWriter::new(new.sink()?, options.compression, earlier)?;
        let mut worker = Worker::save(worker_mode, request, &context.cancel)?;
        // Reading the chain to its end takes as long as reading the project: the one beside the other.
        let (saved, whole) = thread::scope(|threads| {
            let check = |base| {
                start_in(threads, "kg-chain", move || {
                    IncrementalBase::assert_whole(base, context)
                })
            };
            let checking = base.map(check).transpose()?;
            let saved = receive(&mut worker, &mut archive, context);
            let whole = checking.map_or(Ok(()), |checking| {
                checking.join().unwrap_or_else(|_| Err(check_panicked()))
            });
            Ok::<_, Error>((saved, whole))
        })?;
        let mut saved = saved?;
        whole?;
        drop(worker);
        let was_emptied = note_empty(&mut saved, &own, store)?;
        if options.strict {
            assert_complete(&saved.warnings, was_emptied)?;
        }
        let hashes = new.scratch().join(PAGE_HASHES_FILE);
        let recipients = new.recipients()?;
        let (manifest, written) = archive.finish(|totals| {
            let mut manifest = describe(&new.id, at, options, totals, saved);
            manifest.project = Some(own);
            manifest.recipients = recipients;
            manifest.incomplete |= was_emptied;
            manifest.emptied = was_emptied;
            if let Some(base) = base {
                manifest.based_on = Some(base.backup.id.clone());
                manifest.based_on_checksum = Some(base.backup.checksum.clone());
                manifest.deleted = base.deleted(&manifest);
            }
            manifest
        })?;
        context.cancel.check()?;
        // Read only after the scratch directory is gone.
        let hashes = fs::File::open(&hashes).ok();
        let (backup, manifest) = new.publish(manifest, written)?;
        // What is known of the backup that the next incremental one rests on is worth more than this.
        if let Some(hashes) = hashes.filter(|_| !options.is_safety_backup) {
            incremental_base::store_page_cache(project, &backup, &manifest, hashes);
        }
        Ok((backup, written.reused_bytes))
    }
}

/// Whether it is what a backup would have rested on that failed.
fn is_base_error(error: &Error) -> bool {
    matches!(
        error.code,
        Code::ChecksumMismatch | Code::BaseUnusable | Code::ChainBroken
    )
}

/// What an incremental backup rests on. Where there is nothing, it becomes a full one, and a warning says so.
fn choose_base(
    store: &Store,
    project: &Project,
    options: &mut BackupOptions,
    warnings: &mut Vec<Warning>,
    context: &OperationContext,
) -> Result<Option<IncrementalBase>> {
    if options.kind != BackupType::Incremental {
        return match options.based_on {
            None => Ok(None),
            Some(_) => Err(Error::invalid(
                "`basedOn` goes with the type `incremental`",
                "Leave it out",
            )),
        };
    }
    let chosen = incremental_base::choose(store, project, options.based_on.as_deref(), context);
    let message = match &chosen {
        Err(error) if options.based_on.is_none() && error.code.is_key_error() => {
            format!("A full backup was made, for nothing can rest on the newest one: {}", error.message)
        }
        Ok(None) => {
            "There is no good backup of this project that an incremental one could rest on: a full one was made".into()
        }
        Ok(Some(base)) if options.based_on.is_none() && base.chain_links() >= options.max_chain_length as usize => {
            let (newest, links) = (&base.backup.id, base.chain_links());
            format!("{newest} ends a chain of {links} backups, as many as are allowed: a full one was made")
        }
        Ok(Some(_)) | Err(_) => return chosen,
    };
    options.kind = BackupType::Full;
    warnings.push(Warning::new(WarningCode::Full, message));
    Ok(None)
}

fn check_panicked() -> Error {
    Error::new(
        Code::Internal,
        "The check of the chain panicked",
        "Please report this",
    )
}

/// Warns of a graph database without tables. If it has 0 bytes, or an earlier good backup of the project has tables, the new
/// backup is not a good one, and this returns `true`.
fn note_empty(saved: &mut Saved, project: &str, store: &Store) -> Result<bool> {
    if saved.table_count != Some(0) {
        return Ok(false);
    }
    let mut listed = store.read()?.backups;
    listed.retain(|backup| {
        backup.project.as_ref().is_none_or(|of| of == project) && backup.contents.database
    });
    let had_tables = |place: &usize| listed[*place].stats.table_count != Some(0);
    let earlier = good(&listed)
        .into_iter()
        .find(had_tables)
        .map(|place| &listed[place].id);
    let message = match earlier {
        Some(earlier) => {
            format!(
                "The graph database has no table, and had some in {earlier}: this is not a good backup"
            )
        }
        None if saved.has_no_page => {
            "The graph database has 0 bytes: this is not a good backup".to_string()
        }
        None => "The graph database has no table yet".to_string(),
    };
    saved
        .warnings
        .push(Warning::new(WarningCode::DatabaseEmpty, message));
    Ok(earlier.is_some() || saved.has_no_page)
}

/// Fails where something of the project is not in the backup as it is. A socket or device holds nothing to save.
fn assert_complete(warnings: &[Warning], was_emptied: bool) -> Result<()> {
    let is_less = |warning: &&Warning| match warning.code {
        WarningCode::SourceDamaged => true,
        WarningCode::DatabaseEmpty => was_emptied,
        code => code.means_incomplete(),
    };
    let lacking = warnings
        .iter()
        .filter(is_less)
        .map(|warning| &warning.message);
    let Some(lacking) = first_and_more(lacking) else {
        return Ok(());
    };
    Err(Error::new(
        Code::Incomplete,
        format!("The backup would not hold the project as it is: {lacking}"),
        "No backup was made; mend that, leave it out with `excludePatterns`, or back up without `strict`",
    ))
}

/// The backup is there: what goes wrong with the old ones is a warning.
fn prune_after(
    store: &Store,
    lock: &StoreLock,
    policy: &Policy,
    listed: Vec<Backup>,
    backup: &mut Backup,
) -> PruneResult {
    let mut result = prune::apply_after(store, lock, policy, listed, backup);
    for error in result
        .decisions
        .iter()
        .filter_map(|decision| decision.error.as_ref())
    {
        let message = format!("An old backup could not be removed: {error}");
        backup
            .warnings
            .push(Warning::new(WarningCode::Store, message));
    }
    backup.warnings.append(&mut result.warnings);
    result
}

fn save_request(root: PathBuf, scratch: &Path, options: &BackupOptions) -> SaveRequest {
    let selection = Selection {
        scope: match options.kind {
            BackupType::Full | BackupType::Incremental => Scope::Full,
            BackupType::Snapshot => Scope::Database,
        },
        include_vectors: options.include_vectors,
        include_plugin_data: options.include_plugin_data,
        exclude_patterns: options.exclude_patterns.clone(),
    };
    SaveRequest {
        root,
        selection,
        check_source: options.check_source,
        // In a damaged database nobody knows what is in use.
        erase: !options.is_safety_backup,
        scratch: scratch.to_path_buf(),
        known: None,
        block_bytes: options.compression.block_bytes(),
        takes_over: false,
        lock_timeout_ms: options.lock_timeout.as_millis() as u64,
    }
}

/// Moves everything that the reader sends into the archive.
fn receive(
    worker: &mut Worker,
    archive: &mut ArchiveWriter,
    context: &OperationContext,
) -> Result<Saved> {
    let mut progress = SavingProgress {
        context,
        done: 0,
        total: 0,
    };
    loop {
        match worker.next()? {
            Response::Message(Message::Planned { bytes_total }) => progress.plan(bytes_total)?,
            Response::Message(Message::Entry { record, owner }) => {
                let left = record.entry_size().ok_or_else(protocol_violation)?;
                let data = EntryData {
                    left,
                    worker,
                    piece: Vec::new(),
                    taken: 0,
                    progress: &mut progress,
                };
                // What of a database did not change was read all the same.
                let skipped = record.size.saturating_sub(left);
                archive.add(record, owner, data)?;
                progress.advance(skipped)?;
            }
            Response::Message(Message::Database { record, owner }) => {
                receive_database(
                    worker,
                    archive.begin_database(record, owner)?,
                    &mut progress,
                )?;
            }
            Response::Message(Message::Unchanged { record }) => {
                progress.advance(record.size)?;
                archive.add_unchanged(record)?;
            }
            Response::Message(Message::Saved(saved)) => return Ok(saved),
            _ => return Err(protocol_violation()),
        }
    }
}

fn receive_database(
    worker: &mut Worker,
    mut database: DatabaseEntry<'_>,
    progress: &mut SavingProgress<'_>,
) -> Result<()> {
    loop {
        let bytes = match worker.next()? {
            Response::Block(block, hash) => database.write(block, hash)?,
            Response::Message(Message::Same { blocks }) => database.take_over(&blocks)?,
            Response::Message(Message::DatabaseEnd { sha256, blocks }) => {
                return database.finish(sha256, blocks);
            }
            _ => return Err(protocol_violation()),
        };
        progress.advance(bytes)?;
    }
}

struct SavingProgress<'a> {
    context: &'a OperationContext,
    done: u64,
    total: u64,
}

impl SavingProgress<'_> {
    fn plan(&mut self, bytes_total: u64) -> Result<()> {
        self.total = bytes_total;
        self.advance(0)
    }

    fn advance(&mut self, bytes: u64) -> Result<()> {
        self.done += bytes;
        // A file that grew after it was planned must not lead to more than all.
        self.total = self.total.max(self.done);
        self.context.report(Phase::Saving, self.done, self.total)
    }
}

/// The bytes of one entry, as the reader sends them.
struct EntryData<'a, 'b> {
    worker: &'a mut Worker,
    left: u64,
    piece: Vec<u8>,
    taken: usize,
    progress: &'a mut SavingProgress<'b>,
}

impl EntryData<'_, '_> {
    fn next_piece(&mut self) -> Result<()> {
        match self.worker.next()? {
            Response::Data(piece) if piece.len() as u64 <= self.left && !piece.is_empty() => {
                self.left -= piece.len() as u64;
                self.progress.advance(piece.len() as u64)?;
                (self.piece, self.taken) = (piece, 0);
                Ok(())
            }
            _ => Err(protocol_violation()),
        }
    }
}

impl Read for EntryData<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for EntryData<'_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.piece.len() && self.left > 0 {
            self.next_piece().map_err(io::Error::other)?;
        }
        Ok(&self.piece[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

fn describe(
    id: &str,
    at: Timestamp,
    options: &BackupOptions,
    totals: Totals,
    saved: Saved,
) -> Manifest {
    let files = || totals.files.iter().filter(|record| record.kind.is_file());
    let holds = |component| files().any(|record| record.component == component);
    Manifest {
        version: FORMAT_VERSION.to_string(),
        id: id.to_string(),
        kind: options.kind,
        timestamp: at,
        description: options.description.clone(),
        contents: Contents {
            database: holds(Component::Database),
            config: holds(Component::Config),
            vectors: holds(Component::Vectors),
            plugins: holds(Component::Plugins),
        },
        stats: Stats {
            total_files: files().count() as u64,
            total_size: files().map(|record| record.size).sum(),
            compressed_size: totals.compressed_bytes,
            node_count: saved.node_count,
            edge_count: saved.edge_count,
            table_count: saved.table_count,
        },
        checksums: checksums(&totals),
        files: totals.files,
        integrity: saved.integrity,
        incomplete: saved
            .warnings
            .iter()
            .any(|warning| warning.code.means_incomplete()),
        emptied: false,
        warnings: saved.warnings,
        based_on: None,
        based_on_checksum: None,
        deleted: Vec::new(),
        compression: options.compression.name(),
        consolidated_from: None,
        safety_backup: options.is_safety_backup,
        encrypted: false,
        recipients: Vec::new(),
        project: None,
        tool: Tool::this(),
        archive: None,
    }
}
