//! Runs asynchronous requests for ordinary threads, on two threads that all buckets share.

use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::AbortHandle,
};

use crate::{
    error::{Error, Result},
    util::{
        operation::{CancelToken, POLL_INTERVAL},
        threads,
    },
};

const THREADS: usize = 2;

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

fn handle() -> Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if runtime.is_none() {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(THREADS).thread_name("objects");
        *runtime = Some(builder.enable_all().build().map_err(threads::refused)?);
    }
    let runtime = runtime.as_ref().map(|one| one.handle().clone());
    runtime.ok_or_else(|| Error::internal("No runtime for requests"))
}

/// Work that has begun. It ends when this is dropped.
pub struct Task<T> {
    /// Only the one who waits uses it. The mutex lets other threads hold a reference to the task.
    result: Mutex<Receiver<T>>,
    work: AbortHandle,
}

impl<T: Send + 'static> Task<T> {
    pub fn start(work: impl Future<Output = T> + Send + 'static) -> Result<Task<T>> {
        let (sender, result) = mpsc::sync_channel(1);
        let work = handle()?.spawn(async move {
            // The receiver is gone if no one waits any more.
            let _ = sender.send(work.await);
        });
        Ok(Task {
            result: Mutex::new(result),
            work: work.abort_handle(),
        })
    }

    /// Waits for the result. `KG_ABORTED` soon after the operation is cancelled.
    pub fn wait(mut self, cancel: &CancelToken) -> Result<T> {
        let result = self.receiver();
        loop {
            cancel.check()?;
            match result.recv_timeout(POLL_INTERVAL) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("A request to an object store panicked"));
                }
            }
        }
    }

    /// Waits for the result, but no longer than that.
    pub fn wait_at_most(mut self, limit: Duration) -> Option<T> {
        self.receiver().recv_timeout(limit).ok()
    }

    fn receiver(&mut self) -> &mut Receiver<T> {
        self.result
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Waits for the work, on behalf of the operation of this thread.
pub fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T> {
    Task::start(work)?.wait(&CancelToken::current())
}
