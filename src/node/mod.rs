//! The napi addon. No other code uses napi.
//!
//! All long calls go through one function, [`run`]. It takes a call as JSON and returns a promise
//! of JSON, which contains either the result or an [`Error`]. The files in `lib/` turn that into
//! classes, real `Error`s and callbacks.
//!
//! Therefore, nothing here depends on the calling realm (jest has several), and no argument can
//! make an `async` function throw synchronously. [`options`] is the only place that parses the
//! arguments of calls.
//!
//! Every call runs on a thread of its own. Neither the JavaScript thread nor libuv's pool, which
//! the host needs for files and name lookups, waits for a backup.

mod config;
mod options;
mod schedule;

use std::{panic, sync::Arc};

use napi::{
    Env, Result as NapiResult,
    bindgen_prelude::{Function, Object},
    threadsafe_function::ThreadsafeFunctionCallMode,
};
use napi_derive::napi;
use serde_json::{Value, json};

use self::{
    config::Config,
    options::{Call, Checker, CreateOptions, PruneOptions},
};
use crate::{
    commands::{
        backup::create_backup,
        check::{inspect, repair},
        consolidate::consolidate,
        drill::drill,
        manage::{delete, pin, unpin},
        prune::prune,
        restore::restore,
        undo::undo_restore,
        verify::check_backup,
    },
    error::{Error, Result, Warning},
    integrity::Scope,
    store::Store,
    util::{
        operation::{CancelToken, OperationContext, Progress},
        threads,
    },
    worker::client::Worker,
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
        let outcome = outcome(|| dispatch(&call, &context));
        deferred.resolve(move |_| Ok(outcome));
    });
    started.map_err(|error| napi::Error::from_reason(error.to_string()))?;
    Ok(promise)
}

/// Checks the configuration of a manager. Returns `{"ok": null}` or `{"error": …}`.
#[napi]
pub fn check_config(config: String) -> String {
    outcome(|| Config::parse(&config).map(|_| Value::Null))
}

/// Returns what a scheduler does next, as `{"ok": {state, action, retryAt}}` or `{"error": …}`.
/// Accesses no file.
#[napi]
pub fn plan_schedule(request: String) -> String {
    outcome(|| schedule::plan(&request))
}

/// Returns the absolute directory of the backups for a configuration that names none.
///
/// The result is `{"ok": …}` or `{"error": …}`. The call starts a worker, which takes some
/// milliseconds.
#[napi]
pub fn backup_dir(config: String) -> String {
    outcome(|| value(settled(Config::parse(&config)?)?.0.store()?.dir()))
}

/// Completes the configuration from the project's settings, and returns warnings about settings
/// that cannot be used.
fn settled(mut config: Config) -> Result<(Config, Vec<Warning>)> {
    let (settings, warnings) = Worker::settings(&config.launch(), &config.project_root)?;
    config.settings = settings;
    Ok((config, warnings))
}

/// Returns the configuration and its store. Completes the configuration as [`settled`] does, but
/// only if it does not name the store, because [`settled`] needs a worker.
fn store(config: Config) -> Result<(Config, Store)> {
    store_and_warnings(config).map(|(config, store, _)| (config, store))
}

fn store_and_warnings(config: Config) -> Result<(Config, Store, Vec<Warning>)> {
    let (config, warnings) = if config.names_a_store() {
        (config, Vec::new())
    } else {
        settled(config)?
    };
    let store = config.store()?;
    Ok((config, store, warnings))
}

/// Serializes a result as JSON. A panic becomes an error with the code `KG_INTERNAL`.
fn outcome(work: impl FnOnce() -> Result<Value>) -> String {
    let done = panic::catch_unwind(panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        let message = format!("Internal error: {}", said.unwrap_or("a panic"));
        Err(Error::internal(message))
    });
    match done {
        Ok(value) => json!({ "ok": value }).to_string(),
        Err(error) => json!({ "error": error }).to_string(),
    }
}

