//! macOS does not report which process holds a `flock`, so no process is sent a signal.

use std::fs::File;

use rustix::process::Signal;

/// No process was found.
pub enum Process {}

impl Process {
    pub fn holding(_lock: &File) -> Result<Process, String> {
        Err("this system does not report which process has its lock".into())
    }

    pub fn signal(&self, _signal: Signal) -> Result<(), String> {
        match *self {}
    }
}

pub fn another_program(_lock: &File) -> Option<String> {
    None
}
