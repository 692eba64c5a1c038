//! Which backups a store holds. Nothing here writes or waits for a lock.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    Backup, Store,
    names::{self, ENDINGS, LATEST, MANIFEST_SUFFIX},
    usable,
};
use crate::{
    archive::{
        encryption,
        manifest::Manifest,
        reader::{MAX_TEXT_BYTES, unreadable},
    },
    error::{Code, Error, Result, Warning, WarningCode, first_and_more},
    project::Component,
    util::regular_file,
};

/// How messages name a manifest that cannot be understood.
const BESIDE: &str = "the manifest beside the archive";
/// What an archive may be called elsewhere; in a store it is one of `names::ENDINGS`.
pub(super) const ARCHIVE_ENDINGS: [&str; 4] = [".tar.gz", ".tgz", ".tar.zst", ".tar"];

impl Store {
    /// All backups, newest first, and last of all those that are dated ahead. One is listed while its manifest and its
    /// archive, of the size that the manifest gives, are both there. Fails if it cannot read one of them, so that a decision
    /// about what is removed or preferred never comes from a part of the store.
    pub fn list(&self) -> Result<Vec<Backup>> {
        self.assert_meant()?;
        self.read()?.whole()
    }

    /// All that the store holds, and what of it cannot be read: to show it.
    pub fn read(&self) -> Result<Listing> {
        let (archives, sidecars) = self.names()?;
        let mut listing = Listing::default();
        for name in &archives {
            match self.judge(name) {
                Ok(backup) => listing.backups.push(backup),
                Err(flaw) => listing.unlisted.extend(self.unlisted(name, flaw)),
            }
        }
        let alone = sidecars.iter().filter(|name| !archives.contains(name));
        listing
            .unlisted
            .extend(alone.filter_map(|name| self.unlisted(name, Flaw::NoArchive)));
        sort(&mut listing.backups, Timestamp::now());
        Ok(listing)
    }

    /// The backup of that id.
    pub fn get(&self, id: &str) -> Result<Backup> {
        self.assert_meant()?;
        for name in names::archives_of_id(id) {
            match self.judge(&name) {
                Ok(backup) => return Ok(backup),
                Err(Flaw::Unread(error)) => return Err(error),
                Err(_) => {}
            }
        }
        Err(Error::new(
            Code::BackupNotFound,
            format!("{} holds no backup {id}", self.dir.display()),
            "See the ids with `kg diag backup --list` or listBackups()",
        ))
    }

    /// Whether it holds a backup of that id, also if that cannot be read.
    pub fn may_hold(&self, id: &str) -> bool {
        !matches!(self.get(id), Err(error) if error.code == Code::BackupNotFound)
    }

    /// Whether there is something of that name, a link that leads nowhere too.
    pub(super) fn has_file(&self, name: &str) -> Result<bool> {
        let path = self.dir.join(name);
        match fs::symlink_metadata(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found
                .map(|_| true)
                .map_err(|cause| Error::io("read", &path, cause)),
        }
    }

    /// The archive of that id, whether it is listed or came here without its manifest. Of several (somebody put what an encrypted one holds
    /// beside it), the one that is listed with that checksum.
    pub fn archive_of(&self, id: &str, checksum: Option<&str>) -> Option<PathBuf> {
        let archives = names::archives_of_id(id);
        let is_it = |name: &&String| {
            self.judge(name)
                .is_ok_and(|found| Some(found.checksum.as_str()) == checksum)
        };
        let is_there = |name: &&String| {
            led_to(&self.dir.join(name), &ARCHIVE_ENDINGS).is_ok_and(|end| end.is_file())
        };
        archives
            .iter()
            .find(is_it)
            .or(archives.iter().find(is_there))
            .map(|name| self.dir.join(name))
    }

    /// The newest good backup; where there is none, the newest. Of the project that this store is asked for, where it has any here.
    pub fn latest(&self) -> Result<Backup> {
        self.assert_meant()?;
        let Listing { backups, unlisted } = self.read()?;
        let latest = usable::latest(&self.preferred(backups)).cloned();
        assert_none_unread_after(&unlisted, latest.as_ref())?;
        latest.map_or_else(|| Err(self.empty()?), Ok)
    }

    /// The newest good backup of the project that this store is asked for, not of another one. What is dated ahead was made nobody knows when.
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

    /// That there is no backup, and why where there are archives all the same.
    fn empty(&self) -> Result<Error> {
        let (dir, archives) = (self.dir.display(), self.archive_names()?.len());
        Ok(if archives == 0 {
            let remedy = "Make one with `kg diag backup`, or name the directory that holds them";
            Error::new(Code::NoBackups, format!("{dir} holds no backup"), remedy)
        } else {
            let message = format!(
                "{dir} holds {archives} archives, and no manifest beside one that fits it and can be read"
            );
            let remedy = "Name an archive by its path; a backup into that directory lists those that are whole";
            Error::new(Code::NoBackups, message, remedy)
        })
    }

