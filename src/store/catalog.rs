//! The backups that a store contains. This module never writes and never waits for a lock.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    Backup, Store,
    names::{self, ENDINGS, LATEST, MANIFEST_SUFFIX},
    sidecar::{self, Sidecar, described_beside},
    sidecar_cache, tombstone, usable,
};
use crate::{
    archive::{encryption, errors::backup_not_found, reader::unreadable},
    error::{Code, Error, Result, Warning, WarningCode, first_and_more},
    objects::Location,
    place::{Archive, Place},
    project::{Component, identity::Kinship},
    util::regular_file,
};

/// The endings that an archive may have outside a store. In a store it has one of `names::ENDINGS`.
pub(super) const ARCHIVE_ENDINGS: [&str; 4] = [".tar.gz", ".tgz", ".tar.zst", ".tar"];

impl Store {
    /// Returns all backups, newest first; backups dated in the future come last. A backup is listed
    /// if it has a manifest and an archive of the size that the manifest states.
    ///
    /// Fails if any of them cannot be read, so that removals and preferences are never based on
    /// part of the store.
    pub fn list(&self) -> Result<Vec<Backup>> {
        self.assert_meant()?;
        self.read()?.whole()
    }

    /// Returns the backups and the unreadable entries of the store, for display.
    pub fn read(&self) -> Result<Listing> {
        let (archives, sidecars) = self.names()?;
        if let Place::Objects(_) = &self.place {
            let archives: Vec<Archive> = archives
                .iter()
                .map(|name| self.place.archive(name))
                .collect();
            sidecar_cache::recall(self);
            sidecar::read_ahead(&archives);
        }
        let mut listing = Listing::default();
        for name in &archives {
            match self.judge(name) {
                Ok(backup) => listing.backups.push(backup),
                Err(flaw) => listing.unlisted.extend(self.unlisted(name, flaw)),
            }
        }
        let alone = sidecars
            .iter()
            .filter(|name| archives.binary_search(name).is_err());
        listing
            .unlisted
            .extend(alone.filter_map(|name| self.unlisted(name, Flaw::NoArchive)));
        sort(&mut listing.backups, Timestamp::now());
        Ok(listing)
    }

    /// Returns the backup with that id. `KG_BACKUP_NOT_FOUND` if the store has none.
    pub fn get(&self, id: &str) -> Result<Backup> {
        self.assert_meant()?;
        for name in names::archives_of_id(id) {
            match self.judge(&name) {
                Ok(backup) => return Ok(backup),
                Err(Flaw::Unread(error)) => return Err(error),
                Err(_) => {}
            }
        }
        let dir = self.dir().display();
        Err(backup_not_found(match self.dir_is_missing() {
            true => format!("There is no backup {id}: {dir} does not exist"),
            false => format!("{dir} contains no backup {id}"),
        }))
    }

    /// Returns whether the store has a backup with that id, including one that cannot be read.
    pub fn may_hold(&self, id: &str) -> bool {
        !matches!(self.get(id), Err(error) if error.code == Code::BackupNotFound)
    }

    /// Returns whether an entry of that name exists, including a dangling link.
    pub(super) fn has_file(&self, name: &str) -> Result<bool> {
        let path = match &self.place {
            Place::Directory(dir) => dir.join(name),
            Place::Objects(objects) => return Ok(objects.find(name)?.is_some()),
        };
        match fs::symlink_metadata(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found
                .map(|_| true)
                .map_err(|cause| Error::io("read", &path, cause)),
        }
    }

    /// Returns the archive with that id, whether it is listed or was copied here without its
    /// sidecar. If there are several, for example a decrypted copy next to the encrypted archive,
    /// returns the one with that checksum.
    pub fn archive_of(&self, id: &str, checksum: Option<&str>) -> Option<Archive> {
        let archives = names::archives_of_id(id);
        let is_it = |name: &&String| {
            self.judge(name)
                .is_ok_and(|found| Some(found.checksum.as_str()) == checksum)
        };
        let is_there = |name: &&String| match &self.place {
            Place::Directory(dir) => {
                led_to(&dir.join(name), &ARCHIVE_ENDINGS).is_ok_and(|end| end.is_file())
            }
            Place::Objects(_) => self.has_file(name).unwrap_or(false),
        };
        archives
            .iter()
            .find(is_it)
            .or(archives.iter().find(is_there))
            .map(|name| self.place.archive(name))
    }

