//! This process: its limits, its ties to a terminal, its parent and its successor.

use std::{io, process::Command};

#[cfg_attr(unix, path = "process/unix.rs")]
#[cfg_attr(windows, path = "process/windows.rs")]
mod os;

/// Raises the limit of open files, because every database of a project is open at once with three
/// descriptors per connection. Makes a write behind the maximum size of a file fail, where it would
/// end the process. If the system refuses, the old limits stay.
pub fn lift_limits() {
    os::lift_limits();
}

/// Lets this process survive the end of its terminal.
pub fn leave_terminal() {
    os::leave_terminal();
}

/// Returns the number of the process that started this one; 0 if the system does not tell.
pub fn parent_id() -> u32 {
    os::parent_id()
}

/// Runs a command in place of this process. Returns only if that fails.
pub fn give_place_to(command: &mut Command) -> io::Error {
    os::give_place_to(command)
}
