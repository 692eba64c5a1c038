//! The commands of the host, whose package has a command `kg` too.
//!
//! A subcommand that this `kg` does not have is handed over to the host's: the executable in
//! `KG_HOST_COMMAND`, or else the next `kg` on `PATH` that is not this one. It gets the arguments,
//! the input and output, and the place of this process.
//!
//! A misspelt subcommand of this `kg` is never handed over. Nothing below the working directory is
//! run unless `PATH` names it, because a cloned repository may contain anything.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use clap::{
    Command,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{output::Output, usage};
use crate::{
    error::{Error, Result},
    system::{
        file_id::FileId,
        process::{give_place_to, parent_id},
        user,
    },
};

const NAME: &str = "kg";
/// Names the host's executable.
const COMMAND_VARIABLE: &str = "KG_HOST_COMMAND";
/// The number of the process whose command line was handed over, and the executables that it was
/// handed over to. Another copy of this package looks for the next one, so that two copies never
/// call each other.
const TRIED_VARIABLE: &str = "KG_HOST_TRIED";
/// The file next to each native `kg` of this package.
const ADDON: &str = "knowledge-graph-agent.node";
/// The text by which `bin/kg.js` of any copy of this package is recognized: it names the packages
/// of the platforms. A comment would not do, because a bundler made that file.
const LAUNCHER_MARK: &[u8] = b"knowledge-graph-agent-linux-x64";
/// The text with which a script that a package manager made names `bin/kg.js`.
const LAUNCHER_PATH: &str = "bin/kg.js";
const MAX_SCRIPT_BYTES: u64 = 256 * 1024;

/// The part of the help that says which commands are whose.
pub const HELP: &str = "\
Other commands, such as init, belong to the host. They are handed over to the next `kg` on PATH
that is not this one, or to the executable in $KG_HOST_COMMAND.";

/// Returns the command with the help that names the host's `kg`, if these arguments ask for it.
pub fn described(command: Command) -> Command {
    let first = env::args_os().nth(1);
    let is_help =
        first.is_none_or(|first| ["--help", "-h", "help"].iter().any(|one| first == *one));
    if !is_help {
        return command;
    }
    let here = match find() {
        Ok(Some(path)) => format!("Here that is {}.", path.display()),
        Ok(None) => "None is installed here.".into(),
        Err(error) => format!("{}.", error.message),
    };
    command.after_help(format!("{HELP}\n{here}"))
}

/// Hands the command line over to the host's `kg` if it names a subcommand that this one does not
/// have. Returns an exit status if that failed. Otherwise returns the error with a tip that says
/// why it was not handed over.
pub fn hand_over(
    mut stop: clap::Error,
    command: &Command,
) -> std::result::Result<ExitCode, clap::Error> {
    // A command of `kg diag` without `diag` gets a hint.
    let Some(unknown) = unknown_subcommand(&stop).filter(|word| !usage::is_verb_of_diag(word))
    else {
        return Err(stop);
    };
    let found = match find() {
        Ok(found) => found,
        Err(error) => return Ok(refused(&error)),
    };
    let command = innermost(command, env::args_os().skip(1));
    let tip = match (found, similar(command, &unknown)) {
        (Some(host), None) => return Ok(refused(&run(&host))),
        (Some(host), Some(similar)) => format!(
            "'{unknown}' resembles '{similar}', so it was not handed over; the host's kg is {}",
            host.display()
        ),
        (None, _) => format!(
            "no other kg is installed that could know '{unknown}'; ${COMMAND_VARIABLE} can name one"
        ),
    };
    let mut tips = match stop.remove(ContextKind::Suggested) {
        Some(ContextValue::StyledStrs(tips)) => tips,
        _ => Vec::new(),
    };
    tips.push(StyledStr::from(tip));
    stop.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    Err(stop)
}

fn unknown_subcommand(stop: &clap::Error) -> Option<String> {
    match stop.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) if stop.kind() == ErrorKind::InvalidSubcommand => {
            Some(name.clone())
        }
        _ => None,
    }
}

/// Returns the command whose subcommand these words name.
fn innermost(command: &Command, mut words: impl Iterator<Item = OsString>) -> &Command {
    let inner = words.next().and_then(|word| command.find_subcommand(word));
    inner.map_or(command, |inner| innermost(inner, words))
}

/// Returns the subcommand that a word probably stands for.
fn similar(command: &Command, word: &str) -> Option<String> {
    const LONG_LETTERS: usize = 6;
    let names = command
        .get_subcommands()
        .flat_map(Command::get_name_and_visible_aliases)
        .chain(["help"])
        .map(str::to_string);
    let most = if word.chars().count() >= LONG_LETTERS {
        2
    } else {
        1
    };
    let distance = |name: &String| strsim::damerau_levenshtein(name, &word.to_lowercase());
    let nearest = names.min_by_key(distance)?;
    (distance(&nearest) <= most).then_some(nearest)
}

