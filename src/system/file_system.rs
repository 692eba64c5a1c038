//! What the operating system reports about the file system of a path or an open file.
//!
//! An unknown kind of file system has none of these properties. Callers then do what works on every
//! file system.

use std::{fs::File, io, path::Path};

#[cfg(not(target_os = "linux"))]
#[path = "file_system/by_file.rs"]
mod by_file;
#[cfg_attr(target_os = "linux", path = "file_system/linux.rs")]
#[cfg_attr(target_os = "macos", path = "file_system/macos.rs")]
#[cfg_attr(windows, path = "file_system/windows.rs")]
mod os;
#[cfg(unix)]
#[path = "file_system/unix.rs"]
mod unix;

/// The space of a file system.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// The bytes that this user may still use.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Returns the space of the file system of `path`.
pub fn space(path: &Path) -> io::Result<Space> {
    os::space(path)
}

/// Returns the name of the network file system of `path`. `None` if it is not known to be one.
pub fn network_name(path: &Path) -> Option<String> {
    os::network_name(path)
}

/// Returns whether two files on this file system can refer to the same blocks.
pub fn shares_blocks(file: &File) -> bool {
    os::shares_blocks(file)
}

/// Lets `to` refer to the bytes of `from`, or copies them in the kernel. Returns how many bytes
/// were copied. `None` if the kernel or the file system cannot do that.
pub fn copy_range(from: (&File, u64), to: (&File, u64), most: usize) -> io::Result<Option<usize>> {
    os::copy_range(from, to, most)
}

/// Returns whether [`sync`] reports every write to this file system that failed.
pub fn reports_every_error(file: &File) -> bool {
    os::reports_every_error(file)
}

/// Writes all data and metadata of the file system of an open directory to the disk.
pub fn sync(dir: &File) -> io::Result<()> {
    os::sync(dir)
}
