//! Tells the backups of one project from those of another in a store that several projects share.
//!
//! A project has a random id in `.kg/backup-project-id`. Its first backup creates the id, and a
//! restore into a new directory takes it over. A path is not enough to identify a project: two
//! containers have different projects at the same path. The id is not enough either: a copy of a
//! project has the same id, and must not remove the backups of the original. So a project owns the
//! backups that were made of its id at its path.

use std::{ffi::OsStr, io, path::Path};

use sha2::{Digest, Sha256};

use super::{Project, STATE_DIR};
use crate::{
    error::{Error, Result, Warning, WarningCode, plain},
    system::{paths::resolve, portable::OsStrExt},
    util::{atomic_file, hex::hex, regular_file},
};

/// The file with the id, below the state directory. No backup contains it, because the manifest
/// has the id.
pub const ID_FILE: &str = "backup-project-id";
/// The size of an id, and of the digest of a path.
const ID_BYTES: usize = 8;
/// The size limit of the file.
const MAX_BYTES: u64 = 4096;
const SAVE_ATTEMPTS: u32 = 3;

/// The project that a backup was made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The id of the project. Earlier releases had none and used the digest of the path.
    pub project: String,
    /// Digest of the path that the project had. It does not reveal the path.
    pub path: String,
    /// An earlier release made the backup, so nothing is known but the path.
    pub is_legacy: bool,
}

impl Origin {
    /// Returns whether the id is only the digest of the path: in backups of earlier releases, and of a
    /// project whose id could not be used.
    pub fn is_by_path(&self) -> bool {
        self.project == self.path
    }

    /// Returns whether both may be the same project. They then have similar content.
    pub fn resembles(&self, other: &Origin) -> bool {
        self.project == other.project || self.path == other.path
    }
}

/// What a backup is to a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kinship {
    /// The project made it.
    Own,
    /// The project made it at another path, or a copy of the project did.
    Moved,
    /// A project at the same path made it, which may be the same one: this project has no id yet, or
    /// had none then.
    SamePath,
    Other,
}

/// The project at a path, as far as it can be identified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Absent before the first backup.
    id: Option<String>,
    path: String,
}

impl Identity {
    /// Returns the identity of the project at `root`, which need not exist. An id that cannot be
    /// read counts as absent.
    pub fn at(root: &Path) -> Self {
        let id = read(&root.join(STATE_DIR).join(ID_FILE));
        Identity {
            id: id.ok().flatten(),
            path: path_digest(root),
        }
    }

    /// Returns the identity of a project, and creates the id if there is none. If that fails, the
    /// path identifies the project, and a warning says so.
    pub fn ensure(project: &Project) -> (Self, Option<Warning>) {
        let file = project.state_dir().join(ID_FILE);
        let failure = match read(&file) {
            Ok(Some(_)) => None,
            Ok(None) => create(&file).err().map(|error| error.message),
            Err(cause) => Some(format!("{}: {}", file.display(), plain(&cause))),
        };
        let warning = failure.map(|why| {
            let message = format!(
                "The id of the project cannot be used, so only its path identifies its backups: \
                 {why}. Remove the file, or let this user read and create it; the next backup then \
                 creates an id"
            );
            Warning::new(WarningCode::ProjectId, message)
        });
        (Identity::at(project.root()), warning)
    }

    /// Gives the project the id of a restored backup, unless it has one.
    pub fn adopt(project: &Project, id: &str) -> Result<()> {
        let file = project.state_dir().join(ID_FILE);
        match read(&file) {
            Ok(None) if is_id(id) => save(&file, id),
            _ => Ok(()),
        }
    }

    /// Removes the id, if it is this one.
    pub fn forget(project: &Project, id: &str) -> Result<()> {
        let file = project.state_dir().join(ID_FILE);
        match read(&file) {
            Ok(Some(present)) if present == id => atomic_file::remove(&file),
            _ => Ok(()),
        }
    }

    /// Returns the origin of a backup that is made now.
    pub fn origin(&self) -> Origin {
        Origin {
            project: self.id.as_ref().unwrap_or(&self.path).clone(),
            path: self.path.clone(),
            is_legacy: false,
        }
    }

    /// Returns whether the project has no id, or none that can be used.
    pub fn is_unidentified(&self) -> bool {
        self.id.is_none()
    }

    /// Returns what a backup of that origin is to this project.
    pub fn kinship(&self, origin: Option<&Origin>) -> Kinship {
        let Some(origin) = origin else {
            return Kinship::Other;
        };
        let is_here = origin.path == self.path;
        if self.id.as_ref() == Some(&origin.project) {
            return if is_here {
                Kinship::Own
            } else {
                Kinship::Moved
            };
        }
        match is_here {
            true if origin.is_legacy => Kinship::Own,
            true if origin.is_by_path() && self.is_unidentified() => Kinship::Own,
            true if origin.is_by_path() || self.is_unidentified() => Kinship::SamePath,
            _ => Kinship::Other,
        }
    }
}

