//! `kg config`: the backup settings in `.kg/config.json`, and the hooks in `.kg/hooks.json`.

mod edit;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    args::Common, interrupt::cancel_on_interrupt, option_flags::translate, output::Output,
};
use crate::{
    config::{
        Settings,
        schema::{self, ConfigFile},
    },
    error::{Error, Result, Warning, WarningCode},
    project::Project,
    service::hooks::{self, Hooks},
    util::operation::OperationContext,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg config set backup.enabled true
  kg config set backup.schedule \"0 2 * * *\"   every day at 2:00
  kg config set backup.retention 30           remove backups after 30 days
  kg config show --all                        every key with its meaning
  kg config set backup.hooks.heartbeat https://hc.example/ping/abc
  kg config set backup.hooks.onFailure.command '[\"mail\", \"-s\", \"Backup failed\", \"ops\"]'
  kg config test-hooks                        run every hook now and print the results

Keys of `backup.hooks` are in .kg/hooks.json. No backup contains that file and no restore writes
it, so an archive cannot decide which commands and URLs are called here.")]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a key
    Set {
        /// The name of the key, such as backup.schedule
        key: String,
        value: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the value of a key; exits with 1 if it is not set
    Get {
        key: String,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a key, so that its default applies
    Unset {
        key: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the keys that are set
    Show {
        /// Print every key with its meaning
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Run every hook now with a `backup.test` event; exits with 1 if one fails or there is none
    TestHooks {
        #[command(flatten)]
        common: Common,
    },
}

impl ConfigArgs {
    /// Returns the name of the command, and the arguments that all commands have.
    pub fn called(&self) -> (&'static str, &Common) {
        match &self.command {
            Command::Set { common, .. } => ("config set", common),
            Command::Get { common, .. } => ("config get", common),
            Command::Unset { common, .. } => ("config unset", common),
            Command::Show { common, .. } => ("config show", common),
            Command::TestHooks { common } => ("config test-hooks", common),
        }
    }
}

pub fn run(args: &ConfigArgs, output: &Output) -> Result<u8> {
    let (_, common) = args.called();
    let project = Project::open(&common.root()?)?;
    match &args.command {
        Command::Set { key, value, .. } => set(&project, key, Some(value), output),
        Command::Unset { key, .. } => set(&project, key, None, output),
        Command::Get { key, .. } => get(&project, key, output),
        Command::Show { all, .. } => show(&project, *all, output),
        Command::TestHooks { .. } => Ok(test_hooks(&project, output)),
    }
}

fn set(project: &Project, name: &str, value: Option<&String>, output: &Output) -> Result<u8> {
    let key = match schema::find(name) {
        Err(unknown) if value.is_none() => return unset_unknown(project, name, unknown, output),
        key => key?,
    };
    let value = value.map(|value| key.parse(value)).transpose()?;
    let changed = edit::set(project, key, value.clone(), &OperationContext::default())?;
    let forgotten = if key.home() == ConfigFile::Hooks && (changed || value.is_none()) {
        hooks::forget(project, key.name)
    } else {
        Ok(())
    };
    let value = value.map(|value| key.shown(&value));
    output.result(&json!({ "key": key.name, "value": value, "changed": changed }));
    let file = format!(".kg/{}", key.home().file_name());
    output.line(match (&value, changed) {
        (Some(value), true) => format!("{name} = {} in {file}", plain(value)),
        (Some(value), false) => format!("{name} is already {}", plain(value)),
        (None, true) => format!("{name} was removed from {file}"),
        (None, false) => format!("{name} is not set"),
    });
    if let Some(warning) = (key.home() == ConfigFile::Hooks)
        .then(|| hooks::file::not_for_this_user(project))
        .flatten()
    {
        output.warnings(&[warning]);
    }
    if let Err(error) = forgotten {
        let message = format!(
            "`--status` may still report that it failed: {}",
            error.message
        );
        output.warnings(&[Warning::new(WarningCode::Hook, message)]);
    }
    Ok(0)
}

/// Removes a value that was set under a misspelt name. `unknown` is the error for a name that is
/// not a setting.
fn unset_unknown(project: &Project, name: &str, unknown: Error, output: &Output) -> Result<u8> {
    let pointer = format!("/{}", name.replace('.', "/"));
    let is_there = name.starts_with("backup.")
        && edit::load(project, ConfigFile::Config)?
            .pointer(&pointer)
            .is_some();
    if !is_there {
        return Err(unknown);
    }
    let changed = edit::set_at(
        project,
        ConfigFile::Config,
        name,
        None,
        &OperationContext::default(),
    )?;
    output.result(&json!({ "key": name, "value": null, "changed": changed }));
    output.line(format!("{name} was removed from .kg/config.json"));
    Ok(0)
}

fn get(project: &Project, name: &str, output: &Output) -> Result<u8> {
    let key = schema::find(name)?;
    let config = edit::load(project, key.home())?;
    let Some(value) = key.find(&config) else {
        output.result(&Value::Null);
        return Ok(1);
    };
    output.result(value);
    output.line(plain(value));
    Ok(0)
}

fn show(project: &Project, all: bool, output: &Output) -> Result<u8> {
    let mut wrong = Vec::new();
    let mut warn = |message| wrong.push(message);
    let settings = Settings::of(&edit::load(project, ConfigFile::Config)?, &mut warn);
    settings.assert_usable()?;
    let hooks = Settings::in_home(
        ConfigFile::Hooks,
        &edit::load(project, ConfigFile::Hooks)?,
        &mut warn,
    );
    let mut shown = Map::new();
    for key in schema::ALL {
        let value = settings
            .get(key.name)
            .or(hooks.get(key.name))
            .map(|value| key.shown(value));
        let text = value.as_ref().map_or_else(|| "not set".to_string(), plain);
        if all {
            output.line(format!("{:32} {text:20} {}", key.name, key.meaning));
        } else if value.is_some() {
            output.line(format!("{} = {text}", key.name));
        }
        if let Some(value) = value {
            shown.insert(key.name.to_string(), value);
        }
    }
    if shown.is_empty() && !all {
        output.line("No key is set. To list all keys, run `kg config show --all`");
    }
    output.result(&shown);
    for message in wrong {
        if output.is_json() {
            output.warnings(&[Warning::new(WarningCode::Config, message)]);
        } else {
            output.line(format!("warning: {}", translate(&message)));
        }
    }
    Ok(0)
}

fn test_hooks(project: &Project, output: &Output) -> u8 {
    let mut warnings = Vec::new();
    let hooks = Hooks::load(project, &mut warnings);
    let mut results = Vec::new();
    let mut outcomes = Vec::new();
    hooks.try_out(project, &cancel_on_interrupt(), |outcome| {
        let (ok, said) = match &outcome.result {
            Ok(said) => (true, said),
            Err(said) => (false, said),
        };
        let word = if ok { "ok" } else { "FAILED" };
        output.line(format!("{:31} {word}: {said} ({} ms)", outcome.hook, outcome.duration_ms));
        results.push(json!({ "hook": outcome.hook, "ok": ok, "said": said, "durationMs": outcome.duration_ms }));
        outcomes.push(outcome);
    });
    if let Err(error) = hooks::remember(project, &outcomes) {
        let message = format!(
            "The results of the hooks could not be recorded: {}",
            error.message
        );
        warnings.push(Warning::new(WarningCode::Hook, message));
    }
    if results.is_empty() && warnings.is_empty() {
        output.line("No hook is set. To list all hooks, run `kg config show --all`");
    }
    let is_good =
        !results.is_empty() && warnings.is_empty() && results.iter().all(|one| one["ok"] == true);
    output.warnings(&warnings);
    output.result(&json!({ "hooks": results, "warnings": warnings }));
    u8::from(!is_good)
}

/// Formats a value as a person would type it.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_string)
}
