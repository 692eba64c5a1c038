//! Operations that a file system, or a container without root's privileges, refused and that a run
//! could do without.
//!
//! Such a refusal is not an error: some file systems cannot sync a directory or have no owners. It
//! is recorded here and becomes a warning in the result of the run.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::{
    error::{Warning, WarningCode, plain},
    system::{
        paths::{self, STAGING_PREFIX},
        portable, refusal,
    },
};

/// The maximum number of recorded refusals of one kind. A warning names only the first directory and
/// counts the others.
const MOST: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// `fsync` of a file or directory.
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
    /// The directory that contains the file, without links.
    dir: PathBuf,
    why: String,
}

/// The kinds that a result has already reported.
static TOLD: Mutex<Vec<Unsupported>> = Mutex::new(Vec::new());
static NOTES: Mutex<Vec<Note>> = Mutex::new(Vec::new());

/// Records that an operation was refused for `path`.
pub fn note(refused: Unsupported, path: &Path, cause: &io::Error) {
    let dir = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(path)
    };
    // The warning must name a directory that still exists after the restore.
    let is_staging = dir
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(STAGING_PREFIX));
    let dir = paths::resolve(dir.parent().filter(|_| is_staging).unwrap_or(dir));
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let alike = || notes.iter().filter(|note| note.refused == refused);
    if alike().count() < MOST && !alike().any(|note| note.dir == dir) {
        notes.push(Note {
            refused,
            dir,
            why: plain(cause),
        });
    }
}

/// Records a change of permissions or times that the file system does not support (FAT, CIFS, some
/// FUSE). Returns all other errors.
pub fn attributes(set: io::Result<()>, path: &Path) -> io::Result<()> {
    match set {
        Err(cause) if refusal::has_no_attributes(&cause) => {
            note(Unsupported::Attributes, path, &cause);
            Ok(())
        }
        set => set,
    }
}

/// Syncs the file or directory at `path` to the disk. If the file system has no such call, this is
/// a warning of the run and not an error, because nothing more can be done.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    match portable::sync(file) {
        Err(cause) if refusal::has_no_sync(&cause) => {
            note(Unsupported::Sync, path, &cause);
            Ok(())
        }
        synced => synced,
    }
}

/// Takes the records for these directories and everything below them, as one warning for each kind
/// of refusal.
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

/// Returns warnings of the kinds that no result of this process has reported, for the end of a
/// command.
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
                "There is no link to the latest backup in {place} because the file system does not \
                 support links ({why}): use the name `latest` instead"
            ),
        ),
        Unsupported::Sync => Warning::new(
            WarningCode::Store,
            format!(
                "The file system of {place} refuses to sync ({why}): files and names written there \
                 may not survive a power failure"
            ),
        ),
        Unsupported::Owner => Warning::new(
            WarningCode::Attributes,
            format!(
                "Files in {place} belong to root because their owner could not be changed ({why}): \
                 run this as the owner of the directory, or change the owner with `chown`"
            ),
        ),
        Unsupported::Attributes => Warning::new(
            WarningCode::Attributes,
            format!(
                "Permissions or times of files in {place} could not be set ({why}): the file \
                 system uses its own"
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

    #[test]
    fn many_refusals_of_one_kind_do_not_hide_another_kind() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = io::Error::from_raw_os_error(nix::libc::EINVAL);
        for number in 0..=MOST {
            let path = dir.path().join(number.to_string());
            std::fs::create_dir(&path).unwrap();
            note(Unsupported::Link, &path.join("latest"), &refusal);
        }
        note(Unsupported::Owner, dir.path(), &refusal);
        assert_eq!(warnings(&[dir.path()]).len(), 2);
    }
}
