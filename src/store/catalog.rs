//! Which backups a store holds. Nothing here writes or waits for a lock.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    Backup, Store, good,
    names::{self, ENDINGS, LATEST, MANIFEST_SUFFIX},
};
use crate::{
    archive::{
        manifest::Manifest,
        read::{MAX_TEXT_BYTES, unreadable},
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::Component,
};

/// What an archive may be called elsewhere; in a store it is one of `names::ENDINGS`.
const ARCHIVE_ENDINGS: [&str; 4] = [".tar.gz", ".tgz", ".tar.zst", ".tar"];

impl Store {
    /// All backups, newest first, and last of all those that are dated ahead. One is listed while its manifest and its archive, of the size that the manifest gives,
    /// are both there.
    pub fn list(&self) -> Result<Vec<Backup>> {
        let mut backups: Vec<Backup> =
            self.archive_names()?.into_iter().filter_map(|name| self.listed(&name)).collect();
        sort(&mut backups, Timestamp::now());
        Ok(backups)
    }

    /// The backup of that id.
    pub fn get(&self, id: &str) -> Result<Backup> {
        names::archives_of_id(id).iter().find_map(|name| self.listed(name)).ok_or_else(|| {
            Error::new(
                Code::BackupNotFound,
                format!("{} holds no backup {id}", self.dir.display()),
                "See the ids with `kg diag backup --list` or listBackups()",
            )
        })
    }

    /// The archive of that id, whether it is listed or came here without its manifest. Of several (somebody put what an encrypted one holds
    /// beside it), the one that is listed with that checksum.
    pub fn archive_of(&self, id: &str, checksum: Option<&str>) -> Option<PathBuf> {
        let archives = names::archives_of_id(id);
        let is_it = |name: &&String| self.listed(name).is_some_and(|found| Some(found.checksum.as_str()) == checksum);
        let is_there = |name: &&String| self.dir.join(name).is_file();
        archives.iter().find(is_it).or(archives.iter().find(is_there)).map(|name| self.dir.join(name))
    }

    /// The newest good backup; where there is none, the newest. Of the project that this store is asked for, where it has any here.
    pub fn latest(&self) -> Result<Backup> {
        good::latest(&self.preferred(self.list()?)).cloned().map_or_else(|| Err(self.empty()?), Ok)
    }

    /// The newest good backup of the project that this store is asked for, not of another one. What is dated ahead was made nobody knows when.
    pub fn newest_good(&self) -> Result<Option<Backup>> {
        let own: Vec<Backup> = self.list()?.into_iter().filter(|backup| self.is_own(backup)).collect();
        let newest = good::newest_good(&own).cloned();
        Ok(newest.filter(|newest| !newest.is_ahead(Timestamp::now())))
    }

    /// That there is no backup, and why where there are archives all the same.
    fn empty(&self) -> Result<Error> {
        let (dir, archives) = (self.dir.display(), self.archive_names()?.len());
        Ok(if archives == 0 {
            let remedy = "Make one with `kg diag backup`, or name the directory that holds them";
            Error::new(Code::NoBackups, format!("{dir} holds no backup"), remedy)
        } else {
            let message =
                format!("{dir} holds {archives} archives, and no manifest beside one that fits it and can be read");
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
        let holds = |backup: &&Backup| only.iter().any(|component| backup.contents.has(*component));
        let backups = self.preferred(self.list()?);
        let newest = good::good(&backups).into_iter().map(|place| &backups[place]).find(holds).cloned();
        newest.map_or_else(|| self.latest(), Ok)
    }

    /// Those of the project that this store is asked for; all of them where it has none.
    pub fn preferred(&self, backups: Vec<Backup>) -> Vec<Backup> {
        let (own, others): (Vec<Backup>, Vec<Backup>) = backups.into_iter().partition(|backup| self.is_own(backup));
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
            return Err(Error::invalid("An empty backup name was given", "Name an archive, an id, or `latest`"));
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
            return Ok(self.dir.join(reference));
        }
        Err(Error::new(
            Code::BackupNotFound,
            format!("There is no file {reference} and no such backup in {}", self.dir.display()),
            "Check the path, or see the backups with `kg diag backup --list`",
        ))
    }

    /// What was a backup, or is one whose manifest is missing, and so is not listed. Told by names and manifests alone. Of what is known to be of
    /// another project than this store is asked for, nothing.
    pub fn unlisted(&self) -> Result<Vec<Unlisted>> {
        let (archives, sidecars) = self.names()?;
        let judge = |name: &String| {
            let path = self.dir.join(name);
            let manifest = manifest_beside(&path);
            let flaw = match (archives.contains(name), &manifest) {
                (false, _) => Flaw::NoArchive,
                (true, None) => Flaw::NoManifest,
                (true, Some(_)) => Flaw::Misfit,
            };
            let of = manifest.and_then(|json| Manifest::parse(&json, name).ok()).and_then(|manifest| manifest.project);
            let is_of_another = self.project.is_some() && of.is_some() && of != self.project;
            let id = names::id_of_archive(name).filter(|_| !is_of_another)?;
            Some(Unlisted { id, path, flaw })
        };
        let unlisted = archives.iter().filter(|name| self.listed(name).is_none());
        Ok(unlisted.chain(sidecars.iter().filter(|name| !archives.contains(name))).filter_map(judge).collect())
    }

    /// Warns if the reference `latest`, or a link of that name, leads to `archive`: of newer backups that were passed over, and
    /// of a backup of another project. `target` is where it is restored. A new place is no project's, so there it is only a
    /// warning if the store holds the backups of several projects.
    pub fn doubts(&self, reference: &str, archive: &Path, target: Option<&Path>) -> Vec<Warning> {
        let name = Path::new(reference).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(dir) = archive.parent().filter(|_| is_latest(name)) else { return Vec::new() };
        let store = Store { dir: dir.to_path_buf(), ..self.clone() };
        let backups = store.list().unwrap_or_default();
        let named = |backup: &&Backup| backup.path.file_name() == archive.file_name();
        let Some(chosen) = backups.iter().find(named).cloned() else { return Vec::new() };
        let has_several = || backups.iter().any(|backup| backup.project != chosen.project);
        let may_be_meant = |target: &Path| is_new_place(target) && !has_several();
        let is_other =
            !self.is_own(&chosen) && (self.home.is_some() || target.is_some_and(|target| !may_be_meant(target)));
        let of_another = is_other.then(|| {
            let (id, dir) = (&chosen.id, dir.display());
            let message = format!(
                "`{name}` means {id}, which is of another project, or of this one where it lay before: name the backup that you want, see \
                 `kg diag backup --list --output {dir}`"
            );
            Warning::new(WarningCode::OtherProject, message)
        });
        let alike = backups.into_iter().filter(|backup| backup.project == chosen.project).collect::<Vec<_>>();
        let unlisted = Store { project: chosen.project.clone(), ..store }.unlisted().unwrap_or_default();
        let passed = good::passed_over(&alike, &unlisted, &chosen);
        good::passed_over_warning(&passed, &chosen).into_iter().chain(of_another).collect()
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
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let archive = name.strip_suffix(MANIFEST_SUFFIX);
            if names::id_of_archive(archive.unwrap_or(&name)).is_some() {
                if archive.is_some() { &mut sidecars } else { &mut archives }
                    .push(archive.unwrap_or(&name).to_string());
            }
        }
        archives.sort();
        sidecars.sort();
        Ok((archives, sidecars))
    }

    /// The archive of that name as its manifest describes it; `None` unless both are there and fit.
    pub(super) fn listed(&self, archive_name: &str) -> Option<Backup> {
        let path = self.dir.join(archive_name);
        let size = fs::metadata(&path).ok().filter(|found| found.is_file())?.len();
        let manifest = described_beside(&path)?;
        let backup = Backup::new(path, manifest)?;
        (backup.size == size && names::id_of_archive(archive_name).as_ref() == Some(&backup.id)).then_some(backup)
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    NoManifest,
    /// The manifest cannot be read, or is of an archive of another size.
    Misfit,
    NoArchive,
}

impl Unlisted {
    /// Completes "It is not listed: …".
    pub fn why(&self) -> &'static str {
        match self.flaw {
            Flaw::NoManifest => "it has no manifest next to it",
            Flaw::Misfit => "its archive is not as long as its manifest says, or the manifest cannot be read",
            Flaw::NoArchive => "its archive is missing",
        }
    }

    /// Whether it was begun after `backup`, as their names say.
    pub(super) fn began_after(&self, backup: &Backup) -> bool {
        let order = |id: &str| names::time_of_id(id).map(|second| (second, id.len(), id.to_string()));
        order(&self.id) > order(&backup.id)
    }
}

/// Whether nothing lies in a directory, or it does not exist.
fn is_new_place(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn is_latest(reference: &str) -> bool {
    reference.strip_prefix(LATEST).is_some_and(|ending| ending.is_empty() || ENDINGS.contains(&ending))
}

/// The archive at `path`, without links. What is not named like one is never opened: it could be a database that this
/// process has open, whose locks would be lost.
fn archive_at(path: &Path) -> Result<PathBuf> {
    let resolved = fs::canonicalize(path).map_err(|cause| unreadable(path, cause))?;
    let name = resolved.to_string_lossy();
    if ARCHIVE_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return Ok(resolved);
    }
    Err(Error::new(
        Code::NotABackup,
        format!("{} is not a backup: archives end in {}", path.display(), ARCHIVE_ENDINGS.join(", ")),
        "Name an archive, or see the backups with `kg diag backup --list`",
    ))
}

/// Newest first; of the same time, the one that was made last. What is dated ahead comes after all others: a clock was wrong, and nobody
/// knows when it was made.
pub(super) fn sort(backups: &mut [Backup], now: Timestamp) {
    backups.sort_by(|a, b| {
        let age = |a: &Backup, b: &Backup| (b.timestamp, b.id.len(), &b.id).cmp(&(a.timestamp, a.id.len(), &a.id));
        a.is_ahead(now).cmp(&b.is_ahead(now)).then_with(|| age(a, b))
    });
}

/// Where the manifest of the archive at `archive` stands.
pub fn manifest_path(archive: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_os_string();
    path.push(MANIFEST_SUFFIX);
    path.into()
}

/// What the manifest beside an archive says, where there is one that can be read.
pub fn described_beside(archive: &Path) -> Option<Manifest> {
    Manifest::parse(&manifest_beside(archive)?, "the manifest beside the archive").ok()
}

/// The text of the manifest beside an archive, if there is one. What is no file, or too long for a manifest, has none.
pub fn manifest_beside(archive: &Path) -> Option<Vec<u8>> {
    let path = manifest_path(archive);
    let found = fs::metadata(&path).ok()?;
    if !found.is_file() || found.len() > MAX_TEXT_BYTES {
        return Some(Vec::new());
    }
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(MAX_TEXT_BYTES).read_to_end(&mut text).ok()?;
    Some(text)
}
