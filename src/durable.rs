//! Files that are there whole or not at all: written under a temporary name, synced, renamed, the directory synced.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use tempfile::{Builder, NamedTempFile};

use crate::error::{Error, Result};

/// What the names of unfinished files start with, so that the next run finds what a killed one left.
pub const PARTIAL_PREFIX: &str = ".kg-partial-";

/// A temporary file in `dir`, removed when it is dropped.
pub fn partial(dir: &Path) -> Result<NamedTempFile> {
    Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(dir).map_err(|cause| Error::io("create a file in", dir, cause))
}

/// Gives a written temporary file its name and makes that durable.
pub fn publish(file: NamedTempFile, to: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", to, cause);
    file.as_file().sync_all().map_err(failed)?;
    file.persist(to).map_err(|cause| failed(cause.error))?;
    sync_parent(to)
}

/// Writes a small file.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = partial(path.parent().unwrap_or(path))?;
    file.write_all(content).map_err(|cause| Error::io("write", path, cause))?;
    publish(file, path)
}

/// Points the symbolic link at `link` to `target`, replacing it in one step.
pub fn relink(target: &Path, link: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", link, cause);
    let parent = link.parent().unwrap_or(link);
    let linked = Builder::new().prefix(PARTIAL_PREFIX).make_in(parent, |path| std::os::unix::fs::symlink(target, path));
    linked.map_err(failed)?.into_temp_path().persist(link).map_err(|cause| failed(cause.error))?;
    sync_parent(link)
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, cause)),
        _ => Ok(()),
    }
}

/// Creates a directory and its parents durably.
pub fn create_dirs(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    fs::create_dir_all(dir)?;
    missing.iter().filter_map(|made| made.parent()).try_for_each(|parent| File::open(parent)?.sync_all())
}

/// Makes a rename or removal in the directory of `path` durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(path.parent().unwrap_or(path))
}

pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|cause| Error::io("sync", dir, cause))
}
