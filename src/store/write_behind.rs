//! Writes an archive to the disk while the rest of it is still being compressed, so that the final
//! sync is short.
//!
//! A thread syncs the file after every [`STEP_BYTES`] bytes, and the writer does not wait for it.
//! The kernel reports a failed write to one sync only. The thread therefore keeps its error, and
//! [`WriteBehind::finish`] returns it.

use std::{io, thread::JoinHandle};

use crossbeam_channel::{Sender, bounded};

use crate::util::threads;

const STEP_BYTES: u64 = 16 * 1024 * 1024;

pub struct WriteBehind<S> {
    /// The sync function, until the thread takes it.
    sync: Option<S>,
    thread: Option<Syncing>,
    unsynced_bytes: u64,
}

struct Syncing {
    ask: Sender<()>,
    done: JoinHandle<io::Result<()>>,
}

impl<S: FnMut() -> io::Result<()> + Send + 'static> WriteBehind<S> {
    /// Creates a value that calls `sync`, which must make the written bytes durable.
    pub fn new(sync: S) -> Self {
        WriteBehind {
            sync: Some(sync),
            thread: None,
            unsynced_bytes: 0,
        }
    }

    /// Records that so many more bytes were written.
    pub fn wrote(&mut self, bytes: u64) -> io::Result<()> {
        self.unsynced_bytes += bytes;
        if self.unsynced_bytes < STEP_BYTES {
            return Ok(());
        }
        self.unsynced_bytes = 0;
        if let Some(sync) = self.sync.take() {
            self.thread = Some(Syncing::start(sync)?);
        }
        if let Some(thread) = &self.thread {
            // If the channel is full, the thread will cover these bytes too. If it is closed, the
            // thread failed and `finish` reports it.
            let _ = thread.ask.try_send(());
        }
        Ok(())
    }

    /// Waits for the running sync. After a failure any part of the file may be missing.
    pub fn finish(&mut self) -> io::Result<()> {
        let Some(Syncing { ask, done }) = self.thread.take() else {
            return Ok(());
        };
        drop(ask);
        done.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread that syncs the archive panicked",
            ))
        })
    }
}

impl Syncing {
    fn start(mut sync: impl FnMut() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (ask, asked) = bounded(1);
        let run = move || asked.into_iter().try_for_each(|()| sync());
        let done = threads::start("kg-sync", run).map_err(io::Error::other)?;
        Ok(Syncing { ask, done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_fails_meanwhile_fails_the_end() {
        let mut behind = WriteBehind::new(|| Err(io::ErrorKind::StorageFull.into()));
        (0..100).for_each(|_| behind.wrote(STEP_BYTES).unwrap());
        assert_eq!(
            behind.finish().unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }

    #[test]
    fn it_begins_with_the_first_step_and_ends_when_all_that_was_asked_for_is_done() {
        let (called, calls) = bounded(1000);
        let mut behind = WriteBehind::new(move || called.send(()).map_err(io::Error::other));
        behind.wrote(STEP_BYTES - 1).unwrap();
        behind.finish().unwrap();
        assert_eq!(calls.len(), 0);
        behind.wrote(1).unwrap();
        behind.finish().unwrap();
        assert_eq!(calls.len(), 1);
    }
}
