//! What an operation asks of its requests, and what they tell it. `object_store` lies in between and
//! passes neither on, so that both belong to the task.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

use super::failure::Failure;

/// Answers are held in memory. A range and a page of a list are far smaller.
const MOST_BYTES: u64 = 32 << 20;

tokio::task_local! {
    static CURRENT: Arc<Call>;
}

#[derive(Debug)]
pub struct Call {
    /// Headers to add to each request.
    pub headers: HeaderMap,
    /// The longest answer to accept.
    pub most_bytes: u64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    failure: Option<Failure>,
    service_time: Option<Timestamp>,
}

impl Default for Call {
    fn default() -> Self {
        Call {
            headers: HeaderMap::new(),
            most_bytes: MOST_BYTES,
            told: Mutex::default(),
        }
    }
}

impl Call {
    /// Returns the call of this task.
    pub fn current() -> Arc<Call> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    pub fn limited_to(most_bytes: u64) -> Call {
        Call {
            most_bytes,
            ..Call::default()
        }
    }

    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Call {
        self.headers.insert(name, value);
        self
    }

    pub fn with_headers(mut self, headers: HeaderMap) -> Call {
        self.headers.extend(headers);
        self
    }

    /// Makes a request, and tells why it failed.
    pub async fn make<T>(
        self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failure> {
        self.make_timed(request).await.0
    }

    /// Also returns the time of the service, from its last answer.
    pub async fn make_timed<T>(
        self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> (Result<T, Failure>, Option<Timestamp>) {
        let call = Arc::new(self);
        let result = CURRENT.scope(Arc::clone(&call), request).await;
        let mut told = call.told();
        let result = result.map_err(|error| match told.failure.take() {
            Some(failure) => failure,
            None => Failure::unexpected(&error),
        });
        (result, told.service_time)
    }

    pub fn note_failure(&self, failure: Failure) {
        self.told().failure = Some(failure);
    }

    pub fn note_time(&self, time: Timestamp) {
        self.told().service_time = Some(time);
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
