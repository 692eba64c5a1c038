//! Tells the backups of one project from those of the others that share the store.

use std::collections::{BTreeMap, BTreeSet};

use super::{Backup, Store};
use crate::{
    error::{Code, Error, Result},
    project::identity::{Identity, Kinship, Origin},
};

impl Store {
    /// Returns the backups of the requested project. If there are none, returns those that it made
    /// at another path, else those of its path, else all.
    pub fn preferred(&self, backups: Vec<Backup>) -> Vec<Backup> {
        let nearest = backups.iter().map(|backup| self.nearness(backup)).min();
        backups
            .into_iter()
            .filter(|backup| Some(self.nearness(backup)) == nearest)
            .collect()
    }

    /// Returns the kinship. To a project that has lost its id, all backups of its path are alike.
    fn nearness(&self, backup: &Backup) -> Kinship {
        match self.kinship(backup) {
            Kinship::SamePath if self.is_unidentified() => Kinship::Own,
            kinship => kinship,
        }
    }

    fn is_unidentified(&self) -> bool {
        self.project.as_ref().is_some_and(Identity::is_unidentified)
    }

    /// Returns the newest backup of each id among those that may be of the requested project, if it
    /// has lost its own.
    fn candidates<'a>(&self, backups: &'a [Backup]) -> Vec<&'a Backup> {
        let mut newest: Vec<&Backup> = Vec::new();
        let is_candidate =
            |backup: &&Backup| self.is_unidentified() && self.kinship(backup) == Kinship::SamePath;
        for backup in backups.iter().filter(is_candidate) {
            let is_known = |other: &&Backup| other.project_id == backup.project_id;
            if !newest.iter().any(is_known) {
                newest.push(backup);
            }
        }
        newest
    }

    /// Returns whether `latest` may mean a backup of another project than the requested one: of one of
    /// several with its path, or of one of several copies of it.
    pub(super) fn may_be_of_another(&self, chosen: &Backup, backups: &[Backup]) -> bool {
        let is_other_copy = |backup: &Backup| {
            self.kinship(backup) == Kinship::Moved && backup.origin != chosen.origin
        };
        match self.kinship(chosen) {
            Kinship::Own if !self.is_unidentified() => false,
            Kinship::Own | Kinship::SamePath => self.candidates(backups).len() > 1,
            Kinship::Moved => backups.iter().any(is_other_copy),
            Kinship::Other => true,
        }
    }

    /// Works like [`Store::preferred`], but fails with `KG_AMBIGUOUS` if the requested project has
    /// lost its id, and the backups of its path come from several projects.
    pub(super) fn unambiguous(&self, backups: Vec<Backup>) -> Result<Vec<Backup>> {
        let preferred = self.preferred(backups);
        let newest = self.candidates(&preferred);
        if newest.len() < 2 {
            return Ok(preferred);
        }
        let named = |backup: &&Backup| {
            let project = backup.project_id.as_deref().unwrap_or_default();
            format!("{} (project {project})", backup.id)
        };
        let ids: Vec<String> = newest.iter().map(named).collect();
        let message = format!(
            "{} contains backups of {} projects with this path, and which of them this one is \
             cannot be determined. Their newest backups: {}",
            self.dir().display(),
            ids.len(),
            ids.join(", ")
        );
        let remedy = "Name the backup by its id instead of `latest`";
        Err(Error::new(Code::Ambiguous, message, remedy))
    }

    /// Returns whether the requested project made the backup at its present path. If no project was
    /// requested, every backup counts.
    pub fn is_own(&self, backup: &Backup) -> bool {
        self.kinship(backup) == Kinship::Own
    }

    /// Returns whether a backup is one of the requested project, as far as anyone can tell.
    pub fn is_of_project(&self, backup: &Backup) -> bool {
        self.kinship(backup) != Kinship::Other
    }

    /// Returns whether a project at the path of the requested one made the backup, and it is not known
    /// to be the same.
    pub fn is_of_path(&self, backup: &Backup) -> bool {
        self.kinship(backup) == Kinship::SamePath
    }

    pub(super) fn kinship(&self, backup: &Backup) -> Kinship {
        let project = self.project.as_ref();
        project.map_or(Kinship::Own, |project| {
            project.kinship(backup.origin.as_ref())
        })
    }
}

/// Returns the backups of each project at each path.
///
/// A backup of an earlier release has no id. It belongs to the project with its path, unless there
/// are several.
pub fn by_origin(backups: Vec<Backup>) -> BTreeMap<Option<Origin>, Vec<Backup>> {
    let origins: BTreeSet<Origin> = backups
        .iter()
        .filter_map(|backup| backup.origin.clone())
        .filter(|origin| !origin.is_by_path())
        .collect();
    let heir = |origin: Origin| {
        if !origin.is_legacy {
            return origin;
        }
        let mut heirs = origins.iter().filter(|heir| heir.path == origin.path);
        match (heirs.next(), heirs.next()) {
            (Some(heir), None) => heir.clone(),
            // Those of a project that has no id yet.
            (None, _) => Origin {
                is_legacy: false,
                ..origin
            },
            _ => origin,
        }
    };
    let mut groups: BTreeMap<Option<Origin>, Vec<Backup>> = BTreeMap::new();
    for backup in backups {
        let origin = backup.origin.clone().map(heir);
        groups.entry(origin).or_default().push(backup);
    }
    groups
}
