//! The bytes that an operation has done.

use std::{
    fs::File,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::operation::{OperationContext, Phase};
use crate::error::{Error, Result};

/// How much of a file is read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Counts the bytes that an operation has done. Clones share the counts, also between threads.
///
/// The default value has no operation to report to; another thread reads its counts instead.
#[derive(Clone, Default)]
pub struct ByteProgress {
    operation: Option<(OperationContext, Phase)>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    done: AtomicU64,
    total: AtomicU64,
}

impl ByteProgress {
    /// Creates a counter that reports to the operation. `bytes_total` is 0 if it is not known yet.
    pub fn new(context: &OperationContext, phase: Phase, bytes_total: u64) -> Self {
        let progress = ByteProgress {
            operation: Some((context.clone(), phase)),
            counts: Arc::default(),
        };
        progress.set_total(bytes_total);
        progress
    }

    pub fn set_total(&self, bytes: u64) {
        self.counts.total.store(bytes, Ordering::Relaxed);
    }

    pub fn done(&self) -> u64 {
        self.counts.done.load(Ordering::Relaxed)
    }

    pub fn total(&self) -> u64 {
        self.counts.total.load(Ordering::Relaxed)
    }

    /// Counts bytes without a report.
    pub fn add(&self, bytes: u64) {
        self.counts.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes and reports them. The total grows with them, because a file may grow after it
    /// was planned. `KG_ABORTED` if the operation was cancelled.
    pub fn advance(&self, bytes: u64) -> Result<()> {
        self.add(bytes);
        self.counts.total.fetch_max(self.done(), Ordering::Relaxed);
        self.report()
    }

    /// Reads a file to its end, in pieces, and reports them.
    pub fn read(&self, path: &Path, mut take: impl FnMut(&[u8])) -> Result<()> {
        let failed = |cause| Error::io("read", path, cause);
        let mut file = File::open(path).map_err(failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = file.read(&mut piece).map_err(failed)?;
            if read == 0 {
                return Ok(());
            }
            take(&piece[..read]);
            self.advance(read as u64)?;
        }
    }

    /// Reports the counts. `KG_ABORTED` if the operation was cancelled.
    pub fn report(&self) -> Result<()> {
        match &self.operation {
            Some((context, phase)) => context.report(*phase, self.done(), self.total()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, thread};

    use super::*;
    use crate::{
        error::Code,
        util::operation::{CancelToken, Progress},
    };

    /// Returns a context and the list of what it reports.
    fn listening() -> (OperationContext, Arc<Mutex<Vec<Progress>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let heard = heard.clone();
            move |progress| heard.lock().unwrap().push(progress)
        };
        let context = OperationContext::new(CancelToken::default(), Some(Arc::new(listener)));
        (context, heard)
    }

    #[test]
    fn counts_are_reported_with_the_phase_and_the_total() {
        let (context, heard) = listening();
        let progress = ByteProgress::new(&context, Phase::Verifying, 10);
        progress.add(4);
        progress.report().unwrap();
        progress.add(6);
        progress.report().unwrap();
        let report = |bytes_done| Progress {
            phase: Phase::Verifying,
            bytes_done,
            bytes_total: 10,
        };
        assert_eq!(*heard.lock().unwrap(), [report(4), report(10)]);
    }

    #[test]
    fn the_total_grows_only_with_bytes_that_advance_it() {
        let progress = ByteProgress::default();
        progress.set_total(5);
        progress.add(8);
        assert_eq!((progress.done(), progress.total()), (8, 5));
        progress.advance(1).unwrap();
        assert_eq!((progress.done(), progress.total()), (9, 9));
    }

    #[test]
    fn clones_in_other_threads_share_the_counts() {
        let progress = ByteProgress::default();
        thread::scope(|threads| {
            for _ in 0..4 {
                let progress = progress.clone();
                threads.spawn(move || (0..1000).for_each(|_| progress.add(1)));
            }
        });
        assert_eq!(progress.done(), 4000);
    }

    #[test]
    fn a_cancelled_operation_ends_at_the_next_report() {
        let (context, heard) = listening();
        let progress = ByteProgress::new(&context, Phase::Saving, 10);
        context.cancel.cancel();
        assert_eq!(progress.advance(1).unwrap_err().code, Code::Aborted);
        assert!(heard.lock().unwrap().is_empty());
    }
}
