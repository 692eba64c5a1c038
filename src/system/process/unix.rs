use std::{
    io,
    os::unix::process::{self, CommandExt},
    process::Command,
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};

/// macOS refuses more open files, even if it names no limit (`OPEN_MAX`).
const MOST_FILES_ON_MACOS: u64 = 10_240;

pub fn lift_limits() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let raised = if cfg!(target_os = "macos") {
            most.min(MOST_FILES_ON_MACOS)
        } else {
            most
        };
        let _ = setrlimit(Resource::RLIMIT_NOFILE, raised, most);
    }
    // A file larger than `ulimit -f` ends the process only if the signal is not blocked. All
    // threads inherit the signal mask.
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
}

pub fn leave_terminal() {
    // A session of its own. The call fails only for a process that already leads a process group.
    let _ = nix::unistd::setsid();
}

pub fn parent_id() -> u32 {
    process::parent_id()
}

pub fn give_place_to(command: &mut Command) -> io::Error {
    // This process blocks signals that the next program does not expect to be blocked.
    let _ = SigSet::all().thread_unblock();
    command.exec()
}
