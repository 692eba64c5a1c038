//! The backups of one project in a store that several projects may share.

use crate::{
    error::Result,
    project::Project,
    store::{Backup, Store},
};

/// Returns the backups of the project, newest first.
pub fn own_backups(store: &Store, project: &Project) -> Result<Vec<Backup>> {
    Ok(own_among(store.read()?.backups, project))
}

/// Returns those of `backups` that belong to the project.
pub fn own_among(backups: Vec<Backup>, project: &Project) -> Vec<Backup> {
    let own = project.id();
    backups
        .into_iter()
        .filter(|backup| backup.project.as_ref() == Some(&own))
        .collect()
}
