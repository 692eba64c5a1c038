use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};

use crate::{
    error::plain,
    system::{file_id::FileId, holders, user},
};

/// The suffix that the kernel adds to the path of an executable that was replaced after the start.
const DELETED: &str = " (deleted)";

pub struct Process {
    pid: Pid,
    /// `None` if the kernel is older than 5.3.
    descriptor: Option<OwnedFd>,
}

impl Process {
    /// Returns the process that holds the `flock` on this file. An error completes "could not be
    /// stopped: …".
    pub fn holding(lock: &File) -> Result<Process, String> {
        let failed = |cause: io::Error| plain(&cause);
        let found = lock.metadata().map_err(failed)?;
        let locked = FileId::of(lock).map_err(failed)?;
        let number = holders::of_flock(locked).ok_or(
            "it cannot be seen from here: it runs in another container or on another machine",
        )?;
        let pid = Pid::from_raw(number).ok_or("the system does not report its process")?;
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::NOSYS) => None,
            opened => Some(opened.map_err(|cause| failed(cause.into()))?),
        };
        // From here on the descriptor identifies one process, even if the number is reused.
        let is_it =
            holders::of_flock(locked) == Some(number) && holders::has_file_open(number, locked);
        if !is_it {
            return Err(format!(
                "process {number} took its lock but no longer has it, or its open files are not \
                 visible"
            ));
        }
        let of_process = fs::metadata(format!("/proc/{number}")).map_err(failed)?;
        let user = user::current();
        let is_allowed =
            of_process.uid() == user || user == 0 && [0, found.uid()].contains(&of_process.uid());
        if !is_allowed {
            return Err(format!(
                "process {number}, which has its lock, belongs to user {}",
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
                "process {number}, which has its lock, is not a service"
            ));
        }
        Ok(Process { pid, descriptor })
    }

    /// Asks the process to end. A process that has already ended is not an error.
    pub fn ask_to_end(&self) -> Result<(), String> {
        self.signal(Signal::TERM)
    }

    /// Ends the process. A process that has already ended is not an error.
    pub fn kill(&self) -> Result<(), String> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
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

/// Returns the name of the process that holds the lock if it is visible and is another program.
pub fn another_program(lock: &File) -> Option<String> {
    let name = |process: &str| fs::read_to_string(format!("/proc/{process}/comm")).ok();
    let process = holders::of_flock(FileId::of(lock).ok()?)?;
    let is_other = name(&process.to_string())? != name("self")?;
    is_other.then(|| holders::name(process))
}

/// Returns whether the process was started as `kg serve`.
fn serves(process: i32) -> bool {
    let arguments = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(b"serve".as_slice())
}

/// Returns the name of a program. Another release counts as the same program, also while it is
/// being replaced.
fn program_name(program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?.to_str()?;
    Some(PathBuf::from(name.strip_suffix(DELETED).unwrap_or(name)))
}
