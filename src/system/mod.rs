//! What the operating system says of paths, mounts and processes. Errors ask it for their messages, so it has none of its own.
//!
//! | module | what it tells |
//! | --- | --- |
//! | [`holders`] | which process has a lock |
//! | [`mounts`] | where something is mounted |
//! | [`paths`] | paths as people write them; who can replace what is there |

pub mod holders;
pub mod mounts;
pub mod paths;
