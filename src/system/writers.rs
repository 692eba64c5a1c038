//! Who can write to a file.

use std::{fs::File, io};

#[cfg_attr(unix, path = "writers/unix.rs")]
#[cfg_attr(windows, path = "writers/windows.rs")]
mod os;

/// Returns why a user other than this one and root could have written an open file, if one could.
/// On Windows, the system and the administrators stand for root.
pub fn foreign(file: &File) -> io::Result<Option<String>> {
    os::foreign(file)
}

/// Lets only this user and root write to a file of this user, and all users read it.
pub fn keep_others_out(file: &File) -> io::Result<()> {
    os::keep_others_out(file)
}
