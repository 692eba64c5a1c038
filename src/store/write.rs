//! Everything that changes a store. Each function takes the lock as proof that this is the only
//! writer.

use std::{collections::HashSet, fs, path::Path};

use jiff::Timestamp;

use super::{
    Backup, Store, StoreLock,
    catalog::{Listing, assert_none_unread_after},
    draft::Draft,
    names::{self, ENDINGS, LATEST, MANIFEST_SUFFIX, PIN_SUFFIX},
    sidecar::{self, manifest_path},
    sidecar_cache, tombstone, usable,
};
use crate::{
    archive::{
        block::Compression,
        block_writer::{Sink, Written},
        manifest::{ArchiveRecord, Manifest},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    objects::Version,
    place::{Archive, FileState, Place},
    sqlite::raw_copy,
    system::user,
    util::{
        atomic_file::{self, PARTIAL_PREFIX},
        operation::CancelToken,
        temp_dir::{self, PrivateDir, Scratch},
    },
};

/// A backup that is being written. Dropping it removes its files.
pub struct NewBackup<'a> {
    store: &'a Store,
    lock: &'a StoreLock,
    pub id: String,
    archive: Archive,
    encrypted: bool,
    draft: Draft,
    scratch: ScratchDir,
}

/// A private directory for copies of databases and lists of files, removed with this value.
enum ScratchDir {
    /// On the disk of the archives.
    InStore(PrivateDir),
    /// In the system's directory for temporary files. Used for encrypted archives, so that plain
    /// data stays out of the store, and if other users could replace the directory in the store.
    SystemTemp(Scratch),
}

impl ScratchDir {
    fn path(&self) -> &Path {
        match self {
            ScratchDir::InStore(dir) => dir.path(),
            ScratchDir::SystemTemp(scratch) => scratch.path(),
        }
    }

    fn remove(self) -> Result<()> {
        match self {
            ScratchDir::InStore(dir) => dir.remove(),
            ScratchDir::SystemTemp(scratch) => scratch.end(Ok(())),
        }
    }
}

/// Random numbers in names begin here, and there are as many.
const RANDOM_NUMBERS: u32 = 100_000_000;
/// The prefix of the names of private directories.
pub(super) const PRIVATE_PREFIX: &str = ".kg-backup-";

/// Returns the ids of all backups that depend on `id`, directly or not. Each one comes before the
/// backups that it depends on.
pub fn dependants(backups: &[Backup], id: &str) -> Vec<String> {
    let mut found = vec![id.to_string()];
    let mut next = 0;
    while next < found.len() {
        let direct = backups
            .iter()
            .filter(|backup| backup.based_on.as_deref() == Some(found[next].as_str()));
        let direct: Vec<String> = direct
            .map(|backup| backup.id.clone())
            .filter(|id| !found.contains(id))
            .collect();
        found.extend(direct);
        next += 1;
    }
    // The backup found last is the farthest from `id`.
    found.drain(1..).rev().collect()
}

