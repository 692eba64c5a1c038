//! `kg config`: the settings of backups in `.kg/config.json`.

mod edit;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::{Common, finish, output::Output};
use crate::{
    error::Result,
    project::Project,
    settings::{Settings, keys},
    task::Task,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg config set backup.enabled true
  kg config set backup.schedule \"0 2 * * *\"   every day at 2:00
  kg config set backup.retention 30           remove backups after 30 days
  kg config show --all                        every key, and what it means")]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a key
    Set {
        /// For example backup.schedule
        key: String,
        value: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print the value of a key; exits with 1 where it is not set
    Get {
        key: String,
        #[command(flatten)]
        common: Common,
    },
    /// Take a key out, so that its default counts
    Unset {
        key: String,
        #[command(flatten)]
        common: Common,
    },
    /// Print what is set
    Show {
        /// Print every key with its meaning
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        common: Common,
    },
}

pub fn run(args: &ConfigArgs) -> ExitCode {
    let (Command::Set { common, .. }
    | Command::Get { common, .. }
    | Command::Unset { common, .. }
    | Command::Show { common, .. }) = &args.command;
    let output = Output::new(common);
    let done = common.root().and_then(|root| Project::open(&root)).and_then(|project| match &args.command {
        Command::Set { key, value, .. } => set(&project, key, Some(value), &output),
        Command::Unset { key, .. } => set(&project, key, None, &output),
        Command::Get { key, .. } => get(&project, key, &output),
        Command::Show { all, .. } => show(&project, *all, &output),
    });
    match done {
        Ok(code) => code,
        Err(error) => finish(&output, Err(error)),
    }
}

fn set(project: &Project, name: &str, value: Option<&String>, output: &Output) -> Result<ExitCode> {
    let key = keys::find(name)?;
    let value = value.map(|value| key.parse(value)).transpose()?;
    let changed = edit::set(project, key, value.clone(), &Task::default())?;
    output.result(&serde_json::json!({ "key": key.name, "value": value, "changed": changed }));
    let file = PathBuf::from(".kg/config.json");
    output.line(match (&value, changed) {
        (Some(value), true) => format!("{name} = {} in {}", plain(value), file.display()),
        (Some(value), false) => format!("{name} is {} already", plain(value)),
        (None, true) => format!("{name} was taken out of {}", file.display()),
        (None, false) => format!("{name} is not set"),
    });
    Ok(ExitCode::SUCCESS)
}

fn get(project: &Project, name: &str, output: &Output) -> Result<ExitCode> {
    let key = keys::find(name)?;
    let config = edit::load(project)?;
    let Some(value) = key.find(&config) else {
        output.result(&Value::Null);
        return Ok(ExitCode::FAILURE);
    };
    output.result(value);
    output.line(plain(value));
    Ok(ExitCode::SUCCESS)
}

fn show(project: &Project, all: bool, output: &Output) -> Result<ExitCode> {
    let config = edit::load(project)?;
    let mut wrong = Vec::new();
    let settings = Settings::of(&config, &mut |message| wrong.push(message));
    let mut told = Map::new();
    for key in keys::ALL {
        let value = settings.get(key.name);
        if let Some(value) = value {
            told.insert(key.name.to_string(), value.clone());
        }
        let value = value.map_or_else(|| "not set".to_string(), plain);
        if all {
            output.line(format!("{:27} {value:20} {}", key.name, key.meaning));
        } else if settings.get(key.name).is_some() {
            output.line(format!("{} = {value}", key.name));
        }
    }
    if told.is_empty() && !all {
        output.line("Nothing is set; see what can be with `kg config show --all`");
    }
    output.result(&told);
    for message in wrong {
        output.line(format!("warning: {message}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// As a person would write it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}
