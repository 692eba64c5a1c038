//! The process that runs a service, as the kernel identifies it.
//!
//! The content of the lock file proves nothing. In another container, the same number is another
//! process, and any user who can write to the project could name any process. A signal therefore
//! goes to the process that holds the lock, through a descriptor of that process. Before that, this
//! module checks that the process is `kg` and that its user may run the service.

#[cfg_attr(target_os = "linux", path = "process/linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "process/unknown.rs")]
mod os;

pub use os::{Process, another_program};
