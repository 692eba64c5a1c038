use std::{
    io,
    os::{
        fd::AsFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, ChildStdout, Command, ExitStatus},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// The process group of the child has the number of the child.
pub struct Group;

pub fn spawn(command: &mut Command) -> io::Result<(Child, Group)> {
    Ok((command.process_group(0).spawn()?, Group))
}

pub fn kill(child: &Child, _group: &Group) {
    // The call fails only if the processes have already ended.
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

pub fn is_readable(pipe: &ChildStdout, timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) | Err(Errno::EINTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(target_os = "linux")]
pub fn widen(pipe: &ChildStdout) {
    let _ = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20));
}

#[cfg(not(target_os = "linux"))]
pub fn widen(_pipe: &ChildStdout) {}

pub fn signal(status: ExitStatus) -> Option<i32> {
    status.signal()
}
