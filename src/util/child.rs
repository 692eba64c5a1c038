//! A child process that can be ended together with everything that it started.

use std::{
    io,
    process::{Child, ChildStdout, Command, ExitStatus},
    time::Duration,
};

#[cfg_attr(unix, path = "child/unix.rs")]
#[cfg_attr(windows, path = "child/windows.rs")]
mod os;

/// A child process and its descendants.
pub struct Family {
    pub child: Child,
    group: os::Group,
}

impl Family {
    /// Starts a process that Ctrl-C in the terminal of this process does not reach.
    pub fn spawn(command: &mut Command) -> io::Result<Family> {
        os::spawn(command).map(|(child, group)| Family { child, group })
    }

    /// Ends the child, if [`Child::wait`] was not called yet, and everything that it started.
    pub fn kill(&self) {
        os::kill(&self.child, &self.group);
    }
}

/// Returns whether the pipe has something to read, or its other end was closed. Returns `false`
/// after `timeout`.
pub fn is_readable(pipe: &ChildStdout, timeout: Duration) -> io::Result<bool> {
    os::is_readable(pipe, timeout)
}

/// Enlarges the pipe, because a larger pipe needs fewer switches between the processes. If the
/// system refuses, the transfer is only slower.
pub fn widen(pipe: &ChildStdout) {
    os::widen(pipe);
}

/// Describes how a process ended.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), os::signal(status)) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
