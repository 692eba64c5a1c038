//! Everything that changes a store. Each function takes the lock as proof that this is the only writer.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::unistd::geteuid;

use super::{
    Backup, Store, StoreLock,
    archive_file::ArchiveFile,
    catalog::{
        self, ARCHIVE_ENDINGS, Flaw, Listing, assert_none_unread_after, led_to, manifest_path,
    },
    names::{self, ENDINGS, LATEST, MANIFEST_SUFFIX},
    pins::pin_path,
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
    sqlite::raw_copy,
    util::{
        atomic_file::{self, PARTIAL_PREFIX, TempFile},
        operation::{OperationContext, Phase},
        temp_dir::{self, PrivateDir, Scratch, remove_tree},
    },
};

/// A backup being written. Dropping it leaves nothing.
pub struct NewBackup<'a> {
    store: &'a Store,
    pub id: String,
    archive: PathBuf,
    encrypted: bool,
    file: TempFile,
    scratch: ScratchDir,
}

/// Where copies of databases and lists of files lie meanwhile, for this user alone; gone with this.
enum ScratchDir {
    /// On the disk that holds the archives.
    InStore(PrivateDir),
    /// Away from encrypted archives, and from others who could put something else in its place: in the system's directory for temporary files.
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

/// What the names of private rooms begin with.
const PRIVATE_PREFIX: &str = ".kg-backup-";

/// The ids of all backups that rest on `id`, directly or not, none before one that rests on it.
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
    // The one that was found last is the farthest away.
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
        // A backup whose base is gone must not find another one under its name.
        let needed: HashSet<String> = self
            .read()?
            .backups
            .into_iter()
            .filter_map(|backup| backup.based_on)
            .collect();
        let is_taken = |name: &String| {
            self.has_file(name).unwrap_or(true) || pin_path(&self.dir.join(name)).exists()
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
                .dir
                .join(names::archive(&stamp, compression, encrypted)),
            encrypted,
            file: TempFile::in_store(&self.dir, self.mode)?,
            scratch: self.room(encrypted)?,
        })
    }

    fn room(&self, encrypted: bool) -> Result<ScratchDir> {
        let parent = if encrypted {
            std::env::temp_dir()
        } else {
            temp_dir::safe_parent(&self.dir)
        };
        if parent == self.dir {
            return raw_copy::scratch_dir(&self.dir).map(ScratchDir::InStore);
        }
        match Scratch::new(&parent, PRIVATE_PREFIX) {
            // A container may have no such directory. Root does not go on where another user could have it write anywhere.
            Err(_) if !encrypted && !geteuid().is_root() => {
                raw_copy::scratch_dir(&self.dir).map(ScratchDir::InStore)
            }
            room => room.map(ScratchDir::SystemTemp).map_err(|error| Error {
                remedy: format!("{}; or set TMPDIR to another directory", error.remedy),
                ..error
            }),
        }
    }

    /// Removes a backup, and with `cascade` those that rest on it; without, such a backup is refused. Where one of them is
    /// pinned, none is removed.
    pub fn delete(&self, lock: &StoreLock, id: &str, cascade: bool) -> Result<Vec<String>> {
        self.get(id)?;
        self.removal(lock, self.list()?).delete(id, cascade)
    }

    /// To remove several; `listed` are all backups of the store, listed since it was locked.
    pub fn removal<'a>(&'a self, lock: &'a StoreLock, listed: Vec<Backup>) -> Removal<'a> {
        Removal {
            store: self,
            _lock: lock,
            listed,
        }
    }

    /// Finishes or removes what killed runs left, and writes the manifest of whole archives that have none.
    pub fn clean_up(&self, _lock: &StoreLock, context: &OperationContext) -> Result<Vec<Warning>> {
        let entries =
            fs::read_dir(&self.dir).map_err(|cause| Error::io("read", &self.dir, cause))?;
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
            // What cannot be removed must not keep this run from its work.
            if is_scratch && is_dir {
                let removed = remove_tree(&path).map_err(|cause| Error::io("remove", &path, cause));
                warnings.extend(removed.err().map(stays));
            } else if is_partial && !is_dir {
                warnings.extend(atomic_file::remove(&path).err().map(stays));
            } else if is_scratch || is_partial {
                let message = format!(
                    "{} has a name of a temporary file, and no run made it: move it away",
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
        // Where the copies of databases lie while an encrypted archive is written.
        temp_dir::sweep(&std::env::temp_dir(), PRIVATE_PREFIX);
        let adopt = |archive: &Path, manifest: Manifest| {
            atomic_file::write_in_store(&manifest_path(archive), &manifest.to_json(), self.mode)
        };
        warnings.extend(self.register_unlisted(context, adopt)?);
        Ok(warnings)
    }

    /// The backups as they will be listed after a sweep, newest first.
    pub fn preview_cleanup(
        &self,
        context: &OperationContext,
    ) -> Result<(Vec<Backup>, Vec<Warning>)> {
        let mut backups = self.list()?;
        let warnings = self.register_unlisted(context, |archive, manifest| {
            backups.extend(Backup::new(archive.to_path_buf(), manifest));
            Ok(())
        })?;
        catalog::sort(&mut backups, Timestamp::now());
        Ok((backups, warnings))
    }

    /// Gives `take` each archive that has no usable manifest beside it, with the one that belongs there: a run was killed just
    /// before its end, or the archive was copied here alone. One that is not whole, or is called otherwise than it calls
    /// itself, is only warned of.
    fn register_unlisted(
        &self,
        context: &OperationContext,
        mut take: impl FnMut(&Path, Manifest) -> Result<()>,
    ) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        for name in self.archive_names()? {
            let path = self.dir.join(&name);
            let manifest = match self.judge(&name) {
                Ok(_) => continue,
                // What is there must not be written over.
                Err(Flaw::Unread(error)) => Err(error.message),
                Err(Flaw::NoArchive) => Err(not_needed("it leads to no regular file")),
                Err(_) => self.manifest_for(&name, context)?,
            };
            match manifest {
                Ok(manifest) => take(&path, manifest)?,
                Err(why) => {
                    let message = format!("{} is not listed: {why}", path.display());
                    warnings.push(Warning::new(WarningCode::Store, message));
                }
            }
        }
        Ok(warnings)
    }

    /// The manifest that belongs beside a whole archive, or why it has none and what to do.
    fn manifest_for(
        &self,
        name: &str,
        context: &OperationContext,
    ) -> Result<std::result::Result<Manifest, String>> {
        let path = self.dir.join(name);
        if led_to(&path, &ARCHIVE_ENDINGS).is_err() {
            return Ok(Err(not_needed("it is a link to something else")));
        }
        let report = match read_archive(
            &path,
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
                    "{}; a backup that is made with its key lists it",
                    error.message
                )));
            }
            Err(error) => return Ok(Err(not_needed(&error.message))),
        };
        let (size, sha256, encrypted) =
            (report.size_bytes, report.sha256.clone(), report.encrypted);
        Ok(match report.into_manifest(&path) {
            Ok(manifest) if self.may_hold(&manifest.id) => Err(not_needed(&format!(
                "there is another archive of {} beside it",
                manifest.id
            ))),
            Ok(manifest) if names::id_of_archive(name).as_ref() == Some(&manifest.id) => {
                let record = ArchiveRecord {
                    name: name.to_string(),
                    size,
                    sha256,
                    root: None,
                };
                let manifest = beside(manifest, record);
                Ok(if encrypted {
                    manifest.public_sidecar()
                } else {
                    manifest
                })
            }
            Ok(manifest) => Err(not_needed(&format!("it calls itself {}", manifest.id))),
            Err(error) => Err(not_needed(&error.message)),
        })
    }

    /// Points `latest.tar.gz` (or `latest` with another ending of archives) to the archive that `latest` means among `backups`, which are all.
    fn update_latest(&self, backups: &[Backup]) -> Result<()> {
        let newest = usable::latest(backups).and_then(|backup| backup.path.file_name()?.to_str());
        for ending in ENDINGS {
            let link = self.dir.join(format!("{LATEST}{ending}"));
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

/// Removes backups. It keeps the list of all up to date, so that a run reads the store once.
pub struct Removal<'a> {
    store: &'a Store,
    _lock: &'a StoreLock,
    listed: Vec<Backup>,
}

impl Removal<'_> {
    /// As [`Store::delete`].
    pub fn delete(&mut self, id: &str, cascade: bool) -> Result<Vec<String>> {
        let dependants = dependants(&self.listed, id);
        if let (false, Some(first)) = (cascade, dependants.first()) {
            let more = if dependants.len() > 1 {
                format!(" and {} more rest", dependants.len() - 1)
            } else {
                " rests".into()
            };
            return Err(Error::new(
                Code::BackupNeeded,
                format!("{first}{more} on {id} and could not be restored without it"),
                "Delete those first, or all at once with `cascade` (`--cascade`)",
            ));
        }
        // Dependants are removed first, so that a kill leaves no broken chain.
        let doomed: Vec<String> = dependants.into_iter().chain([id.to_string()]).collect();
        doomed
            .iter()
            .try_for_each(|id| self.store.assert_unpinned(id))?;
        doomed.iter().try_for_each(|id| self.remove(id))?;
        Ok(doomed)
    }

    /// Removes one backup: its archive first gets a temporary name, so that it is never listed without being whole.
    fn remove(&mut self, id: &str) -> Result<()> {
        let Store { dir, .. } = self.store;
        let backup = self.store.get(id)?;
        let doomed = format!("{PARTIAL_PREFIX}deleted-{id}");
        atomic_file::rename(&backup.path, doomed.as_ref())
            .map_err(|cause| Error::io("remove", &backup.path, cause))?;
        // By its path: the store may hold a second archive of that id.
        self.listed.retain(|listed| listed.path != backup.path);
        atomic_file::remove(&manifest_path(&backup.path))?;
        atomic_file::remove(&dir.join(doomed))?;
        atomic_file::sync_dir(dir)?;
        self.store.update_latest(&self.listed)
    }
}