/// Returns a digest that identifies a path without revealing it.
pub fn path_digest(root: &Path) -> String {
    let resolved = resolve(root);
    hex(&Sha256::digest(OsStr::as_bytes(resolved.as_os_str()))[..ID_BYTES])
}

/// Returns the id in `file`, or `None` if the file does not exist.
fn read(file: &Path) -> io::Result<Option<String>> {
    let Some(text) = regular_file::read_unlinked(file, MAX_BYTES)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&text).trim().to_string();
    if is_id(&text) {
        return Ok(Some(text));
    }
    let message = format!("it is not an id of {} hexadecimal digits", 2 * ID_BYTES);
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

fn is_id(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 2 * ID_BYTES && text.bytes().all(is_digit)
}

fn create(file: &Path) -> Result<()> {
    let mut random = [0; ID_BYTES];
    getrandom::fill(&mut random)
        .map_err(|cause| Error::io("create", file, io::Error::other(cause)))?;
    save(file, &hex(&random))
}

/// Writes an id, unless another process was first.
fn save(file: &Path, id: &str) -> Result<()> {
    let mut attempt = 1;
    loop {
        let saved = atomic_file::write_new(file, format!("{id}\n").as_bytes());
        match saved {
            Err(_) if matches!(read(file), Ok(Some(_))) => return Ok(()),
            // Another run may have taken the temporary file for a leftover.
            Err(_) if attempt < SAVE_ATTEMPTS => attempt += 1,
            saved => return saved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(dir: &Path, name: &str) -> Project {
        let root = dir.join(name);
        std::fs::create_dir_all(root.join(STATE_DIR)).unwrap();
        Project::open(&root).unwrap()
    }

    #[test]
    fn an_id_is_created_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path(), "a");
        assert_eq!(Identity::at(project.root()).id, None);
        let (first, warning) = Identity::ensure(&project);
        assert_eq!(warning, None);
        assert!(is_id(first.id.as_deref().unwrap()));
        assert_eq!(Identity::ensure(&project), (first, None));
    }

    #[test]
    fn two_projects_that_begin_at_once_agree_on_one_id() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path(), "a");
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Identity::ensure(&project)))
                .collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0] && id.1.is_none()));
    }

    #[test]
    fn a_file_that_is_no_id_is_kept_and_leaves_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let project = project(dir.path(), "a");
        let file = project.state_dir().join(ID_FILE);
        std::fs::write(&file, "what is this").unwrap();
        let (identity, warning) = Identity::ensure(&project);
        assert!(identity.origin().is_by_path());
        assert_eq!(warning.unwrap().code, WarningCode::ProjectId);
        assert_eq!(std::fs::read(&file).unwrap(), b"what is this");
    }

    #[test]
    fn kinship_needs_the_id_and_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (project(dir.path(), "a"), project(dir.path(), "b"));
        let before = Identity::at(here.root());
        let old = Origin {
            project: path_digest(here.root()),
            path: path_digest(here.root()),
            is_legacy: true,
        };
        assert_eq!(before.kinship(Some(&old)), Kinship::Own);
        let unidentified = before.origin();
        assert_eq!(before.kinship(Some(&unidentified)), Kinship::Own);
        let (identity, _) = Identity::ensure(&here);
        let made = identity.origin();
        assert_eq!(identity.kinship(Some(&made)), Kinship::Own);
        assert_eq!(identity.kinship(Some(&old)), Kinship::Own);
        let same_path = identity.kinship(Some(&unidentified));
        assert_eq!(same_path, Kinship::SamePath, "perhaps another project");
        assert_eq!(before.kinship(Some(&made)), Kinship::SamePath);
        assert_eq!(identity.kinship(None), Kinship::Other);

        let elsewhere = Origin {
            path: path_digest(there.root()),
            ..made.clone()
        };
        assert_eq!(identity.kinship(Some(&elsewhere)), Kinship::Moved);
        let another = Origin {
            project: "0123456789abcdef".into(),
            ..made.clone()
        };
        assert_eq!(identity.kinship(Some(&another)), Kinship::Other);

        Identity::adopt(&there, &made.project).unwrap();
        assert_eq!(Identity::at(there.root()).id, identity.id);
        Identity::adopt(&there, &another.project).unwrap();
        assert_eq!(Identity::at(there.root()).id, identity.id);
        Identity::forget(&there, &another.project).unwrap();
        assert_eq!(Identity::at(there.root()).id, identity.id);
        Identity::forget(&there, &made.project).unwrap();
        assert_eq!(Identity::at(there.root()).id, None);
    }
}
