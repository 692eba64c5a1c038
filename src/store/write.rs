//! Everything that changes a store. Each function takes the lock as proof that this is the only
//! writer.

use std::{collections::HashSet, fs, path::Path};

use jiff::Timestamp;
use nix::unistd::geteuid;

use super::{
    Backup, Store, StoreLock,
    archive_file::ArchiveFile,
    catalog::{self, ARCHIVE_ENDINGS, Flaw, Listing, assert_none_unread_after, led_to},
    names::{self, ENDINGS, LATEST, MANIFEST_SUFFIX},
    pins::pin_path,
    sidecar::manifest_path,
    usable,
};
use crate::{
    archive::{
        block::Compression,
        block_writer::{Sink, Written},
        encryption::write::Encrypting,
        manifest::{ArchiveRecord, Manifest},
        reader::{Discard, read_archive},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    place::Archive,
    sqlite::raw_copy,
    util::{
        atomic_file::{self, PARTIAL_PREFIX, TempFile},
        operation::{OperationContext, Phase},
        temp_dir::{self, PrivateDir, Scratch, remove_tree},
    },
};

/// A backup that is being written. Dropping it removes its files.
pub struct NewBackup<'a> {
    store: &'a Store,
    pub id: String,
    archive: Archive,
    encrypted: bool,
    file: TempFile,
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
    fn remove(self) -> Result<()> {
        match self {
            ScratchDir::InStore(dir) => dir.remove(),
            ScratchDir::SystemTemp(scratch) => scratch.end(Ok(())),
        }
    }
}

