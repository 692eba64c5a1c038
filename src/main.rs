//! The command line `kg`. As `kg __reader`, the same executable is the worker process of a host.

use std::process::ExitCode;

use kg_backup::WORKER_ARGUMENT;

fn main() -> ExitCode {
    kg_backup::prepare_process();
    let is_worker = std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == WORKER_ARGUMENT);
    if is_worker {
        kg_backup::worker()
    } else {
        kg_backup::kg()
    }
}