impl NewBackup<'_> {
    /// Where the archive's bytes go.
    pub fn sink(&self) -> Result<Box<dyn Sink>> {
        let file = self
            .file
            .file()
            .try_clone()
            .map_err(|cause| Error::io("write", &self.archive, cause))?;
        let file = ArchiveFile::new(file);
        Ok(if self.encrypted {
            Box::new(Encrypting::new(file, &self.store.keys)?)
        } else {
            Box::new(file)
        })
    }

    /// The public keys that it is encrypted to, for its manifest.
    pub fn recipients(&self) -> Result<Vec<String>> {
        if self.encrypted {
            self.store.keys.recipients()
        } else {
            Ok(Vec::new())
        }
    }

    /// A directory for copies of databases; removed with this.
    pub fn scratch(&self) -> &Path {
        match &self.scratch {
            ScratchDir::InStore(dir) => dir.path(),
            ScratchDir::SystemTemp(scratch) => scratch.path(),
        }
    }

    /// Publishes the archive, then its manifest. When this returns both are on the disk. With the backup comes all that there is to know of it,
    /// be it encrypted or not.
    pub fn publish(self, manifest: Manifest, written: Written) -> Result<(Backup, Manifest)> {
        let name = self
            .archive
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let manifest = Manifest {
            encrypted: self.encrypted,
            ..beside(manifest, written.record(name))
        };
        let outside = self.encrypted.then(|| manifest.public_sidecar());
        let sidecar = manifest_path(&self.archive);
        let json = outside.as_ref().unwrap_or(&manifest).to_json();
        let (file, mode) = (self.file, self.store.mode);
        let published = file
            .persist(&self.archive)
            .and_then(|()| atomic_file::write_in_store(&sidecar, &json, mode));
        if let Err(error) = published {
            // A rename whose directory cannot be synced has happened all the same: what is left would be listed, now or by the next run, as a
            // backup that was said to have failed.
            atomic_file::remove(&sidecar)?;
            atomic_file::remove(&self.archive)?;
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

/// That what a run left is still there.
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

/// The manifest as it stands beside the archive.
fn beside(mut manifest: Manifest, archive: ArchiveRecord) -> Manifest {
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
