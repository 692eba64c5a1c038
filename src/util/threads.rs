//! Threads, which a system may refuse: where a user, a unit of systemd or a container has as many as it may have, that is an error and no panic.

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

/// As [`start`], for one that ends before `scope` does.
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

/// `KG_LIMIT`.
pub fn refused(cause: io::Error) -> Error {
    let remedy = "End other processes, or let this one have more: `ulimit -u`, `TasksMax=` of a unit of systemd, `pids` of a container";
    Error::new(
        Code::Limit,
        "The system refused to start another thread or process",
        remedy,
    )
    .with_cause(cause)
}
