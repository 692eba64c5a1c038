//! Reads the members of a chain ahead of their use.
//!
//! ```text
//! members 0, 2, 4, … ─▶ thread ─┐
//! members 1, 3, 5, … ─▶ thread ─┴─▶ caller, in the order of the chain
//! ```
//!
//! Most members are small, so that one alone does not keep the cores busy. A thread holds at most
//! one member that the caller has not taken, which bounds the memory and the space on the disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread,
};

use crate::{
    error::{Error, Result},
    place::Archive,
    util::{
        operation::{OperationContext, Phase, Progress},
        progress::ByteProgress,
        threads::start_in,
    },
};

/// How many members are read at once. Each needs the memory of a whole pipeline.
const READERS: usize = 2;

/// Calls `read` with the number of each member, and `take` with what it returns, in the order of
/// the chain. Fails with the first error in this order. No call of `read` is in progress when this
/// returns.
///
/// The context that `read` receives counts the bytes of a member for the progress of the chain.
pub fn read_in_order<T: Send>(
    members: &[Archive],
    context: &OperationContext,
    phase: Phase,
    read: impl Fn(usize, &Archive, &OperationContext) -> Result<T> + Sync,
    mut take: impl FnMut(usize, &Archive, T) -> Result<()>,
) -> Result<()> {
    let sizes = members.iter().map(Archive::size_bytes);
    let all_bytes = sizes.flatten().flatten().sum();
    let progress = ByteProgress::new(context, phase, all_bytes);
    let read_from = |first: usize, send: &dyn Fn(Result<T>) -> bool| {
        // Asking for a key may start a program, which a cancellation ends.
        context.cancel.enter();
        for (number, member) in members.iter().enumerate().skip(first).step_by(READERS) {
            if !send(read(number, member, &part_of(&progress, context))) {
                return;
            }
        }
    };
    let taken = thread::scope(|threads| {
        let start = |first| -> Result<_> {
            let (sender, receiver) = sync_channel(0);
            let read_from = &read_from;
            // Sending fails if the caller has given up.
            let send = move |done| sender.send(done).is_ok();
            let running = start_in(threads, "kg-member", move || read_from(first, &send))?;
            Ok((receiver, running))
        };
        let readers = (0..READERS).map(start).collect::<Result<Vec<_>>>()?;
        let (readers, running): (Vec<_>, Vec<_>) = readers.into_iter().unzip();
        let mut in_order = members.iter().enumerate().zip(readers.iter().cycle());
        let taken = in_order.try_for_each(|((number, member), reader)| {
            let read = reader.recv();
            let read = read.map_err(|_| Error::internal("A thread that reads panicked"))?;
            take(number, member, read?)
        });
        drop(readers);
        // Without this, the panic of a thread would also be one of the caller.
        running.into_iter().for_each(|thread| drop(thread.join()));
        taken
    });
    taken?;
    context.report(phase, all_bytes, all_bytes)
}

