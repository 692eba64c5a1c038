//! Carries out a [`BackupPlan`]: writes the archive and publishes it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use jiff::Timestamp;

use super::{
    content::{assert_complete, describe, note_empty},
    incremental_base::IncrementalBase,
    page_cache::{self, PageCache},
    plan::{BackupPlan, Reuse},
    receive::receive,
    reuse_source,
};
use crate::{
    archive::{manifest::BackupType, reuse::ReuseSource, writer::ArchiveWriter},
    config::backup_config::BackupOptions,
    error::{Code, Error, Result, Warning},
    project::{
        Project,
        discover::{Scope, Selection},
    },
    store::{Backup, NewBackup, Store, StoreLock},
    util::{operation::OperationContext, threads::start_in},
    worker::{
        client::{Worker, WorkerMode},
        protocol::{KNOWN_FILES_FILE, PAGE_HASHES_FILE, SaveRequest, Saved},
    },
};

/// A backup that is on the disk.
pub(super) struct SavedBackup {
    pub backup: Backup,
    /// Bytes of the archive that were copied from an earlier one.
    pub reused_bytes: u64,
    /// The warnings of the plan that was carried out.
    pub plan_warnings: Vec<Warning>,
}

/// The project and the store of one backup, and how its worker runs.
pub(super) struct Run<'a> {
    pub project: &'a Project,
    pub store: &'a Store,
    pub lock: &'a StoreLock,
    pub worker_mode: &'a WorkerMode,
    pub options: &'a BackupOptions,
    pub context: &'a OperationContext,
}

impl Run<'_> {
    /// Makes the backup as planned, or without reuse if an earlier backup turns out to be damaged.
    pub fn carry_out(&self, plan: BackupPlan) -> Result<SavedBackup> {
        match self.save(&plan) {
            Err(error) => {
                let plan = plan.fall_back(error, self.options)?;
                self.save(&plan)
            }
            saved => saved,
        }
    }

    fn save(&self, plan: &BackupPlan) -> Result<SavedBackup> {
        match self.save_once(plan) {
            // SQLite also reports damage if a single read fails. A database that is really damaged
            // is saved as it is, without an error.
            Err(error) if error.code == Code::DatabaseDamaged => self.save_once(plan),
            saved => saved,
        }
    }

    fn save_once(&self, plan: &BackupPlan) -> Result<SavedBackup> {
        let (store, options) = (self.store, self.options);
        let at = Timestamp::now();
        let new = store.begin(self.lock, at, options.compression, store.encrypts())?;
        let Prepared {
            request,
            base,
            source,
        } = self.prepare(plan, &new)?;
        let mut archive =
            ArchiveWriter::new(new.sink()?, options.compression, source, new.scratch())?;
        let mut saved = self.receive(request, &mut archive, base, &new)?;
        let identity = self.project.identity();
        let was_emptied = note_empty(&mut saved, &identity, store)?;
        let origin = identity.origin();
        if options.strict {
            assert_complete(&saved.warnings, was_emptied)?;
        }
        let recipients = new.recipients()?;
        let mut is_as_listed = true;
        let (manifest, written) = archive.finish(|totals| {
            // The worker and the archive have computed the list of a full backup each on their own.
            is_as_listed = base.is_some() || totals.file_list == saved.listed.summary;
            let mut manifest = describe(&new.id, at, plan.kind, options, totals, saved);
            manifest.project = Some(origin.project);
            manifest.project_path = Some(origin.path);
            manifest.recipients = recipients;
            manifest.incomplete |= was_emptied;
            manifest.emptied = was_emptied;
            if let Some(base) = base {
                manifest.based_on = Some(base.backup.id.clone());
                manifest.based_on_checksum = Some(base.backup.checksum.clone());
            }
            manifest
        })?;
        if !is_as_listed {
            return Err(Error::internal(
                "The archive does not contain what the worker listed",
            ));
        }
        self.context.cancel.check()?;
        let backup = new.publish(manifest, written, |backup, manifest, scratch| {
            // A safety backup is never a base, so it must not replace the cache of one.
            if !options.is_safety_backup {
                let open = |name: &str| fs::File::open(scratch.join(name)).ok();
                if let Some((hashes, files)) = open(PAGE_HASHES_FILE).zip(open(KNOWN_FILES_FILE)) {
                    PageCache::of(self.project, store).store(backup, manifest, hashes, files);
                }
            }
        })?;
        Ok(SavedBackup {
            backup,
            reused_bytes: written.reused_bytes,
            plan_warnings: plan.warnings.clone(),
        })
    }

    fn prepare<'p>(&self, plan: &'p BackupPlan, new: &NewBackup<'_>) -> Result<Prepared<'p>> {
        let (project, store, context) = (self.project, self.store, self.context);
        let root = project.root().to_path_buf();
        let mut prepared = Prepared {
            request: save_request(root, new.scratch(), plan.kind, self.options),
            base: None,
            source: None,
        };
        let request = &mut prepared.request;
        match &plan.reuse {
            Reuse::None => {}
            Reuse::Previous => {
                let (origin, compression) = (project.identity().origin(), self.options.compression);
                prepared.source = reuse_source(
                    store,
                    Some(&origin),
                    plan.kind,
                    compression,
                    &context.cancel,
                )?
                .map(Arc::new);
                if let Some((known, checksum)) = page_cache::load(store, project, new.scratch())? {
                    request.known = Some(known);
                    let source = prepared.source.as_ref();
                    request.takes_over = source.is_some_and(|source| source.is(&checksum));
                }
            }
            Reuse::Incremental(base) => {
                request.known = Some(base.prepare(project, store, new.scratch(), context)?);
                prepared.base = Some(base);
            }
        }
        Ok(prepared)
    }

    /// Receives the project and verifies the chain at the same time, because each takes as long as
    /// the other.
    fn receive(
        &self,
        request: SaveRequest,
        archive: &mut ArchiveWriter,
        base: Option<&IncrementalBase>,
        new: &NewBackup<'_>,
    ) -> Result<Saved> {
        let context = self.context;
        let mut worker = Worker::save(self.worker_mode, request, &context.cancel)?;
        let (saved, chain) = thread::scope(|threads| {
            let check = |base: &'_ IncrementalBase| base.assert_whole(context);
            let checking = base
                .map(|base| start_in(threads, "kg-chain", move || check(base)))
                .transpose()?;
            let saved = receive(&mut worker, archive, |bytes| new.plan(bytes), context);
            let chain = checking.map_or(Ok(()), |checking| {
                checking.join().unwrap_or_else(|_| Err(check_panicked()))
            });
            Ok::<_, Error>((saved, chain))
        })?;
        let saved = saved?;
        chain?;
        Ok(saved)
    }
}

/// A plan that is ready to be carried out.
struct Prepared<'p> {
    request: SaveRequest,
    base: Option<&'p IncrementalBase>,
    source: Option<Arc<ReuseSource>>,
}

fn save_request(
    root: PathBuf,
    scratch: &Path,
    kind: BackupType,
    options: &BackupOptions,
) -> SaveRequest {
    let selection = Selection {
        scope: match kind {
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
        // A safety backup saves damage, and a damaged database cannot tell which bytes are in use.
        erase: !options.is_safety_backup,
        scratch: scratch.to_path_buf(),
        known: None,
        block_bytes: options.compression.block_bytes(),
        takes_over: false,
        force_read: options.force_read,
        lock_timeout_ms: options.lock_timeout.as_millis() as u64,
    }
}

fn check_panicked() -> Error {
    Error::internal("The check of the chain panicked")
}
