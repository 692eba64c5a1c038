//! What an error of the operating system means, by its number.

use std::io;

#[cfg_attr(unix, path = "refusal/unix.rs")]
#[cfg_attr(windows, path = "refusal/windows.rs")]
mod os;

/// Returns whether the file system (FUSE, CIFS, NFS) has no `fsync`. Any other error of a sync
/// concerns the data.
pub fn has_no_sync(cause: &io::Error) -> bool {
    is_one_of(cause, os::NO_SYNC)
}

/// Returns whether the file system has no locks, such as NFS without its lock service and some FUSE
/// file systems.
pub fn has_no_locks(cause: &io::Error) -> bool {
    is_one_of(cause, os::NO_LOCKS)
}

/// Returns whether the file system has no permissions, owners or times (FAT, CIFS, some FUSE).
pub fn has_no_attributes(cause: &io::Error) -> bool {
    is_one_of(cause, os::NO_ATTRIBUTES) || cause.kind() == io::ErrorKind::Unsupported
}

/// Returns whether the file system has no symbolic links (FAT, some network mounts), or this user
/// may not make them.
pub fn has_no_links(cause: &io::Error) -> bool {
    is_one_of(cause, os::NO_LINKS)
}

/// Returns whether this process or the system has too many open files.
pub fn is_out_of_files(cause: &io::Error) -> bool {
    is_one_of(cause, os::OUT_OF_FILES)
}

fn is_one_of(cause: &io::Error, numbers: &[i32]) -> bool {
    cause
        .raw_os_error()
        .is_some_and(|number| numbers.contains(&number))
}
