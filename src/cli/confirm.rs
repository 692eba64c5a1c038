//! Questions before existing files or backups are replaced or removed.

use std::{
    env,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

use crate::error::{Code, Error, Result};

/// The environment variable that requires a confirmation where no question can be asked. It is for
/// machines on which agents run commands.
const CONFIRM: &str = "KG_CONFIRM";

/// Asks a question on a terminal. Fails with `KG_NOT_CONFIRMED` if the answer is no.
///
/// Without a terminal, the command continues as in a script, unless `KG_CONFIRM` is `always`.
pub fn ask(question: &str) -> Result<()> {
    if may_ask() {
        return match answered_yes(question)? {
            true => Ok(()),
            false => Err(not_confirmed(
                "Nothing was changed, because the answer was no",
            )),
        };
    }
    without_question()
}

/// Fails with `KG_NOT_CONFIRMED` if `KG_CONFIRM` is `always`. For a command that asks no question and
/// has no flag that confirms it.
pub fn without_question() -> Result<()> {
    if !always()? {
        return Ok(());
    }
    let message = format!("Nothing was changed, because {CONFIRM}=always requires a confirmation");
    Err(not_confirmed(message))
}

/// Returns the flag, after a space, if a command needs it on this machine.
pub fn flag_where_required() -> &'static str {
    match always() {
        Ok(true) => " --yes",
        _ => "",
    }
}

/// Returns whether a person can answer.
pub fn may_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a question and returns whether the answer is yes.
pub fn answered_yes(question: &str) -> Result<bool> {
    let mut err = io::stderr().lock();
    // One write, so that the terminal's echo of an early answer does not end up inside it.
    let prompt = format!("{question} [y/N] ");
    let _ = err.write_all(prompt.as_bytes()).and_then(|()| err.flush());
    let mut answer = String::new();
    let terminal = Path::new("the terminal");
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|cause| Error::io("read", terminal, cause))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn always() -> Result<bool> {
    match env::var_os(CONFIRM) {
        None => Ok(false),
        Some(value) if value.is_empty() => Ok(false),
        Some(value) if value == "always" => Ok(true),
        Some(value) => Err(Error::invalid(
            format!("{CONFIRM} is {}", value.display()),
            "Set it to `always`, or unset it",
        )),
    }
}

fn not_confirmed(message: impl Into<String>) -> Error {
    Error::new(
        Code::NotConfirmed,
        message,
        "To go on without a question, add `--yes`",
    )
}
