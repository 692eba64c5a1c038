//! What every long operation carries: whether it was cancelled, and where its progress goes.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::error::{Error, Result};

/// No more reports than this within [`REPORT_WINDOW`].
const REPORTS_PER_WINDOW: usize = 10;
const REPORT_WINDOW: Duration = Duration::from_secs(1);

/// Between two reports of one phase; its end is reported at once.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How often something that waits looks whether it was cancelled.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A flag that several threads share; once set it stays set.
#[derive(Clone, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
    protected: Arc<AtomicBool>,
}

thread_local! {
    static CURRENT: RefCell<CancelToken> = RefCell::new(CancelToken::default());
}

impl CancelToken {
    /// What cancels the operation that this thread was started for.
    pub fn current() -> Self {
        CURRENT.with_borrow(CancelToken::clone)
    }

    /// From now on this thread is at work on the operation that this cancels.
    pub fn enter(&self) {
        CURRENT.set(self.clone());
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// From now on the process should not be ended: files are being put into place.
    pub fn enter_critical_section(&self) {
        self.protected.store(true, Ordering::Relaxed);
    }

    pub fn is_in_critical_section(&self) -> bool {
        self.protected.load(Ordering::Relaxed)
    }

    /// `KG_ABORTED` once the operation was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            Err(Error::aborted())
        } else {
            Ok(())
        }
    }
}

/// What an operation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waiting for another writer of the store.
    Waiting,
    /// Reading the project and writing the archive.
    Saving,
    /// Reading an archive and checking every byte of it.
    Verifying,
    /// Unpacking an archive beside the target, checking every byte of it.
    Unpacking,
    /// Putting what was unpacked into its place.
    Applying,
    /// Checking a project.
    Checking,
    /// Repairing a database.
    Repairing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    pub phase: Phase,
    /// Uncompressed bytes for a backup, bytes to read for a check, bytes of the archive otherwise.
    pub bytes_done: u64,
    /// 0 where it is not known yet.
    pub bytes_total: u64,
}

type Listener = dyn Fn(Progress) + Send + Sync;

/// Handed to every verb; cheap to clone.
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

    /// Reports progress, at most ten times in any second, and fails once the task was cancelled.
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
