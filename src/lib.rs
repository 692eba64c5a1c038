//! Backup and recovery of knowledge-graph projects: the Rust core of
//! `@weavelogic/knowledge-graph-agent`.
//!
//! A project keeps its state in `.kg/`: a SQLite database that several processes write,
//! configuration, embeddings and plugin data. This crate saves the project while it is in use. The
//! archives can be opened with `tar` and `sqlite3`. The crate also verifies archives and restores
//! projects from them.
//!
//! ```text
//! backup    project ─▶ worker ─pages, files─▶ tar ─▶ gzip, all cores ─▶ store ─▶ manifest
//! restore   store ─▶ gunzip, all cores ─▶ tar ─▶ checked against the manifest ─▶ staging ─▶ worker
//! ```
//!
//! Each folder is a layer and imports only the layers below it in this table. The test
//! `tests/integration/layers.rs` enforces this.
//!
//! | layer | purpose |
//! | --- | --- |
//! | [`cli`], [`node`] | the command `kg` and the addon; only they use `clap` and `napi` |
//! | [`calls`] | the calls of the JavaScript API: JSON in, JSON out |
//! | [`service`] | the process of `kg serve`, run history, health, metrics, hooks after a backup |
//! | [`commands`] | the user commands, such as back up, restore, prune or drill |
//! | [`worker`] | opens the files of a live project; inside a host it is a separate process |
//! | [`integrity`] | checks of a project, and repairs |
//! | [`config`] | the backup settings of `.kg/config.json`, and `.kg/hooks.json` |
//! | [`schedule`] | when backups are made: a plan that receives the time as an argument |
//! | [`store`] | a directory or a prefix of archives: catalog, lock, pins, chains, retention |
//! | [`archive`] | the container: tar, gzip or zstd blocks, manifest, checksums, seal, encryption |
//! | [`place`] | where archives lie: a directory, or an object store |
//! | [`objects`] | a client for object stores: S3, Google Cloud Storage, Azure |
//! | [`project`] | the contents of a project, and the path of its database |
//! | [`salvage`] | rows out of damaged databases |
//! | [`sqlite`] | databases at one commit, their checks, and their file format |
//! | [`util`] | atomic file writes, directory handles, locks, progress |
//! | [`error`] | errors and warnings, with their codes |
//! | [`system`] | what the operating system reports about paths, mounts and processes |
//!
//! `docs/internals/architecture.md` shows how they work together, and `docs/internals/decisions/` why.

mod archive;
mod calls;
mod cli;
mod commands;
mod config;
mod error;
mod integrity;
pub mod node;
mod objects;
mod place;
mod project;
mod salvage;
mod schedule;
mod service;
mod sqlite;
mod store;
mod system;
mod util;
mod worker;

use std::process::ExitCode;

pub use self::{
    error::{Code, Error, Result},
    worker::protocol::WORKER_ARGUMENT,
};

/// Lifts limits that a process of this crate's own needs to lift. Not for a host process.
pub fn prepare_process() {
    system::process::lift_limits();
}

/// Runs the command line.
pub fn kg() -> ExitCode {
    place::install();
    cli::main()
}

/// Runs the worker.
pub fn worker() -> ExitCode {
    place::install();
    worker::server::main(calls::run_in_kg)
}

/// Everything, for the tests, the benchmark and the fuzz targets of this repository alone.
///
/// `npm run lint` also compiles the crate without it, so that the compiler reports dead code.
#[cfg(not(without_internals))]
#[doc(hidden)]
pub mod internals {
    pub use crate::{Code, Error, Result};

    pub mod archive {
        pub use crate::archive::*;
    }
    pub mod cli {
        pub use crate::cli::*;
    }
    pub mod commands {
        pub use crate::commands::*;
    }
    pub mod config {
        pub use crate::config::*;
    }
    pub mod error {
        pub use crate::error::*;
    }
    pub mod integrity {
        pub use crate::integrity::*;
    }
    pub mod place {
        pub use crate::place::*;
    }
    pub mod objects {
        pub use crate::objects::*;
    }
    pub mod project {
        pub use crate::project::*;
    }
    pub mod salvage {
        pub use crate::salvage::*;
    }
    pub mod schedule {
        pub use crate::schedule::*;
    }
    pub mod service {
        pub use crate::service::*;
    }
    pub mod sqlite {
        pub use crate::sqlite::*;
    }
    pub mod store {
        pub use crate::store::*;
    }
    pub mod system {
        pub use crate::system::*;
    }
    pub mod util {
        pub use crate::util::*;
    }
    pub mod worker {
        pub use crate::worker::*;
    }
}
