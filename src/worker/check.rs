//! Runs checks and repairs while no restore is running, and reports the progress of checks.

use std::{fs::File, path::Path, thread, time::Duration};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::{
    protocol::{CheckRequest, Message, RepairRequest, ResponseSink},
    restore::{lock_against_restores, lock_and_recover, salvage},
};
use crate::{
    error::{Error, Result},
    integrity::{
        Check, Report, VECTOR_DATABASE, check,
        issue::Part,
        repair::{Done, Work, perform},
        target::{CheckTarget, Resolved},
    },
    project::STATE_DIR,
    sqlite::{private_copy, wal_in_use},
    util::{operation::CancelToken, progress::ByteProgress, threads::start_in},
};

const REPORT_INTERVAL: Duration = Duration::from_millis(100);

pub fn inspect(
    request: &CheckRequest,
    answers: &mut dyn ResponseSink,
    cancel: &CancelToken,
) -> Result<Report> {
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    let _no_restore = keep_restores_out(&request.subject, lock_timeout, cancel)?;
    let progress = ByteProgress::default();
    let conditions = Check {
        cancel,
        progress: &progress,
        lock_timeout,
        scratch: &request.scratch,
    };
    thread::scope(|threads| {
        let (sender, receiver) = bounded(1);
        // If the result cannot be sent, the receiver has gone and does not need it.
        start_in(threads, "kg-check", move || {
            drop(sender.send(check(&request.subject, request.scope, &conditions)))
        })?;
        loop {
            match receiver.recv_timeout(REPORT_INTERVAL) {
                Ok(report) => return report,
                Err(RecvTimeoutError::Timeout) => {
                    let (bytes_done, bytes_total) = (progress.done(), progress.total());
                    let checking = Message::Checking {
                        bytes_done: bytes_done.min(bytes_total),
                        bytes_total,
                    };
                    // The client has gone, so the check must end too.
                    answers.message(checking).inspect_err(|_| cancel.cancel())?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("The checks panicked"));
                }
            }
        }
    })
}

pub fn repair(request: &RepairRequest) -> Result<Vec<Done>> {
    let lock_timeout = Duration::from_millis(request.lock_timeout_ms);
    // A salvage replaces files as a restore does, so it needs the exclusive lock of the project.
    let replaces = request
        .actions
        .iter()
        .any(|action| action.work == Work::Salvage);
    let project = request.subject.resolve()?.project.filter(|_| replaces);
    let _alone = match &project {
        Some(project) => Some(lock_and_recover(
            project.root(),
            lock_timeout,
            &mut Vec::new(),
        )?),
        None => keep_restores_out(&request.subject, lock_timeout, &CancelToken::default())?,
    };
    let Resolved {
        database, project, ..
    } = request.subject.resolve()?;
    let vectors = project.map(|project| project.state_dir().join(VECTOR_DATABASE));
    for database in [Some(&database), vectors.as_ref()].into_iter().flatten() {
        if let Some(elsewhere) = wal_in_use::find(database) {
            return Err(elsewhere.refusal(database));
        }
    }
    if let Some(to) = &request.safety_copy {
        private_copy::keep(&database, to, lock_timeout)?;
    }
    let salvaging = |resolved: &Resolved, database: &Path, part: Part| {
        salvage::salvage(resolved, database, part, lock_timeout)
    };
    perform(&request.subject, &request.actions, lock_timeout, &salvaging)
}

/// Keeps restores out of the project, because a half-restored project is not a consistent state.
/// Returns `None` for a database without a project, which has nothing to lock.
fn keep_restores_out(
    subject: &CheckTarget,
    lock_timeout: Duration,
    cancel: &CancelToken,
) -> Result<Option<File>> {
    let state = subject
        .root
        .as_ref()
        .map(|root| root.join(STATE_DIR))
        .filter(|state| state.is_dir());
    state
        .map(|state| lock_against_restores(&state, lock_timeout, cancel))
        .transpose()
}
