//! `kg graph --regenerate-vectors`: finds nodes without a vector, and runs the command that creates
//! vectors.
//!
//! This package saves embeddings but cannot create them, because that needs the model of the host.
//! The user names the command that creates them, with a flag or in the environment. It is not a
//! setting of `.kg/config.json`: a restore writes that file, and no archive may decide what runs
//! here.
//!
//! Missing vectors are a warning. A recovery without them is otherwise complete, and a recovery
//! script (`sh -e`) should continue. `--strict` makes them an error, for scripts that need to know.

use std::{
    collections::HashSet,
    path::Path,
    process::{Command, Stdio},
};

use clap::Args;
use serde_json::{Value, json};

use super::{args::Common, output::Output};
use crate::{
    config::backup_config::DEFAULT_LOCK_TIMEOUT,
    error::{Code, Error, Result, Warning, WarningCode},
    integrity::{SCRATCH_PREFIX, vectors},
    project::{Project, database_path, discover::no_database},
    sqlite::snapshot::{self, Capture, Conditions},
    util::{operation::CancelToken, regular_file, temp_dir::Scratch, wording},
};

const COMMAND_VARIABLE: &str = "KG_VECTORS_COMMAND";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg graph --regenerate-vectors                                   list the nodes that have no vector
  kg graph --regenerate-vectors --command 'npm run embed'         create the missing vectors
  kg graph --regenerate-vectors --strict                          exit with 4 if one is missing")]
pub struct GraphArgs {
    #[command(flatten)]
    pub common: Common,
    /// Find the nodes that have no vector, and run the command that creates vectors
    #[arg(long, required = true)]
    regenerate_vectors: bool,
    /// The command that creates vectors; runs with `sh` in the project's root, only if some are
    /// missing [default: $KG_VECTORS_COMMAND]
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Fail if a node has no vector, instead of printing a warning
    #[arg(long)]
    strict: bool,
}

pub fn run(args: &GraphArgs, output: &Output) -> Result<u8> {
    let command = args
        .command
        .clone()
        .or_else(|| std::env::var(COMMAND_VARIABLE).ok())
        .filter(|text| !text.is_empty());
    let project = Project::open(&args.common.root()?)?;
    regenerate(&project, command.as_deref(), args.strict, output)?;
    Ok(0)
}

fn regenerate(
    project: &Project,
    command: Option<&str>,
    strict: bool,
    output: &Output,
) -> Result<()> {
    let mut nodes = Nodes::count(project)?;
    let ran = match command {
        Some(command) if nodes.without > 0 => {
            output.line(format!(
                "{} of {} without a vector; running: {command}",
                nodes.without,
                wording::count(nodes.all, "node")
            ));
            execute(project, command, output)?;
            nodes = Nodes::count(project)?;
            true
        }
        _ => false,
    };
    let missing = (nodes.without > 0).then(|| nodes.missing(ran));
    // A user who names a command expects vectors, so missing ones are an error even without
    // `--strict`.
    if let Some(error) = missing.as_ref().filter(|_| ran || strict) {
        return Err(error.clone());
    }
    let warnings: Vec<Warning> = missing
        .iter()
        .map(|error| Warning::new(WarningCode::Vectors, error.to_string()))
        .collect();
    output.warnings(&warnings);
    output.result(
        &json!({ "nodes": nodes.all, "missing": nodes.without, "ran": ran, "warnings": warnings }),
    );
    if warnings.is_empty() {
        output.line(format!(
            "Each of {} has a vector",
            wording::count(nodes.all, "node")
        ));
    }
    Ok(())
}

struct Nodes {
    all: usize,
    without: usize,
}

impl Nodes {
    fn count(project: &Project) -> Result<Self> {
        let database = database_path::database_path(project.root(), &mut Vec::new()).absolute;
        if !database.is_file() {
            return Err(no_database(&database));
        }
        let nodes = ids(&database, "nodes")?;
        let state = project.state_dir();
        let mut known = HashSet::new();
        if state.join("vectors.db").is_file() {
            known.extend(ids(&state.join("vectors.db"), "embeddings")?);
        }
        known.extend(index_ids(&state.join("vectors/index.json")));
        Ok(Nodes {
            all: nodes.len(),
            without: nodes.iter().filter(|id| !known.contains(*id)).count(),
        })
    }

    fn missing(&self, ran: bool) -> Error {
        let found = format!(
            "{} of {} {} no vector in .kg/vectors.db or .kg/vectors/index.json",
            self.without,
            wording::count(self.all, "node"),
            wording::agree(self.without, "has", "have")
        );
        if ran {
            let remedy = "See the output of the command; it exited without an error";
            return Error::new(
                Code::Incomplete,
                format!("{found}, even after the command"),
                remedy,
            );
        }
        Error::new(
            Code::Incomplete,
            format!("{found}, and this package has no model to create them"),
            "Restore them with `kg diag restore --file latest --path 'vectors*'` if a backup \
             contains them, or name the command of your application that creates them with \
             `--command`",
        )
    }
}

/// Returns the column `id` of a table; an empty set if there is no such table.
fn ids(database: &Path, table: &str) -> Result<HashSet<String>> {
    let failed = |cause| Error::sqlite("read", database, cause);
    let scratch = Scratch::new(&std::env::temp_dir(), SCRATCH_PREFIX)?;
    let conditions = Conditions {
        scratch: scratch.path(),
        lock_timeout: DEFAULT_LOCK_TIMEOUT,
        with_twin: false,
    };
    let (_held, connection) = match snapshot::take(database, conditions, &CancelToken::default())? {
        Capture::Snapshot(snapshot) => snapshot.into_connection(),
        Capture::Damaged(_, error) => return Err(error),
    };
    if !connection.table_exists(None, table).map_err(failed)? {
        return Ok(HashSet::new());
    }
    let mut rows = connection
        .prepare(&format!(
            "SELECT CAST(id AS TEXT) FROM {table} WHERE id IS NOT NULL"
        ))
        .map_err(failed)?;
    let ids = rows.query_map([], |row| row.get(0)).map_err(failed)?;
    ids.collect::<std::result::Result<_, _>>().map_err(failed)
}

/// Returns `ids` of the index in the directory of vector files.
fn index_ids(path: &Path) -> Vec<String> {
    let text = regular_file::open(path)
        .and_then(|file| regular_file::read(&file, vectors::MAX_INDEX_BYTES))
        .ok();
    let index = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let ids = index
        .as_ref()
        .and_then(|index| index.get("ids"))
        .and_then(Value::as_array);
    ids.into_iter()
        .flatten()
        .filter_map(|id| id.as_str().map(str::to_string))
        .collect()
}

fn execute(project: &Project, command: &str, output: &Output) -> Result<()> {
    let failed = |cause| Error::io("run", Path::new(command), cause);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(project.root())
        .stdin(Stdio::null());
    if output.is_json() {
        // Standard output contains only the JSON result.
        shell.stdout(Stdio::null());
    }
    let status = shell.status().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let remedy = "See its output above, fix the cause, and run this again";
    Err(Error::new(
        Code::Incomplete,
        format!("`{command}` failed ({status})"),
        remedy,
    ))
}
