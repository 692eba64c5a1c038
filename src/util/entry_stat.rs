//! What an entry of a directory is, and whose.

use nix::sys::stat::{FileStat, SFlag};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryType {
    File,
    Directory,
    Link,
    Other,
}

/// The attributes of an entry itself: a link is not followed.
#[derive(Debug, Clone, Copy)]
pub struct EntryStat {
    pub entry_type: EntryType,
    /// The permissions, with the set-user-ID and similar bits.
    pub mode: u32,
    pub user: u32,
    pub group: u32,
    pub device: u64,
    pub inode: u64,
    /// The number of names of the file.
    pub names: u64,
    /// Seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
}

impl EntryStat {
    /// Returns the user and the group.
    pub fn owner(&self) -> (u32, u32) {
        (self.user, self.group)
    }

    /// Returns what identifies the entry under any name: the device and the inode.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

impl From<FileStat> for EntryStat {
    #[allow(
        clippy::unnecessary_cast,
        reason = "these numbers are smaller on other systems"
    )]
    fn from(found: FileStat) -> Self {
        EntryStat {
            entry_type: match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFREG => EntryType::File,
                SFlag::S_IFDIR => EntryType::Directory,
                SFlag::S_IFLNK => EntryType::Link,
                _ => EntryType::Other,
            },
            mode: found.st_mode as u32 & 0o7777,
            user: found.st_uid,
            group: found.st_gid,
            device: found.st_dev as u64,
            inode: found.st_ino,
            names: found.st_nlink as u64,
            modified: (found.st_mtime, found.st_mtime_nsec),
        }
    }
}
