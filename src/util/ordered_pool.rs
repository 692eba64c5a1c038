//! Maps items on several threads and delivers the results in the order of submission.
//!
//! ```text
//! Submit ──jobs──▶ threads ──▶ one slot for each job
//!    └────────────slots, in order────────▶ Deliver
//! ```
//!
//! The number of items in progress for each thread is limited. This bounds the memory, and a slow
//! side holds up the other.

use std::{sync::OnceLock, thread};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{
    error::{Error, Result},
    util::threads,
};

struct Job<I, O> {
    item: I,
    slot: Sender<O>,
}

/// The input of the pool. Dropping it ends the work after the last item.
pub struct Submit<I, O> {
    jobs: Sender<Job<I, O>>,
    slots: Sender<Receiver<O>>,
}

/// The output of the pool.
pub struct Deliver<O> {
    slots: Receiver<Receiver<O>>,
}

/// Returns how many threads are worth starting on this machine.
pub fn cores() -> usize {
    // To find out takes several reads of files.
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |cores| cores.get()))
}

/// Starts `workers` threads and allows `items_each` items in progress for each of them. Calls
/// `worker` once for each thread; the function that it returns may keep state.
pub fn ordered<I, O, F>(
    workers: usize,
    items_each: usize,
    worker: impl Fn() -> F,
) -> Result<(Submit<I, O>, Deliver<O>)>
where
    I: Send + 'static,
    O: Send + 'static,
    F: FnMut(I) -> O + Send + 'static,
{
    let (jobs, taken) = bounded::<Job<I, O>>(workers * items_each);
    let (slots, ordered) = bounded(workers * items_each);
    for _ in 0..workers {
        let (jobs, mut map) = (taken.clone(), worker());
        threads::start("kg-worker", move || {
            for Job { item, slot } in jobs {
                // Sending fails if the receiving side has given up.
                let _ = slot.send(map(item));
            }
        })?;
    }
    Ok((Submit { jobs, slots }, Deliver { slots: ordered }))
}

/// The other side gave up and reports the reason itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl<I, O> Submit<I, O> {
    /// Submits an item; waits while too many are in progress.
    pub fn submit(&self, item: I) -> Result<(), Closed> {
        let (slot, result) = bounded(1);
        self.slots.send(result).map_err(|_| Closed)?;
        self.jobs.send(Job { item, slot }).map_err(|_| Closed)
    }
}

impl<O> Iterator for Deliver<O> {
    type Item = Result<O>;

    /// Returns the next result in order, or an error if its thread panicked.
    fn next(&mut self) -> Option<Result<O>> {
        let slot = self.slots.recv().ok()?;
        Some(
            slot.recv()
                .map_err(|_| Error::internal("A worker thread panicked")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn results_come_in_the_order_of_submission() {
        let (submit, deliver) =
            ordered(3, 4, || |n: u64| (0..n % 7 * 1000).fold(n, |sum, _| sum)).unwrap();
        let producer = thread::spawn(move || (0..500).for_each(|n| submit.submit(n).unwrap()));
        assert!(deliver.map(|result| result.unwrap()).eq(0..500));
        producer.join().unwrap();
    }

    #[test]
    fn the_producer_learns_that_nobody_takes_results_any_more() {
        let (submit, deliver) = ordered(2, 4, || |n: u32| n).unwrap();
        drop(deliver);
        assert_eq!(submit.submit(1), Err(Closed));
    }

    #[test]
    fn a_panic_of_a_worker_is_an_error_of_its_item() {
        let (submit, mut deliver) = ordered(1, 4, || {
            |n: u32| if n == 1 { panic!("on purpose") } else { n }
        })
        .unwrap();
        submit.submit(0).unwrap();
        submit.submit(1).unwrap();
        assert_eq!(deliver.next().unwrap().unwrap(), 0);
        assert_eq!(deliver.next().unwrap().unwrap_err().code, Code::Internal);
    }
}
