//! The calls of the JavaScript API: JSON in, JSON out.
//!
//! [`run`] carries out a call. [`options`] and [`config`] are the only places that parse its
//! arguments.

mod config;
mod options;
mod schedule;

use std::panic;

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
        copy::{copy, copy_configured},
        drill::drill,
        manage::{delete, pin, unpin},
        prune::prune,
        restore::restore,
        undo::undo_restore,
        verify::check_backup,
    },
    error::{Error, Result, Warning},
    integrity::Scope,
    objects::Location,
    store::Store,
    util::operation::OperationContext,
    worker::client::{Worker, WorkerMode},
};

/// Carries out a call for a host. Returns `{"ok": …}` or `{"error": {code, message, remedy,
/// cause?}}`.
///
/// A host does not connect to object stores. It has `kg` carry out such a call as a whole.
pub fn run(call: &str, context: &OperationContext) -> String {
    let mut answer = None;
    let done = outcome(|| {
        let mut parsed = Call::parse(call)?;
        match parsed.forward_to()? {
            Some(executable) => {
                let worker_mode = WorkerMode::Subprocess(executable);
                answer = Some(Worker::call(&worker_mode, call, context)?);
                Ok(Value::Null)
            }
            None => dispatch(parsed, context),
        }
    });
    answer.unwrap_or(done)
}

/// Carries out a call that a host forwarded to this process, which is `kg`.
pub fn run_in_kg(call: &str, context: &OperationContext) -> String {
    outcome(|| {
        let mut call = Call::parse(call)?;
        call.run_in_kg();
        dispatch(call, context)
    })
}

/// Checks the configuration of a manager.
pub fn check_config(config: &str) -> String {
    outcome(|| Config::parse(config).map(|_| Value::Null))
}

/// Returns what a scheduler does next, as `{state, action, retryAt}`. Accesses no file.
pub fn plan_schedule(request: &str) -> String {
    outcome(|| schedule::plan(request))
}

/// Returns the absolute directory of the backups for a configuration that names none.
pub fn backup_dir(config: &str) -> String {
    outcome(|| {
        let (config, _) = settled(Config::parse(config)?)?;
        let root = &config.project_root;
        match config
            .settings
            .dir(root)
            .filter(|dir| Location::is_url(&dir.to_string_lossy()))
        {
            Some(url) => value(url),
            None => value(config.store()?.dir()),
        }
    })
}

/// Completes the configuration from the project's settings, and returns warnings about settings
/// that cannot be used.
fn settled(mut config: Config) -> Result<(Config, Vec<Warning>)> {
    config.settle()?;
    let warnings = config.settings_warnings();
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

fn dispatch(call: Call, context: &OperationContext) -> Result<Value> {
    match call {
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
        Call::CopyTo {
            config,
            target,
            options,
        } => {
            let (config, warnings) = settled(config)?;
            let target = options.target(&config, &target)?;
            let options = options.resolve(&config)?;
            let mut copied = copy(&config.store()?, &target, &options, context)?;
            copied.warnings.extend(warnings);
            value(copied)
        }
        Call::CopyConfigured { config } => {
            let (config, _) = settled(config)?;
            let (store, root) = (config.store()?, &config.project_root);
            value(copy_configured(&store, root, &config.settings, context)?)
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
    let doubts = store.doubts("latest", &latest.archive, None);
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
