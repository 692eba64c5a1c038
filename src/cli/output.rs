//! Everything that `kg` writes to the terminal.
//!
//! If standard output is closed (`kg … | head`), lines are dropped and the command continues to its
//! end. If writing fails for any other reason, such as a full device, the exit status of a command
//! that succeeded becomes an error.

use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{args::Common, option_flags};
use crate::{
    error::{Code, Error, Warning},
    sqlite::check::IntegrityStatus,
    store::Backup,
};

/// The version of the object that `--json` prints. It changes if a field of the envelope changes
/// its meaning or disappears. New fields do not change it.
pub const ENVELOPE_VERSION: u32 = 1;

/// The output of one command.
///
/// For a person, everything is printed immediately. With `--json`, the results and warnings are
/// collected, and [`Output::end`] prints them as one object.
#[derive(Debug)]
pub struct Output {
    command: String,
    is_json: bool,
    is_quiet: bool,
    /// The environment variable that names the project.
    project_variable: Option<&'static str>,
    collected: RefCell<Collected>,
}

/// What the object of `--json` will contain.
#[derive(Debug, Default)]
struct Collected {
    result: Option<Value>,
    error: Option<Value>,
    warnings: Vec<Value>,
    /// Several objects, each on one line, are printed instead of one.
    is_stream: bool,
}

impl Output {
    /// Returns the output of a command, such as `diag backup`.
    pub fn new(command: impl Into<String>, common: &Common) -> Self {
        Output {
            is_quiet: common.quiet,
            project_variable: common.project_variable(),
            ..Output::of_json(command, common.json)
        }
    }

    /// Returns the output of a command whose other arguments are unknown.
    pub fn of_json(command: impl Into<String>, is_json: bool) -> Self {
        Output {
            command: command.into(),
            is_json,
            is_quiet: false,
            project_variable: None,
            collected: RefCell::default(),
        }
    }

    pub fn is_json(&self) -> bool {
        self.is_json
    }

    /// Returns whether a progress bar is shown: only on a terminal.
    pub fn shows_progress(&self) -> bool {
        !self.is_json && !self.is_quiet && io::stderr().is_terminal()
    }

    /// Prints a line for a person; nothing with `--json` or `--quiet`.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.is_json && !self.is_quiet {
            raw(format!("{}\n", printable(text.as_ref())).as_bytes());
        }
    }

    /// Sets the result of the command for `--json`.
    pub fn result(&self, result: &impl Serialize) {
        if self.is_json {
            self.collected.borrow_mut().result = Some(translated(result));
        }
    }

    /// Prints one of several results for `--json`, as an object on one line.
    pub fn stream(&self, result: &impl Serialize, exit_status: u8) {
        if self.is_json {
            self.result(result);
            self.collected.borrow_mut().is_stream = true;
            self.end(exit_status);
        }
    }

    /// Prints the error of one of several attempts.
    pub fn stream_error(&self, error: &Error) {
        self.error(error);
        if self.is_json {
            self.collected.borrow_mut().is_stream = true;
            self.end(error.code.exit_status());
        }
    }

    /// Prints warnings to standard error. With `--json`, they become part of the object instead.
    pub fn warnings(&self, warnings: &[Warning]) {
        for warning in warnings {
            if self.is_json {
                let warning = translated(warning);
                let collected = &mut self.collected.borrow_mut().warnings;
                if !collected.contains(&warning) {
                    collected.push(warning);
                }
            } else {
                complain(&format!(
                    "warning: {} [{}]",
                    option_flags::translate(&warning.message),
                    code_of(&warning.code)
                ));
            }
        }
    }

    /// Prints an error to standard error, and with `--json` also as part of the object.
    pub fn error(&self, error: &Error) {
        let mut error = error.clone();
        if let (Some(variable), Code::NoProject) = (self.project_variable, error.code) {
            let remedy = format!("Unset ${variable}, which names this directory, or correct it");
            error.remedy = remedy;
        }
        self.json_error(&error);
        print_error(&error);
    }

    /// Sets the error of the command for `--json`.
    pub fn json_error(&self, error: &Error) {
        if self.is_json {
            self.collected.borrow_mut().error = Some(translated(error));
        }
    }

    /// Ends the command. With `--json`, prints the object, unless the command had nothing to say.
    pub fn end(&self, exit_status: u8) {
        let mut collected = self.collected.borrow_mut();
        let is_stream = collected.is_stream;
        let Collected {
            result,
            error,
            warnings,
            ..
        } = std::mem::take(&mut *collected);
        collected.is_stream = is_stream;
        if result.is_none() && error.is_none() && warnings.is_empty() {
            return;
        }
        let mut object = Map::from_iter([
            ("version".to_string(), json!(ENVELOPE_VERSION)),
            ("command".to_string(), json!(self.command)),
            ("exitStatus".to_string(), json!(exit_status)),
        ]);
        object.extend(result.map(|result| ("result".to_string(), result)));
        object.extend(error.map(|error| ("error".to_string(), error)));
        object.insert("warnings".to_string(), Value::Array(warnings));
        let object = Value::Object(object);
        let text = if is_stream {
            format!("{object}\n")
        } else {
            format!("{object:#}\n")
        };
        raw(text.as_bytes());
    }
}

/// The exit status of a command that did a part of what was asked for. A backup lacks a part of the
/// project, retention could not examine old backups, or a list lacks backups that cannot be read.
pub const LESS: u8 = 6;

/// Writes bytes to standard output as they are.
pub fn raw(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if let Err(cause) = out.write_all(bytes).and_then(|()| out.flush()) {
        lost(cause);
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

/// Quotes a text as one word of a shell: a POSIX shell, or on Windows `cmd` and PowerShell.
pub fn shell_word(text: &str) -> String {
    const PLAIN: &[u8] = if cfg!(windows) {
        b"/\\._-+:="
    } else {
        b"/._-+:@%,="
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || PLAIN.contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_string();
    }
    if cfg!(windows) {
        // No name contains a quote there.
        return format!("\"{text}\"");
    }
    format!("'{}'", text.replace('\'', "'\\''"))
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
    fn a_word_of_a_shell_is_quoted_if_necessary() {
        assert_eq!(shell_word("/srv/app-1"), "/srv/app-1");
        assert_eq!(shell_word("/a b"), "'/a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn sizes_have_four_characters_at_most_before_their_unit() {
        let sizes: Vec<String> = [0, 999, 1000, 15_728_640, 999_960_000].map(size).to_vec();
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "15.7 MB", "1.0 GB"]);
    }
}
