//! Reads sidecars, each only once.
//!
//! A run asks the store several questions, and a store may have thousands of backups. So this
//! process remembers what it has parsed, as long as the sidecar is the same file with the same times.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::SystemTime,
};

use super::{
    catalog::{Flaw, led_to},
    names::MANIFEST_SUFFIX,
};
use crate::{
    archive::{manifest::Manifest, reader::MAX_TEXT_BYTES},
    error::{Error, Result},
    place::{Archive, FileState, Place},
    util::{operation::CancelToken, regular_file, threads::start_in},
};

/// How messages name a manifest that cannot be parsed.
const BESIDE: &str = "the manifest next to the archive";
/// The most sidecars that are remembered, of all stores. One takes about a kilobyte.
pub(super) const MAX_REMEMBERED: usize = 20_000;

/// How many threads read the sidecars of an object store at the same time.
const READERS: usize = 16;
const ARCHIVES_PER_READER: usize = 4;

static REMEMBERED: LazyLock<Mutex<HashMap<PathBuf, (FileState, Manifest)>>> =
    LazyLock::new(Mutex::default);

/// What is next to an archive.
pub(super) enum Sidecar {
    Missing,
    /// Something else than a manifest.
    Invalid,
    Manifest(Box<Manifest>),
}

/// Returns the path of the sidecar of `archive`.
pub fn manifest_path(archive: &Archive) -> PathBuf {
    archive.beside(MANIFEST_SUFFIX).path()
}

/// Parses the sidecar of an archive, if there is one. `KG_PERMISSION_DENIED` or `KG_IO` if it
/// cannot be read.
pub fn described_beside(archive: &Archive) -> Result<Option<Manifest>> {
    Ok(match sidecar(archive)? {
        Sidecar::Manifest(manifest) => Some(*manifest),
        Sidecar::Missing | Sidecar::Invalid => None,
    })
}

/// Reads the sidecars of these archives from an object store at the same time, so that asking for
/// each takes no more time. Whoever asks for a sidecar that could not be read gets the error.
pub(super) fn read_ahead(archives: &[Archive]) {
    let next = AtomicUsize::new(0);
    let read_some = || {
        while let Some(archive) = archives.get(next.fetch_add(1, Ordering::Relaxed)) {
            let _ = sidecar(archive);
        }
    };
    let cancel = CancelToken::current();
    thread::scope(|threads| {
        for _ in 0..READERS.min(archives.len().div_ceil(ARCHIVES_PER_READER)) {
            let cancel = cancel.clone();
            // Without the thread it takes longer.
            let _ = start_in(threads, "kg-sidecars", move || {
                cancel.enter();
                read_some();
            });
        }
    });
}

/// Works like [`described_beside`], and tells why there is no manifest.
pub(super) fn sidecar(archive: &Archive) -> Result<Sidecar> {
    let beside = archive.beside(MANIFEST_SUFFIX);
    let (path, found) = (beside.path(), beside.state());
    let known = found.as_ref().and_then(|found| remembered(&path, found));
    if let Some(manifest) = known {
        return Ok(Sidecar::Manifest(Box::new(manifest)));
    }
    let read_at = SystemTime::now();
    let Some(json) = manifest_beside(archive)? else {
        return Ok(Sidecar::Missing);
    };
    let Ok(manifest) = Manifest::parse(&json, BESIDE) else {
        return Ok(Sidecar::Invalid);
    };
    if let Some(found) = found.filter(|found| found.is_settled(read_at)) {
        remember(path, found, &manifest);
    }
    Ok(Sidecar::Manifest(Box::new(manifest)))
}

/// Remembers the text of a sidecar that this process wrote into an object store.
pub(super) fn remember_written(archive: &Archive, json: &[u8]) {
    let beside = archive.beside(MANIFEST_SUFFIX);
    if let (Some(state), Ok(manifest)) = (beside.state(), Manifest::parse(json, BESIDE)) {
        remember(beside.path(), state, &manifest);
    }
}

pub(super) fn remembered(path: &Path, found: &FileState) -> Option<Manifest> {
    let remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    let (then, manifest) = remembered.get(path)?;
    (then == found).then(|| manifest.clone())
}

pub(super) fn remember(path: PathBuf, found: FileState, manifest: &Manifest) {
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    if remembered.len() >= MAX_REMEMBERED {
        remembered.clear();
    }
    remembered.insert(path, (found, manifest.clone()));
}

/// Returns the text of the sidecar, if there is one. The text is empty if the sidecar is not a
/// regular file or is too long for a manifest. `KG_PERMISSION_DENIED` or `KG_IO` if it cannot be
/// read.
pub fn manifest_beside(archive: &Archive) -> Result<Option<Vec<u8>>> {
    if let Place::Objects(objects) = archive.place() {
        let name = format!("{}{MANIFEST_SUFFIX}", archive.name());
        return objects.read(&name, MAX_TEXT_BYTES);
    }
    let path = match led_to(&manifest_path(archive), &[MANIFEST_SUFFIX]) {
        Ok(path) => path,
        Err(Flaw::Unread(error)) => return Err(error),
        Err(_) => return Ok(Some(Vec::new())),
    };
    let read = || -> io::Result<Vec<u8>> {
        let found = fs::metadata(&path)?;
        let mut text = Vec::new();
        if found.is_file() && found.len() <= MAX_TEXT_BYTES {
            text = regular_file::read(&regular_file::open(&path)?, MAX_TEXT_BYTES)?;
        }
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", &path, cause)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_sidecar_that_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::at(&dir.path().join("kg-backup-20240115-020000.tar.gz"));
        let path = manifest_path(&archive);
        let json = |id: &str| {
            serde_json::json!({ "version": "1.0.0", "id": id, "type": "full",
                "timestamp": "2024-01-15T02:00:00Z", "checksums": {},
                "contents": { "database": false, "config": false, "vectors": false, "plugins": false },
                "stats": { "totalFiles": 0, "totalSize": 0, "compressedSize": 0, "nodeCount": 0, "edgeCount": 0 },
                "integrity": { "status": "ok", "messages": [] }, "tool": { "name": "", "version": "" } })
        };
        let id = || {
            described_beside(&archive)
                .unwrap()
                .map(|manifest| manifest.id)
        };
        assert_eq!(id(), None);
        let found = || archive.beside(MANIFEST_SUFFIX).state().unwrap();
        for written in ["one", "three"] {
            fs::write(&path, json(written).to_string()).unwrap();
            assert_eq!(id().as_deref(), Some(written));
            // As if it had been read two seconds later.
            let now = SystemTime::now() + Duration::from_secs(3);
            assert!(found().is_settled(now));
            let manifest = described_beside(&archive).unwrap().unwrap();
            remember(path.clone(), found(), &manifest);
            assert_eq!(remembered(&path, &found()).unwrap().id, written);
        }
        fs::write(&path, "none").unwrap();
        assert_eq!(id(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(id(), None);
    }
}
