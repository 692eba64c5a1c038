use std::{
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, wait},
    },
    unistd::Pid,
};

use crate::{
    error::{Error, Result},
    util::termination,
};

/// Marks that a signal arrived before the service was started.
const STOPPED: i32 = -1;

/// Returns whether this process is the first of its container.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Runs this command again as a child and returns the exit status of the child.
pub fn supervise() -> Result<u8> {
    let failed = |cause: io::Error| Error::io("start", Path::new("the service"), cause);
    let service = Arc::new(AtomicI32::new(0));
    let seen = Arc::clone(&service);
    let forward = move || match seen.load(Ordering::SeqCst) {
        pid if pid > 0 => drop(kill(Pid::from_raw(pid), Signal::SIGTERM)),
        _ => seen.store(STOPPED, Ordering::SeqCst),
    };
    termination::on_request(forward)?;
    let executable = std::env::current_exe().map_err(failed)?;
    // The child has its own process group. Ctrl-C in a terminal reaches this process, which
    // forwards it once.
    let child = Command::new(executable)
        .args(std::env::args_os().skip(1))
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let pid = Pid::from_raw(child.id() as i32);
    if service.swap(pid.as_raw(), Ordering::SeqCst) == STOPPED {
        let _ = kill(pid, Signal::SIGTERM);
    }
    loop {
        match wait() {
            Ok(WaitStatus::Exited(ended, status)) if ended == pid => {
                return Ok(status as u8);
            }
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => {
                return Ok(128_u8.saturating_add(signal as i32 as u8));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(cause) => return Err(failed(cause.into())),
        }
    }
}