    /// As [`Store::locate`]; of several that `latest` could mean, one that holds some of what is wanted.
    pub fn locate_holding(&self, reference: &str, only: Option<&[Component]>) -> Result<PathBuf> {
        match only {
            Some(only) if is_latest(reference) && !Path::new(reference).is_file() => {
                self.latest_holding(only).map(|backup| backup.path)
            }
            _ => self.locate(reference),
        }
    }

    /// The newest good backup that holds one of these; where there is none, as [`Store::latest`].
    pub fn latest_holding(&self, only: &[Component]) -> Result<Backup> {
        self.assert_meant()?;
        let holds = |backup: &&Backup| only.iter().any(|component| backup.contents.has(*component));
        let Listing { backups, unlisted } = self.read()?;
        let backups = self.preferred(backups);
        let newest = usable::good(&backups)
            .into_iter()
            .map(|place| &backups[place])
            .find(holds)
            .cloned();
        assert_none_unread_after(&unlisted, newest.as_ref())?;
        newest.map_or_else(|| self.latest(), Ok)
    }

    /// Those of the project that this store is asked for; all of them where it has none.
    pub fn preferred(&self, backups: Vec<Backup>) -> Vec<Backup> {
        let (own, others): (Vec<Backup>, Vec<Backup>) =
            backups.into_iter().partition(|backup| self.is_own(backup));
        if own.is_empty() { others } else { own }
    }

    /// Whether a backup is of the project that this store is asked for; where it is asked for none, each is.
    pub fn is_own(&self, backup: &Backup) -> bool {
        self.project.is_none() || backup.project == self.project
    }

    /// The archive that `reference` means: a path, `latest`, an id, or the name of an archive of this store.
    pub fn locate(&self, reference: &str) -> Result<PathBuf> {
        let path = Path::new(reference);
        if reference.is_empty() {
            return Err(Error::invalid(
                "An empty backup name was given",
                "Name an archive, an id, or `latest`",
            ));
        }
        if path.is_file() {
            return archive_at(path);
        }
        if is_latest(reference) {
            return self.latest().map(|backup| backup.path);
        }
        if !names::archives_of_id(reference).is_empty() {
            return self.get(reference).map(|backup| backup.path);
        }
        if names::id_of_archive(reference).is_some() && self.dir.join(reference).is_file() {
            return archive_at(&self.dir.join(reference));
        }
        if let Err(Flaw::Unread(error)) = led_to(path, &ARCHIVE_ENDINGS) {
            return Err(error);
        }
        Err(Error::new(
            Code::BackupNotFound,
            format!(
                "There is no file {reference} and no such backup in {}",
                self.dir.display()
            ),
            "Check the path, or see the backups with `kg diag backup --list`",
        ))
    }

    /// What was a backup, or is one whose manifest is missing, and so is not listed. Told by names and manifests alone. Of what
    /// is known to be of another project than this store is asked for, nothing.
    fn unlisted(&self, name: &str, flaw: Flaw) -> Option<Unlisted> {
        let path = self.dir.join(name);
        let of = described_beside(&path)
            .ok()
            .flatten()
            .and_then(|manifest| manifest.project);
        let is_of_another = self.project.is_some() && of.is_some() && of != self.project;
        let id = names::id_of_archive(name).filter(|_| !is_of_another)?;
        Some(Unlisted { id, path, flaw })
    }

    /// Warns if the reference `latest`, or a link of that name, leads to `archive`: of newer backups that were passed over, and
    /// of a backup of another project. `target` is where it is restored. A new place is no project's, so there it is only a
    /// warning if the store holds the backups of several projects.
    pub fn doubts(&self, reference: &str, archive: &Path, target: Option<&Path>) -> Vec<Warning> {
        let name = Path::new(reference)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let Some(dir) = archive.parent().filter(|_| is_latest(name)) else {
            return Vec::new();
        };
        let store = Store {
            dir: dir.to_path_buf(),
            ..self.clone()
        };
        let Listing { backups, unlisted } = match store.read() {
            Ok(listing) => listing,
            Err(error) => {
                let message = format!(
                    "Whether `{name}` is the newest backup cannot be told: {}",
                    error.message
                );
                return vec![Warning::new(WarningCode::PassedOver, message)];
            }
        };
        let named = |backup: &&Backup| backup.path.file_name() == archive.file_name();
        let Some(chosen) = backups.iter().find(named).cloned() else {
            return Vec::new();
        };
        let has_several = || {
            backups
                .iter()
                .any(|backup| backup.project != chosen.project)
        };
        let may_be_meant = |target: &Path| is_new_place(target) && !has_several();
        let is_other = !self.is_own(&chosen)
            && (self.home.is_some() || target.is_some_and(|target| !may_be_meant(target)));
        let of_another = is_other.then(|| {
            let (id, dir) = (&chosen.id, dir.display());
            let message = format!(
                "`{name}` means {id}, which is of another project, or of this one where it lay before: name the backup that you want, see \
                 `kg diag backup --list --output {dir}`"
            );
            Warning::new(WarningCode::OtherProject, message)
        });
        let alike = backups
            .into_iter()
            .filter(|backup| backup.project == chosen.project)
            .collect::<Vec<_>>();
        let passed = usable::passed_over(&alike, &unlisted, &chosen);
        usable::passed_over_warning(&passed, &chosen)
            .into_iter()
            .chain(of_another)
            .collect()
    }

