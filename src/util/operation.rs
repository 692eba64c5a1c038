//! The context of every long operation: cancellation and progress.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The maximum number of reports within [`REPORT_WINDOW`].
const REPORTS_PER_WINDOW: usize = 10;
const REPORT_WINDOW: Duration = Duration::from_secs(1);

/// The minimum time between two reports of one phase. The end of a phase is reported at once.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How often a waiting thread checks for cancellation.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A flag that several threads share. Once it is set, it stays set.
#[derive(Clone, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
    protected: Arc<AtomicBool>,
}

thread_local! {
    static CURRENT: RefCell<CancelToken> = RefCell::new(CancelToken::default());
}

impl CancelToken {
    /// Returns the token of the operation that this thread works on.
    pub fn current() -> Self {
        CURRENT.with_borrow(CancelToken::clone)
    }

    /// Marks this thread as working on the operation that this token cancels.
    pub fn enter(&self) {
        CURRENT.set(self.clone());
    }

    /// Does work that must be done although the operation was cancelled, such as releasing a lock.
    pub fn despite_cancellation<T>(work: impl FnOnce() -> T) -> T {
        let current = CURRENT.replace(CancelToken::default());
        let done = work();
        CURRENT.set(current);
        done
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Declares that the process should not be ended from now on, because files are being put into
    /// place.
    pub fn enter_critical_section(&self) {
        self.protected.store(true, Ordering::Relaxed);
    }

    pub fn is_in_critical_section(&self) -> bool {
        self.protected.load(Ordering::Relaxed)
    }

    /// Fails with `KG_ABORTED` if the operation was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::aborted())
        } else {
            Ok(())
        }
    }
}

/// The current activity of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waiting for another writer of the store.
    Waiting,
    /// Reading the project and writing the archive.
    Saving,
    /// Reading an archive and checking every byte of it.
    Verifying,
    /// Unpacking an archive into staging and checking every byte of it.
    Unpacking,
    /// Moving the unpacked files into place.
    Applying,
    /// Copying archives to another store.
    Copying,
    /// Checking a project.
    Checking,
    /// Repairing a database.
    Repairing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    pub phase: Phase,
    /// The bytes done: uncompressed bytes for a backup, bytes to read for a check, and bytes of the
    /// archive otherwise.
    pub bytes_done: u64,
    /// The total in the same unit, or 0 if it is not known yet.
    pub bytes_total: u64,
}

type Listener = dyn Fn(Progress) + Send + Sync;

/// The context that every operation receives. It is cheap to clone.
#[derive(Clone, Default)]
pub struct OperationContext {
    pub cancel: CancelToken,
    listener: Option<Arc<Listener>>,
    reported: Arc<Mutex<VecDeque<(Instant, Phase)>>>,
}

impl OperationContext {
    pub fn new(cancel: CancelToken, listener: Option<Arc<Listener>>) -> Self {
        OperationContext {
            cancel,
            listener,
            reported: Arc::default(),
        }
    }

    /// Reports progress, at most ten times in any second. `KG_ABORTED` if the operation was
    /// cancelled.
    pub fn report(&self, phase: Phase, bytes_done: u64, bytes_total: u64) -> Result<()> {
        self.cancel.check()?;
        if let Some(listener) = &self.listener {
            let ends = bytes_done == bytes_total && bytes_total > 0;
            if self.is_due(phase, ends) {
                listener(Progress {
                    phase,
                    bytes_done,
                    bytes_total,
                });
            }
        }
        Ok(())
    }

    /// Passes on the progress that another process reported.
    pub fn pass_on(&self, progress: Progress) {
        if let Some(listener) = &self.listener {
            listener(progress);
        }
    }

    fn is_due(&self, phase: Phase, ends: bool) -> bool {
        let now = Instant::now();
        let mut reported = self
            .reported
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        while reported
            .front()
            .is_some_and(|(at, _)| now - *at >= REPORT_WINDOW)
        {
            reported.pop_front();
        }
        let due = match reported.back() {
            _ if reported.len() >= REPORTS_PER_WINDOW => false,
            Some((at, of)) if *of == phase => ends || now - *at >= REPORT_INTERVAL,
            _ => true,
        };
        if due {
            reported.push_back((now, phase));
        }
        due
    }
}
