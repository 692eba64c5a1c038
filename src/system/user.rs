//! The user that this process acts for.

use std::{fs::File, io, path::Path};

#[cfg_attr(unix, path = "user/unix.rs")]
#[cfg_attr(windows, path = "user/windows.rs")]
mod os;

/// Returns the number of the effective user. Windows has no such numbers: every user is 0.
pub fn current() -> u32 {
    os::current()
}

/// Returns the number of the effective group.
pub fn group() -> u32 {
    os::group()
}

/// Returns whether this process may give files to other users.
pub fn is_root() -> bool {
    os::is_root()
}

/// Returns whether the real user may write to a file or directory.
pub fn may_write(path: &Path) -> bool {
    os::may_write(path)
}

/// Returns whether the real user may read a file or directory.
pub fn may_read(path: &Path) -> bool {
    os::may_read(path)
}

/// Returns whether the effective user may write to a file or directory.
pub fn may_write_effectively(path: &Path) -> bool {
    os::may_write_effectively(path)
}

/// Returns the name of this machine.
pub fn host_name() -> Option<String> {
    os::host_name()
}

/// Gives a file to another user or group; follows links.
pub fn give(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    os::give(path, user, group)
}

/// Gives an open file to another user and group.
pub fn give_open(file: &File, owner: (u32, u32)) -> io::Result<()> {
    os::give_open(file, owner)
}

/// Fails if the real user may not read and write a file, or if it does not exist.
pub fn may_change(path: &Path) -> io::Result<()> {
    os::may_change(path)
}

/// Returns whether the real user may run a file.
pub fn may_execute(path: &Path) -> bool {
    os::may_execute(path)
}
