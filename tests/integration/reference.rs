//! `docs/reference/cli.md` and `settings.md` are generated from clap's definitions and the schema
//! of the settings. To regenerate them:
//! `KG_WRITE_REFERENCE=1 cargo test --test integration reference`.

use std::{env, fmt::Write, fs, path::Path};

use clap::{Arg, Command};
use kg_backup::internals::{cli, config::schema};

#[test]
fn the_reference_of_the_commands_is_up_to_date() {
    assert_current("cli.md", &commands());
}

#[test]
fn the_reference_of_the_settings_is_up_to_date() {
    assert_current("settings.md", &settings());
}

fn assert_current(name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/reference")
        .join(name);
    if env::var_os("KG_WRITE_REFERENCE").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == expected,
        "docs/reference/{name} is stale: KG_WRITE_REFERENCE=1 cargo test --test integration reference"
    );
}

fn commands() -> String {
    let mut page = String::from(
        "# Commands\n\n\
         Generated from the definitions in `src/cli`. [errors.md](errors.md) lists the exit statuses, and\n\
         [settings.md](settings.md) the settings that give the defaults.\n",
    );
    let mut kg = cli::command();
    kg.build();
    describe(&kg, "kg", &mut page);
    page
}

fn describe(command: &Command, path: &str, page: &mut String) {
    let subcommands = command
        .get_subcommands()
        .filter(|one| one.get_name() != "help");
    let mut is_leaf = true;
    for subcommand in subcommands.filter(|one| !one.is_hide_set()) {
        is_leaf = false;
        describe(
            subcommand,
            &format!("{path} {}", subcommand.get_name()),
            page,
        );
    }
    if !is_leaf {
        return;
    }
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    write!(
        page,
        "\n## {path}\n\n{}\n\n",
        fill(&format!("{}.", about.trim_end_matches('.')), "")
    )
    .unwrap();
    for argument in command.get_arguments().filter(|one| is_shown(one)) {
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let values: Vec<String> = argument
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set() && argument.get_action().takes_values())
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}` ({help})", value.get_name()),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        let mut item = format!("- `{}`: {help}", usage(argument));
        if !values.is_empty() {
            write!(item, ". Values: {}", values.join(", ")).unwrap();
        }
        let defaults: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|one| one.to_string_lossy())
            .collect();
        if !defaults.is_empty() && argument.get_action().takes_values() {
            write!(item, " [default: {}]", defaults.join(", ")).unwrap();
        }
        writeln!(page, "{}", fill(&item, "  ")).unwrap();
    }
    if let Some(after) = command.get_after_help() {
        write!(page, "\n```text\n{}\n```\n", after.to_string().trim_end()).unwrap();
    }
}

fn is_shown(argument: &Arg) -> bool {
    !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str())
}

fn usage(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let value: Vec<String> = names.iter().map(ToString::to_string).collect();
    let Some(long) = argument.get_long() else {
        return value.join(" ");
    };
    let mut text = match argument.get_short() {
        Some(short) => format!("-{short}, --{long}"),
        None => format!("--{long}"),
    };
    for alias in argument.get_visible_aliases().unwrap_or_default() {
        write!(text, ", --{alias}").unwrap();
    }
    if argument.get_action().takes_values() {
        write!(text, " {}", value.join(" ")).unwrap();
    }
    text
}

fn settings() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         Generated from `src/config/schema.rs`. Set a key with `kg config set KEY VALUE`; `kg config show`\n\
         prints the keys that are set. Keys of `backup.hooks` are in `.kg/hooks.json`, all others in\n\
         `.kg/config.json`.\n\n",
    );
    for key in schema::ALL {
        let (meaning, default) = match key.meaning.split_once(" [default: ") {
            Some((meaning, default)) => (meaning, Some(default.trim_end_matches(']'))),
            None => (key.meaning, None),
        };
        let mut item = format!("- `{}`: {meaning}. Value: {}.", key.name, key.values());
        if let Some(default) = default {
            write!(item, " Default: {default}.").unwrap();
        }
        writeln!(page, "{}", fill(&item, "  ")).unwrap();
    }
    page
}

/// Wraps a paragraph at 100 columns.
fn fill(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().unwrap();
        if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > 100 {
            lines.push(indent.to_string());
        }
        let line = lines.last_mut().unwrap();
        if !line.trim().is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.join("\n")
}
