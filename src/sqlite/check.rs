//! What SQLite says of the health of a snapshot.
//!
//! Three answers: nothing is wrong, damage, and "not checked". Only damage that SQLite or [`accounting`] names is damage.
//! Rows that break what their table declares ([`Findings::rows`]) lie on sound pages, and are no damage either.
//! SQLite cannot evaluate a schema here that uses what only the host has: functions, collations, tokenizers, modules. Then
//! the pages are accounted for, every table is checked that can be, and [`Findings::not_checked`] says what was left.

mod answer;
mod missing;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rusqlite::{Connection, config::DbConfig};
use serde::{Deserialize, Serialize};

use self::answer::refusal;
pub use self::answer::{
    Answer, BrokenRows, broken_rows, is_damage, is_missing, is_page_damage, is_unread_schema,
    reason,
};
use super::{
    fast_check::{accounting, fts5},
    forget_fulltext, quoted,
};
use crate::{
    error::{Error, Result},
    util::{limits::bounded, operation::CancelToken},
};

/// `quick_check` stops after this many findings.
const MAX_FINDINGS: usize = 100;
/// SQLite calls back after this many virtual machine instructions, to see whether the task was cancelled.
const INSTRUCTIONS_PER_CALLBACK: i32 = 100_000;
/// A check of a sound database takes a fraction of this many instructions; damaged pages can lead in a circle.
const LEAST_INSTRUCTIONS: u64 = if cfg!(test) { 4_000_000 } else { 200_000_000 };
const INSTRUCTIONS_PER_BYTE: u64 = 50;
/// Ends what `connection` does (with `SQLITE_INTERRUPT`) when `must_end` says so, or when all that was done on it is more than
/// checks of a sound database of that size can take.
pub fn bound(
    connection: &mut Connection,
    size_bytes: u64,
    must_end: impl Fn() -> bool + Send + 'static,
) -> rusqlite::Result<()> {
    let instructions = LEAST_INSTRUCTIONS + size_bytes.saturating_mul(INSTRUCTIONS_PER_BYTE);
    let left = AtomicU64::new(instructions / INSTRUCTIONS_PER_CALLBACK as u64);
    let is_spent = move || {
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
        must_end() || before.is_err()
    };
    connection.progress_handler(INSTRUCTIONS_PER_CALLBACK, Some(is_spent))
}

/// What a check of a backup's databases found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Integrity {
    pub status: IntegrityStatus,
    /// What is wrong, in SQLite's words; at most 100 lines a database.
    #[serde(deserialize_with = "bounded")]
    pub messages: Vec<String>,
    /// What could not be checked here, and what is missing for it.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub not_checked: Vec<String>,
    /// Full-text indexes were read through too, see [`Depth`]. Earlier releases always did.
    #[serde(default = "yes")]
    pub full_text: bool,
}

fn yes() -> bool {
    true
}

/// How much of a database is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every page, table and index, the tables of full-text indexes among them, but not whether what those hold is an index.
    Structure,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntegrityStatus {
    Ok,
    /// Everything that could be checked is sound; something could not be checked here.
    Partial,
    /// Damage was found.
    Failed,
    /// The check was turned off.
    Skipped,
}

/// What checks found in one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Proven, in SQLite's words.
    pub damage: Vec<String>,
    /// Rows that break NOT NULL, UNIQUE, CHECK or the type of a column, in SQLite's words.
    pub rows: Vec<String>,
    pub not_checked: Vec<NotChecked>,
}

/// Something that could not be checked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotChecked {
    /// Empty if it is the schema as a whole.
    pub table: String,
    /// For example "the CHECK constraints of the table people".
    pub what: String,
    /// What is missing, by its name, or what SQLite says.
    pub reason: String,
}

impl fmt::Display for NotChecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

impl Findings {
    /// Adds what is not in it yet.
    pub fn add(&mut self, other: Findings) {
        add_new(&mut self.damage, other.damage);
        add_new(&mut self.rows, other.rows);
        other
            .not_checked
            .into_iter()
            .for_each(|what| self.leave(what));
    }