impl Store {
    /// Chooses an id and begins the archive.
    pub fn begin<'a>(
        &'a self,
        lock: &'a StoreLock,
        at: Timestamp,
        compression: Compression,
        encrypted: bool,
    ) -> Result<NewBackup<'a>> {
        // A backup whose base is gone must not find another backup under the same name.
        let needed: HashSet<String> = self
            .read()?
            .backups
            .into_iter()
            .filter_map(|backup| backup.based_on)
            .collect();
        let is_taken = |name: &String| {
            let has = |name: &str| self.has_file(name).unwrap_or(true);
            has(name) || has(&format!("{name}{PIN_SUFFIX}"))
        };
        let free = |stamp: &String| {
            let id = names::id(stamp);
            !needed.contains(&id) && !names::archives_of_id(&id).iter().any(is_taken)
        };
        let stamp = (self.first_number()..)
            .map(|number| names::stamp(at, number))
            .find(free)
            .unwrap_or_default();
        let archive = names::archive(&stamp, compression, encrypted);
        let archive = self.place.archive(&archive);
        Ok(NewBackup {
            store: self,
            lock,
            id: names::id(&stamp),
            draft: Draft::begin(self, &archive)?,
            archive,
            encrypted,
            scratch: self.room(encrypted)?,
        })
    }

    /// Returns where the numbers of backups of one second begin. Without conditions on writes, two
    /// processes could choose the same name, so it is random.
    fn first_number(&self) -> u32 {
        let random = || getrandom::u32().unwrap_or(0) % RANDOM_NUMBERS;
        match &self.place {
            Place::Objects(objects) if objects.client().is_unconditional() => {
                RANDOM_NUMBERS + random()
            }
            _ => 1,
        }
    }

    fn room(&self, encrypted: bool) -> Result<ScratchDir> {
        let in_store = self.place.directory().filter(|_| !encrypted);
        let parent = in_store.map_or_else(std::env::temp_dir, temp_dir::safe_parent);
        if let Some(dir) = in_store.filter(|dir| parent == **dir) {
            return raw_copy::scratch_dir(dir).map(ScratchDir::InStore);
        }
        match (Scratch::new(&parent, PRIVATE_PREFIX), in_store) {
            // A container may lack the temporary directory. Root does not fall back, because
            // another user could redirect its writes.
            (Err(_), Some(dir)) if !user::is_root() => {
                raw_copy::scratch_dir(dir).map(ScratchDir::InStore)
            }
            (room, _) => room.map(ScratchDir::SystemTemp).map_err(|error| Error {
                remedy: format!("{}; or set TMPDIR to another directory", error.remedy),
                ..error
            }),
        }
    }

    /// Writes a small file next to an archive, whether it exists or not.
    pub(super) fn write_beside(&self, archive: &Archive, suffix: &str, bytes: &[u8]) -> Result<()> {
        let file = archive.beside(suffix);
        match &self.place {
            Place::Directory(_) => atomic_file::write_in_store(&file.path(), bytes, self.mode),
            Place::Objects(objects) => objects.put(file.name(), bytes),
        }
    }

    /// Writes the sidecar of a new archive. `KG_STORE_CHANGED` if an object store has one already.
    fn create_sidecar(&self, archive: &Archive, bytes: &[u8]) -> Result<()> {
        let Place::Objects(objects) = &self.place else {
            return self.write_beside(archive, MANIFEST_SUFFIX, bytes);
        };
        let file = archive.beside(MANIFEST_SUFFIX);
        if objects.create(file.name(), bytes.to_vec())? {
            sidecar::remember_written(archive, bytes);
            return Ok(());
        }
        Err(Error::new(
            Code::StoreChanged,
            format!("{file} was written by another process at the same time"),
            "Run it again; the next backup gets another name",
        ))
    }

    /// Keeps the sidecars of an object store in the project, for the next run.
    pub fn keep_sidecars(&self) {
        sidecar_cache::keep(self);
    }

    /// Removes a new archive that could not be published, and returns why it could not.
    ///
    /// If a directory cannot be synced, the rename has still happened. The remaining files would
    /// later be listed as a backup although this run reports a failure. Without the lock, another
    /// process may have listed the archive and removed older ones for it, so it stays. What another
    /// process wrote under its name (`KG_STORE_CHANGED`) stays too.
    pub(super) fn withdraw(&self, archive: &Archive, lock: &StoreLock, cause: Error) -> Error {
        if cause.code == Code::StoreChanged {
            return cause;
        }
        if let Err(lost) = lock.renew() {
            return lost;
        }
        let sidecar = archive.beside(MANIFEST_SUFFIX);
        let removed = self.remove_file(&sidecar);
        let removed = removed.and_then(|()| self.remove_file(archive));
        removed.err().unwrap_or(cause)
    }

    /// Removes a file of the store, which need not exist.
    pub(super) fn remove_file(&self, file: &Archive) -> Result<()> {
        match &self.place {
            Place::Directory(_) => atomic_file::remove(&file.path()),
            Place::Objects(objects) => objects.remove(file.name()),
        }
    }

    /// Fails with `KG_BASE_UNUSABLE` if the base of a new incremental backup is no longer in the
    /// object store. In a directory the lock prevents that.
    fn assert_base(&self, manifest: &Manifest) -> Result<()> {
        let (Place::Objects(objects), Some(id)) = (&self.place, &manifest.based_on) else {
            return Ok(());
        };
        for name in names::archives_of_id(id) {
            let sidecar = format!("{name}{MANIFEST_SUFFIX}");
            let is_there = |name: &str| Ok::<_, Error>(objects.client().find(name)?.is_some());
            if self.has_file(&name)? && is_there(&name)? && is_there(&sidecar)? {
                return Ok(());
            }
        }
        Err(Error::new(
            Code::BaseUnusable,
            format!("{id} was removed while a backup that depends on it was made"),
            "Make a full backup",
        ))
    }

    /// Removes a backup and, with `cascade`, the backups that depend on it. Without `cascade`,
    /// refuses to remove a backup that others depend on (`KG_BACKUP_NEEDED`). If any of them is
    /// pinned, none is removed.
    pub fn delete(&self, lock: &StoreLock, id: &str, cascade: bool) -> Result<Vec<String>> {
        self.get(id)?;
        self.removal(lock, self.list()?).delete(id, cascade)
    }

    /// Starts the removal of several backups. `listed` must contain all backups of the store,
    /// listed after the lock was taken.
    pub fn removal<'a>(&'a self, lock: &'a StoreLock, listed: Vec<Backup>) -> Removal<'a> {
        Removal {
            store: self,
            lock,
            listed,
        }
    }

    /// Points `latest.tar.gz` (or `latest` with another archive ending) to the archive that
    /// `latest` means among `backups`, which must be all of them.
    ///
    /// An object store has no links.
    fn update_latest(&self, backups: &[Backup]) -> Result<()> {
        let Some(dir) = self.place.directory() else {
            return Ok(());
        };
        let newest = usable::latest(backups).map(|backup| backup.archive.name());
        for ending in ENDINGS {
            let link = dir.join(format!("{LATEST}{ending}"));
            match newest {
                Some(name) if names::ending(name) == Some(ending) => {
                    if !fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
                        atomic_file::replace_symlink(Path::new(name), &link)?;
                    }
                }
                _ => atomic_file::remove(&link)?,
            }
        }
        Ok(())
    }
}

