//! The sidecars of an object store that this project knows, in `.kg/cache/sidecars/`.
//!
//! A store may have thousands, and each would be a request. A line of the file holds the version of
//! a sidecar as the service names it, and its manifest. A sidecar that has another version now is
//! read again. Only commands that change a store write the file. A file that is missing or damaged
//! costs only time.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Store,
    names::MANIFEST_SUFFIX,
    sidecar::{self, MAX_REMEMBERED},
};
use crate::{
    archive::manifest::Manifest,
    error::{Error, Result},
    objects::Version,
    place::{FileState, Place},
    util::{atomic_file, regular_file},
};

const DIR: &str = "cache/sidecars";
const MAX_LINE_BYTES: u64 = 1024 * 1024;
/// How many stores are kept.
const MAX_STORES: usize = 4;

#[derive(Serialize, Deserialize)]
struct Line {
    /// The name of the archive.
    archive: String,
    version: Version,
    manifest: Manifest,
}

/// Remembers the sidecars that the file holds, so that they are not read from the service.
pub(super) fn recall(store: &Store) {
    let (Place::Objects(objects), Some(path)) = (&store.place, path(store)) else {
        return;
    };
    if !objects.recalls() {
        return;
    }
    let Ok(file) = regular_file::open(&path) else {
        return;
    };
    let mut file = BufReader::new(file);
    let mut text = Vec::new();
    for _ in 0..MAX_REMEMBERED {
        text.clear();
        let read = io::Read::take(&mut file, MAX_LINE_BYTES).read_until(b'\n', &mut text);
        if !matches!(read, Ok(1..)) {
            return;
        }
        let Ok(line) = serde_json::from_slice::<Line>(&text) else {
            return;
        };
        let beside = store.place.archive(&line.archive).beside(MANIFEST_SUFFIX);
        let is_that = |state: &FileState| matches!(state, FileState::Object(now) if now.is_same(&line.version));
        if let Some(state) = beside.state().filter(is_that) {
            sidecar::remember(beside.path(), state, &line.manifest);
        }
    }
}

/// Writes the file anew. An error is ignored, because the file only saves time.
pub(super) fn keep(store: &Store) {
    let (Place::Objects(_), Some(path)) = (&store.place, path(store)) else {
        return;
    };
    let _ = write(store, &path);
}

fn write(store: &Store, path: &Path) -> Result<()> {
    let failed = |cause| Error::io("write", path, cause);
    let dir = path.parent().unwrap_or(path);
    atomic_file::create_unversioned_dirs(dir).map_err(failed)?;
    let mut file = atomic_file::TempFile::in_store(dir, None)?;
    let mut out = io::BufWriter::new(&mut file);
    for name in store.archive_names()? {
        let beside = store.place.archive(&name).beside(MANIFEST_SUFFIX);
        let Some(state) = beside.state() else {
            continue;
        };
        if let (Some(manifest), FileState::Object(version)) =
            (sidecar::remembered(&beside.path(), &state), state)
        {
            let line = Line {
                archive: name,
                version,
                manifest,
            };
            serde_json::to_writer(&mut out, &line).map_err(|cause| failed(cause.into()))?;
            out.write_all(b"\n").map_err(failed)?;
        }
    }
    out.flush().map_err(failed)?;
    drop(out);
    file.persist(path)?;
    remove_others(dir, path);
    Ok(())
}

/// Removes all but the files of the [`MAX_STORES`] stores that were used last.
fn remove_others(dir: &Path, own: &Path) {
    atomic_file::sweep_partials(dir);
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut others: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path != own && path.extension().is_some_and(|ending| ending == "jsonl"))
        .map(|path| {
            (
                fs::metadata(&path).and_then(|found| found.modified()).ok(),
                path,
            )
        })
        .collect();
    others.sort_unstable();
    others.reverse();
    for (_, path) in others.iter().skip(MAX_STORES - 1) {
        let _ = atomic_file::remove(path);
    }
}

fn path(store: &Store) -> Option<PathBuf> {
    let name = format!("{}.jsonl", store.cache_name());
    Some(store.home()?.state_dir().join(DIR).join(name))
}
