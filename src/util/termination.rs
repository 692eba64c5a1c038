//! Signals that ask this process to end: Ctrl-C, `kill`, and a terminal that closes.

use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::threads;
use crate::error::{Error, Result};

/// Calls `handler`, on a thread of its own, for each such signal from now on. Returns `false` if
/// this process already has a handler, which stays.
pub fn on_request(mut handler: impl FnMut() + Send + 'static) -> Result<bool> {
    static HAS_HANDLER: AtomicBool = AtomicBool::new(false);
    if HAS_HANDLER.swap(true, Ordering::SeqCst) {
        return Ok(false);
    }
    let (tell, told) = channel();
    // If no thread is available, the signals keep their meaning.
    threads::start("kg-signals", move || {
        match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
            Err(cause) => drop(tell.send(cause)),
            Ok(mut signals) => {
                drop(tell);
                signals.forever().for_each(|_| handler());
            }
        }
    })?;
    match told.recv() {
        Ok(cause) => Err(Error::io(
            "watch",
            Path::new("the signals of this process"),
            cause,
        )),
        Err(_) => Ok(true),
    }
}