/// Removes backups. Keeps the list up to date so that a run reads the store only once.
pub struct Removal<'a> {
    store: &'a Store,
    lock: &'a StoreLock,
    listed: Vec<Backup>,
}

impl Removal<'_> {
    /// Works like [`Store::delete`].
    pub fn delete(&mut self, id: &str, cascade: bool) -> Result<Vec<String>> {
        let dependants = dependants(&self.listed, id);
        if let (false, Some(first)) = (cascade, dependants.first()) {
            let more = if dependants.len() > 1 {
                format!(" and {} more depend", dependants.len() - 1)
            } else {
                " depends".into()
            };
            return Err(Error::new(
                Code::BackupNeeded,
                format!("{first}{more} on {id} and could not be restored without it"),
                "Delete those first, or all at once with `cascade`",
            ));
        }
        // Dependants are removed first, so that a killed run leaves no broken chain.
        let doomed: Vec<String> = dependants.into_iter().chain([id.to_string()]).collect();
        doomed
            .iter()
            .try_for_each(|id| self.store.assert_unpinned(id))?;
        doomed.iter().try_for_each(|id| self.remove(id))?;
        Ok(doomed)
    }

    /// Removes one backup. A run that is killed meanwhile leaves none that is incomplete and listed.
    fn remove(&mut self, id: &str) -> Result<()> {
        let backup = self.store.get(id)?;
        // Another process that took the lock may need this backup.
        self.lock.assert_held()?;
        // Compares archives because the store may contain a second one with that id.
        self.listed
            .retain(|listed| listed.archive != backup.archive);
        match &self.store.place {
            Place::Directory(dir) => remove_files(dir, id, &backup.archive)?,
            Place::Objects(objects) => tombstone::remove(objects, &backup.archive)?,
        }
        self.store.update_latest(&self.listed)
    }
}

/// Removes an archive and its sidecar. The archive gets a temporary name first.
fn remove_files(dir: &Path, id: &str, archive: &Archive) -> Result<()> {
    let (path, doomed) = (archive.path(), format!("{PARTIAL_PREFIX}deleted-{id}"));
    atomic_file::rename(&path, doomed.as_ref())
        .map_err(|cause| Error::io("remove", &path, cause))?;
    atomic_file::remove(&manifest_path(archive))?;
    atomic_file::remove(&dir.join(doomed))?;
    atomic_file::sync_dir(dir)
}