    /// File names of all archives, listed or not; none where the directory does not exist.
    pub(super) fn archive_names(&self) -> Result<Vec<String>> {
        Ok(self.names()?.0)
    }

    /// File names of all archives, and those that the sidecars are named after.
    fn names(&self) -> Result<(Vec<String>, Vec<String>)> {
        let failed = |cause| Error::io("read", &self.dir, cause);
        let entries = match fs::read_dir(&self.dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            entries => entries.map_err(failed)?,
        };
        let (mut archives, mut sidecars) = (Vec::new(), Vec::new());
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let archive = name.strip_suffix(MANIFEST_SUFFIX);
            let of = archive.unwrap_or(&name);
            let kind = entry.file_type().map_err(failed)?;
            // An archive that was moved to another disk may be linked here.
            if names::id_of_archive(of).is_some() && (kind.is_file() || kind.is_symlink()) {
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

    /// The archive of that name as its manifest describes it, or why it makes no backup.
    pub(super) fn judge(&self, archive_name: &str) -> std::result::Result<Backup, Flaw> {
        let path = self.dir.join(archive_name);
        // Opened, because one that cannot be is as good as none to whoever wants to restore it.
        let end = led_to(&path, &ARCHIVE_ENDINGS)?;
        let size = match regular_file::open(&end).and_then(|file| file.metadata()) {
            Ok(found) => found.len(),
            Err(cause) if is_absent(&cause) => return Err(Flaw::NoArchive),
            Err(cause) => return Err(Flaw::Unread(Error::io("read", &path, cause))),
        };
        let json = manifest_beside(&path)
            .map_err(Flaw::Unread)?
            .ok_or(Flaw::NoManifest)?;
        let manifest = Manifest::parse(&json, BESIDE).ok();
        let mut backup = manifest
            .and_then(|manifest| Backup::new(path, manifest))
            .ok_or(Flaw::Misfit)?;
        backup.linked_to = Some(end).filter(|end| *end != backup.path);
        let fits =
            backup.size == size && names::id_of_archive(archive_name).as_ref() == Some(&backup.id);
        if fits { Ok(backup) } else { Err(Flaw::Misfit) }
    }
}

/// What a file of a store is, or the end of the link that it is. A link to something that is called otherwise is not followed: it could be a
/// database that this process has open, whose locks would be lost. One that leads nowhere may lead to a disk that is not mounted.
pub(super) fn led_to(path: &Path, endings: &[&str]) -> std::result::Result<PathBuf, Flaw> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        return Ok(path.to_path_buf());
    }
    let end = match fs::canonicalize(path) {
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

/// Nothing is there, or no regular file.
fn is_absent(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
    )
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// As [`Store::list`] has them.
    pub backups: Vec<Backup>,
    pub unlisted: Vec<Unlisted>,
}

impl Listing {
    /// The backups; fails if something could not be read.
    pub fn whole(self) -> Result<Vec<Backup>> {
        self.unread()
            .next()
            .map_or(Ok(()), |error| Err(error.clone()))?;
        Ok(self.backups)
    }

    /// Of what could not be looked at, of which cannot be told whether it is a backup: why.
    pub fn unread(&self) -> impl Iterator<Item = &Error> {
        self.unlisted.iter().filter_map(Unlisted::unread)
    }

    /// The first of these, and how many more there are.
    pub fn unread_message(&self) -> Option<String> {
        first_and_more(self.unread().map(|error| &error.message))
    }
}

/// Fails if something that could not be read may be newer than `chosen`, which would then be taken in its place.
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
        "{}: whether {} is the newest backup cannot be told",
        error.message, left.id
    );
    Err(Error {
        message,
        ..error.clone()
    })
}

