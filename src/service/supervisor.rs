//! The duties of the first process of a container.
//!
//! If `kg serve` is the entry point of a container, it is process 1. Processes that lose their
//! parent become its children and stay zombies until it waits for them. Waiting for any child would
//! also collect the exit status of a hook, which another thread waits for. The service is therefore
//! a child process: process 1 starts it, forwards signals, and waits for all other children.

#[cfg_attr(unix, path = "supervisor/unix.rs")]
#[cfg_attr(windows, path = "supervisor/windows.rs")]
mod os;

pub use os::{is_first, supervise};
