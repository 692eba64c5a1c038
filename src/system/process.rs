//! This process: its limits, and its ties to a terminal.

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
