//! Tells the backups of one project from those of the others that share the store.

use std::collections::{BTreeMap, BTreeSet};

use super::{Backup, Store};
use crate::{
    error::{Code, Error, Result},
    project::identity::{Kinship, Origin},
};

impl Store {
    /// Returns the backups of the requested project. If there are none, returns those that it made
    /// at another path, else those of its path, else all.
    pub fn preferred(&self, backups: Vec<Backup>) -> Vec<Backup> {
        let nearest = backups.iter().map(|backup| self.kinship(backup)).min();
        backups
            .into_iter()
            .filter(|backup| Some(self.kinship(backup)) == nearest)
            .collect()
    }

    /// Works like [`Store::preferred`], but fails with `KG_AMBIGUOUS` if the requested project has
    /// lost its id, and the backups of its path come from several projects.
    pub(super) fn unambiguous(&self, backups: Vec<Backup>) -> Result<Vec<Backup>> {
        let preferred = self.preferred(backups);
        let is_unknown = |backup: &Backup| self.kinship(backup) == Kinship::SamePath;
        let mut newest: Vec<&Backup> = Vec::new();
        for backup in preferred.iter().filter(|backup| is_unknown(backup)) {
            if newest
                .iter()
                .all(|other| other.project_id != backup.project_id)
            {
                newest.push(backup);
            }
        }
        if newest.len() < 2 {
            return Ok(preferred);
        }
        let ids: Vec<&str> = newest.iter().map(|backup| backup.id.as_str()).collect();
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
        let mut heirs = origins.iter().filter(|heir| heir.path == origin.path);
        match (heirs.next(), heirs.next()) {
            (Some(heir), None) if origin.is_by_path() => heir.clone(),
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
