//! A private copy of a database with its WAL or journal.
//!
//! Needed where SQLite cannot work in place: a hot journal that a killed writer left wants recovery, which writes; a
//! directory or its `-shm` may not be writable; a damaged file is saved as it is.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    error::{Code, Error, Result},
    scratch::PrivateDir,
    sqlite::files::companion,
};

/// What travels with a database: without them committed transactions are lost, or half of one is kept.
/// The `-shm` is an index of the WAL that SQLite rebuilds.
const TRAVELLING: [&str; 2] = ["-wal", "-journal"];
/// What the names of scratch directories start with, so that the next run finds what a killed one left.
pub const SCRATCH_PREFIX: &str = ".kg-snapshot-";
/// How often a copy is begun again because the files changed meanwhile.
const ATTEMPTS: u32 = 20;

/// Copies in a directory of their own, removed when this is dropped.
pub struct Aside {
    dir: PrivateDir,
    /// The suffixes of [`TRAVELLING`] that exist.
    companions: Vec<&'static str>,
}

impl Aside {
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("database")
    }

    /// Suffix and copy of everything that travels with the database.
    pub fn companions(&self) -> impl Iterator<Item = (&'static str, PathBuf)> + '_ {
        self.companions.iter().map(|suffix| (*suffix, companion(&self.database(), suffix)))
    }

    pub fn into_dir(self) -> PrivateDir {
        self.dir
    }
}

/// A directory below `scratch` that only this user may enter.
pub fn scratch_dir(scratch: &Path) -> Result<PrivateDir> {
    PrivateDir::new(scratch, SCRATCH_PREFIX)
}

/// Copies the database and what travels with it; begun again when any of them changed meanwhile.
pub fn copy(path: &Path, scratch: &Path) -> Result<Aside> {
    for _ in 0..ATTEMPTS {
        let before = fingerprints(path);
        let dir = scratch_dir(scratch)?;
        let database = dir.path().join("database");
        copy_file(path, &database)?;
        let mut companions = Vec::new();
        for suffix in TRAVELLING {
            let source = companion(path, suffix);
            if source.exists() {
                copy_file(&source, &companion(&database, suffix))?;
                companions.push(suffix);
            }
        }
        if fingerprints(path) == before {
            return Ok(Aside { dir, companions });
        }
    }
    Err(Error::new(
        Code::DatabaseBusy,
        format!("{} changed during each of {ATTEMPTS} attempts to copy it", path.display()),
        "Stop the processes that write it, then run it again",
    ))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map_err(|cause| Error::io("copy", from, cause))?;
    fs::set_permissions(to, Permissions::from_mode(0o600)).map_err(|cause| Error::io("change", to, cause))
}

type Fingerprint = io::Result<(u64, u64, i64, i64)>;

/// Inode, size and time of change of the database and of what travels with it.
pub fn fingerprints(path: &Path) -> Vec<Option<(u64, u64, i64, i64)>> {
    let of = |path: &Path| -> Fingerprint {
        let found = fs::metadata(path)?;
        Ok((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    ["", TRAVELLING[0], TRAVELLING[1]].iter().map(|suffix| of(&companion(path, suffix)).ok()).collect()
}
