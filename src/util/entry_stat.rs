//! What an entry of a directory is, and whose.

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
