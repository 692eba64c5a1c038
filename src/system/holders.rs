//! Finds the processes that hold a lock on a database, for messages.
//!
//! On Linux, `/proc/locks` provides this without opening the database; opening and closing it would
//! drop the locks of this process. In a container the kernel lists only the processes that the
//! container can see. On other systems no process is found.

use std::path::{Path, PathBuf};

use crate::system::file_id::{FileId, Identity};

#[cfg_attr(target_os = "linux", path = "holders/linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "holders/unknown.rs")]
mod os;

pub use os::UNSEEN;

/// The maximum number of processes that are named; the others are counted.
const NAMED: usize = 3;

/// Names the processes that hold a lock on the database at `path` or on its WAL index.
pub fn of(path: &Path) -> String {
    let mut found: Vec<i32> = Vec::new();
    for file in [path.to_path_buf(), shared_memory(path)] {
        let Ok(id) = FileId::at(&file) else {
            continue;
        };
        for lock in locks(id, &[]) {
            let is_it = || lock.is_on(id) || os::has_open(lock.process, &file);
            if !found.contains(&lock.process) && is_it() {
                found.push(lock.process);
            }
        }
    }
    let more = found.len().saturating_sub(NAMED);
    let mut names: Vec<String> = found
        .iter()
        .take(NAMED)
        .map(|process| name(*process))
        .collect();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    if names.is_empty() {
        name(0)
    } else {
        names.join(", ")
    }
}

/// Returns a readable name of a process. 0 or less stands for a process that the system does not
/// name.
pub fn name(process: i32) -> String {
    if process <= 0 {
        return format!("a process that {UNSEEN}");
    }
    match os::command(process) {
        Some(command) => format!("process {process} ({command})"),
        None => format!("process {process}"),
    }
}

/// A lock that another process holds on a range of a file.
pub struct Lock {
    /// 0 or less if the system does not name the process.
    pub process: i32,
    pub is_shared: bool,
    /// The device as the lock table has it, and the inode.
    identity: Identity,
    /// The first and the last byte.
    bytes: (u64, u64),
}

impl Lock {
    /// Returns whether the lock is on this file and not on another with the same inode number.
    /// `false` is not proof: some file systems report another device in `stat` than in the lock
    /// table.
    pub fn is_on(&self, file: FileId) -> bool {
        self.identity == os::in_table(file.identity)
    }

    /// Returns whether the lock covers a byte of the range with that start and length.
    pub fn meets(&self, start: u64, length: u64) -> bool {
        let (first, last) = self.bytes;
        first < start.saturating_add(length) && start <= last
    }
}

/// Returns the locks of other processes on files with this inode number; a lock may appear several
/// times. The list is complete for the processes in `known`. For others a lock may be missing while
/// locks change, because the kernel returns a long table in parts.
pub fn locks(file: FileId, known: &[i32]) -> Vec<Lock> {
    os::locks(file, known)
}

/// Returns the process that holds the `flock` on a file, or `None` if no visible process holds it.
pub fn of_flock(file: FileId) -> Option<i32> {
    os::of_flock(file)
}

/// Describes the holder of the `flock` on a file for a message. The holder calls itself process
/// `own`, and `said` is its full description of itself.
pub fn with_own_name(file: Option<FileId>, own: i32, said: &str) -> String {
    match file.and_then(of_flock) {
        Some(process) if process == own => said.to_string(),
        Some(process) => format!("process {process}, which calls itself {said}"),
        None => format!("{said}, which {UNSEEN}"),
    }
}

/// Returns whether a process has this file open, as far as this process may see.
pub fn has_file_open(process: i32, file: FileId) -> bool {
    os::has_file_open(process, file)
}

fn shared_memory(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_os_string();
    path.push("-shm");
    path.into()
}