/// The prefix of the names of private directories.
const PRIVATE_PREFIX: &str = ".kg-backup-";

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
    /// Chooses an id and opens a temporary file for the archive.
    pub fn begin<'a>(
        &'a self,
        _lock: &'a StoreLock,
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
            self.has_file(name).unwrap_or(true) || pin_path(&self.place.archive(name)).exists()
        };
        let free = |stamp: &String| {
            let id = names::id(stamp);
            !needed.contains(&id) && !names::archives_of_id(&id).iter().any(is_taken)
        };
        let stamp = (1..)
            .map(|number| names::stamp(at, number))
            .find(free)
            .unwrap_or_default();
        Ok(NewBackup {
            store: self,
            id: names::id(&stamp),
            archive: self
                .place
                .archive(&names::archive(&stamp, compression, encrypted)),
            encrypted,
            file: TempFile::in_store(self.dir(), self.mode)?,
            scratch: self.room(encrypted)?,
        })
    }

    fn room(&self, encrypted: bool) -> Result<ScratchDir> {
        let parent = if encrypted {
            std::env::temp_dir()
        } else {
            temp_dir::safe_parent(self.dir())
        };
        if parent == self.dir() {
            return raw_copy::scratch_dir(self.dir()).map(ScratchDir::InStore);
        }
        match Scratch::new(&parent, PRIVATE_PREFIX) {
            // A container may lack the temporary directory. Root does not fall back, because
            // another user could redirect its writes.
            Err(_) if !encrypted && !geteuid().is_root() => {
                raw_copy::scratch_dir(self.dir()).map(ScratchDir::InStore)
            }
            room => room.map(ScratchDir::SystemTemp).map_err(|error| Error {
                remedy: format!("{}; or set TMPDIR to another directory", error.remedy),
                ..error
            }),
        }
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
            _lock: lock,
            listed,
        }
    }

    /// Finishes or removes what killed runs left, and writes the sidecars of complete archives that
    /// have none.
    pub fn clean_up(&self, _lock: &StoreLock, context: &OperationContext) -> Result<Vec<Warning>> {
        let entries =
            fs::read_dir(self.dir()).map_err(|cause| Error::io("read", self.dir(), cause))?;
        let mut warnings = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let (is_scratch, is_partial) = (
                name.starts_with(raw_copy::SCRATCH_PREFIX),
                name.starts_with(PARTIAL_PREFIX),
            );
            // A file that cannot be removed must not make this run fail.
            if is_scratch && is_dir {
                let removed = remove_tree(&path).map_err(|cause| Error::io("remove", &path, cause));
                warnings.extend(removed.err().map(stays));
            } else if is_partial && !is_dir {
                warnings.extend(atomic_file::remove(&path).err().map(stays));
            } else if is_scratch || is_partial {
                let message = format!(
                    "{} has the name of a temporary file, but no run created it: move it away",
                    path.display()
                );
                warnings.push(Warning::new(WarningCode::Store, message));
            } else if let Some(archive) = name.strip_suffix(MANIFEST_SUFFIX)
                && names::id_of_archive(archive).is_some()
            {
                match self.has_file(archive) {
                    Ok(true) => {}
                    Ok(false) => warnings.extend(atomic_file::remove(&path).err().map(stays)),
                    Err(error) => warnings.push(Warning::new(WarningCode::Store, error.message)),
                }
            }
        }
        // While an encrypted archive is written, the copies of databases are in the temporary
        // directory.
        temp_dir::sweep(&std::env::temp_dir(), PRIVATE_PREFIX);
        let adopt = |archive: &Archive, manifest: Manifest| {
            atomic_file::write_in_store(&manifest_path(archive), &manifest.to_json(), self.mode)
        };
        warnings.extend(self.register_unlisted(context, adopt)?);
        Ok(warnings)
    }

    /// Returns the backups as they will be listed after a cleanup, newest first.
    pub fn preview_cleanup(
        &self,
        context: &OperationContext,
    ) -> Result<(Vec<Backup>, Vec<Warning>)> {
        let mut backups = self.list()?;
        let warnings = self.register_unlisted(context, |archive, manifest| {
            backups.extend(Backup::new(archive.clone(), manifest));
            Ok(())
        })?;
        catalog::sort(&mut backups, Timestamp::now());
        Ok((backups, warnings))
    }

    /// Passes each archive without a usable sidecar to `take`, with the manifest that belongs next
    /// to it. Such an archive is left by a run that was killed just before its end, or was copied
    /// here alone. An archive that is incomplete, or whose manifest has another id than its name,
    /// causes only a warning.
    fn register_unlisted(
        &self,
        context: &OperationContext,
        mut take: impl FnMut(&Archive, Manifest) -> Result<()>,
    ) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        for name in self.archive_names()? {
            let archive = self.place.archive(&name);
            let manifest = match self.judge(&name) {
                Ok(_) => continue,
                // An existing file must not be overwritten.
                Err(Flaw::Unread(error)) => Err(error.message),
                Err(Flaw::NoArchive) => Err(not_needed("it does not lead to a regular file")),
                Err(_) => self.manifest_for(&name, context)?,
            };
            match manifest {
                Ok(manifest) => take(&archive, manifest)?,
                Err(why) => {
                    let message = format!("{archive} is not listed: {why}");
                    warnings.push(Warning::new(WarningCode::Store, message));
                }
            }
        }
        Ok(warnings)
    }

    /// Returns the sidecar for a complete archive, or why it gets none and what to do.
    fn manifest_for(
        &self,
        name: &str,
        context: &OperationContext,
    ) -> Result<std::result::Result<Manifest, String>> {
        let archive = self.place.archive(name);
        if led_to(&archive.path(), &ARCHIVE_ENDINGS).is_err() {
            return Ok(Err(not_needed("it is a link to something else")));
        }
        let report = match read_archive(
            &archive,
            &self.keys,
            None,
            &mut Discard,
            context,
            Phase::Verifying,
        ) {
            Ok(report) => report,
            Err(error) if error.code == Code::Aborted => return Err(error),
            Err(error) if error.code.is_key_error() => {
                return Ok(Err(format!(
                    "{}; the next backup that is made with its key lists it",
                    error.message
                )));
            }
            Err(error) => return Ok(Err(not_needed(&error.message))),
        };
        let (size, sha256, encrypted) =
            (report.size_bytes, report.sha256.clone(), report.encrypted);
        Ok(
            match report.intact(&archive).map(|(manifest, _)| manifest) {
                Ok(manifest) if self.may_hold(&manifest.id) => Err(not_needed(&format!(
                    "there is another archive of {} next to it",
                    manifest.id
                ))),
                Ok(manifest) if names::id_of_archive(name).as_ref() == Some(&manifest.id) => {
                    let record = ArchiveRecord {
                        name: name.to_string(),
                        size,
                        sha256,
                        root: None,
                        list_offset: None,
                    };
                    let manifest = beside(manifest, record);
                    Ok(if encrypted {
                        manifest.public_sidecar()
                    } else {
                        manifest
                    })
                }
                Ok(manifest) => Err(not_needed(&format!(
                    "its manifest names it {}",
                    manifest.id
                ))),
                Err(error) => Err(not_needed(&error.message)),
            },
        )
    }

    /// Points `latest.tar.gz` (or `latest` with another archive ending) to the archive that
    /// `latest` means among `backups`, which must be all of them.
    fn update_latest(&self, backups: &[Backup]) -> Result<()> {
        let newest = usable::latest(backups).map(|backup| backup.archive.name());
        for ending in ENDINGS {
            let link = self.dir().join(format!("{LATEST}{ending}"));
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
    _lock: &'a StoreLock,
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

    /// Removes one backup. The archive gets a temporary name first, so that an incomplete backup is
    /// never listed.
    fn remove(&mut self, id: &str) -> Result<()> {
        let dir = self.store.dir();
        let backup = self.store.get(id)?;
        let doomed = format!("{PARTIAL_PREFIX}deleted-{id}");
        let path = backup.archive.path();
        atomic_file::rename(&path, doomed.as_ref())
            .map_err(|cause| Error::io("remove", &path, cause))?;
        // Compares paths because the store may contain a second archive with that id.
        self.listed
            .retain(|listed| listed.archive != backup.archive);
        atomic_file::remove(&manifest_path(&backup.archive))?;
        atomic_file::remove(&dir.join(doomed))?;
        atomic_file::sync_dir(dir)?;
        self.store.update_latest(&self.listed)
    }
}

impl NewBackup<'_> {
    /// Opens the sink for the archive's bytes.
    pub fn sink(&self) -> Result<Box<dyn Sink>> {
        let file = self
            .file
            .file()
            .try_clone()
            .map_err(|cause| Error::io("write", &self.archive.path(), cause))?;
        let file = ArchiveFile::new(file);
        Ok(if self.encrypted {
            Box::new(Encrypting::new(file, &self.store.keys)?)
        } else {
            Box::new(file)
        })
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
        match &self.scratch {
            ScratchDir::InStore(dir) => dir.path(),
            ScratchDir::SystemTemp(scratch) => scratch.path(),
        }
    }

    /// Publishes the archive, then its sidecar. Both are on the disk when this returns. Returns the
    /// full details of the backup, even if it is encrypted.
    pub fn publish(self, manifest: Manifest, written: Written) -> Result<(Backup, Manifest)> {
        let name = self.archive.name().to_string();
        let manifest = Manifest {
            encrypted: self.encrypted,
            ..beside(manifest, written.record(name))
        };
        let outside = self.encrypted.then(|| manifest.public_sidecar());
        let sidecar = manifest_path(&self.archive);
        let json = outside.as_ref().unwrap_or(&manifest).to_json();
        let (file, mode) = (self.file, self.store.mode);
        let published = file
            .persist(&self.archive.path())
            .and_then(|()| atomic_file::write_in_store(&sidecar, &json, mode));
        if let Err(error) = published {
            // If the directory cannot be synced, the rename has still happened. The remaining files
            // would later be listed as a backup although this run reports a failure.
            atomic_file::remove(&sidecar)?;
            atomic_file::remove(&self.archive.path())?;
            return Err(error);
        }
        let mut backup = Backup::new(self.archive, manifest.clone()).ok_or_else(|| {
            Error::new(
                crate::Code::Internal,
                "The manifest has no archive",
                "Please report this",
            )
        })?;
        let linked = self.store.read().and_then(|Listing { backups, unlisted }| {
            assert_none_unread_after(&unlisted, usable::latest(&backups))?;
            self.store.update_latest(&backups)
        });
        backup.warnings.extend(linked.err().map(latest_warning));
        let left = self.scratch.remove().err();
        backup
            .warnings
            .extend(left.map(|left| Warning::new(WarningCode::Store, left.to_string())));
        Ok((backup, manifest))
    }
}

/// Warns that files of an earlier run could not be removed.
fn stays(error: Error) -> Warning {
    let whose = if error.code == Code::PermissionDenied {
        "another user's run left it; "
    } else {
        ""
    };
    Warning::new(
        WarningCode::Store,
        format!("{}: {whose}remove it yourself", error.message),
    )
}

fn not_needed(why: &str) -> String {
    format!("{why}; remove it if you do not need it")
}

/// Returns the manifest as the sidecar stores it.
fn beside(mut manifest: Manifest, mut archive: ArchiveRecord) -> Manifest {
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
