//! Everything that `kg` writes to the terminal.
//!
//! If standard output is closed (`kg … | head`), lines are dropped and the command continues to its
//! end. If writing fails for any other reason, such as a full device, the exit status of a command
//! that succeeded becomes an error.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{Common, option_flags};
use crate::{
    error::{Error, Warning},
    sqlite::check::IntegrityStatus,
    store::Backup,
};

/// The format and the amount of output.
#[derive(Debug, Default, Clone, Copy)]
pub struct Output {
    pub json: bool,
    quiet: bool,
}

impl Output {
    /// Returns an output for use before the arguments are known.
    pub fn of_json(json: bool) -> Self {
        Output { json, quiet: false }
    }

    pub fn new(common: &Common) -> Self {
        Output {
            json: common.json,
            quiet: common.quiet,
        }
    }

    /// Returns whether a progress bar is shown: only on a terminal.
    pub fn shows_progress(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// Prints a line for a person; nothing with `--json` or `--quiet`.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            self.raw(format!("{}\n", printable(text.as_ref())).as_bytes());
        }
    }

    /// Prints the result as JSON with `--json`; nothing otherwise.
    pub fn result(&self, result: &impl Serialize) {
        if self.json {
            self.raw(format!("{:#}\n", translated(result)).as_bytes());
        }
    }

    /// Prints one of several results as one line of JSON.
    pub fn json_line(&self, result: &impl Serialize) {
        self.raw(format!("{}\n", translated(result)).as_bytes());
    }

    pub fn raw(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        if let Err(cause) = out.write_all(bytes).and_then(|()| out.flush()) {
            lost(cause);
        }
    }

    /// Prints warnings to standard error; nothing with `--json`, because they are part of the
    /// result.
    pub fn warnings(&self, warnings: &[Warning]) {
        if !self.json {
            self.late_warnings(warnings);
        }
    }

    /// Prints warnings that the result could not contain. They go to standard error, with `--json`
    /// too.
    pub fn late_warnings(&self, warnings: &[Warning]) {
        for warning in warnings {
            complain(&format!(
                "warning: {} [{}]",
                option_flags::translate(&warning.message),
                code_of(&warning.code)
            ));
        }
    }

    pub fn error(&self, error: &Error) {
        if self.json {
            self.result(&json!({ "error": error }));
        }
        print_error(error);
    }
}

/// The first failure to write a result. A closed pipe does not count, because its reader does not
/// expect more output.
static LOST: OnceLock<Error> = OnceLock::new();

pub fn lost(cause: io::Error) {
    if cause.kind() != io::ErrorKind::BrokenPipe {
        let mut error = Error::io("write", Path::new("the result to standard output"), cause);
        error.remedy =
            "The command itself has finished. To see its result, free some space there, or send \
             the output elsewhere"
                .into();
        let _ = LOST.set(error);
    }
}

/// Returns `code`, or the exit status of a failure to write the output if `code` is a success.
pub fn exit_code_after_output(code: ExitCode) -> ExitCode {
    let Some(error) = LOST.get() else { return code };
    print_error(error);
    if code == ExitCode::SUCCESS {
        ExitCode::from(error.code.exit_status())
    } else {
        code
    }
}

fn print_error(error: &Error) {
    complain(&format!(
        "kg: {} [{}]\n    {}.",
        option_flags::translate(&error.message),
        error.code,
        option_flags::translate(&error.remedy)
    ));
}

/// Returns a result as JSON whose messages name flags.
fn translated(result: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(result).unwrap_or_default();
    option_flags::translate_all(&mut value);
    value
}

fn complain(text: &str) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "{}", printable(text));
}

/// Escapes control characters. Names come from archives and file systems and could otherwise
/// control the terminal.
fn printable(text: &str) -> String {
    let show = |character: char| match character {
        '\n' => "\n".to_string(),
        control if control.is_control() => control.escape_default().to_string(),
        other => other.to_string(),
    };
    text.chars().map(show).collect()
}

/// Returns the stable name of a code, as in JSON.
pub fn code_of(code: &impl Serialize) -> String {
    serde_json::to_value(code)
        .ok()
        .and_then(|code| code.as_str().map(str::to_string))
        .unwrap_or_default()
}

/// Formats a size such as `12.3 MB`, with decimal units, as disk vendors use them.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// Returns the result of the check of the databases at the time of the backup.
pub(super) fn integrity(backup: &Backup) -> String {
    let said = match backup.integrity.status {
        // In a list, an encrypted backup does not name what was not checked.
        IntegrityStatus::Partial if backup.integrity.not_checked.is_empty() => {
            "ok when it was saved, but not completely checked"
        }
        IntegrityStatus::Partial => {
            return format!(
                "ok when it was saved; not checked: {}",
                backup.integrity.not_checked.join("; ")
            );
        }
        IntegrityStatus::Ok if backup.integrity.full_text => "ok when it was saved",
        IntegrityStatus::Ok => {
            "ok when it was saved (full-text indexes are read with the next full backup)"
        }
        IntegrityStatus::Failed => "DAMAGED when it was saved",
        IntegrityStatus::Skipped => "not checked",
    };
    said.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_command_the_terminal_is_shown_instead() {
        assert_eq!(printable("a\u{1b}[31mb\nc\r"), "a\\u{1b}[31mb\nc\\r");
    }

    #[test]
    fn sizes_have_four_characters_at_most_before_their_unit() {
        let sizes: Vec<String> = [0, 999, 1000, 15_728_640, 999_960_000].map(size).to_vec();
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "15.7 MB", "1.0 GB"]);
    }
}
