//! Finds the processes that hold a lock on a database, for messages.
//!
//! On Linux, `/proc/locks` provides this without opening the database; opening and closing it would
//! drop the locks of this process. In a container the kernel lists only the processes that the
//! container can see. Other systems have no such table, so that no process is found there.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Why a process that holds a lock has no number here.
pub const UNSEEN: &str = if cfg!(target_os = "linux") {
    "cannot be seen from here (in another container, or on another machine)"
} else {
    "this system does not name"
};

/// The maximum number of processes that are named; the others are counted.
const NAMED: usize = 3;

/// Names the processes that hold a lock on the database at `path` or on its WAL index.
pub fn of(path: &Path) -> String {
    let mut found: Vec<i32> = Vec::new();
    for file in [path.to_path_buf(), shared_memory(path)] {
        let Ok(stat) = fs::metadata(&file) else {
            continue;
        };
        for lock in locks(&stat, &[]) {
            let is_it = || lock.is_on(&stat) || has_open(lock.process, &file);
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
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(command) => format!("process {process} ({})", command.trim()),
        Err(_) => format!("process {process}"),
    }
}

/// A lock that another process holds on a range of a file.
pub struct Lock {
    /// 0 or less if the system does not name the process.
    pub process: i32,
    pub is_shared: bool,
    device: (u64, u64),
    inode: u64,
    /// The first and the last byte.
    bytes: (u64, u64),
}

impl Lock {
    /// Returns whether the lock is on this file and not on another with the same inode number.
    /// `false` is not proof: some file systems report another device in `stat` than in the lock
    /// table.
    pub fn is_on(&self, file: &Metadata) -> bool {
        self.device == device(file.dev()) && self.inode == file.ino()
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
pub fn locks(file: &Metadata, known: &[i32]) -> Vec<Lock> {
    let own = std::process::id() as i32;
    let table = || fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut texts = vec![table(), table()];
    texts.extend(
        known
            .iter()
            .flat_map(|process| fs::read_dir(format!("/proc/{process}/fdinfo")))
            .flat_map(|all| {
                all.flatten()
                    .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
            }),
    );
    let lines = texts.iter().flat_map(|text| text.lines());
    let of_ranges = ["POSIX", "OFDLCK"];
    let locks =
        lines.filter_map(|line| parse(line.strip_prefix("lock:").unwrap_or(line), &of_ranges));
    locks
        .filter(|lock| lock.inode == file.ino() && lock.process != own)
        .collect()
}

/// Returns the process that holds the `flock` on a file, or `None` if no visible process holds it.
pub fn of_flock(file: &Metadata) -> Option<i32> {
    let table = fs::read_to_string("/proc/locks").ok()?;
    let locks = table.lines().filter_map(|line| parse(line, &["FLOCK"]));
    let mut holders = locks.filter(|lock| lock.inode == file.ino() && lock.process > 0);
    holders
        .find(|lock| lock.is_on(file) || has_file_open(lock.process, file))
        .map(|lock| lock.process)
}

/// Describes the holder of the `flock` on a file for a message. The holder calls itself process
/// `own`, and `said` is its full description of itself.
pub fn with_own_name(file: Option<&Metadata>, own: i32, said: &str) -> String {
    match file.and_then(of_flock) {
        Some(process) if process == own => said.to_string(),
        Some(process) => format!("process {process}, which calls itself {said}"),
        None => format!("{said}, which {UNSEEN}"),
    }
}

/// Returns whether a process has this file open, as far as this process may see.
pub fn has_file_open(process: i32, file: &Metadata) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let is_it = |found: Metadata| (found.dev(), found.ino()) == (file.dev(), file.ino());
    open.flatten()
        .filter_map(|one| fs::metadata(one.path()).ok())
        .any(is_it)
}

/// Parses a line of the table of one of these kinds: `1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452
/// 1073741824 1073742335`. A waiting lock has `->` after its number and is ignored.
fn parse(line: &str, kinds: &[&str]) -> Option<Lock> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, of, _, kind, process, file, first, last] = fields.as_slice() else {
        return None;
    };
    if !kinds.contains(of) {
        return None;
    }
    let mut parts = file.split(':');
    let mut hexadecimal = || u64::from_str_radix(parts.next()?, 16).ok();
    let device = (hexadecimal()?, hexadecimal()?);
    let last = if *last == "EOF" {
        u64::MAX
    } else {
        last.parse().ok()?
    };
    Some(Lock {
        process: process.parse().ok()?,
        is_shared: *kind == "READ",
        device,
        inode: parts.next()?.parse().ok()?,
        bytes: (first.parse().ok()?, last),
    })
}

#[allow(
    clippy::unnecessary_cast,
    reason = "these numbers are smaller on other systems"
)]
fn device(of: u64) -> (u64, u64) {
    let of = of as nix::libc::dev_t;
    (nix::libc::major(of) as u64, nix::libc::minor(of) as u64)
}

fn has_open(process: i32, file: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    open.flatten()
        .any(|one| fs::read_link(one.path()).is_ok_and(|to| to == file))
}

fn shared_memory(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_os_string();
    path.push("-shm");
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_names_process_and_file_and_one_that_waits_holds_nothing() {
        let posix = |line| parse(line, &["POSIX"]);
        let lock =
            posix("1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 1073741824 1073742335").unwrap();
        assert_eq!(
            (lock.process, lock.device, lock.inode),
            (3568, (0xfd, 0), 2_531_452)
        );
        assert_eq!(
            [1_073_741_823, 1_073_741_824, 1_073_742_336].map(|byte| lock.meets(byte, 1)),
            [false, true, false]
        );
        assert!(posix("1: -> POSIX  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF").is_none());
        assert!(posix("2: FLOCK  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF").is_none());
        assert!(
            parse(
                "2: FLOCK  ADVISORY  WRITE 3568 fd:00:2531452 0 EOF",
                &["FLOCK"]
            )
            .is_some()
        );
        assert!(of(Path::new("/nothing/here")).contains(UNSEEN));
    }
}
