//! The process that runs a service, as the kernel knows it.
//!
//! What stands in the lock file is only what somebody wrote: in another container the same number is another process, and
//! whoever may write to the project could name any. So a signal goes to the process that holds the lock, through a descriptor
//! of that process, once it is known to be `kg` and of a user who may run the service.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};

use crate::{error::plain, system::holders};

/// What the kernel adds to the path of an executable that was replaced since.
const DELETED: &str = " (deleted)";

pub struct Process {
    pid: Pid,
    /// `None` where the kernel is older than 5.3.
    descriptor: Option<OwnedFd>,
}

impl Process {
    /// The one that holds the `flock` on this file. An error completes "could not be stopped: …".
    pub fn holding(lock: &File) -> Result<Process, String> {
        let failed = |cause: io::Error| plain(&cause);
        let found = lock.metadata().map_err(failed)?;
        let number = holders::of_flock(&found).ok_or(
            "it cannot be seen from here: it runs in another container or on another machine",
        )?;
        let pid = Pid::from_raw(number).ok_or("the system does not name it")?;
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::NOSYS) => None,
            opened => Some(opened.map_err(|cause| failed(cause.into()))?),
        };
        // From here on the descriptor means one process, whatever becomes of its number.
        let is_it =
            holders::of_flock(&found) == Some(number) && holders::has_file_open(number, &found);
        if !is_it {
            return Err(format!(
                "process {number} took its lock, and has it no more, or hides what it has open"
            ));
        }
        let of_process = fs::metadata(format!("/proc/{number}")).map_err(failed)?;
        let user = geteuid().as_raw();
        let is_allowed =
            of_process.uid() == user || user == 0 && [0, found.uid()].contains(&of_process.uid());
        if !is_allowed {
            return Err(format!(
                "process {number}, which has its lock, is of user {}",
                of_process.uid()
            ));
        }
        let program = fs::read_link(format!("/proc/{number}/exe")).map_err(failed)?;
        if program_name(&program)
            != std::env::current_exe()
                .ok()
                .as_deref()
                .and_then(program_name)
        {
            return Err(format!(
                "process {number}, which has its lock, runs {}",
                program.display()
            ));
        }
        if !serves(number) {
            return Err(format!(
                "process {number}, which has its lock, is no service"
            ));
        }
        Ok(Process { pid, descriptor })
    }

    /// One that has ended meanwhile is no error.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        let sent = match &self.descriptor {
            Some(descriptor) => pidfd_send_signal(descriptor, signal),
            None => kill_process(self.pid, signal),
        };
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(cause) => Err(plain(&cause.into())),
        }
    }
}

/// The process that has the lock, where it can be seen and is another program, as a message names it.
pub fn another_program(lock: &File) -> Option<String> {
    let name = |process: &str| fs::read_to_string(format!("/proc/{process}/comm")).ok();
    let process = holders::of_flock(&lock.metadata().ok()?)?;
    let is_other = name(&process.to_string())? != name("self")?;
    is_other.then(|| holders::name(process))
}

/// Whether it was started as `kg serve`.
fn serves(process: i32) -> bool {
    let arguments = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(b"serve".as_slice())
}

/// Another release of a program is the same program, also while it is being replaced.
fn program_name(program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?.to_str()?;
    Some(PathBuf::from(name.strip_suffix(DELETED).unwrap_or(name)))
}
