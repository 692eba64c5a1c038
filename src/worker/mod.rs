//! The reader: the one place that opens files of a live project.
//!
//! POSIX locks belong to a process and an inode: when a process closes *any* descriptor of a file, *all* locks that it
//! holds on it are gone. A host process has the database open with its own SQLite; if this crate opened the same file
//! in that process, even to read sixteen bytes, the host's locks would vanish and its database could end corrupt. So
//! a host starts `kg __reader` and talks to it over its standard input and output. When the process *is* `kg`, the
//! same server runs on a thread and the frames become a channel.
//!
//! ```text
//! client ── Request ──▶ server     [`backup`]: walks the project, streams entries
//! client ◀── Message, data … ──    [`restore`]: puts an unpacked backup into its place, undoes that, clears up
//!                                  [`verify`]: runs checks and repairs
//! ```
//!
//! [`protocol`] defines the frames, [`server`] answers one request and ends, [`client`] is what the verbs use.

pub mod backup;
pub mod baseline;
pub mod check;
pub mod client;
pub mod protocol;
pub mod restore;
pub mod server;
