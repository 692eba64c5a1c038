//! Reads sidecars, each only once.
//!
//! A run asks the store several questions, and a store may have thousands of backups. So this
//! process remembers what it has parsed, as long as the sidecar is the same file with the same times.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::SystemTime,
};

use super::{
    catalog::{Flaw, led_to},
    names::MANIFEST_SUFFIX,
};
use crate::{
    archive::{manifest::Manifest, reader::MAX_TEXT_BYTES},
    error::{Error, Result},
    place::Archive,
    project::file_state::FoundFile,
    util::regular_file,
};

/// How messages name a manifest that cannot be parsed.
const BESIDE: &str = "the manifest next to the archive";
/// The most sidecars that are remembered, of all stores. One takes about a kilobyte.
const MAX_REMEMBERED: usize = 20_000;

static REMEMBERED: LazyLock<Mutex<HashMap<PathBuf, (FoundFile, Manifest)>>> =
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

/// Works like [`described_beside`], and tells why there is no manifest.
pub(super) fn sidecar(archive: &Archive) -> Result<Sidecar> {
    let path = manifest_path(archive);
    let found = fs::metadata(&path).ok();
    let found = found.as_ref().map(FoundFile::new);
    if let Some(manifest) = found.and_then(|found| remembered(&path, &found)) {
        return Ok(Sidecar::Manifest(Box::new(manifest)));
    }
    let read_at = SystemTime::now();
    let Some(json) = manifest_beside(archive)? else {
        return Ok(Sidecar::Missing);
    };
    let Ok(manifest) = Manifest::parse(&json, BESIDE) else {
        return Ok(Sidecar::Invalid);
    };
    if let Some(found) = found.filter(|found| found.settled(read_at).is_some()) {
        remember(path, found, &manifest);
    }
    Ok(Sidecar::Manifest(Box::new(manifest)))
}

fn remembered(path: &Path, found: &FoundFile) -> Option<Manifest> {
    let remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    let (then, manifest) = remembered.get(path)?;
    (then == found).then(|| manifest.clone())
}

fn remember(path: PathBuf, found: FoundFile, manifest: &Manifest) {
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
        let found = |path: &Path| FoundFile::new(&fs::metadata(path).unwrap());
        for written in ["one", "three"] {
            fs::write(&path, json(written).to_string()).unwrap();
            assert_eq!(id().as_deref(), Some(written));
            // As if it had been read two seconds later.
            let now = SystemTime::now() + Duration::from_secs(3);
            assert!(found(&path).settled(now).is_some());
            let manifest = described_beside(&archive).unwrap().unwrap();
            remember(path.clone(), found(&path), &manifest);
            assert_eq!(remembered(&path, &found(&path)).unwrap().id, written);
        }
        fs::write(&path, "none").unwrap();
        assert_eq!(id(), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(id(), None);
    }
}
