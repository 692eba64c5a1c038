//! Finishes or removes what killed runs left.

use std::{fs, path::Path};

use jiff::Timestamp;

use super::{
    Backup, Store, StoreLock,
    catalog::{self, ARCHIVE_ENDINGS, Flaw, led_to},
    names::{self, MANIFEST_SUFFIX},
    tombstone,
    write::{PRIVATE_PREFIX, beside},
};
use crate::{
    archive::{
        manifest::{ArchiveRecord, Manifest},
        reader::{Discard, read_archive},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    place::{Archive, ObjectPlace, Place},
    sqlite::raw_copy,
    util::{
        atomic_file::{self, PARTIAL_PREFIX},
        operation::{OperationContext, Phase},
        temp_dir::{self, remove_tree},
    },
};

impl Store {
    /// Finishes or removes what killed runs left, and writes the sidecars of complete archives that
    /// have none.
    ///
    /// `thoroughly` also looks for parts of uploads, which takes one more request, if nothing says that
    /// a run was killed.
    pub fn clean_up(
        &self,
        lock: &StoreLock,
        thoroughly: bool,
        context: &OperationContext,
    ) -> Result<Vec<Warning>> {
        let mut warnings = match &self.place {
            Place::Directory(dir) => self.sweep_directory(dir)?,
            Place::Objects(objects) => self.sweep_objects(objects, lock, thoroughly)?,
        };
        // While an encrypted archive is written, the copies of databases are in the temporary
        // directory.
        temp_dir::sweep(&std::env::temp_dir(), PRIVATE_PREFIX);
        let adopt = |archive: &Archive, manifest: Manifest| {
            self.write_beside(archive, MANIFEST_SUFFIX, &manifest.to_json())
        };
        warnings.extend(self.register_unlisted(context, adopt)?);
        Ok(warnings)
    }

    fn sweep_directory(&self, dir: &Path) -> Result<Vec<Warning>> {
        let entries = fs::read_dir(dir).map_err(|cause| Error::io("read", dir, cause))?;
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
            } else {
                warnings.extend(self.sweep_sidecar(&name));
            }
        }
        Ok(warnings)
    }

    /// Removes the objects, and the parts of objects, that killed runs left.
    fn sweep_objects(
        &self,
        objects: &ObjectPlace,
        lock: &StoreLock,
        thoroughly: bool,
    ) -> Result<Vec<Warning>> {
        let mut warnings: Vec<Warning> = tombstone::finish_removals(objects)?
            .into_iter()
            .map(stays)
            .collect();
        for name in objects.names()? {
            warnings.extend(self.sweep_sidecar(&name));
        }
        let Some(taken) = lock
            .taken_at()
            .filter(|_| thoroughly || lock.follows_a_kill())
        else {
            return Ok(warnings);
        };
        let unfinished = match objects.client().unfinished_uploads() {
            // The service removes them by its own rules.
            Err(error) if error.code == Code::Unsupported => return Ok(warnings),
            Err(error) => {
                let message = format!(
                    "{}: killed runs may have left parts of archives",
                    error.message
                );
                warnings.push(Warning::new(WarningCode::Store, message));
                return Ok(warnings);
            }
            Ok(unfinished) => unfinished,
        };
        // What began before this process took the lock is of one that no longer holds it.
        let is_left = |name: &str| names::id_of_archive(name).is_some();
        for upload in unfinished
            .iter()
            .filter(|one| one.started <= taken && is_left(&one.name))
        {
            warnings.extend(objects.client().abort_upload(upload).err().map(stays));
        }
        Ok(warnings)
    }

    /// Removes a sidecar without an archive.
    fn sweep_sidecar(&self, name: &str) -> Option<Warning> {
        let archive = name.strip_suffix(MANIFEST_SUFFIX)?;
        names::id_of_archive(archive)?;
        match self.has_file(archive) {
            Ok(true) => None,
            Ok(false) => self.remove_file(&self.place.archive(name)).err().map(stays),
            Err(error) => Some(Warning::new(WarningCode::Store, error.message)),
        }
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
        if archive
            .local_path()
            .is_some_and(|path| led_to(&path, &ARCHIVE_ENDINGS).is_err())
        {
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
                        object: None,
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
