//! What an answer of SQLite to a check means: an error is damage only if SQLite says so of pages.

use rusqlite::{ErrorCode, ffi};

use crate::{error::Result, util::operation::CancelToken};

/// How SQLite begins what it says of a schema that it cannot parse.
const MALFORMED_SCHEMA: &str = "malformed database schema";
/// What SQLite says of a schema that contradicts itself; a feature of another release never leads to it.
const CONTRADICTIONS: [&str; 3] = ["invalid rootpage", "orphan index", "- duplicate"];
/// What is missing, by how SQLite's errors begin.
const MISSING: [(&str, &str); 6] = [
    ("no such function: ", "function"),
    ("unknown function: ", "function"),
    ("no such collation sequence: ", "collation"),
    ("no such module: ", "module"),
    ("no such tokenizer: ", "tokenizer"),
    ("unknown tokenizer: ", "tokenizer"),
];

/// What one statement of a check led to.
pub enum Answer {
    Lines(Vec<String>),
    Damage(String),
    /// Why SQLite could not do it.
    Unable(String),
}

/// What an error of SQLite means. `KG_ABORTED` stays an error.
pub(super) fn refusal(cause: &rusqlite::Error, cancel: &CancelToken) -> Result<Answer> {
    cancel.check()?;
    Ok(match cause.sqlite_error_code() {
        _ if is_unread_schema(&cause.to_string()) => Answer::Unable(reason(cause)),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Answer::Damage(format!("quick_check could not finish: {cause}"))
        }
        Some(ErrorCode::OperationInterrupted) => Answer::Unable("that takes too long".into()),
        _ => Answer::Unable(reason(cause)),
    })
}

/// Whether an error is proof of damage.
pub fn is_damage(cause: &rusqlite::Error) -> bool {
    let is_code = matches!(
        cause.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    );
    is_code && !is_unread_schema(&cause.to_string())
}

/// Whether an error is proof of damaged pages. What SQLite says of an index that does not agree with its table, or of a virtual
/// table, has an extended code of its own.
pub fn is_page_damage(cause: &rusqlite::Error) -> bool {
    let code = cause.sqlite_error().map(|error| error.extended_code);
    is_damage(cause) && matches!(code, Some(ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB))
}

/// Whether SQLite says that it cannot parse what is in the schema. Another release may well be able to.
pub fn is_unread_schema(message: &str) -> bool {
    message.contains(MALFORMED_SCHEMA)
        && !CONTRADICTIONS
            .iter()
            .any(|contradiction| message.contains(contradiction))
}

/// The rows that a line of a check is about: they break what their table declares.
#[derive(Debug, PartialEq, Eq)]
pub enum BrokenRows<'a> {
    Table(&'a str),
    /// A unique index has an entry twice.
    Index(&'a str),
}

/// Returns `None` for a line about pages. Names of tables and indexes follow the words that are compared, so a name cannot be mistaken for
/// them.
pub fn broken_rows(line: &str) -> Option<BrokenRows<'_>> {
    if let Some(index) = line.strip_prefix("non-unique entry in index ") {
        return Some(BrokenRows::Index(index));
    }
    let of_value = || {
        let (kind, column) = line.split_once(" value in ")?;
        let kind = kind.strip_prefix("non-").unwrap_or(kind);
        let is_kind = !kind.is_empty() && kind.bytes().all(|letter| letter.is_ascii_uppercase());
        is_kind.then_some(column)
    };
    let table = line
        .strip_prefix("CHECK constraint failed in ")
        .or_else(of_value)?;
    Some(BrokenRows::Table(table.split('.').next().unwrap_or(table)))
}

/// Whether SQLite says that it lacks something that the schema uses.
pub fn is_missing(message: &str) -> bool {
    MISSING.iter().any(|(start, _)| message.contains(start))
}

/// What is missing here, by its name, or what SQLite says.
pub fn reason(cause: &rusqlite::Error) -> String {
    let message = cause.to_string();
    let missing = MISSING.iter().find_map(|(start, what)| {
        let name = message.split_once(start)?.1;
        let name = name.split([' ', '(']).next().unwrap_or(name);
        let name = if *what == "function" {
            name.to_ascii_lowercase()
        } else {
            name.to_string()
        };
        Some(format!("the {what} {name} is not available here"))
    });
    missing.unwrap_or(message)
}