    /// Returns the newest good backup, or else the newest. Prefers the requested project if it has
    /// any backup here.
    pub fn latest(&self) -> Result<Backup> {
        self.assert_meant()?;
        let Listing { backups, unlisted } = self.read()?;
        let latest = usable::latest(&self.unambiguous(backups)?).cloned();
        assert_none_unread_after(&unlisted, latest.as_ref())?;
        latest.map_or_else(|| Err(self.empty()?), Ok)
    }

    /// Returns the newest good backup of the requested project only. A backup dated in the future
    /// is not returned, because its real time is unknown.
    pub fn newest_good(&self) -> Result<Option<Backup>> {
        self.assert_meant()?;
        let Listing { backups, unlisted } = self.read()?;
        let own: Vec<Backup> = backups
            .into_iter()
            .filter(|backup| self.is_own(backup))
            .collect();
        let newest = usable::newest_good(&own).cloned();
        assert_none_unread_after(&unlisted, newest.as_ref())?;
        Ok(newest.filter(|newest| !newest.is_ahead(Timestamp::now())))
    }

    /// Returns whether the store is a directory that certainly does not exist.
    pub fn dir_is_missing(&self) -> bool {
        !Location::is_url(&self.dir().to_string_lossy()) && !self.dir().try_exists().unwrap_or(true)
    }

    /// Fails with `KG_NO_BACKUPS` if the store has neither a backup nor an archive.
    pub fn assert_not_empty(&self) -> Result<()> {
        let Listing { backups, unlisted } = self.read()?;
        match backups.is_empty() && unlisted.is_empty() {
            true => Err(self.empty()?),
            false => Ok(()),
        }
    }

    /// Returns the error for a store without backups, which explains any archives that are not
    /// listed.
    fn empty(&self) -> Result<Error> {
        let (dir, archives) = (self.dir().display(), self.archive_names()?.len());
        Ok(if archives == 0 {
            let remedy = "Make a backup with `kg diag backup`, or name the directory that contains \
                          the backups";
            let what = match self.dir_is_missing() {
                true => "does not exist",
                false => "contains no backup",
            };
            Error::new(Code::NoBackups, format!("{dir} {what}"), remedy)
        } else {
            let message = format!(
                "{dir} contains {archives} archives, but none has a matching, readable manifest \
                 next to it"
            );
            let remedy = "Name an archive by its path; a backup into that directory lists the \
                          intact archives";
            Error::new(Code::NoBackups, message, remedy)
        })
    }

    /// Works like [`Store::locate`], but resolves `latest` to a backup that contains one of the
    /// requested components.
    pub fn locate_holding(&self, reference: &str, only: Option<&[Component]>) -> Result<Archive> {
        match only {
            Some(only) if is_latest(reference) && !Path::new(reference).is_file() => {
                self.latest_holding(only).map(|backup| backup.archive)
            }
            _ => self.locate(reference),
        }
    }

    /// Returns the newest good backup that contains one of these components, or else
    /// [`Store::latest`].
    pub fn latest_holding(&self, only: &[Component]) -> Result<Backup> {
        self.assert_meant()?;
        let holds = |backup: &&Backup| only.iter().any(|component| backup.contents.has(*component));
        let Listing { backups, unlisted } = self.read()?;
        let backups = self.unambiguous(backups)?;
        let newest = usable::good(&backups)
            .into_iter()
            .map(|place| &backups[place])
            .find(holds)
            .cloned();
        assert_none_unread_after(&unlisted, newest.as_ref())?;
        newest.map_or_else(|| self.latest(), Ok)
    }

    /// Returns the archive that `reference` names: a path, `latest`, an id, or the file name of an
    /// archive in this store.
    pub fn locate(&self, reference: &str) -> Result<Archive> {
        let path = Path::new(reference);
        if reference.is_empty() {
            return Err(Error::invalid(
                "An empty backup name was given",
                "Name an archive, an id, or `latest`",
            ));
        }
        if Location::is_url(reference) {
            return self.locate_url(reference);
        }
        if path.is_file() {
            return archive_at(path);
        }
        if is_latest(reference) {
            return self.latest().map(|backup| backup.archive);
        }
        if !names::archives_of_id(reference).is_empty() {
            return self.get(reference).map(|backup| backup.archive);
        }
        if names::id_of_archive(reference).is_some() {
            match &self.place {
                Place::Directory(dir) if dir.join(reference).is_file() => {
                    return archive_at(&dir.join(reference));
                }
                Place::Objects(_) if self.has_file(reference)? => {
                    return Ok(self.place.archive(reference));
                }
                _ => {}
            }
        }
        if let Err(Flaw::Unread(error)) = led_to(path, &ARCHIVE_ENDINGS) {
            return Err(error);
        }
        if path.is_dir() {
            return Err(Error::new(
                Code::BackupNotFound,
                format!("{reference} is a directory, not a backup"),
                "Name it with `backupDir`, and a backup in it by its id; or name an archive by its path",
            ));
        }
        Err(backup_not_found(format!(
            "There is no file {reference} and no such backup in {}",
            self.dir().display()
        )))
    }

