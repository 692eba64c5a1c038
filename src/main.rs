//! `kg`: the command line, and, as `kg __reader`, the reader process of a host.

use std::process::ExitCode;

use kg_backup::{cli, reader};

fn main() -> ExitCode {
    let is_reader = std::env::args_os().nth(1).is_some_and(|first| first == reader::protocol::READER_ARGUMENT);
    if is_reader { reader::server::main() } else { cli::main() }
}
