use std::{fs, path::Path};

use super::Lock;
use crate::system::file_id::{FileId, Identity};

/// Why a process that holds a lock has no number here.
pub const UNSEEN: &str = "cannot be seen from here (in another container, or on another machine)";

/// Returns the name of the program of a process.
pub fn command(process: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some(name.trim().to_string())
}

pub fn locks(file: FileId, known: &[i32]) -> Vec<Lock> {
    let own = std::process::id() as i32;
    let (_, inode) = file.identity;
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
        .filter(|lock| lock.identity.1 == inode && lock.process != own)
        .collect()
}

pub fn of_flock(file: FileId) -> Option<i32> {
    let (_, inode) = file.identity;
    let table = fs::read_to_string("/proc/locks").ok()?;
    let locks = table.lines().filter_map(|line| parse(line, &["FLOCK"]));
    let mut holders = locks.filter(|lock| lock.identity.1 == inode && lock.process > 0);
    holders
        .find(|lock| lock.is_on(file) || has_file_open(lock.process, file))
        .map(|lock| lock.process)
}

pub fn has_file_open(process: i32, file: FileId) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|one| FileId::at(&one.path()).ok())
        .any(|found| found.identity == file.identity)
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
    let device = one_number(hexadecimal()?, hexadecimal()?);
    let last = if *last == "EOF" {
        u64::MAX
    } else {
        last.parse().ok()?
    };
    Some(Lock {
        process: process.parse().ok()?,
        is_shared: *kind == "READ",
        identity: (device, parts.next()?.parse().ok()?),
        bytes: (first.parse().ok()?, last),
    })
}

/// Returns what the table has instead of an identity: it shows a device as two numbers.
pub fn in_table((device, inode): Identity) -> Identity {
    let parts = (rustix::fs::major(device), rustix::fs::minor(device));
    (one_number(parts.0.into(), parts.1.into()), inode)
}

fn one_number(major: u64, minor: u64) -> u64 {
    major << 32 | minor
}

pub fn has_open(process: i32, file: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    open.flatten()
        .any(|one| fs::read_link(one.path()).is_ok_and(|to| to == file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::holders::of;

    #[test]
    fn a_line_of_the_table_names_process_and_file_and_one_that_waits_holds_nothing() {
        let posix = |line| parse(line, &["POSIX"]);
        let lock =
            posix("1: POSIX  ADVISORY  WRITE 3568 fd:00:2531452 1073741824 1073742335").unwrap();
        assert_eq!(
            (lock.process, lock.identity),
            (3568, (one_number(0xfd, 0), 2_531_452))
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