    /// Notes what is not checked, once for each table.
    fn leave(&mut self, what: NotChecked) {
        if !self
            .not_checked
            .iter()
            .any(|known| known.table == what.table)
        {
            self.not_checked.push(what);
        }
    }

    /// What a pragma said that stops after `most` lines.
    fn add_lines(&mut self, lines: Vec<String>, most: usize) {
        let hides_the_rest =
            lines.len() >= most && lines.iter().all(|line| broken_rows(line).is_some());
        if hides_the_rest {
            let what = format!(
                "what lies behind the first {most} rows that break what their table declares"
            );
            let reason = "SQLite stops there".into();
            self.leave(NotChecked {
                table: String::new(),
                what,
                reason,
            });
        }
        for line in lines.into_iter().filter(|line| line != "ok") {
            if broken_rows(&line).is_some() {
                add_new(&mut self.rows, vec![line]);
                continue;
            }
            // FTS says it of an index that it cannot read for another reason than damage.
            match line.split_once("unable to validate the inverted index") {
                Some((_, rest)) => {
                    let table = rest.split_once(" table ").map_or(rest, |(_, table)| table);
                    let table = table.split(':').next().unwrap_or(table);
                    let table = table.rsplit('.').next().unwrap_or(table).to_string();
                    self.leave(NotChecked {
                        what: format!("the full-text index {table}"),
                        table,
                        reason: line,
                    });
                }
                None => self.damage.push(line),
            }
        }
    }
}

fn add_new(known: &mut Vec<String>, lines: Vec<String>) {
    for line in lines {
        if !known.contains(&line) {
            known.push(line);
        }
    }
}

/// A pragma that checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pragma {
    Quick,
    /// Compares indexes with their tables too.
    Full {
        most_findings: u32,
    },
}

impl Pragma {
    fn of_all(self) -> String {
        match self {
            Pragma::Quick => format!("PRAGMA quick_check({MAX_FINDINGS})"),
            Pragma::Full { most_findings } => format!("PRAGMA integrity_check({most_findings})"),
        }
    }

    fn most_findings(self) -> usize {
        match self {
            Pragma::Quick => MAX_FINDINGS,
            Pragma::Full { most_findings } => most_findings as usize,
        }
    }

    fn of_table(self, name: &str) -> String {
        let pragma = if self == Pragma::Quick {
            "quick_check"
        } else {
            "integrity_check"
        };
        format!("PRAGMA {pragma}({})", quoted(name))
    }
}

/// Runs `PRAGMA quick_check` in the read transaction of `connection`, and accounts for its pages.
pub fn quick_check(connection: &mut Connection, cancel: &CancelToken) -> Result<Integrity> {
    everything(connection, Pragma::Quick, cancel).map(|found| Integrity::of(found, Depth::All))
}

/// What `quick_check` finds in everything but full-text indexes. The connection cannot use those any more.
pub fn structure(connection: &mut Connection, cancel: &CancelToken) -> Result<Findings> {
    forget_fulltext(connection);
    everything(connection, Pragma::Quick, cancel)
}

/// Checks all of a database: its pages with [`accounting`], and what `pragma` looks at as far as SQLite can.
pub fn everything(
    connection: &mut Connection,
    pragma: Pragma,
    cancel: &CancelToken,
) -> Result<Findings> {
    let mut found = Findings::default();
    begin(connection, cancel)?;
    match read_schema(connection, cancel)? {
        Answer::Damage(message) => {
            found.damage.push(message);
            return Ok(found);
        }
        Answer::Unable(reason) => {
            found.leave(NotChecked {
                table: String::new(),
                what: "the schema".into(),
                reason,
            });
        }
        Answer::Lines(_) => {}
    }
    let missing = missing::of(connection);
    let accounts = accounting::account(connection, cancel)?;
    begin(connection, cancel)?;
    match ask(connection, &pragma.of_all(), cancel)? {
        Answer::Lines(lines) => found.add_lines(lines, pragma.most_findings()),
        Answer::Damage(message) if accounts.damage.is_empty() => found.damage.push(message),
        Answer::Damage(_) => {}
        // Something in the schema keeps SQLite from checking anything: what it can check is found table by table.
        Answer::Unable(_) if accounts.damage.is_empty() => {
            for name in names(connection) {
                check_table(connection, pragma, &name, &missing, &mut found, cancel)?;
            }
        }
        // Damaged pages can lead in a circle, and each table would take as long again.
        Answer::Unable(_) => {}
    }
    accounts
        .not_checked
        .into_iter()
        .for_each(|what| found.leave(what));
    if found.damage.is_empty() {
        found.damage = accounts.damage;
    }
    missing.into_values().for_each(|what| found.leave(what));
    Ok(found)
}

