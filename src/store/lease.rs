//! The lock of a store in an object store: an object that names its holder until a time.
//!
//! The time is that of the service, so the clocks of the machines do not matter. A lock is taken,
//! renewed and released by a write that succeeds only if nobody wrote in between. A holder that was
//! stopped for longer than its lease notices that another took over, and then commits nothing.
//!
//! No correctness rests on the lease alone: archives and sidecars are never overwritten.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::names::LOCK_FILE;
use crate::{
    error::{Code, Error, Result},
    objects::{Created, Replaced, Version},
    place::ObjectPlace,
    util::{
        file_lock::host_name,
        hex::hex,
        operation::{CancelToken, OperationContext, POLL_INTERVAL, Phase},
        threads,
    },
};

/// How long a lock is held without a renewal. It is less than the time that a command waits for a
/// lock, so that one that follows a kill succeeds.
const LEASE: SignedDuration = SignedDuration::from_secs(45);
/// Services limit the writes of one object.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(15);
/// A lock that was renewed so lately need not be renewed before a use.
const FRESH: Duration = Duration::from_secs(5);
/// How often a process that waits for the lock looks again.
const WAIT_INTERVAL: Duration = Duration::from_secs(2);
const NONCE_BYTES: usize = 16;
const MAX_BYTES: u64 = 4096;

/// The content of the object.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Holder {
    /// For messages.
    owner: String,
    /// Tells two holders apart.
    nonce: String,
    /// Incremented whenever the lock is taken.
    generation: u64,
    since: Timestamp,
    /// Absent once the lock is released.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    /// The service supports no conditions on writes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unconditional: bool,
}

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct Lease {
    /// The holder before did not release the lock, so it was killed or cut off.
    follows_a_kill: bool,
    shared: Arc<Shared>,
    renewing: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    place: ObjectPlace,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    holder: Holder,
    version: Version,
    /// Why the lock is no longer held.
    lost: Option<Error>,
    /// When the last write began.
    renewed: Moment,
    has_ended: bool,
}

impl Lease {
    /// Waits, at most `timeout`, until this process holds the lock.
    pub fn acquire(
        place: &ObjectPlace,
        timeout: Duration,
        context: &OperationContext,
    ) -> Result<Self> {
        let began = Instant::now();
        let nonce = nonce()?;
        loop {
            context.cancel.check()?;
            match take(place, &nonce)? {
                Taken::Held(taken) => return Lease::hold(place, taken),
                Taken::Changed => {}
                Taken::By(holder) => {
                    let left = timeout.saturating_sub(began.elapsed());
                    if left.is_zero() {
                        return Err(held(place, &holder, timeout));
                    }
                    wait(left.min(WAIT_INTERVAL), context)?;
                }
            }
        }
    }

    fn hold(place: &ObjectPlace, taken: Held) -> Result<Self> {
        let shared = Arc::new(Shared {
            place: place.clone(),
            state: Mutex::new(State {
                holder: taken.holder,
                version: taken.version,
                lost: None,
                renewed: taken.at,
                has_ended: false,
            }),
            ended: Condvar::new(),
        });
        let renewed = shared.clone();
        let renewing = threads::start("kg-lease", move || renewed.renew_until_end())?;
        Ok(Lease {
            follows_a_kill: taken.follows_a_kill,
            shared,
            renewing: Some(renewing),
        })
    }

    /// Returns when the lock was taken, by the clock of the service.
    pub fn taken_at(&self) -> Timestamp {
        self.shared.state().holder.since
    }

    /// Returns whether the holder before may have left parts of its work.
    pub fn follows_a_kill(&self) -> bool {
        self.follows_a_kill
    }

    /// Renews the lock, unless it was renewed just before. Fails with `KG_STORE_LOCKED` if another
    /// process took it.
    pub fn assert_held(&self) -> Result<()> {
        let is_fresh = {
            let state = self.shared.state();
            state.lost.is_none() && state.renewed.is_within(FRESH)
        };
        if is_fresh { Ok(()) } else { self.renew() }
    }

