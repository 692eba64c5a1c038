//! Backup and recovery of knowledge-graph projects: the Rust core of `@weavelogic/knowledge-graph-agent`.
//!
//! A project keeps its state in `.kg/`: a SQLite database that several processes write, configuration, embeddings,
//! plugin data. This crate saves it, while it is in use, into archives that `tar` and `sqlite3` can open, verifies
//! them, and brings the project back.
//!
//! ```text
//! backup    project ─▶ reader ─pages, files─▶ tar ─▶ gzip, all cores ─▶ store ─▶ manifest
//! restore   store ─▶ gunzip, all cores ─▶ tar ─▶ checked against the manifest ─▶ staging ─▶ reader applies it
//! ```
//!
//! | module | what it is |
//! | --- | --- |
//! | [`node`], [`cli`] | the two faces: the addon and the command `kg` |
//! | [`backup`], [`restore`], [`undo`], [`verify`], [`retention`], [`manage`], [`consolidate`], [`inspect`], [`health`], [`rehearse`] | the verbs |
//! | [`chain`], [`base`] | a full backup and the incremental ones that rest on it; what the next one may rest on |
//! | [`service`] | the process of `kg serve`, which makes backups on the project's schedule |
//! | [`hooks`] | who is told how a backup went: commands, webhooks, heartbeats |
//! | [`schedule`] | when backups happen by themselves: a plan that is told the time |
//! | [`keys`] | where the keys of encrypted backups come from |
//! | [`reader`] | the one place that opens files of a live project; a process of its own inside a host |
//! | [`archive`] | the container: tar, gzip, manifest, checksums, seal |
//! | [`store`] | the directory where archives are kept: catalog, lock, atomic writing |
//! | [`integrity`] | what can be wrong with a project, and what repair does about it. Called by the reader alone |
//! | [`project`], [`sqlite`] | what a project holds; databases at one commit. Called by the reader alone |
//! | [`settings`] | the part of `.kg/config.json` that is about backups, and `.kg/hooks.json`; opened by the reader alone, or by `kg config` |
//! | [`age`], [`cron`], [`task`], [`parallel`], [`lock`], [`durable`], [`ownership`], [`tolerated`], [`mounts`], [`holders`], [`scratch`], [`paths`], [`beneath`], [`limits`], [`hex`], [`error`] | lengths of time as people say them; the times that a cron expression names; cancellation and progress; work on all cores; waiting; files that are there whole or not at all; whose the files are that root writes; what a file system may refuse; mount points; who locks a database; directories that are thrown away; paths as people give them; paths without links; what a forged archive may take; how digests are written; errors |
//!
//! Dependencies point down this table, never up. `docs/architecture.md` says why things are as they are.

pub mod age;
pub mod archive;
pub mod backup;
pub mod base;
pub mod beneath;
pub mod chain;
pub mod cli;
pub mod consolidate;
pub mod content_hash;
pub mod cron;
pub mod durable;
pub mod error;
pub mod health;
pub mod hex;
pub mod holders;
pub mod hooks;
pub mod inspect;
pub mod integrity;
pub mod keys;
pub mod limits;
pub mod lock;
pub mod manage;
pub mod mounts;
pub mod node;
pub mod ownership;
pub mod parallel;
pub mod paths;
pub mod project;
pub mod reader;
pub mod regular;
pub mod rehearse;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod scratch;
pub mod service;
pub mod settings;
pub mod sqlite;
pub mod store;
pub mod task;
pub mod threads;
pub mod tolerated;
pub mod undo;
pub mod verify;

pub use error::{Code, Error, Result};
