pub use std::os::unix::{
    ffi::OsStrExt,
    fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
};
use std::{
    borrow::Cow,
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::{fd::AsFd, unix::ffi::OsStringExt},
    path::Path,
};

use nix::{errno::Errno, fcntl::OFlag};

/// Returns the text of these bytes. `None` if no name on this system has them.
pub fn os_string(bytes: Vec<u8>) -> Option<OsString> {
    Some(OsString::from_vec(bytes))
}

pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
}

pub fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Sets the permissions of a file or directory; follows links.
pub fn set_mode_at(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Opens a file, device or directory for reading, without waiting for the other end of a pipe.
pub fn open_to_read(path: &Path, follows_link: bool) -> io::Result<File> {
    let link = if follows_link {
        OFlag::empty()
    } else {
        OFlag::O_NOFOLLOW
    };
    OpenOptions::new()
        .read(true)
        .custom_flags((link | OFlag::O_NONBLOCK).bits())
        .open(path)
}

/// Returns whether a file was not opened because it is a link.
pub fn is_link(cause: &io::Error) -> bool {
    cause.raw_os_error() == Some(Errno::ELOOP as i32)
}

/// Returns a handle to the standard output without the buffer and the lock of std.
pub fn own_stdout() -> io::Result<File> {
    io::stdout().as_fd().try_clone_to_owned().map(File::from)
}

/// Returns the bytes of a path, with `/` between its names.
pub fn bytes_with_slashes(path: &Path) -> Cow<'_, [u8]> {
    path.as_os_str().as_bytes().into()
}

/// Waits for a lock (`flock`) of an open file or directory.
pub fn lock(file: &File) -> io::Result<()> {
    file.lock()
}

pub fn try_lock(file: &File) -> Result<(), TryLockError> {
    file.try_lock()
}

pub fn try_lock_shared(file: &File) -> Result<(), TryLockError> {
    file.try_lock_shared()
}
