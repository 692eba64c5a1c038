//! `kg`: the command line, and, as `kg __reader`, the reader process of a host.

use std::process::ExitCode;

use kg_backup::{cli, worker};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};

fn main() -> ExitCode {
    allow_many_files();
    survive_large_files();
    let is_reader = std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == worker::protocol::READER_ARGUMENT);
    if is_reader {
        worker::server::main()
    } else {
        cli::main()
    }
}

/// A file that is too large for `ulimit -f` is an error of its write, and not the end of this process. All threads inherit this.
fn survive_large_files() {
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
}

/// Every database of a project is open at once, with three descriptors a connection. A refusal only keeps the old limit.
fn allow_many_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
