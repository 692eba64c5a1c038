//! Invalid arguments of `kg`, and requests for help.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue},
};

use super::{
    Kg,
    output::{self, Output},
};
use crate::error::{Code, Error};

/// Prints help, the version, or what is wrong with the arguments. With `--json`, an error has the
/// same form as other errors.
pub fn stop(mut stop: clap::Error) -> ExitCode {
    if !stop.use_stderr() {
        if let Err(cause) = stop.print().and_then(|()| io::stdout().flush()) {
            output::lost(cause);
        }
        return ExitCode::SUCCESS;
    }
    let given: Vec<String> = env::args_os()
        .skip(1)
        .map(|one| one.to_string_lossy().into_owned())
        .collect();
    if given.first().is_some_and(|word| is_verb_of_diag(word)) {
        let tip = format!("run `kg diag {}`", given.join(" "));
        stop.remove(ContextKind::SuggestedSubcommand);
        stop.insert(
            ContextKind::Suggested,
            ContextValue::StyledStrs(vec![tip.into()]),
        );
    }
    let status = Code::InvalidOption.exit_status();
    if wants_json() {
        let command = command_of(&given).split_off(1).join(" ");
        let output = Output::of_json(command, true);
        output.json_error(&error(&stop.render().to_string(), &given));
        output.end(status);
    }
    // If standard error is closed, the exit status still reports the error.
    let _ = stop.print();
    ExitCode::from(status)
}

/// Returns whether the arguments ask for JSON. They may be invalid.
pub fn wants_json() -> bool {
    let mut flags = env::args_os().skip(1).take_while(|one| one != "--");
    flags.any(|one| one == "--json")
}

/// Returns whether a word is a command of `kg diag`, and not of `kg`.
pub fn is_verb_of_diag(word: &str) -> bool {
    let kg = Kg::command();
    let diag = kg.find_subcommand("diag");
    kg.find_subcommand(word).is_none()
        && diag.is_some_and(|diag| diag.find_subcommand(word).is_some())
}

/// Converts the text of clap to an error. The text contains the error, tips, and the usage of the
/// command.
fn error(text: &str, given: &[String]) -> Error {
    let text = text.trim();
    let first = text.split("\n\n").next().unwrap_or_default();
    let message = match first.strip_prefix("error: ") {
        Some(message) => message.split_whitespace().collect::<Vec<_>>().join(" "),
        None => "The command is incomplete".into(),
    };
    let tips = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "));
    let usage = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: "));
    let usage = usage.map(|usage| {
        usage
            .split(' ')
            .take_while(|word| !word.starts_with(['-', '<', '[']))
            .collect()
    });
    // For an invalid value, the text of clap contains no usage.
    let command: Vec<&str> = usage.unwrap_or_else(|| command_of(given));
    let remedy: Vec<String> = tips
        .map(str::to_string)
        .chain([format!("see `{} --help`", command.join(" "))])
        .collect();
    let mut remedy = remedy.join("; ");
    if let Some(first) = remedy.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let mut message = message;
    if let Some(first) = message.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    Error::invalid(message, remedy)
}

/// Returns the words of the command with which these arguments begin.
fn command_of(given: &[String]) -> Vec<&str> {
    let kg = Kg::command();
    let (mut command, mut words) = (&kg, vec!["kg"]);
    for word in given {
        let Some(inner) = command.find_subcommand(word) else {
            break;
        };
        words.push(word);
        command = inner;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_arguments_is_an_error_as_any_other() {
        let text = "error: unexpected argument '--jsn' found\n\n  tip: a similar argument exists: '--json'\n\n\
                    Usage: kg diag backup --json\n\nFor more information, try '--help'.\n";
        let found = error(text, &[]);
        assert_eq!(
            (found.code, found.message.as_str()),
            (Code::InvalidOption, "Unexpected argument '--jsn' found")
        );
        assert_eq!(
            found.remedy,
            "A similar argument exists: '--json'; see `kg diag backup --help`"
        );
        let text = "error: the following required arguments were not provided:\n  --file <FILE>\n\nUsage: kg diag restore --file <FILE>";
        assert_eq!(
            error(text, &[]).message,
            "The following required arguments were not provided: --file <FILE>"
        );
        let given = ["diag", "prune", "--max-backups", "x"].map(String::from);
        let text = "error: invalid value 'x' for '--max-backups <N>': invalid digit\n\nFor more information, try '--help'.\n";
        assert_eq!(error(text, &given).remedy, "See `kg diag prune --help`");
        assert_eq!(
            error("Usage: kg diag <COMMAND>", &[]).remedy,
            "See `kg diag --help`"
        );
    }
}