    /// Returns the archive at a URL, in this store or another. Another one is opened with the
    /// credentials of the environment.
    fn locate_url(&self, url: &str) -> Result<Archive> {
        let (parent, name) = url.rsplit_once('/').unwrap_or((url, ""));
        let place = if self.dir() == Path::new(parent) {
            self.place.clone()
        } else {
            Store::at(Path::new(parent))?.place
        };
        let archive = place.archive(name);
        let size = archive.size_bytes();
        match size.map_err(|cause| Error::io("look for", &archive.path(), cause))? {
            Some(_) => Ok(archive),
            None => Err(backup_not_found(format!("There is no object {url}"))),
        }
    }

    /// Describes an entry that is not listed, using only names and manifests. Returns `None` for an
    /// entry that is known to belong to another project.
    fn unlisted(&self, name: &str, flaw: Flaw) -> Option<Unlisted> {
        let archive = self.place.archive(name);
        let of = described_beside(&archive)
            .ok()
            .flatten()
            .and_then(|manifest| manifest.origin());
        let is_of_another = self
            .project
            .as_ref()
            .is_some_and(|project| of.is_some() && project.kinship(of.as_ref()) == Kinship::Other);
        let id = names::id_of_archive(name).filter(|_| !is_of_another)?;
        Some(Unlisted { id, archive, flaw })
    }

    /// Returns warnings if `latest`, or a link of that name, resolves to `archive`. One names newer
    /// backups that were skipped, the other reports a backup of another project.
    ///
    /// `target` is the restore target. An empty or missing directory belongs to no project, so for
    /// it the second warning appears only if the store contains several projects.
    pub fn doubts(
        &self,
        reference: &str,
        archive: &Archive,
        target: Option<&Path>,
    ) -> Vec<Warning> {
        let name = Path::new(reference)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if !is_latest(name) {
            return Vec::new();
        }
        let store = Store {
            place: archive.place().clone(),
            ..self.clone()
        };
        let Listing { backups, unlisted } = match store.read() {
            Ok(listing) => listing,
            Err(error) => {
                let message = format!(
                    "Whether `{name}` is the newest backup cannot be determined: {}",
                    error.message
                );
                return vec![Warning::new(WarningCode::PassedOver, message)];
            }
        };
        let named = |backup: &&Backup| backup.archive.name() == archive.name();
        let Some(chosen) = backups.iter().find(named).cloned() else {
            return Vec::new();
        };
        let has_several = || {
            backups
                .iter()
                .any(|backup| backup.project_id != chosen.project_id)
        };
        let may_be_meant = |target: &Path| is_new_place(target) && !has_several();
        let is_other = self.may_be_of_another(&chosen, &backups)
            && (self.home.is_some() || target.is_some_and(|target| !may_be_meant(target)));
        let of_another = is_other.then(|| {
            let (id, dir) = (&chosen.id, store.dir().display());
            let message = format!(
                "`{name}` means {id}, which belongs to another project, or to this project before \
                 it was moved: name the backup that you want, see \
                 `kg diag list --backup-dir {dir}`"
            );
            Warning::new(WarningCode::OtherProject, message)
        });
        let alike = backups
            .into_iter()
            .filter(|backup| backup.origin == chosen.origin)
            .collect::<Vec<_>>();
        let passed = usable::passed_over(&alike, &unlisted, &chosen);
        usable::passed_over_warning(&passed, &chosen)
            .into_iter()
            .chain(of_another)
            .collect()
    }

    /// Returns the file names of all archives, listed or not. Empty if the directory does not
    /// exist.
    pub(super) fn archive_names(&self) -> Result<Vec<String>> {
        Ok(self.names()?.0)
    }