/// What it finds in these tables alone.
pub fn tables(
    connection: &mut Connection,
    names: impl IntoIterator<Item = String>,
    cancel: &CancelToken,
) -> Result<Findings> {
    let mut found = Findings::default();
    let missing = missing::of(connection);
    for name in names {
        check_table(
            connection,
            Pragma::Quick,
            &name,
            &missing,
            &mut found,
            cancel,
        )?;
    }
    missing.into_values().for_each(|what| found.leave(what));
    Ok(found)
}

/// What it finds in full-text indexes, all of each. That can take longer than everything else together, so those that are plainly well formed are
/// not asked about. What cannot be read here is found by the check of everything else.
pub fn full_text(connection: &mut Connection, cancel: &CancelToken) -> Result<Findings> {
    let mut found = Findings::default();
    begin(connection, cancel)?;
    let missing = missing::of(connection);
    for name in full_text_tables(connection, cancel)? {
        check_table(
            connection,
            Pragma::Quick,
            &name,
            &missing,
            &mut found,
            cancel,
        )?;
    }
    Ok(found)
}

fn full_text_tables(connection: &Connection, cancel: &CancelToken) -> Result<Vec<String>> {
    let named = r#"SELECT name FROM sqlite_schema
                   WHERE type = 'table' AND rootpage = 0 AND sql LIKE '%using%fts5%'"#;
    let listed = || -> rusqlite::Result<Vec<String>> {
        let tables: Vec<String> = connection
            .prepare(named)?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut doubtful = Vec::new();
        for table in tables {
            if !fts5::is_well_formed(connection, &table, cancel)? {
                doubtful.push(table);
            }
        }
        Ok(doubtful)
    };
    let listed = listed();
    cancel.check()?;
    // A schema that cannot be read is found by the check of everything else.
    Ok(listed.unwrap_or_default())
}

/// Checks one table, without its CHECK constraints if these are what SQLite cannot evaluate, or what takes too long.
fn check_table(
    connection: &mut Connection,
    pragma: Pragma,
    name: &str,
    missing: &BTreeMap<String, NotChecked>,
    found: &mut Findings,
    cancel: &CancelToken,
) -> Result<()> {
    let sql = pragma.of_table(name);
    begin(connection, cancel)?;
    let reason = match ask(connection, &sql, cancel)? {
        Answer::Lines(lines) => {
            found.add_lines(lines, MAX_FINDINGS);
            return Ok(());
        }
        Answer::Damage(message) => {
            found.damage.push(message);
            return Ok(());
        }
        Answer::Unable(reason) => reason,
    };
    let named = |reason: String| {
        missing
            .get(name)
            .map_or(reason, |missing| missing.reason.clone())
    };
    begin(connection, cancel)?;
    let ignores = |yes| {
        connection
            .pragma_update(None, "ignore_check_constraints", yes)
            .map_err(failed(connection))
    };
    ignores(true)?;
    let without = ask(connection, &sql, cancel);
    ignores(false)?;
    match without? {
        Answer::Lines(lines) => {
            found.add_lines(lines, MAX_FINDINGS);
            let what = format!("the CHECK constraints of the table {name}");
            found.leave(NotChecked {
                table: name.to_string(),
                what,
                reason: named(reason),
            });
        }
        Answer::Damage(message) => found.damage.push(message),
        Answer::Unable(reason) => {
            let what = format!("the rows of the table {name}");
            found.leave(NotChecked {
                table: name.to_string(),
                what,
                reason: named(reason),
            });
        }
    }
    Ok(())
}

