//! The files that a restore replaced: `.kg/restore-undo/{time}/`.
//!
//! The files keep the paths that they had. The record `undo.json` says where each file belongs and
//! what the restore added. An undo is a restore of these files and leaves a record of its own.

use std::{fs, io, path::Path};

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

use super::{
    journal::MAX_JOURNAL_BYTES,
    record::{RECORD_FILE, RECORD_VERSION, Record},
};
use crate::{
    error::{Code, Error, Result},
    project::{STATE_DIR, UNDO_DIR},
    util::{dir_handle::not_a_directory, regular_file},
};

const STAMP: &str = "%Y%m%d-%H%M%S";
const STAMP_BYTES: usize = 15;

/// Returns the location of a new directory for this restore, such as
/// `.kg/restore-undo/20240115-020000`. Its name sorts after all existing names. It gets a number if
/// that second is taken or the clock was set back.
pub fn free_dir(root: &Path) -> Result<String> {
    let newest = names(&root.join(STATE_DIR))?
        .into_iter()
        .max()
        .unwrap_or_default();
    let now = Timestamp::now()
        .to_zoned(TimeZone::UTC)
        .strftime(STAMP)
        .to_string();
    let stamp = now
        .as_str()
        .max(newest.get(..STAMP_BYTES).unwrap_or_default());
    let numbered = (2..).map(|number| format!("{stamp}-{number:06}"));
    let mut names = std::iter::once(stamp.to_string()).chain(numbered);
    Ok(format!(
        "{STATE_DIR}/{UNDO_DIR}/{}",
        names.find(|name| *name > newest).unwrap_or(now)
    ))
}

/// Finds the newest restore or undo that can be undone or, with `earlier`, the newest restore.
/// Returns the location of its directory and its record. `KG_NOTHING_TO_UNDO` if none is kept.
pub fn newest(root: &Path, earlier: bool) -> Result<(String, Record)> {
    let mut names = names(&root.join(STATE_DIR))?;
    names.sort();
    for name in names.iter().rev() {
        let path = root
            .join(STATE_DIR)
            .join(UNDO_DIR)
            .join(name)
            .join(RECORD_FILE);
        // A directory without a record belongs to a restore that was rolled back, or a user has
        // removed part of it.
        let Some(json) = regular_file::open_orders(&path, MAX_JOURNAL_BYTES)? else {
            continue;
        };
        let record: Result<Record, _> = serde_json::from_reader(json);
        if let Some(kind) = record
            .as_ref()
            .err()
            .and_then(serde_json::Error::io_error_kind)
        {
            return Err(Error::io("read", &path, kind.into()));
        }
        return match record {
            Ok(record) if earlier && record.undo => continue,
            Ok(record) if record.version == RECORD_VERSION => {
                Ok((format!("{STATE_DIR}/{UNDO_DIR}/{name}"), record))
            }
            _ => Err(Error::new(
                Code::TargetInvalid,
                format!(
                    "{} cannot be read: it is not a record that this release can use",
                    path.display()
                ),
                "Put back the files next to it by hand, or move the directory away to undo an \
                 earlier restore",
            )),
        };
    }
    Err(Error::new(
        Code::NothingToUndo,
        format!(
            "{} contains no replaced files that could be put back",
            root.join(STATE_DIR).join(UNDO_DIR).display()
        ),
        "Restore a backup with `kg diag restore --file latest`",
    ))
}

/// Returns the directories of restores that are older than `days`. A host may call this function
/// because it only looks up paths and opens no file.
pub fn expired(state: &Path, days: u32) -> Result<Vec<String>> {
    let age = SignedDuration::from_hours(24 * i64::from(days));
    let oldest = Timestamp::now()
        .saturating_sub(age)
        .unwrap_or(Timestamp::MIN);
    let mut names = names(state)?;
    names.retain(|name| time_of(name).is_some_and(|at| at < oldest));
    Ok(names)
}

/// Returns whether a location is the directory of a restore.
pub fn is_dir(location: &str) -> bool {
    let name = location
        .strip_prefix(STATE_DIR)
        .and_then(|below| below.strip_prefix('/'));
    let name = name
        .and_then(|below| below.strip_prefix(UNDO_DIR))
        .and_then(|below| below.strip_prefix('/'));
    name.is_some_and(|name| time_of(name).is_some())
}

/// Returns the time when the restore with this directory name began.
fn time_of(name: &str) -> Option<Timestamp> {
    let number = name.get(STAMP_BYTES..)?;
    let is_number =
        |digits: &str| digits.len() == 6 && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !number.is_empty() && !number.strip_prefix('-').is_some_and(is_number) {
        return None;
    }
    let at = DateTime::strptime(STAMP, name.get(..STAMP_BYTES)?).ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn names(state: &Path) -> Result<Vec<String>> {
    let dir = state.join(UNDO_DIR);
    if dir.is_symlink() {
        return Err(not_a_directory(&dir));
    }
    let entries = match fs::read_dir(&dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|cause| Error::io("read", &dir, cause))?,
    };
    let dirs = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(dirs
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| time_of(name).is_some())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_comes_after_all_others_even_where_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let undo = dir.path().join(STATE_DIR).join(UNDO_DIR);
        for name in ["20240115-020000", "99990115-020000"] {
            fs::create_dir_all(undo.join(name)).unwrap();
        }
        for expected in ["99990115-020000-000002", "99990115-020000-000003"] {
            let free = free_dir(dir.path()).unwrap();
            assert_eq!(free, format!(".kg/restore-undo/{expected}"));
            fs::create_dir(dir.path().join(free)).unwrap();
        }
    }

    #[test]
    fn only_directories_of_restores_that_are_too_old_expire() {
        let dir = tempfile::tempdir().unwrap();
        let days_ago = |days: i64| {
            let at = Timestamp::now()
                .saturating_sub(SignedDuration::from_hours(24 * days))
                .unwrap();
            at.to_zoned(TimeZone::UTC).strftime(STAMP).to_string()
        };
        let (old, new) = (format!("{}-000002", days_ago(8)), days_ago(6));
        for name in [&old, &new, "mine", "20240230-000000", "20240101-000000~"] {
            fs::create_dir_all(dir.path().join(UNDO_DIR).join(name)).unwrap();
        }
        assert_eq!(expired(dir.path(), 7).unwrap(), [old]);
        assert_eq!(
            expired(&dir.path().join("missing"), 7).unwrap(),
            Vec::<String>::new()
        );
    }
}
