//! Limits the bandwidth, and notes progress, of the bodies that are sent and received.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

/// Small enough that a slow connection makes progress within the shortest timeout.
const PIECE_BYTES: usize = 16 << 10;

/// What the system may hold back of a body after it took all of it, and how slowly that may pass.
/// Nothing reports this progress.
const MOST_BUFFERED_BYTES: u64 = 4 << 20;
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;

/// The most bytes a second in one direction. All requests of a bucket share it.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    next: Mutex<Instant>,
}

impl Throttle {
    pub fn new(bytes_per_second: u64) -> Throttle {
        Throttle {
            bytes_per_second: bytes_per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Reserves time for so many bytes, and returns how long to wait before they may pass.
    pub fn reserve(&self, bytes: usize) -> Duration {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(now);
        let seconds = bytes as f64 / self.bytes_per_second as f64;
        *next = start + Duration::from_secs_f64(seconds);
        start - now
    }
}

/// When bytes of a request last passed, in either direction.
#[derive(Debug)]
pub struct Activity(Mutex<Instant>);

impl Activity {
    pub fn new() -> Arc<Activity> {
        Arc::new(Activity(Mutex::new(Instant::now())))
    }

    pub fn note(&self) {
        self.note_at(Instant::now());
    }

    /// Notes that bytes will pass then: a wait for the bandwidth is not a stall.
    pub fn note_at(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    pub fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a request, in pieces.
pub struct Outgoing {
    data: Bytes,
    size_bytes: u64,
    activity: Arc<Activity>,
    throttle: Option<Arc<Throttle>>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Outgoing {
    pub fn new(data: Bytes, activity: Arc<Activity>, throttle: Option<Arc<Throttle>>) -> Self {
        Outgoing {
            size_bytes: data.len() as u64,
            data,
            activity,
            throttle,
            wait: None,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.data.is_empty() {
            return Poll::Ready(None);
        }
        let size = self.data.len().min(PIECE_BYTES);
        if self.wait.is_none()
            && let Some(throttle) = &self.throttle
        {
            let wait = throttle.reserve(size);
            self.activity.note_at(Instant::now() + wait);
            self.wait = Some(Box::pin(tokio::time::sleep(wait)));
        }
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(context));
            self.wait = None;
        }
        let piece = self.data.split_to(size);
        let held_back = match self.data.is_empty() {
            true => self.size_bytes.min(MOST_BUFFERED_BYTES),
            false => 0,
        };
        let grace = Duration::from_secs(held_back / SLOWEST_BYTES_PER_SECOND);
        self.activity.note_at(Instant::now() + grace);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}