/// Returns a context for one member. The bytes that it reports are added to those of the chain.
fn part_of(progress: &ByteProgress, context: &OperationContext) -> OperationContext {
    let (progress, before) = (progress.clone(), AtomicU64::new(0));
    let add = move |part: Progress| {
        let before = before.fetch_max(part.bytes_done, Ordering::Relaxed);
        // The member itself fails if the operation was cancelled.
        let _ = progress.advance(part.bytes_done.saturating_sub(before));
    };
    OperationContext::new(context.cancel.clone(), Some(Arc::new(add)))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::{Mutex, atomic::AtomicUsize},
        time::Duration,
    };

    use super::*;
    use crate::error::Code;

    /// Returns the files of a chain whose member `n` has n bytes.
    fn chain(dir: &Path, length: usize) -> Vec<Archive> {
        let member = |number: usize| {
            let path = dir.join(number.to_string());
            fs::write(&path, vec![0; number]).unwrap();
            Archive::at(&path)
        };
        (0..length).map(member).collect()
    }

    #[test]
    fn members_are_taken_in_order_and_few_wait_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let untaken = AtomicUsize::new(0);
        for length in [0, 1, 2, 3, 20] {
            let mut taken = Vec::new();
            read_in_order(
                &chain(dir.path(), length),
                &OperationContext::default(),
                Phase::Unpacking,
                |number, member, _| {
                    assert!(untaken.fetch_add(1, Ordering::SeqCst) <= READERS);
                    thread::sleep(Duration::from_millis(number as u64 % 3));
                    Ok(member.clone())
                },
                |number, member, read| {
                    untaken.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(read, *member);
                    taken.push(number);
                    Ok(())
                },
            )
            .unwrap();
            assert!(taken.into_iter().eq(0..length));
        }
    }

    #[test]
    fn the_first_error_in_the_order_of_the_chain_ends_the_reading() {
        let dir = tempfile::tempdir().unwrap();
        let read_to = AtomicUsize::new(0);
        let failing = |bad_reads: &[usize], bad_take: usize| {
            read_to.store(0, Ordering::SeqCst);
            let error = |number: usize| Error::internal(format!("member {number}"));
            read_in_order(
                &chain(dir.path(), 100),
                &OperationContext::default(),
                Phase::Unpacking,
                |number, _, _| {
                    read_to.fetch_max(number, Ordering::SeqCst);
                    // The earlier error comes later.
                    thread::sleep(Duration::from_millis(if number == 4 { 20 } else { 0 }));
                    match bad_reads.contains(&number) {
                        true => Err(error(number)),
                        false => Ok(()),
                    }
                },
                |number, _, ()| match number == bad_take {
                    true => Err(error(number)),
                    false => Ok(()),
                },
            )
            .unwrap_err()
            .message
        };
        assert_eq!(failing(&[4, 5], 100), Error::internal("member 4").message);
        assert_eq!(failing(&[9], 8), Error::internal("member 8").message);
        assert_eq!(failing(&[], 0), Error::internal("member 0").message);
        assert!(read_to.load(Ordering::SeqCst) <= READERS + 1);
    }

    #[test]
    fn a_panic_while_reading_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let members = chain(dir.path(), 5);
        let context = OperationContext::default();
        let read = |number, _: &Archive, _: &OperationContext| {
            assert_ne!(number, 3, "on purpose");
            Ok(())
        };
        let panicked = read_in_order(
            &members,
            &context,
            Phase::Unpacking,
            read,
            |_, _, ()| Ok(()),
        );
        assert_eq!(panicked.unwrap_err().code, Code::Internal);
    }

    #[test]
    fn progress_counts_the_bytes_of_all_members() {
        let dir = tempfile::tempdir().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let heard = heard.clone();
            move |progress: Progress| heard.lock().unwrap().push(progress)
        };
        let context = OperationContext::new(Default::default(), Some(Arc::new(listener)));
        read_in_order(
            &chain(dir.path(), 5),
            &context,
            Phase::Unpacking,
            |number, _, context| {
                let bytes = number as u64;
                context.report(Phase::Unpacking, bytes / 2, bytes)?;
                context.report(Phase::Unpacking, bytes, bytes)
            },
            |_, _, ()| Ok(()),
        )
        .unwrap();
        let heard = heard.lock().unwrap();
        assert!(heard.iter().all(|progress| progress.bytes_total == 10));
        assert!(heard.is_sorted_by_key(|progress| progress.bytes_done));
        assert_eq!(heard.last().unwrap().bytes_done, 10);
        let cancelled = OperationContext::default();
        cancelled.cancel.cancel();
        let read =
            |_, _: &Archive, context: &OperationContext| context.report(Phase::Unpacking, 1, 1);
        let members = chain(dir.path(), 5);
        let aborted = read_in_order(&members, &cancelled, Phase::Unpacking, read, |_, _, ()| {
            Ok(())
        });
        assert_eq!(aborted.unwrap_err().code, Code::Aborted);
    }
}