    /// Returns the file names of all archives, and the archive names that the sidecars belong to.
    fn names(&self) -> Result<(Vec<String>, Vec<String>)> {
        let all = match &self.place {
            Place::Directory(dir) => file_names(dir)?,
            Place::Objects(objects) => tombstone::living(objects)?,
        };
        let (mut archives, mut sidecars) = (Vec::new(), Vec::new());
        for name in all {
            let archive = name.strip_suffix(MANIFEST_SUFFIX);
            let of = archive.unwrap_or(&name);
            if names::id_of_archive(of).is_some() {
                if archive.is_some() {
                    &mut sidecars
                } else {
                    &mut archives
                }
                .push(of.to_string());
            }
        }
        archives.sort();
        sidecars.sort();
        Ok((archives, sidecars))
    }

    /// Returns the backup with that archive name as its manifest describes it, or why it is not a
    /// backup.
    pub(super) fn judge(&self, archive_name: &str) -> std::result::Result<Backup, Flaw> {
        let archive = self.place.archive(archive_name);
        let (size, linked_to) = match &self.place {
            Place::Directory(_) => size_of_file(&archive.path())?,
            Place::Objects(objects) => {
                if tombstone::is_doomed(objects, archive_name).map_err(Flaw::Unread)? {
                    return Err(Flaw::NoArchive);
                }
                let found = objects.find(archive_name).map_err(Flaw::Unread)?;
                (found.ok_or(Flaw::NoArchive)?.size_bytes, None)
            }
        };
        let manifest = match sidecar::sidecar(&archive).map_err(Flaw::Unread)? {
            Sidecar::Manifest(manifest) => *manifest,
            Sidecar::Missing => return Err(Flaw::NoManifest),
            Sidecar::Invalid => return Err(Flaw::Misfit),
        };
        let mut backup = Backup::new(archive, manifest).ok_or(Flaw::Misfit)?;
        backup.linked_to = linked_to;
        let fits =
            backup.size == size && names::id_of_archive(archive_name).as_ref() == Some(&backup.id);
        if fits { Ok(backup) } else { Err(Flaw::Misfit) }
    }
}

/// Returns the size of an archive, and the archive itself if `path` is a link to it. The archive is
/// opened because one that cannot be opened cannot be restored.
fn size_of_file(path: &Path) -> std::result::Result<(u64, Option<PathBuf>), Flaw> {
    let end = led_to(path, &ARCHIVE_ENDINGS)?;
    let size = match regular_file::open(&end).and_then(|file| file.metadata()) {
        Ok(found) => found.len(),
        Err(cause) if is_absent(&cause) => return Err(Flaw::NoArchive),
        Err(cause) => return Err(Flaw::Unread(Error::io("read", path, cause))),
    };
    Ok((size, Some(end).filter(|end| *end != path)))
}

/// Returns the names of the files and links in a directory. Empty if it does not exist.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let failed = |cause| Error::io("read", dir, cause);
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        // The user may have moved an archive to another disk and linked it here.
        if let Ok(name) = entry.file_name().into_string()
            && (kind.is_file() || kind.is_symlink())
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns the path itself, or the target if the path is a link. A link to a file with another
/// ending is not followed. The target could be a database that this process has open, and closing
/// it would drop the locks. A dangling link may point to a disk that is not mounted.
pub(super) fn led_to(path: &Path, endings: &[&str]) -> std::result::Result<PathBuf, Flaw> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return Ok(path.to_path_buf());
    }
    let end = match dunce::canonicalize(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let message = format!("{} is a link that leads nowhere", path.display());
            return Err(Flaw::Unread(Error::new(
                Code::Io,
                message,
                "Mount the disk that it leads to, or remove the link",
            )));
        }
        end => end.map_err(|cause| Flaw::Unread(Error::io("read", path, cause)))?,
    };
    let name = end.to_string_lossy();
    if endings.iter().any(|ending| name.ends_with(ending)) {
        Ok(end)
    } else {
        Err(Flaw::Misfit)
    }
}

/// Returns whether the path is missing or is not a regular file.
fn is_absent(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
    )
}

/// The contents of a store.
#[derive(Debug, Default)]
pub struct Listing {
    /// Sorted as in [`Store::list`].
    pub backups: Vec<Backup>,
    pub unlisted: Vec<Unlisted>,
}

impl Listing {
    /// Returns the backups, or an error if an entry could not be read.
    pub fn whole(self) -> Result<Vec<Backup>> {
        self.unread()
            .next()
            .map_or(Ok(()), |error| Err(error.clone()))?;
        Ok(self.backups)
    }

    /// Returns the errors of entries that could not be read and therefore may be backups.
    pub fn unread(&self) -> impl Iterator<Item = &Error> {
        self.unlisted.iter().filter_map(Unlisted::unread)
    }

    /// Returns the first of these errors and the number of others.
    pub fn unread_message(&self) -> Option<String> {
        first_and_more(self.unread().map(|error| &error.message))
    }
}

