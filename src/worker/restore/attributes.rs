//! Gives unpacked files the attributes of the originals.

use std::{collections::HashSet, fs::Permissions, os::unix::fs::PermissionsExt};

use nix::fcntl::OFlag;

use super::{
    placement::{self, Placements},
    plan::Plan,
    target::Target,
};
use crate::{
    archive::manifest::EntryKind,
    error::{Error, Result},
    project::names,
    util::unsupported,
};

/// Gives unpacked files the permissions and time of the originals, creates links, and syncs the
/// files to disk.
///
/// Owners are not restored. If the restore runs as root, a file gets the owner of the file that it
/// replaces, or else the owner of its destination directory.
///
/// This does not touch a database whose content goes into a live database, because SQLite writes to
/// that file too.
pub(super) fn set_attributes(
    target: &Target,
    placements: &Placements<'_>,
    plan: &Plan,
) -> Result<()> {
    let swapped: HashSet<&str> = plan
        .intent
        .swaps
        .iter()
        .map(|swapped| swapped.new.as_str())
        .collect();
    for placement in &placements.files {
        let (Some(from), Some(record)) = (&placement.from, placement.record) else {
            continue;
        };
        if swapped.contains(from.as_str()) {
            continue;
        }
        let staged = target
            .existing(from)?
            .known_as(target.absolute(&placement.to));
        // Opened before its mode is set, because the mode may deny access to this user.
        let file = if record.kind == EntryKind::Link {
            let made = staged.make_link(
                &record
                    .target
                    .as_deref()
                    .and_then(names::decode)
                    .unwrap_or_default(),
            );
            made.map_err(|cause| Error::io("create", &staged.path(), cause))?;
            None
        } else {
            let opened = staged.open(OFlag::O_WRONLY, 0);
            Some(opened.map_err(|cause| Error::io("open", &staged.path(), cause))?)
        };
        target
            .owner_of(&placement.to)?
            .map_or(Ok(()), |owner| staged.give_to(owner))?;
        let (seconds, nanoseconds) = placement::seconds_and_nanoseconds(record.mtime);
        staged.set_modified(seconds, nanoseconds)?;
        if let Some(file) = file {
            // A database is data, so it never gets execute permission, whatever its record says.
            let mode = if record.database {
                record.mode & 0o666
            } else {
                record.mode & 0o777
            };
            let permitted = staged.tolerate(file.set_permissions(Permissions::from_mode(mode)));
            permitted
                .map_err(|cause| Error::io("set the permissions of", &staged.path(), cause))?;
            unsupported::sync(&file, &staged.known_path())
                .map_err(|cause| Error::io("sync", &staged.path(), cause))?;
        }
    }
    Ok(())
}
