//! Operating-system helpers for the other layers, and small types that all of them share.
//!
//! | module | content |
//! | --- | --- |
//! | [`age`] | durations in readable form |
//! | [`dir_handle`] | files below an open directory, without following links of other users |
//! | [`entry_stat`] | what an entry of a directory is, and whose |
//! | [`open_dirs`] | the same for many files, with few directories opened twice |
//! | [`atomic_file`] | files that exist completely or not at all |
//! | [`temp_dir`] | temporary directories for this user alone |
//! | [`regular_file`] | opening files that another user may have created |
//! | [`ownership`] | the owners of files that root writes |
//! | [`unsupported`] | operations that a file system may refuse |
//! | [`sync_many`] | many files made durable with one call |
//! | [`file_lock`] | waiting for a lock |
//! | [`content_hash`] | hashes of blocks and pages |
//! | [`digest`], [`hex`] | SHA-256 digests as values; digests as text |
//! | [`ordered_pool`], [`threads`] | parallel work, results in order; threads that may not start |
//! | [`child`] | child processes that end with everything that they started |
//! | [`termination`] | signals that ask this process to end |
//! | [`operation`], [`progress`] | cancellation and progress; counting bytes |
//! | [`limits`] | limits for forged archives |

pub mod age;
pub mod atomic_file;
pub mod child;
pub mod content_hash;
pub mod digest;
pub mod dir_handle;
pub mod entry_stat;
pub mod file_lock;
pub mod hex;
pub mod limits;
pub mod open_dirs;
pub mod operation;
pub mod ordered_pool;
pub mod ownership;
pub mod progress;
pub mod regular_file;
pub mod sync_many;
pub mod temp_dir;
pub mod termination;
pub mod threads;
pub mod unsupported;
pub mod wording;
