//! The napi addon. No other code uses napi.
//!
//! All long calls go through one function, [`run`]. It takes a call as JSON and returns a promise
//! of JSON, which contains either the result or an error. The files in `lib/` turn that into
//! classes, real `Error`s and callbacks.
//!
//! Therefore, nothing here depends on the calling realm (jest has several), and no argument can
//! make an `async` function throw synchronously.
//!
//! Every call runs on a thread of its own. Neither the JavaScript thread nor libuv's pool, which
//! the host needs for files and name lookups, waits for a backup.

use std::sync::Arc;

use napi::{
    Env, Result as NapiResult,
    bindgen_prelude::{Function, Object},
    threadsafe_function::ThreadsafeFunctionCallMode,
};
use napi_derive::napi;

use crate::{
    calls,
    util::{
        operation::{CancelToken, OperationContext, Progress},
        threads,
    },
};

/// Cancels one operation. If it is dropped before `release`, for example because its environment (a
/// worker thread of Node) ended, the operation is cancelled too.
#[napi]
pub struct Cancellation {
    cancel: Option<CancelToken>,
}

#[napi]
impl Cancellation {
    #[napi(constructor)]
    #[allow(clippy::new_without_default, reason = "JavaScript has no Default")]
    pub fn new() -> Self {
        Cancellation {
            cancel: Some(CancelToken::default()),
        }
    }

    #[napi]
    pub fn cancel(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    /// Detaches from an operation that has ended.
    #[napi]
    pub fn release(&mut self) {
        self.cancel = None;
    }
}

impl Drop for Cancellation {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Runs a call on a thread of its own.
///
/// The promise resolves to `{"ok": …}` or `{"error": {code, message, remedy, cause?}}`.
#[napi(ts_return_type = "Promise<string>")]
pub fn run<'env>(
    env: &'env Env,
    call: String,
    cancellation: &Cancellation,
    #[napi(ts_arg_type = "((progress: string) => void) | undefined | null")] on_progress: Option<
        Function<'_, String, ()>,
    >,
) -> NapiResult<Object<'env>> {
    let mut context = OperationContext::new(cancellation.cancel.clone().unwrap_or_default(), None);
    if let Some(on_progress) = on_progress {
        // A weak function does not keep Node running because of progress alone. The promise keeps
        // it running.
        let listener = on_progress
            .build_threadsafe_function::<String>()
            .callee_handled::<false>()
            .weak::<true>()
            .build()?;
        let report = move |progress: Progress| {
            let text = serde_json::to_string(&progress).unwrap_or_default();
            // The call fails only while the JavaScript thread is ending.
            let _ = listener.call(text, ThreadsafeFunctionCallMode::NonBlocking);
        };
        context = OperationContext::new(context.cancel, Some(Arc::new(report)));
    }
    // The deferred must be created after the listener. If both have pending events, Node serves the
    // older one first, so progress arrives before the result.
    let (deferred, promise) = env.create_deferred()?;
    let started = threads::start("kg-call", move || {
        context.cancel.enter();
        let outcome = calls::run(&call, &context);
        deferred.resolve(move |_| Ok(outcome));
    });
    started.map_err(|error| napi::Error::from_reason(error.to_string()))?;
    Ok(promise)
}

/// Checks the configuration of a manager. Returns `{"ok": null}` or `{"error": …}`.
#[napi]
pub fn check_config(config: String) -> String {
    calls::check_config(&config)
}

/// Returns what a scheduler does next, as `{"ok": {state, action, retryAt}}` or `{"error": …}`.
/// Accesses no file.
#[napi]
pub fn plan_schedule(request: String) -> String {
    calls::plan_schedule(&request)
}

/// Returns the absolute directory of the backups for a configuration that names none.
///
/// The result is `{"ok": …}` or `{"error": …}`. The call starts a worker, which takes some
/// milliseconds.
#[napi]
pub fn backup_dir(config: String) -> String {
    calls::backup_dir(&config)
}
