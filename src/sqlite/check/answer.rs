//! Interprets SQLite's answers to checks. An error counts as damage only if SQLite reports damaged
//! pages.

use rusqlite::{ErrorCode, ffi};

use crate::{error::Result, util::operation::CancelToken};

/// The start of SQLite's message about a schema that it cannot parse.
const MALFORMED_SCHEMA: &str = "malformed database schema";
/// SQLite's messages about a schema that contradicts itself. A feature of another release never
/// causes them.
const CONTRADICTIONS: [&str; 3] = ["invalid rootpage", "orphan index", "- duplicate"];
/// The start of each error about a missing object, and the kind of that object.
const MISSING: [(&str, &str); 6] = [
    ("no such function: ", "function"),
    ("unknown function: ", "function"),
    ("no such collation sequence: ", "collation"),
    ("no such module: ", "module"),
    ("no such tokenizer: ", "tokenizer"),
    ("unknown tokenizer: ", "tokenizer"),
];

/// The result of one statement of a check.
pub enum Answer {
    Lines(Vec<String>),
    Damage(String),
    /// The reason why SQLite could not run the statement.
    Unable(String),
}

/// Interprets an error of SQLite. Returns `KG_ABORTED` if the operation was cancelled.
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

/// Returns whether an error is proof of damage.
pub fn is_damage(cause: &rusqlite::Error) -> bool {
    let is_code = matches!(
        cause.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    );
    is_code && !is_unread_schema(&cause.to_string())
}

/// Returns whether an error is proof of damaged pages. SQLite uses other extended codes for an
/// index that does not match its table, and for a virtual table.
pub fn is_page_damage(cause: &rusqlite::Error) -> bool {
    let code = cause.sqlite_error().map(|error| error.extended_code);
    is_damage(cause) && matches!(code, Some(ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB))
}

/// Returns whether SQLite reports that it cannot parse the schema. Another release may be able to
/// parse it.
pub fn is_unread_schema(message: &str) -> bool {
    message.contains(MALFORMED_SCHEMA)
        && !CONTRADICTIONS
            .iter()
            .any(|contradiction| message.contains(contradiction))
}

/// The rows in a line of a check that violate the declaration of their table.
#[derive(Debug, PartialEq, Eq)]
pub enum BrokenRows<'a> {
    Table(&'a str),
    /// A unique index that contains an entry twice.
    Index(&'a str),
}

/// Returns the table or index of a line about rows, or `None` for a line about pages. The names of
/// tables and indexes come after the compared words, so a name cannot be mistaken for these words.
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

/// Returns whether SQLite reports that it lacks something that the schema uses.
pub fn is_missing(message: &str) -> bool {
    MISSING.iter().any(|(start, _)| message.contains(start))
}

/// Returns which object is missing, or SQLite's message if no object is missing.
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