/// Fails if an entry that could not be read may be newer than `chosen`.
pub(super) fn assert_none_unread_after(
    unlisted: &[Unlisted],
    chosen: Option<&Backup>,
) -> Result<()> {
    let newer = unlisted
        .iter()
        .filter(|left| chosen.is_none_or(|chosen| left.began_after(chosen)));
    let Some((left, error)) = newer.filter_map(|left| Some((left, left.unread()?))).next() else {
        return Ok(());
    };
    let message = format!(
        "{}: whether {} is the newest backup cannot be determined",
        error.message, left.id
    );
    Err(Error {
        message,
        ..error.clone()
    })
}

/// An archive or a sidecar that is not listed as a backup.
#[derive(Debug, Clone)]
pub struct Unlisted {
    /// The id of the backup, taken from the file name.
    pub id: String,
    /// The archive, which may be missing.
    pub archive: Archive,
    pub flaw: Flaw,
}

/// Why an entry is not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    NoManifest,
    /// The manifest is invalid or describes an archive of another size, or one of the files is a
    /// link to an unrelated file.
    Misfit,
    NoArchive,
    /// The archive or the manifest could not be read, so the entry may be a backup.
    Unread(Error),
}

impl Unlisted {
    /// Completes the sentence "It is not listed: …".
    pub fn why(&self) -> String {
        match &self.flaw {
            Flaw::NoManifest => "it has no manifest next to it".into(),
            Flaw::Misfit => {
                "its archive does not have the size in its manifest, or one of the two is \
                 something else"
                    .into()
            }
            Flaw::NoArchive => "its archive is missing".into(),
            Flaw::Unread(error) => error.message.clone(),
        }
    }

    /// Returns the read error, if that is why the entry is not listed.
    pub fn unread(&self) -> Option<&Error> {
        match &self.flaw {
            Flaw::Unread(error) => Some(error),
            _ => None,
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        encryption::is_named(self.archive.name())
    }

    /// Returns whether the entry began after `backup`, judging by the names.
    pub(super) fn began_after(&self, backup: &Backup) -> bool {
        let order =
            |id: &str| names::time_of_id(id).map(|second| (second, id.len(), id.to_string()));
        order(&self.id) > order(&backup.id)
    }
}

/// Returns whether a directory is missing, unreadable or empty.
fn is_new_place(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

/// Returns whether `reference` is `latest`, or the name of a link to the latest archive.
pub fn is_latest(reference: &str) -> bool {
    reference
        .strip_prefix(LATEST)
        .is_some_and(|ending| ending.is_empty() || ENDINGS.contains(&ending))
}

/// Returns the archive at `path`, which may be a link, at its location in the store, next to its
/// sidecar and its base.
///
/// A file that is not named like an archive is never opened. It could be a database that this
/// process has open, and closing it would drop the locks.
fn archive_at(path: &Path) -> Result<Archive> {
    let end = dunce::canonicalize(path).map_err(|cause| unreadable(&Archive::at(path), cause))?;
    let name = end.to_string_lossy();
    if ARCHIVE_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        let is_in_store = |path: &Path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| names::id_of_archive(name).is_some())
        };
        let mut here = path.to_path_buf();
        while !is_in_store(&here)
            && let Ok(target) = fs::read_link(&here)
        {
            here = here.parent().unwrap_or(Path::new("")).join(target);
        }
        return Ok(Archive::at(&resolve_parent(&here).unwrap_or(end)));
    }
    Err(Error::new(
        Code::NotABackup,
        format!(
            "{} is not a backup: archives end in {}",
            path.display(),
            ARCHIVE_ENDINGS.join(", ")
        ),
        "Name an archive, or see the backups with `kg diag list`",
    ))
}

/// Returns the path with the links in its parent directory resolved.
fn resolve_parent(path: &Path) -> Option<PathBuf> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Some(dunce::canonicalize(parent).ok()?.join(path.file_name()?))
}

/// Sorts newest first; of equal times, the one made last comes first. Backups dated in the future
/// come last, because the clock was wrong and their real time is unknown.
pub fn sort(backups: &mut [Backup], now: Timestamp) {
    backups.sort_by(|a, b| {
        let age = |a: &Backup, b: &Backup| {
            (b.timestamp, b.id.len(), &b.id).cmp(&(a.timestamp, a.id.len(), &a.id))
        };
        a.is_ahead(now)
            .cmp(&b.is_ahead(now))
            .then_with(|| age(a, b))
    });
}
