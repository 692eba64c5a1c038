//! Which processes hold a lock on a database, for messages.
//!
//! `/proc/locks` says it without opening the database, which would end locks of this process. In a container the kernel lists
//! only processes that the container can see.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// More are counted.
const NAMED: usize = 3;

/// Who keeps a lock on the database at `path` or on the index of its WAL, as a message names them.
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

/// A process as a person knows it; 0 and less stand for one that the system does not name.
pub fn name(process: i32) -> String {
    if process <= 0 {
        return "a process that cannot be seen from here (in another container, or on another machine)".into();
    }
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(command) => format!("process {process} ({})", command.trim()),
        Err(_) => format!("process {process}"),
    }
}

/// A lock on a range of a file that another process holds.
pub struct Lock {
    /// Not above 0 if the system does not name it.
    pub process: i32,
    pub is_shared: bool,
    device: (u64, u64),
    inode: u64,
    /// The first and the last byte.
    bytes: (u64, u64),
}

impl Lock {
    /// Whether it is a lock on that file and on no other of the same inode number. Some file systems show another device to
    /// `stat` than to the table of locks: `false` does not prove that it is not.
    pub fn is_on(&self, file: &Metadata) -> bool {
        self.device == device(file.dev()) && self.inode == file.ino()
    }

    /// Whether it covers a byte of the range of that start and length.
    pub fn meets(&self, start: u64, length: u64) -> bool {
        let (first, last) = self.bytes;
        first < start.saturating_add(length) && start <= last
    }
}

/// The locks of other processes on files of this inode number, one of them perhaps several times. Those of the processes
/// `known` are all there. Of the others one may be missing while locks change: the kernel shows a long table in parts.
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

/// The process that took the `flock` on a file; `None` if none has it, or none that can be seen from here.
pub fn of_flock(file: &Metadata) -> Option<i32> {
    let table = fs::read_to_string("/proc/locks").ok()?;
    let locks = table.lines().filter_map(|line| parse(line, &["FLOCK"]));
    let mut holders = locks.filter(|lock| lock.inode == file.ino() && lock.process > 0);
    holders
        .find(|lock| lock.is_on(file) || has_file_open(lock.process, file))
        .map(|lock| lock.process)
}

/// How a message names the process that has the `flock` on a file, and that calls itself process `own`: `said` is all that it
/// says of itself.
pub fn with_own_name(file: Option<&Metadata>, own: i32, said: &str) -> String {
    match file.and_then(of_flock) {
        Some(process) if process == own => said.to_string(),
        Some(process) => format!("process {process}, which calls itself {said}"),
        None => format!(
            "{said}, which cannot be seen from here (in another container, or on another machine)"
        ),
    }
}

/// Whether a process has that very file open, as far as this one may see.
pub fn has_file_open(process: i32, file: &Metadata) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let is_it = |found: Metadata| (found.dev(), found.ino()) == (file.dev(), file.ino());
    open.flatten()
        .filter_map(|one| fs::metadata(one.path()).ok())
        .any(is_it)
}

/// A line of the table, of one of these kinds: `1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 1073741824 1073742335`. One that
/// waits has `->` after its number.
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
    (
        nix::sys::stat::major(of) as u64,
        nix::sys::stat::minor(of) as u64,
    )
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
        assert!(of(Path::new("/nothing/here")).contains("another container"));
    }
}
