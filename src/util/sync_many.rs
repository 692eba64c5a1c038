//! Makes many files durable with one call.
//!
//! `fsync` of each of many small files waits for the disk once for each file. `syncfs` writes the
//! whole file system, and waits once. Where it may hide an error, callers sync each file.

use std::{
    fs::File,
    io,
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
    thread::JoinHandle,
};

use super::{dir_handle::DirHandle, threads};
use crate::{
    error::{Error, Result},
    system::{file_id::FileId, file_system},
};

/// The number of files or directories from which one `syncfs` replaces a sync of each. Fewer are
/// synced one by one, because other programs may have much unwritten data in the file system.
const LEAST: usize = 64;

/// A file system that is synced once, for everything that changed in it since the directory was
/// opened.
pub struct Batch<'a> {
    dir: &'a File,
    /// The name of the directory in messages.
    path: &'a Path,
}

/// Begins the sync of `count` entries on the file system of an open directory. Returns `None` if
/// each entry is to be synced on its own.
pub fn begin<'a>(dir: &'a File, path: &'a Path, count: usize) -> Option<Batch<'a>> {
    (count >= LEAST && file_system::reports_every_error(dir)).then_some(Batch { dir, path })
}

impl Batch<'_> {
    /// Returns whether the entries of that directory are on the same file system.
    pub fn covers(&self, dir: &DirHandle) -> Result<bool> {
        let found = FileId::of(self.dir);
        let found = found.map_err(|cause| Error::io("look at", self.path, cause))?;
        Ok(dir.device()? == found.identity.0)
    }

    /// Writes all data and metadata of the file system to the disk. An error means that a write
    /// failed since the directory was opened.
    pub fn sync(&self) -> Result<()> {
        file_system::sync(self.dir).map_err(|cause| Error::io("sync", self.path, cause))
    }
}

/// Writes what was already written to files to the disk from time to time, in a thread, so that the
/// last sync has less to do.
pub struct EarlySync<'a> {
    path: &'a Path,
    wake: SyncSender<()>,
    syncing: JoinHandle<Result<(), io::Error>>,
    unsynced_bytes: u64,
}

impl<'a> EarlySync<'a> {
    /// Begins to sync the file system of an open directory, which must stay open until the end.
    /// `None` if each file is to be synced on its own, or if the system refuses a thread.
    pub fn begin(dir: &File, path: &'a Path) -> Option<Self> {
        if !file_system::reports_every_error(dir) {
            return None;
        }
        let dir = dir.try_clone().ok()?;
        // A wake-up is lost while the thread syncs.
        let (wake, woken) = sync_channel(0);
        let sync = move || woken.iter().try_for_each(|()| file_system::sync(&dir));
        let syncing = threads::start("kg-sync", sync).ok()?;
        Some(EarlySync {
            path,
            wake,
            syncing,
            unsynced_bytes: 0,
        })
    }

    /// Counts a file of this size, and has the thread sync if it was long ago.
    pub fn wrote(&mut self, size_bytes: u64) {
        // The disk also writes the description of each file.
        const BYTES_OF_A_FILE: u64 = 1024;
        const BYTES_BETWEEN: u64 = 32 * 1024 * 1024;
        self.unsynced_bytes += size_bytes + BYTES_OF_A_FILE;
        if self.unsynced_bytes >= BYTES_BETWEEN && self.wake.try_send(()).is_ok() {
            self.unsynced_bytes = 0;
        }
    }

    /// Ends the thread. Returns the error that it saw, because no later sync reports it again.
    pub fn end(self) -> Result<()> {
        drop(self.wake);
        let synced = self.syncing.join();
        let synced = synced.map_err(|_| Error::internal("The thread that syncs panicked"))?;
        synced.map_err(|cause| Error::io("sync", self.path, cause))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn few_entries_are_synced_one_by_one_and_many_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        assert!(begin(&open, dir.path(), LEAST - 1).is_none());
        // The temporary directory of the tests may be on a file system that is not known.
        if let Some(batch) = begin(&open, dir.path(), LEAST) {
            assert!(batch.covers(&DirHandle::open(dir.path()).unwrap()).unwrap());
            batch.sync().unwrap();
        }
    }

    #[test]
    fn files_are_synced_while_others_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        if let Some(mut early) = EarlySync::begin(&open, dir.path()) {
            (0..1000).for_each(|_| early.wrote(1024 * 1024));
            early.end().unwrap();
        }
        assert!(EarlySync::begin(&File::open("/proc").unwrap(), Path::new("/proc")).is_none());
    }

    #[test]
    fn a_file_system_that_may_hide_errors_is_not_synced_at_once() {
        let proc = File::open("/proc").unwrap();
        assert!(begin(&proc, Path::new("/proc"), LEAST).is_none());
    }
}
