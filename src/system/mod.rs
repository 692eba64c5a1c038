//! Information from the operating system about paths, mounts and processes. Error messages use it,
//! so this module has no errors of its own.
//!
//! | module | content |
//! | --- | --- |
//! | [`file_system`] | space, network, and what a file system can do |
//! | [`file_id`] | what identifies a file under any name |
//! | [`holders`] | which process holds a lock |
//! | [`mounts`] | where file systems are mounted |
//! | [`portable`] | the extension traits of std on every system |
//! | [`process`] | the limits of this process, and its ties to a terminal |
//! | [`refusal`] | what an error of the operating system means |
//! | [`user`] | the user that this process acts for |
//! | [`paths`] | paths that users give; who can replace a file |

pub mod file_id;
pub mod file_system;
pub mod holders;
pub mod mounts;
pub mod paths;
pub mod portable;
pub mod process;
pub mod refusal;
pub mod user;
pub mod writers;
