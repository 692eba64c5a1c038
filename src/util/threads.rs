//! Starts threads. The system may refuse one if a user, a systemd unit or a container has reached
//! its limit. That is an error, not a panic.

use std::{
    io,
    thread::{Builder, JoinHandle, Scope, ScopedJoinHandle},
};

use crate::error::{Code, Error, Result};

/// Starts a thread of that name.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(refused)
}

/// Works like [`start`], for a thread that ends before `scope` does.
pub fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new()
        .name(name.into())
        .spawn_scoped(scope, work)
        .map_err(refused)
}

/// Returns `KG_LIMIT`.
pub fn refused(cause: io::Error) -> Error {
    let remedy = "End other processes, or raise the limit: `ulimit -u`, `TasksMax=` in a systemd \
                  unit, or `pids` of a container";
    Error::new(
        Code::Limit,
        "The system refused to start another thread or process",
        remedy,
    )
    .with_cause(cause)
}
