//! The backups of one project in a store that several projects may share.

use crate::{
    error::Result,
    project::{Project, identity::Kinship},
    store::{Backup, Store},
};

/// Returns the backups of the project, newest first.
pub fn own_backups(store: &Store, project: &Project) -> Result<Vec<Backup>> {
    Ok(own_among(store.read()?.backups, project))
}

/// Returns those of `backups` that the project made at its present path.
pub fn own_among(backups: Vec<Backup>, project: &Project) -> Vec<Backup> {
    let identity = project.identity();
    backups
        .into_iter()
        .filter(|backup| identity.kinship(backup.origin.as_ref()) == Kinship::Own)
        .collect()
}