/// Gives the connection the instructions that a check may take.
fn begin(connection: &mut Connection, cancel: &CancelToken) -> Result<()> {
    cancel.check()?;
    let page = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    // A schema that cannot be read has no size to tell; the least is enough to find that out.
    let size = connection
        .query_row(page, [], |row| row.get(0))
        .unwrap_or(0);
    let stop = cancel.clone();
    let bounded = bound(connection, size, move || stop.is_cancelled());
    bounded.map_err(failed(connection))
}

fn failed(connection: &Connection) -> impl Fn(rusqlite::Error) -> Error {
    let path = connection.path().unwrap_or_default().to_string();
    move |cause| Error::sqlite("check", Path::new(&path), cause)
}

fn ask(connection: &Connection, pragma: &str, cancel: &CancelToken) -> Result<Answer> {
    let said = || -> rusqlite::Result<Vec<String>> {
        connection
            .prepare(pragma)?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    match said() {
        Ok(lines) => Ok(Answer::Lines(lines)),
        Err(cause) => refusal(&cause, cancel),
    }
}

/// What is to be said of a database that SQLite refused with `error`, of which a private copy lies at `path`: damage, or a
/// schema that this build cannot parse around pages that are sound.
pub fn refused(path: &Path, error: Error, cancel: &CancelToken) -> Result<Findings> {
    let cause = error.cause.as_deref().unwrap_or_default();
    if !is_unread_schema(cause) {
        return Ok(Findings {
            damage: vec![error.message],
            ..Findings::default()
        });
    }
    let mut connection =
        Connection::open(path).map_err(|cause| Error::sqlite("open a copy of", path, cause))?;
    everything(&mut connection, Pragma::Quick, cancel)
}

/// Has SQLite read the schema. If SQLite cannot parse all of it, the connection goes on with the rest, and this says why.
pub fn read_schema(connection: &Connection, cancel: &CancelToken) -> Result<Answer> {
    let read = || connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    let cause = match read() {
        Ok(()) => return Ok(Answer::Lines(Vec::new())),
        Err(cause) => cause,
    };
    if !is_unread_schema(&cause.to_string()) {
        return refusal(&cause, cancel);
    }
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)
        .map_err(failed(connection))?;
    read().map_or_else(
        |cause| refusal(&cause, cancel),
        |()| Ok(Answer::Unable(reason(&cause))),
    )
}

/// Tables that have pages, and the schema's own.
fn names(connection: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type <> 'view'";
    let listed = || -> rusqlite::Result<Vec<String>> {
        connection
            .prepare(sql)?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    listed().unwrap_or_default()
}

/// The module that the text of a virtual table names, in lower case; empty if it is none.
pub fn module_of(sql: &str) -> String {
    let lower = sql.to_ascii_lowercase();
    let mut words = lower
        .split_whitespace()
        .skip_while(|word| *word != "using")
        .skip(1);
    let name = words
        .next()
        .unwrap_or("")
        .trim_start_matches(['"', '`', '[']);
    name.chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect()
}

impl Integrity {
    /// What was found in a database that was read so far.
    pub fn of(found: Findings, depth: Depth) -> Self {
        let mut messages = found.damage;
        messages.truncate(MAX_FINDINGS);
        let not_checked: Vec<String> = found
            .not_checked
            .iter()
            .take(MAX_FINDINGS)
            .map(NotChecked::to_string)
            .collect();
        let status = match (messages.is_empty(), not_checked.is_empty()) {
            (true, true) => IntegrityStatus::Ok,
            (true, false) => IntegrityStatus::Partial,
            (false, _) => IntegrityStatus::Failed,
        };
        Integrity {
            status,
            messages,
            not_checked,
            full_text: depth == Depth::All,
        }
    }

    /// Whether no damage was found.
    pub fn is_sound(&self) -> bool {
        self.status != IntegrityStatus::Failed
    }
}

#[cfg(test)]
mod tests;