/// Runs the host's `kg` in place of this process. Returns only if that fails.
fn run(host: &Path) -> Error {
    let process = PathBuf::from(process::id().to_string());
    let tried = [vec![process], tried(), vec![host.to_path_buf()]].concat();
    let joined = env::join_paths(&tried).unwrap_or_default();
    let mut command = process::Command::new(host);
    command
        .args(env::args_os().skip(1))
        .env(TRIED_VARIABLE, joined);
    Error::io("start", host, give_place_to(&mut command))
}

fn refused(error: &Error) -> ExitCode {
    let output = Output::of_json("", usage::wants_json());
    let status = error.code.exit_status();
    output.error(error);
    output.end(status);
    ExitCode::from(status)
}

/// Returns the host's `kg`, if there is one. It is not run.
fn find() -> Result<Option<PathBuf>> {
    let tried = tried();
    if let Some(named) = env::var_os(COMMAND_VARIABLE).filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        if tried.contains(&named) {
            return Ok(None);
        }
        let can_be_listed = env::join_paths([&named]).is_ok();
        return match is_executable(&named) && named.is_absolute() && !is_ours(&named) {
            true if can_be_listed => Ok(Some(named)),
            _ => Err(Error::invalid(
                format!(
                    "`{COMMAND_VARIABLE}` is {}, which is not the absolute path of the host's kg",
                    named.display()
                ),
                "Name the executable of the host, or remove the variable from the environment",
            )),
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    // A relative entry would run a file of the working directory.
    let mut candidates = env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(NAME).with_extension(env::consts::EXE_EXTENSION));
    Ok(candidates.find(|candidate| {
        !tried.contains(candidate) && is_executable(candidate) && !is_ours(candidate)
    }))
}

/// Returns the executables that this command line was handed over to. A launcher is the parent of
/// its native `kg`. Below that, the variable belongs to a host that runs another command line.
fn tried() -> Vec<PathBuf> {
    let tried = env::var_os(TRIED_VARIABLE).unwrap_or_default();
    let mut tried = env::split_paths(&tried);
    let process = tried.next();
    let process = process.and_then(|number| number.to_str()?.parse::<u32>().ok());
    let is_of_this = process.is_some_and(|it| [process::id(), parent_id()].contains(&it));
    tried.filter(|_| is_of_this).collect()
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && user::may_execute(path)
}

/// Returns whether a file is the `kg` of this package, or of another copy of it: the native one,
/// its launcher, or a script that runs the launcher.
fn is_ours(path: &Path) -> bool {
    let Ok(real) = dunce::canonicalize(path) else {
        return false;
    };
    let own = env::current_exe().and_then(|own| FileId::at(&own));
    let is_this =
        own.is_ok_and(|own| FileId::at(&real).is_ok_and(|it| it.identity == own.identity));
    let has_addon = || real.parent().is_some_and(|dir| dir.join(ADDON).exists());
    is_this || has_addon() || is_launcher(&real) || runs_launcher(&real)
}

fn is_launcher(path: &Path) -> bool {
    let text = script(path);
    text.windows(LAUNCHER_MARK.len())
        .any(|text| text == LAUNCHER_MARK)
}

/// Returns whether a script names the launcher, relative to its own directory, as the scripts of
/// pnpm do.
fn runs_launcher(path: &Path) -> bool {
    let text = script(path);
    let text = String::from_utf8_lossy(&text);
    let dir = path.parent().unwrap_or(path);
    let mut named = text
        .split(['"', '\'', ' ', '\n'])
        .filter(|word| word.ends_with(LAUNCHER_PATH))
        .map(|word| word.trim_start_matches("$basedir").trim_start_matches('/'));
    named.any(|launcher| is_launcher(&dir.join(launcher)))
}

/// Returns the beginning of a file if it is a script.
fn script(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SCRIPT_BYTES).read_to_end(&mut text));
    if read.is_err() || !text.starts_with(b"#!") {
        text.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Kg;

    #[test]
    fn a_misspelt_command_resembles_ours_and_one_of_the_host_does_not() {
        let command = Kg::command();
        let similar = |line: &str| {
            let words = || line.split(' ');
            let inner = innermost(&command, words().map(OsString::from));
            similar(inner, words().next_back().unwrap())
        };
        for (line, ours) in [
            ("digg", "diag"),
            ("diag bakcup", "backup"),
            ("Serv", "serve"),
            ("hlep", "help"),
            ("config shwo", "show"),
        ] {
            assert_eq!(similar(line).as_deref(), Some(ours), "{line}");
        }
        // The commands that the host has and this `kg` has not.
        let host = "init docs claude sync stats search convert frontmatter analyze sop \
                    init-primitives analyze-codebase cultivate commit workflow audit vector \
                    dashboard plugin hive-mind";
        let inner = [
            "diag run",
            "diag info",
            "config validate",
            "config reset",
            "config defaults",
        ];
        for line in host.split_whitespace().chain(inner) {
            assert_eq!(similar(line), None, "{line}");
        }
    }
}
