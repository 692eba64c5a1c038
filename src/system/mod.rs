//! Information from the operating system about paths, mounts and processes. Error messages use it,
//! so this module has no errors of its own.
//!
//! | module | content |
//! | --- | --- |
//! | [`file_system`] | space, network, and what a file system can do |
//! | [`holders`] | which process holds a lock |
//! | [`mounts`] | where file systems are mounted |
//! | [`paths`] | paths that users give; who can replace a file |

pub mod file_system;
pub mod holders;
pub mod mounts;
pub mod paths;
