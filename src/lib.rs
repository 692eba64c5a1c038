//! Backup and recovery of knowledge-graph projects: the Rust core of `@weavelogic/knowledge-graph-agent`.
//!
//! A project keeps its state in `.kg/`: a SQLite database that several processes write, configuration, embeddings,
//! plugin data. This crate saves it, while it is in use, into archives that `tar` and `sqlite3` can open, verifies
//! them, and brings the project back.
//!
//! ```text
//! backup    project ─▶ worker ─pages, files─▶ tar ─▶ gzip, all cores ─▶ store ─▶ manifest
//! restore   store ─▶ gunzip, all cores ─▶ tar ─▶ checked against the manifest ─▶ staging ─▶ worker applies it
//! ```
//!
//! Each folder is a layer, and imports only those below it in this table; `tests/integration/layers.rs` keeps it so.
//!
//! | layer | what it is |
//! | --- | --- |
//! | [`cli`], [`node`] | the two faces: the command `kg`, and the addon. Only they know `clap` and `napi` |
//! | [`service`] | the process of `kg serve`, the history of runs, health, metrics, and the hooks that are called after a backup |
//! | [`commands`] | what a user asks for, a file each: back up, restore, verify, prune, check, repair, rehearse |
//! | [`worker`] | the one place that opens files of a live project: a process of its own inside a host |
//! | [`integrity`] | what can be wrong with a project, and how it is repaired |
//! | [`config`] | what `.kg/config.json` and `.kg/hooks.json` say of backups |
//! | [`schedule`] | when backups are made: a plan that is given the time |
//! | [`store`] | the directory where archives are kept: catalog, lock, pins, chains, the policy of retention |
//! | [`archive`] | the container: tar, blocks of gzip or zstd, manifest, checksums, seal, encryption |
//! | [`project`] | what a project holds, and where its database lies |
//! | [`salvage`] | rows out of damaged databases |
//! | [`sqlite`] | databases at one commit, their checks, and their file format |
//! | [`util`] | files that are written whole or not at all, locks, paths, progress |
//! | [`error`] | errors and warnings, with their codes |
//! | [`system`] | what the operating system says of paths, mounts and processes |
//!
//! `docs/internals/architecture.md` says why things are as they are.

pub mod archive;
pub mod cli;
pub mod commands;
pub mod config;
pub mod error;
pub mod integrity;
pub mod node;
pub mod project;
pub mod salvage;
pub mod schedule;
pub mod service;
pub mod sqlite;
pub mod store;
pub mod system;
pub mod util;
pub mod worker;

pub use error::{Code, Error, Result};
