use std::{fs::File, io, path::Path};

use rustix::{fs, io::Errno};

pub use super::unix::space;

/// The numbers of file system types, from `linux/magic.h`.
const BTRFS: u32 = 0x9123_683e;
const EXT4: u32 = 0xef53;
const TMPFS: u32 = 0x0102_1994;
const XFS: u32 = 0x5846_5342;

pub fn network_name(path: &Path) -> Option<String> {
    name_of_network(fs::statfs(path).ok()?.f_type as u32).map(String::from)
}

fn name_of_network(number: u32) -> Option<&'static str> {
    let name = match number {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB 2",
        0x5346_414f => "AFS",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9P",
        _ => return None,
    };
    Some(name)
}

pub fn shares_blocks(file: &File) -> bool {
    is_one_of(file, &[BTRFS, XFS])
}

pub fn copy_range(
    (from, mut start): (&File, u64),
    (to, mut at): (&File, u64),
    most: usize,
) -> io::Result<Option<usize>> {
    match fs::copy_file_range(from, Some(&mut start), to, Some(&mut at), most) {
        Err(Errno::INTR) => Ok(Some(0)),
        Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => Ok(None),
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        copied => Ok(Some(copied?)),
    }
}

/// `syncfs` reports errors like `fsync` since Linux 5.8
/// (<https://man7.org/linux/man-pages/man2/sync.2.html>), and only some file systems are known to
/// record every error for it.
pub fn reports_every_error(file: &File) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.is_ok_and(|release| is_since_5_8(&release))
        && is_one_of(file, &[BTRFS, EXT4, TMPFS, XFS])
}

pub fn sync(dir: &File) -> io::Result<()> {
    Ok(fs::syncfs(dir)?)
}

fn is_one_of(file: &File, kinds: &[u32]) -> bool {
    fs::fstatfs(file).is_ok_and(|found| kinds.contains(&(found.f_type as u32)))
}

/// Returns whether a release of Linux, such as `6.1.0-18-amd64`, is 5.8 or newer.
fn is_since_5_8(release: &str) -> bool {
    let mut numbers = release.split('.').map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_named_and_local_ones_are_not() {
        for (number, name) in [
            (0x6969, "NFS"),
            (0xff53_4d42, "CIFS"),
            (0xfe53_4d42, "SMB 2"),
            (0x0102_1997, "9P"),
        ] {
            assert_eq!(name_of_network(number), Some(name));
        }
        for local in [BTRFS, EXT4, TMPFS, XFS, 0x794c_7630] {
            assert_eq!(name_of_network(local), None);
        }
    }

    #[test]
    fn a_release_of_linux_is_compared_by_its_numbers() {
        for newer in ["5.8.0", "5.10.0-8-amd64", "6.1.0", "10.0.1\n"] {
            assert!(is_since_5_8(newer), "{newer}");
        }
        for older in ["5.7.19", "4.19.0-6", "3.10", "", "five.8", "6"] {
            assert!(!is_since_5_8(older), "{older}");
        }
    }
}