/// An archive or a sidecar that makes no backup.
#[derive(Debug, Clone)]
pub struct Unlisted {
    /// Of the backup, by its name.
    pub id: String,
    /// Of the archive, which may be missing.
    pub path: PathBuf,
    pub flaw: Flaw,
}

/// Why something is not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    NoManifest,
    /// The manifest is none, or is of an archive of another size; or one of the two is a link to something else.
    Misfit,
    NoArchive,
    /// The archive or the manifest could not be looked at: it may be a backup.
    Unread(Error),
}

impl Unlisted {
    /// Completes "It is not listed: …".
    pub fn why(&self) -> String {
        match &self.flaw {
            Flaw::NoManifest => "it has no manifest next to it".into(),
            Flaw::Misfit => {
                "its archive is not as long as its manifest says, or one of the two is something else".into()
            }
            Flaw::NoArchive => "its archive is missing".into(),
            Flaw::Unread(error) => error.message.clone(),
        }
    }

    /// Why it could not be looked at, if that is why it is not listed.
    pub fn unread(&self) -> Option<&Error> {
        match &self.flaw {
            Flaw::Unread(error) => Some(error),
            _ => None,
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.path
            .file_name()
            .is_some_and(|name| encryption::is_named(&name.to_string_lossy()))
    }

    /// Whether it was begun after `backup`, as their names say.
    pub(super) fn began_after(&self, backup: &Backup) -> bool {
        let order =
            |id: &str| names::time_of_id(id).map(|second| (second, id.len(), id.to_string()));
        order(&self.id) > order(&backup.id)
    }
}

/// Whether nothing lies in a directory, or it does not exist.
fn is_new_place(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn is_latest(reference: &str) -> bool {
    reference
        .strip_prefix(LATEST)
        .is_some_and(|ending| ending.is_empty() || ENDINGS.contains(&ending))
}

/// The archive at `path`, which may be a link, as the store has it that it lies in: beside it are its manifest and what it rests on. What is
/// not named like one is never opened: it could be a database that this process has open, whose locks would be lost.
fn archive_at(path: &Path) -> Result<PathBuf> {
    let end = fs::canonicalize(path).map_err(|cause| unreadable(path, cause))?;
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
        return Ok(resolve_parent(&here).unwrap_or(end));
    }
    Err(Error::new(
        Code::NotABackup,
        format!(
            "{} is not a backup: archives end in {}",
            path.display(),
            ARCHIVE_ENDINGS.join(", ")
        ),
        "Name an archive, or see the backups with `kg diag backup --list`",
    ))
}

/// The same name in its directory, without links in the path of that.
fn resolve_parent(path: &Path) -> Option<PathBuf> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Some(fs::canonicalize(parent).ok()?.join(path.file_name()?))
}

/// Newest first; of the same time, the one that was made last. What is dated ahead comes after all others: a clock was wrong, and nobody
/// knows when it was made.
pub(super) fn sort(backups: &mut [Backup], now: Timestamp) {
    backups.sort_by(|a, b| {
        let age = |a: &Backup, b: &Backup| {
            (b.timestamp, b.id.len(), &b.id).cmp(&(a.timestamp, a.id.len(), &a.id))
        };
        a.is_ahead(now)
            .cmp(&b.is_ahead(now))
            .then_with(|| age(a, b))
    });
}

/// Where the manifest of the archive at `archive` stands.
pub fn manifest_path(archive: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_os_string();
    path.push(MANIFEST_SUFFIX);
    path.into()
}

/// What the manifest beside an archive says, where there is one. `KG_PERMISSION_DENIED` or `KG_IO` if it cannot be read.
pub fn described_beside(archive: &Path) -> Result<Option<Manifest>> {
    Ok(manifest_beside(archive)?.and_then(|json| Manifest::parse(&json, BESIDE).ok()))
}

/// The text of the manifest beside an archive, if there is one. What is no file, or too long for a manifest, has none.
/// `KG_PERMISSION_DENIED` or `KG_IO` if it cannot be read.
pub fn manifest_beside(archive: &Path) -> Result<Option<Vec<u8>>> {
    let path = match led_to(&manifest_path(archive), &[MANIFEST_SUFFIX]) {
        Ok(path) => path,
        Err(Flaw::Unread(error)) => return Err(error),
        Err(_) => return Ok(Some(Vec::new())),
    };
    let read = || -> io::Result<Vec<u8>> {
        let found = fs::metadata(&path)?;
        let mut text = Vec::new();
        if found.is_file() && found.len() <= MAX_TEXT_BYTES {
            text = regular_file::read(&regular_file::open(&path)?, MAX_TEXT_BYTES)?;
        }
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", &path, cause)),
    }
}
