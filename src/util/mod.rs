//! What the other layers need of the operating system, and small types that all of them share.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`age`] | lengths of time as people write them |
//! | [`dir_handle`] | files below an open directory, reached without following links of others |
//! | [`atomic_file`] | files that are there whole or not at all |
//! | [`temp_dir`] | temporary directories for this user alone |
//! | [`regular_file`] | opening files that another user may have put there |
//! | [`ownership`] | whose the files are that root writes |
//! | [`unsupported`] | what a file system may refuse |
//! | [`file_lock`] | waiting for a lock |
//! | [`content_hash`], [`hex`] | hashes of blocks and pages; digests as text |
//! | [`ordered_pool`], [`threads`] | work on all cores, in order; threads that may not start |
//! | [`operation`] | cancellation and progress |
//! | [`limits`] | how much a forged archive may take |

pub mod age;
pub mod atomic_file;
pub mod content_hash;
pub mod dir_handle;
pub mod file_lock;
pub mod hex;
pub mod limits;
pub mod operation;
pub mod ordered_pool;
pub mod ownership;
pub mod regular_file;
pub mod temp_dir;
pub mod threads;
pub mod unsupported;