fn dispatch(call: &str, context: &OperationContext) -> Result<Value> {
    match Call::parse(call)? {
        Call::CreateBackup { config, options } => create(config, options, context),
        Call::ListBackups { config } => value(store(config)?.1.list()?),
        Call::NewestGood { config } => value(store(config)?.1.newest_good()?),
        Call::GetBackup { config, id } => value(store(config)?.1.get(&id)?),
        Call::GetLatestBackup { config } => latest(config),
        Call::DeleteBackup {
            config,
            id,
            options,
        } => {
            let (config, store) = store(config)?;
            let timeout = config.resolved()?.lock_timeout;
            value(delete(&store, &id, options.cascade(), timeout, context)?)
        }
        Call::Pin { config, id, reason } => {
            let (config, store) = store(config)?;
            let timeout = config.resolved()?.lock_timeout;
            value(pin(&store, &id, reason, timeout, context)?)
        }
        Call::Unpin { config, id } => {
            let (config, store) = store(config)?;
            let timeout = config.resolved()?.lock_timeout;
            value(unpin(&store, &id, timeout, context)?)
        }
        Call::Consolidate {
            config,
            id,
            options,
        } => {
            // The settings decide whether new backups are encrypted.
            let (config, _) = settled(config)?;
            let compression = options.compression(&config)?;
            let timeout = config.resolved()?.lock_timeout;
            value(consolidate(
                &config.store()?,
                &id,
                compression,
                timeout,
                context,
            )?)
        }
        Call::CheckBackup {
            config,
            backup,
            list_files,
        } => {
            let (_, store, warnings) = store_and_warnings(config)?;
            let mut report = check_backup(&store, &backup, list_files, context)?;
            report.warnings.extend(warnings);
            value(report)
        }
        Call::Restore { config, options } => {
            let (reference, options) = options.resolve(&config)?;
            let (config, store, warnings) = store_and_warnings(config)?;
            let mut restored = restore(&store, &reference, &config.launch(), &options, context)?;
            restored.warnings.extend(warnings);
            value(restored)
        }
        Call::UndoRestore { config, options } => {
            let (root, options) = options.resolve(&config)?;
            value(undo_restore(&root, &config.launch(), &options, context)?)
        }
        Call::Prune { config, options } => prune_backups(config, &options, context),
        Call::Rehearse { config, options } => {
            let (config, store, warnings) = store_and_warnings(config)?;
            let options = options.resolve(&config)?;
            let mut rehearsal = drill(&store, &options, &config.launch(), context)?;
            rehearsal.warnings.extend(warnings);
            value(rehearsal)
        }
        Call::RunChecks { config, options } => match options.scope()? {
            Some(scope) => check(&config, scope, context),
            None => check_and_repair(&config, None, context),
        },
        Call::Repair { config, codes } => check_and_repair(&config, Some(&codes), context),
        Call::NextRun { config, options } => {
            let (config, store) = store(config)?;
            schedule::next_run(&config, &store, &options)
        }
    }
}

fn create(config: Config, options: CreateOptions, context: &OperationContext) -> Result<Value> {
    let (config, warnings) = settled(config)?;
    let store = options.store(&config)?;
    let options = options.resolve(&config, &store)?;
    let mut created = create_backup(
        &config.project_root,
        &store,
        &config.launch(),
        &options,
        context,
    )?;
    created.backup.warnings.extend(warnings);
    value(created)
}

fn latest(config: Config) -> Result<Value> {
    let store = store(config)?.1;
    let latest = store.latest()?;
    let doubts = store.doubts("latest", &latest.path, None);
    value(latest.with_warnings(doubts))
}

fn prune_backups(
    config: Config,
    options: &PruneOptions,
    context: &OperationContext,
) -> Result<Value> {
    let (config, _) = settled(config)?;
    let set = config.merged()?;
    set.assert_retention_known()?;
    value(prune(
        &config.store()?,
        &set.retention(),
        options.dry_run(),
        set.resolve().lock_timeout,
        context,
    )?)
}

fn check(config: &Checker, scope: Scope, context: &OperationContext) -> Result<Value> {
    value(inspect(
        &config.subject(),
        scope,
        config.lock_timeout()?,
        &config.launch(),
        context,
    )?)
}

/// Repairs the issues with these codes, or all issues.
fn check_and_repair(
    config: &Checker,
    codes: Option<&[String]>,
    context: &OperationContext,
) -> Result<Value> {
    value(repair(
        &config.subject(),
        codes,
        config.store()?.as_ref(),
        config.lock_timeout()?,
        &config.launch(),
        context,
    )?)
}

fn value(result: impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(result)
        .map_err(|cause| Error::internal("The result could not be serialized").with_cause(cause))
}