impl NewBackup<'_> {
    /// Announces about how many bytes the archive will have, before the first of them is written.
    pub fn plan(&self, bytes: u64) {
        self.draft.plan(bytes);
    }

    /// Opens the sink for the archive's bytes.
    pub fn sink(&self) -> Result<Box<dyn Sink>> {
        self.draft.sink(self.store, &self.archive, self.encrypted)
    }

    /// Returns the public keys that the archive is encrypted to, for its manifest.
    pub fn recipients(&self) -> Result<Vec<String>> {
        if self.encrypted {
            self.store.keys.recipients()
        } else {
            Ok(Vec::new())
        }
    }

    /// Returns a directory for copies of databases; it is removed with this value.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Publishes the archive, then its sidecar. Both are on the disk, or acknowledged by the
    /// service, when this returns. Returns the full details of the backup, even if it is encrypted.
    ///
    /// Calls `published` with them and the scratch directory, before that directory is removed.
    pub fn publish(
        self,
        manifest: Manifest,
        written: Written,
        published: impl FnOnce(&Backup, &Manifest, &Path),
    ) -> Result<Backup> {
        let scratch = self.scratch;
        let manifest = Manifest {
            encrypted: self.encrypted,
            ..beside(manifest, written.record(self.archive.name().to_string()))
        };
        let (mut backup, manifest) =
            publish(self.store, self.lock, self.draft, self.archive, manifest)?;
        published(&backup, &manifest, scratch.path());
        let left = scratch.remove().err();
        backup
            .warnings
            .extend(left.map(|left| Warning::new(WarningCode::Store, left.to_string())));
        Ok(backup)
    }
}

/// Publishes an archive, then its sidecar, and updates the link to the newest one. Removes the archive
/// if that fails.
pub(super) fn publish(
    store: &Store,
    lock: &StoreLock,
    draft: Draft,
    archive: Archive,
    manifest: Manifest,
) -> Result<(Backup, Manifest)> {
    let published = draft.publish(&archive).and_then(|version| {
        let manifest = of_object(manifest, version);
        list(store, lock, &archive, &manifest)?;
        Ok(manifest)
    });
    let manifest = published.map_err(|error| {
        CancelToken::despite_cancellation(|| store.withdraw(&archive, lock, error))
    })?;
    listed(store, archive, manifest)
}

/// Writes the sidecar of an archive that is in the store already.
pub(super) fn publish_sidecar(
    store: &Store,
    lock: &StoreLock,
    archive: Archive,
    manifest: Manifest,
) -> Result<(Backup, Manifest)> {
    let version = match archive.state() {
        Some(FileState::Object(version)) => Some(version),
        _ => None,
    };
    let manifest = of_object(manifest, version);
    list(store, lock, &archive, &manifest)?;
    listed(store, archive, manifest)
}

fn list(store: &Store, lock: &StoreLock, archive: &Archive, manifest: &Manifest) -> Result<()> {
    let outside = manifest.encrypted.then(|| manifest.public_sidecar());
    let json = outside.as_ref().unwrap_or(manifest).to_json();
    lock.assert_held()?;
    store.assert_base(manifest)?;
    store.create_sidecar(archive, &json)
}

/// Updates the link to the newest backup.
fn listed(store: &Store, archive: Archive, manifest: Manifest) -> Result<(Backup, Manifest)> {
    let backup = Backup::new(archive, manifest.clone());
    let mut backup = backup.ok_or_else(|| Error::internal("The manifest has no archive"))?;
    let linked = store.read().and_then(|Listing { backups, unlisted }| {
        assert_none_unread_after(&unlisted, usable::latest(&backups))?;
        store.update_latest(&backups)
    });
    backup.warnings.extend(linked.err().map(latest_warning));
    Ok((backup, manifest))
}

/// Returns the manifest with the version of its archive in an object store.
fn of_object(mut manifest: Manifest, version: Option<Version>) -> Manifest {
    if let Some(archive) = &mut manifest.archive {
        archive.object = version;
    }
    manifest
}

/// Returns the manifest as the sidecar stores it.
pub(super) fn beside(mut manifest: Manifest, mut archive: ArchiveRecord) -> Manifest {
    archive.list_offset = manifest.list_offset();
    manifest.stats.compressed_size = archive.size;
    manifest.archive = Some(archive);
    manifest
}

fn latest_warning(error: Error) -> Warning {
    Warning::new(
        WarningCode::Store,
        format!(
            "The link to the latest backup could not be written: {}",
            error.message
        ),
    )
}
