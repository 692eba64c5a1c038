//! How a user of `kg` names a backup: a path, `latest`, an id, or the beginning of an id.

use std::path::Path;

use crate::{
    error::{Code, Error, Result},
    store::{ID_PREFIX, Listing, Store, is_id, is_latest},
};

/// The shortest beginning of an id, such as the year, counted without the prefix.
const MIN_BEGINNING: usize = 4;
/// The number of ids that a message names.
const MOST_NAMED: usize = 5;

/// Returns the id that is `reference`, or the only one that begins with it, with or without
/// `backup-`. Returns every other reference as it is. Fails with `KG_AMBIGUOUS` if several ids begin
/// so.
pub fn complete(store: &Store, reference: &str) -> Result<String> {
    if !is_beginning(reference) || Path::new(reference).exists() {
        return Ok(reference.to_string());
    }
    let Listing { backups, unlisted } = store.read()?;
    let listed = backups.into_iter().map(|backup| backup.id);
    let mut ids: Vec<String> = listed
        .chain(unlisted.into_iter().map(|unlisted| unlisted.id))
        .filter(|id| id.starts_with(reference) || stamp(id).starts_with(reference))
        .collect();
    ids.sort();
    ids.dedup();
    // A second backup of the same second has an id that begins with that of the first.
    if let Some(whole) = ids.iter().find(|id| stamp(id) == stamp(reference)) {
        return Ok(whole.clone());
    }
    match ids.as_slice() {
        [] => Ok(reference.to_string()),
        [id] => Ok(id.clone()),
        _ => Err(ambiguous(reference, &ids)),
    }
}

/// Returns the id of the backup that `reference` names, for an action on a backup of this store.
pub fn id(store: &Store, reference: &str) -> Result<String> {
    let reference = complete(store, reference)?;
    if is_id(&reference) {
        return Ok(reference);
    }
    if is_latest(&reference) {
        return store.latest().map(|backup| backup.id);
    }
    // An archive of this store that is named by its path.
    let archive = store.locate(&reference)?;
    let mut listed = store.list()?.into_iter();
    let found = listed.find(|backup| backup.archive.path() == archive.path());
    found.map(|backup| backup.id).ok_or_else(|| {
        Error::new(
            Code::BackupNotFound,
            format!("{archive} is not in {}", store.dir().display()),
            "Name its directory with `--backup-dir`",
        )
    })
}

/// Returns an id, or the beginning of one, without the prefix.
fn stamp(id: &str) -> &str {
    id.strip_prefix(ID_PREFIX).unwrap_or(id)
}

fn is_beginning(reference: &str) -> bool {
    let stamp = stamp(reference);
    let is_stamp = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !is_id(reference)
        && stamp.len() >= MIN_BEGINNING
        && stamp.starts_with(|first: char| first.is_ascii_digit())
        && stamp.bytes().all(is_stamp)
}

fn ambiguous(reference: &str, ids: &[String]) -> Error {
    let named = ids.iter().rev().take(MOST_NAMED).cloned();
    let mut named = named.collect::<Vec<_>>().join(", ");
    if ids.len() > MOST_NAMED {
        named.push_str(", …");
    }
    let message = format!("{} backups begin with {reference}: {named}", ids.len());
    Error::new(Code::Ambiguous, message, "Write more of the id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_starts_with_its_year() {
        for text in ["2026", "20260115-02", "backup-2026", "20260115-020000"] {
            assert!(is_beginning(text), "{text}");
        }
        for text in [
            "",
            "latest",
            "backup-",
            "backup-202",
            "202",
            "backup-20260115-020000",
            "2026.tar.gz",
            "./2026",
            "s3://bucket/2026",
        ] {
            assert!(!is_beginning(text), "{text}");
        }
    }
}
