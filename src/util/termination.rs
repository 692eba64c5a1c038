//! Signals that ask this process to end: Ctrl-C, `kill`, and a terminal that closes.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;

#[cfg_attr(unix, path = "termination/unix.rs")]
#[cfg_attr(windows, path = "termination/windows.rs")]
mod os;

/// Calls `handler`, on a thread of its own, for each such signal from now on. Returns `false` if
/// this process already has a handler, which stays.
pub fn on_request(handler: impl FnMut() + Send + 'static) -> Result<bool> {
    static HAS_HANDLER: AtomicBool = AtomicBool::new(false);
    if HAS_HANDLER.swap(true, Ordering::SeqCst) {
        return Ok(false);
    }
    os::watch(handler).map(|()| true)
}
