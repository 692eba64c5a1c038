//! What a file system, or a container without the rights of root, refused and a run did without.
//!
//! Such a refusal is no error: some file systems cannot sync a directory, or have no owners. It is remembered here, and
//! becomes a warning of the result of the run that met it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use nix::libc;

use crate::{
    error::{Warning, WarningCode, plain},
    system::paths::{self, STAGING_PREFIX},
};

/// More of one kind are counted in vain: the warning names the first.
const MOST: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// `fsync`, of a file or directory.
    Sync,
    /// A change of the owner, by root.
    Owner,
    /// A change of the permissions or the time.
    Attributes,
    /// A symbolic link that only makes something easier to find.
    Link,
}

struct Note {
    refused: Unsupported,
    /// The directory that holds it, without links.
    dir: PathBuf,
    why: String,
}

/// Kinds that a result has told of.
static TOLD: Mutex<Vec<Unsupported>> = Mutex::new(Vec::new());
static NOTES: Mutex<Vec<Note>> = Mutex::new(Vec::new());

/// Remembers that something was refused for `path`.
pub fn note(refused: Unsupported, path: &Path, cause: &io::Error) {
    let dir = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    // A warning names what is there after a restore.
    let is_staging = dir
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(STAGING_PREFIX));
    let dir = paths::resolve(dir.parent().filter(|_| is_staging).unwrap_or(dir));
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    if notes.len() < MOST
        && !notes
            .iter()
            .any(|note| note.refused == refused && note.dir == dir)
    {
        notes.push(Note {
            refused,
            dir,
            why: plain(cause),
        });
    }
}

/// Remembers a change of permissions or times that the file system has no means for (FAT, CIFS, some FUSE); other failures stay.
pub fn attributes(set: io::Result<()>, path: &Path) -> io::Result<()> {
    match set {
        Err(cause)
            if matches!(
                cause.raw_os_error(),
                Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
            ) =>
        {
            note(Unsupported::Attributes, path, &cause);
            Ok(())
        }
        set => set,
    }
}

/// Writes what the file or directory at `path` holds to the disk. A file system that has no such call is a warning of the
/// run, not an error: the data is where it can be.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    match file.sync_all() {
        Err(cause) if cannot_sync(&cause) => {
            note(Unsupported::Sync, path, &cause);
            Ok(())
        }
        synced => synced,
    }
}

/// What FUSE, CIFS and NFS answer to `fsync` if they do not have it. Anything else is about the data.
pub fn cannot_sync(cause: &io::Error) -> bool {
    matches!(
        cause.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)
    )
}

/// Takes what was remembered of these directories and everything in them, as one warning for each kind of refusal.
pub fn warnings(below: &[&Path]) -> Vec<Warning> {
    let below: Vec<PathBuf> = below.iter().map(|dir| paths::resolve(dir)).collect();
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    notes.retain_mut(|note| {
        let is_asked_for = below.iter().any(|dir| note.dir.starts_with(dir));
        if is_asked_for {
            found.push((
                note.refused,
                std::mem::take(&mut note.dir),
                std::mem::take(&mut note.why),
            ));
        }
        !is_asked_for
    });
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    for (refused, ..) in &found {
        if !told.contains(refused) {
            told.push(*refused);
        }
    }
    drop(told);
    let kinds = [
        Unsupported::Sync,
        Unsupported::Owner,
        Unsupported::Attributes,
        Unsupported::Link,
    ];
    kinds
        .into_iter()
        .filter_map(|kind| warning(kind, &found))
        .collect()
}

/// What no result of this process has told of, for the end of a command.
pub fn untold() -> Vec<Warning> {
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner).clone();
    NOTES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|note| !told.contains(&note.refused));
    warnings(&[Path::new("/")])
}

fn warning(kind: Unsupported, found: &[(Unsupported, PathBuf, String)]) -> Option<Warning> {
    let of_kind: Vec<_> = found
        .iter()
        .filter(|(refused, ..)| *refused == kind)
        .collect();
    let (_, dir, why) = of_kind.first()?;
    let more = if of_kind.len() > 1 {
        format!(" and {} more directories", of_kind.len() - 1)
    } else {
        String::new()
    };
    let place = format!("{}{more}", dir.display());
    Some(match kind {
        Unsupported::Link => Warning::new(
            WarningCode::Store,
            format!(
                "There is no link to the latest backup in {place}, because the file system has none ({why}): name `latest` instead"
            ),
        ),
        Unsupported::Sync => Warning::new(
            WarningCode::Store,
            format!(
                "The file system of {place} refuses to sync ({why}): after a power failure, the durability of files and names \
                 written there is up to the file system"
            ),
        ),
        Unsupported::Owner => Warning::new(
            WarningCode::Attributes,
            format!(
                "Files in {place} belong to root because their owner could not be changed ({why}): run it as the owner of \
                 the directory, or change the owner with `chown`"
            ),
        ),
        Unsupported::Attributes => Warning::new(
            WarningCode::Attributes,
            format!(
                "Permissions or times of files in {place} could not be set ({why}): they are those of the file system"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_by_the_run_that_wrote_there() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        std::fs::create_dir_all(here.join("inner")).unwrap();
        std::fs::create_dir(&there).unwrap();
        let refusal = io::Error::from_raw_os_error(nix::libc::EINVAL);
        for path in [&here, &here.join("inner"), &there, &here] {
            note(Unsupported::Sync, path, &refusal);
        }
        let told = warnings(&[&here]);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].code, WarningCode::Store);
        assert!(
            told[0].message.contains("and 1 more directories"),
            "{}",
            told[0].message
        );
        assert_eq!(
            (warnings(&[&here]).len(), warnings(&[&there]).len()),
            (0, 1)
        );
    }
}
