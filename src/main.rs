//! The command line `kg`. As `kg __reader`, the same executable is the worker process of a host.

use std::process::ExitCode;

use kg_backup::WORKER_ARGUMENT;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};

fn main() -> ExitCode {
    allow_many_files();
    survive_large_files();
    let is_worker = std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == WORKER_ARGUMENT);
    if is_worker {
        kg_backup::worker()
    } else {
        kg_backup::kg()
    }
}

/// Blocks SIGXFSZ, so that a file larger than `ulimit -f` makes the write fail and does not end
/// this process. All threads inherit the signal mask.
fn survive_large_files() {
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
}

/// Raises the limit of open files, because every database of a project is open at once with three
/// descriptors per connection. If the system refuses, the old limit stays.
fn allow_many_files() {
    /// macOS refuses more, even if it names no limit (`OPEN_MAX`).
    const MOST_ON_MACOS: u64 = 10_240;
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let raised = if cfg!(target_os = "macos") {
            most.min(MOST_ON_MACOS)
        } else {
            most
        };
        let _ = setrlimit(Resource::RLIMIT_NOFILE, raised, most);
    }
}
