//! SQLite's findings about the health of a snapshot.
//!
//! A check has three results: sound, damaged, and not checked. Only damage that SQLite or
//! [`accounting`] names counts as damage. Rows that violate the declaration of their table
//! ([`Findings::rows`]) are stored on sound pages, so they are not damage.
//!
//! SQLite cannot evaluate a schema here that uses functions, collations, tokenizers or modules that
//! only the host has. In that case the pages are still accounted for, and every table that can be
//! checked is checked. [`Findings::not_checked`] lists the rest.

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
/// SQLite calls the progress handler after this many virtual machine instructions, to check for
/// cancellation.
const INSTRUCTIONS_PER_CALLBACK: i32 = 100_000;
/// The minimum instruction limit of a check. A check of a sound database needs a fraction of it,
/// but references between damaged pages can form a cycle.
const LEAST_INSTRUCTIONS: u64 = if cfg!(test) { 4_000_000 } else { 200_000_000 };
const INSTRUCTIONS_PER_BYTE: u64 = 50;
/// Limits the work of `connection`. Interrupts it with `SQLITE_INTERRUPT` if `must_end` returns
/// `true`, or if all work together exceeds what checks of a sound database of that size can need.
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

/// The result of checking the databases of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Integrity {
    pub status: IntegrityStatus,
    /// The damage, in SQLite's words. At most 100 lines for each database.
    #[serde(deserialize_with = "bounded")]
    pub messages: Vec<String>,
    /// The parts that could not be checked here, and what is missing for each.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded"
    )]
    pub not_checked: Vec<String>,
    /// Whether full-text indexes were read too, see [`Depth`]. Earlier releases always read them.
    #[serde(default = "yes")]
    pub full_text: bool,
}

fn yes() -> bool {
    true
}

/// How much of a database is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every page, table and index, including the tables of full-text indexes. The content of those
    /// tables is not checked as an index.
    Structure,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntegrityStatus {
    Ok,
    /// Everything that could be checked is sound, but something could not be checked here.
    Partial,
    Failed,
    /// The check was turned off.
    Skipped,
}

/// The findings of checks in one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Proven damage, in SQLite's words.
    pub damage: Vec<String>,
    /// Rows that violate NOT NULL, UNIQUE, CHECK or the type of a column, in SQLite's words.
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
    /// The name of the missing object, or SQLite's message.
    pub reason: String,
}

impl fmt::Display for NotChecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

impl Findings {
    /// Adds findings that are not included yet.
    pub fn add(&mut self, other: Findings) {
        add_new(&mut self.damage, other.damage);
        add_new(&mut self.rows, other.rows);
        other
            .not_checked
            .into_iter()
            .for_each(|what| self.leave(what));
    }

    /// Records something that is not checked, once for each table.
    fn leave(&mut self, what: NotChecked) {
        if !self
            .not_checked
            .iter()
            .any(|known| known.table == what.table)
        {
            self.not_checked.push(what);
        }
    }

    /// Adds the output of a pragma that stops after `most` lines.
    fn add_lines(&mut self, lines: Vec<String>, most: usize) {
        let hides_the_rest =
            lines.len() >= most && lines.iter().all(|line| broken_rows(line).is_some());
        if hides_the_rest {
            let what = format!(
                "what follows the first {most} rows that violate the constraints of their table"
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
            // FTS reports this for an index that it cannot read for a reason other than damage.
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

/// A pragma that checks a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pragma {
    Quick,
    /// Also compares indexes with their tables.
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

/// Runs `PRAGMA quick_check` in the read transaction of `connection`, and accounts for the pages.
pub fn quick_check(connection: &mut Connection, cancel: &CancelToken) -> Result<Integrity> {
    everything(connection, Pragma::Quick, cancel).map(|found| Integrity::of(found, Depth::All))
}

/// Returns the findings of `quick_check` in everything except full-text indexes. The connection
/// cannot use those indexes afterwards.
pub fn structure(connection: &mut Connection, cancel: &CancelToken) -> Result<Findings> {
    forget_fulltext(connection);
    everything(connection, Pragma::Quick, cancel)
}

/// Checks a whole database: its pages with [`accounting`], and the subjects of `pragma` as far as
/// SQLite can.
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
        // Something in the schema prevents SQLite from checking anything, so each table is checked
        // on its own.
        Answer::Unable(_) if accounts.damage.is_empty() => {
            for name in names(connection) {
                check_table(connection, pragma, &name, &missing, &mut found, cancel)?;
            }
        }
        // References between damaged pages can form a cycle, and each table would take as long
        // again.
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

/// Returns the findings of `quick_check` in these tables alone.
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

/// Returns the findings in all full-text indexes. SQLite's check of them can take longer than
/// everything else together. Therefore SQLite is not asked about indexes that are proven to be well
/// formed. The check of everything else reports what cannot be read here.
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
    // The check of everything else reports a schema that cannot be read.
    Ok(listed.unwrap_or_default())
}

/// Checks one table. If SQLite cannot evaluate its CHECK constraints, or they take too long, checks
/// it without them.
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

/// Resets the number of instructions that a check may use on the connection.
fn begin(connection: &mut Connection, cancel: &CancelToken) -> Result<()> {
    cancel.check()?;
    let page = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    // If the schema cannot be read, the size is unknown. The minimum limit is enough to find that
    // out.
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

/// Returns the findings for a database that SQLite refused with `error`, with a private copy at
/// `path`. The result is damage, unless this build only cannot parse the schema. Then the pages are
/// checked.
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

/// Makes SQLite read the schema. If SQLite cannot parse all of it, the connection continues with
/// the rest, and the result is the reason.
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

/// Returns the names of all tables except views, including the schema table.
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

/// Returns the module that the SQL text of a virtual table names, in lower case. Returns an empty
/// string for any other text.
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
    /// Returns the result for a database that was checked to this depth.
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

    /// Returns whether no damage was found.
    pub fn is_sound(&self) -> bool {
        self.status != IntegrityStatus::Failed
    }
}

#[cfg(test)]
mod tests;
