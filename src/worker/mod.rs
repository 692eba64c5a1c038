//! The worker: the only code that opens the files of a live project.
//!
//! POSIX locks belong to a process and an inode. When a process closes *any* descriptor of a file,
//! it loses *all* locks that it holds on that file. A host process has the database open with its
//! own SQLite. If this crate opened the same file in that process, even to read sixteen bytes, the
//! host would lose its locks. Its database could then be corrupted.
//!
//! A host therefore starts `kg __reader` and talks to it over standard input and output. If the
//! process *is* `kg`, the same server runs on a thread, and a channel replaces the frames.
//!
//! ```text
//! client ── Request ──▶ server     [`backup`]: walks the project, streams entries
//! client ◀── Message, data … ──    [`restore`]: applies an unpacked backup, undoes that, recovers
//!                                  [`check`]: runs checks and repairs
//! ```
//!
//! [`baseline`] and [`known_files`] tell the worker what an earlier backup has.
//! [`protocol`] defines the frames. [`server`] answers one request and ends. [`client`] is the
//! interface that the commands use.

pub mod backup;
pub mod baseline;
pub mod check;
pub mod client;
pub mod known_files;
pub mod protocol;
pub mod restore;
pub mod server;