    /// Works like [`Lease::assert_held`], and always asks the service.
    pub fn renew(&self) -> Result<()> {
        self.shared.renew(&mut self.shared.state())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.state().has_ended = true;
        self.shared.ended.notify_all();
        if let Some(renewing) = self.renewing.take() {
            let _ = renewing.join();
        }
        let state = self.shared.state();
        if state.lost.is_none() {
            let released = Holder {
                expires: None,
                ..state.holder.clone()
            };
            // If this fails, the lock ends by itself.
            let _ = CancelToken::despite_cancellation(|| {
                write(&self.shared.place, &released, Some(&state.version))
            });
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew_until_end(&self) {
        let mut state = self.state();
        loop {
            let waits = |state: &mut State| !state.has_ended;
            let waited = self
                .ended
                .wait_timeout_while(state, RENEWAL_INTERVAL, waits);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.has_ended || state.lost.is_some() {
                return;
            }
            // A service that does not answer now may answer before the lease ends. A lock that is
            // lost is noticed by the next commit.
            let _ = self.renew(&mut state);
        }
    }

    fn renew(&self, state: &mut State) -> Result<()> {
        if let Some(lost) = &state.lost {
            return Err(lost.clone());
        }
        let began = Moment::now();
        let renewed = Holder {
            expires: Some(until(&self.place)?),
            ..state.holder.clone()
        };
        let (holder, version) = match write(&self.place, &renewed, Some(&state.version))? {
            Some(version) => (renewed, version),
            // The answer of an earlier renewal may have been lost.
            None => match read(&self.place)? {
                Some((holder, version)) if holder.nonce == state.holder.nonce => (holder, version),
                found => {
                    let by = found.map_or("another process".into(), |(holder, _)| holder.owner);
                    let lost = lost(&self.place, &by);
                    state.lost = Some(lost.clone());
                    return Err(lost);
                }
            },
        };
        (state.holder, state.version, state.renewed) = (holder, version, began);
        Ok(())
    }
}

struct Held {
    holder: Holder,
    version: Version,
    follows_a_kill: bool,
    /// When the write of the lock began.
    at: Moment,
}

/// A time by both clocks of this machine. The one stops while the machine is suspended, and the other
/// can be set.
#[derive(Debug, Clone, Copy)]
struct Moment(Instant, SystemTime);

impl Moment {
    fn now() -> Self {
        Moment(Instant::now(), SystemTime::now())
    }

    /// Returns whether less time has passed by both clocks.
    fn is_within(self, time: Duration) -> bool {
        self.0.elapsed() < time && self.1.elapsed().is_ok_and(|passed| passed < time)
    }
}

enum Taken {
    Held(Held),
    By(Holder),
    /// Another process wrote at the same time.
    Changed,
}

/// Takes the lock if nobody holds it.
fn take(place: &ObjectPlace, nonce: &str) -> Result<Taken> {
    let at = Moment::now();
    let found = read(place)?;
    let now = place.server_time()?;
    let is_held = |holder: &Holder| {
        holder.nonce != nonce && holder.expires.is_some_and(|expires| expires > now)
    };
    let (generation, follows_a_kill, version) = match found {
        Some((holder, _)) if is_held(&holder) => return Ok(Taken::By(holder)),
        Some((holder, version)) => (holder.generation, holder.expires.is_some(), Some(version)),
        // A lock that was removed tells nothing.
        None => (0, true, None),
    };
    let holder = Holder {
        owner: format!("process {} on {}", std::process::id(), host_name()),
        nonce: nonce.to_string(),
        generation: generation.saturating_add(1),
        since: now,
        expires: Some(now.saturating_add(LEASE).unwrap_or(now)),
        unconditional: false,
    };
    let written = write(place, &holder, version.as_ref())?;
    Ok(written.map_or(Taken::Changed, |version| {
        Taken::Held(Held {
            holder,
            version,
            follows_a_kill,
            at,
        })
    }))
}

/// Returns the end of a lease that begins now.
fn until(place: &ObjectPlace) -> Result<Timestamp> {
    let now = place.server_time()?;
    Ok(now.saturating_add(LEASE).unwrap_or(now))
}

/// Returns the content of the object. One that cannot be parsed counts as released, because no
/// process of this tool wrote it.
fn read(place: &ObjectPlace) -> Result<Option<(Holder, Version)>> {
    let Some((bytes, object)) = place.client().read(LOCK_FILE, MAX_BYTES)? else {
        return Ok(None);
    };
    let holder = serde_json::from_slice(&bytes).unwrap_or_else(|_| Holder {
        owner: String::new(),
        nonce: String::new(),
        generation: 0,
        since: Timestamp::UNIX_EPOCH,
        expires: None,
        unconditional: false,
    });
    if holder.unconditional {
        place.client().drop_conditions();
    }
    Ok(Some((holder, object.version)))
}

/// Writes the object if it is still in the known state; `known` is `None` if it must not exist.
/// Returns `None` if it is not.
fn write(place: &ObjectPlace, holder: &Holder, known: Option<&Version>) -> Result<Option<Version>> {
    let holder = Holder {
        unconditional: place.client().is_unconditional(),
        ..holder.clone()
    };
    let bytes = serde_json::to_vec(&holder)
        .map_err(|cause| Error::internal("The lock could not be serialized").with_cause(cause))?;
    Ok(match known {
        None => match place.client().create(LOCK_FILE, bytes)? {
            Created::New(version) => Some(version),
            Created::Exists => None,
        },
        Some(known) => match place.client().replace(LOCK_FILE, bytes, known)? {
            Replaced::Done(version) => Some(version),
            Replaced::Changed => None,
        },
    })
}

/// Returns the owner, if a process holds the lock.
pub(super) fn holder(place: &ObjectPlace) -> Result<Option<String>> {
    let Some((holder, _)) = read(place)? else {
        return Ok(None);
    };
    let Some(expires) = holder.expires else {
        return Ok(None);
    };
    let now = place.server_time()?;
    Ok((expires > now).then_some(holder.owner))
}

fn wait(time: Duration, context: &OperationContext) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        context.report(Phase::Waiting, 0, 0)?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(POLL_INTERVAL));
    }
}

fn nonce() -> Result<String> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|cause| Error::internal("The system gives no random bytes").with_cause(cause))?;
    Ok(hex(&bytes))
}

fn held(place: &ObjectPlace, holder: &Holder, waited: Duration) -> Error {
    Error::locked(
        Code::StoreLocked,
        format!(
            "{} is in use by {} since {}; waited {} s",
            place.url().display(),
            holder.owner,
            holder.since,
            waited.as_secs_f32()
        ),
    )
}

fn lost(place: &ObjectPlace, by: &str) -> Error {
    let message = format!(
        "This process lost the lock of {} to {by}, because it was stopped or cut off for too long",
        place.url().display()
    );
    Error::new(Code::StoreLocked, message, "Run it again")
}
