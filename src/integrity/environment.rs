//! The environment of a database: its WAL, its names and its file system. Nothing here opens the
//! database with SQLite.

use std::{
    fs::{self, Metadata},
    path::Path,
};

use super::{
    Named,
    issue::{Issue, IssueCode},
};
use crate::{
    salvage::beside_another_state,
    sqlite::{
        files::{MAGIC, companion},
        format::{btree::u32_at, header::HEADER_BYTES, wal::Validity},
        wal_in_use,
        wal_start::WalStart,
    },
    system::{file_id::FileId, file_system},
    util::{operation::CancelToken, regular_file},
};

/// Offset in the header of the version of SQLite that last changed the database
/// (<https://sqlite.org/fileformat2.html#the_database_header>).
const WRITER_VERSION: usize = 96;
/// Read version in the header of a database in WAL mode.
const WAL_VERSION: u8 = 2;
const LET_SQLITE: &str = "Stop the processes that use the database, move the -wal and -shm away, \
                          and check what is missing; or restore the newest good backup";

/// Remedy if a process commits to another WAL.
const REOPEN: &str = "While that process runs, copy its database with `VACUUM INTO` on its own \
                      connection. Then restart it with this path: the next commit is visible here";

pub fn check(database: &Path, named: &Named, cancel: &CancelToken) -> Vec<Issue> {
    let mut issues = Vec::new();
    issues.extend(wal(database, named, cancel));
    issues.extend(wal_not_in_use(database, named));
    if let Ok(found) = FileId::at(database)
        && found.names > 1
    {
        let message = format!("{} has {} names (hard links)", named.path, found.names);
        let remedy =
            "Remove all but one: processes that use another name do not see each other's WAL";
        issues.push(named.issue(IssueCode::DatabaseLinked, message, remedy));
    }
    issues.extend(old_writer(database, named));
    issues.extend(file_system::network_name(database).map(|name| on_network(named, &name)));
    issues
}

/// Returns an issue if a process commits to a WAL other than the one at the path. The same issue
/// covers a process that has a database open that no longer exists there.
pub fn wal_not_in_use(database: &Path, named: &Named) -> Option<Issue> {
    let found = wal_in_use::find(database)?;
    Some(named.issue(IssueCode::WalNotInUse, found.says(&named.path), REOPEN))
}

/// Returns an issue if the SQLite that last wrote page 1 can corrupt a database in WAL mode
/// (<https://sqlite.org/wal.html#walresetbug>). The header names that version. The versions that
/// other processes use now cannot be determined.
fn old_writer(database: &Path, named: &Named) -> Option<Issue> {
    let start =
        regular_file::start::<HEADER_BYTES>(database).filter(|start| start.starts_with(MAGIC))?;
    let version = u32_at(&start, WRITER_VERSION).unwrap_or(0);
    if start[19] != WAL_VERSION || !resets_wal_wrongly(version) {
        return None;
    }
    let shown = format!(
        "{}.{}.{}",
        version / 1_000_000,
        version / 1000 % 1000,
        version % 1000
    );
    let message = format!(
        "{} is in WAL mode and was written by SQLite {shown}, which can corrupt it if two \
         processes write and checkpoint at once",
        named.path
    );
    Some(named.issue(
        IssueCode::SqliteOld,
        message,
        "Use SQLite 3.51.3 or newer in every program that writes to it",
    ))
}

/// Returns whether a version of SQLite has the WAL-reset bug. The bug exists from 3.7.0, which
/// introduced the WAL, until 3.51.3. It was also fixed in 3.50.7 and 3.44.6 of two older series.
fn resets_wal_wrongly(version: u32) -> bool {
    let is_mended =
        version >= 3_051_003 || matches!(version, 3_050_007..=3_050_999 | 3_044_006..=3_044_999);
    version >= 3_007_000 && !is_mended
}

/// Returns an issue if the WAL cannot be used, or not by this database.
fn wal(database: &Path, named: &Named, cancel: &CancelToken) -> Option<Issue> {
    let path = companion(database, "-wal");
    fs::metadata(&path).ok().filter(Metadata::is_file)?;
    WalStart::judge(&path, |start| unusable_wal(start, database, named, cancel))
        .unwrap_or_else(|_| Some(ignored_wal(named, "cannot be read")))
}

fn unusable_wal(
    start: &WalStart,
    database: &Path,
    named: &Named,
    cancel: &CancelToken,
) -> Option<Issue> {
    let Some(header) = start.header() else {
        return Some(ignored_wal(named, "is shorter than its header"));
    };
    match header.validity {
        Validity::NotWal => return Some(ignored_wal(named, "has no valid header")),
        Validity::ChecksumWrong => {
            return Some(ignored_wal(named, "has a header whose checksum is wrong"));
        }
        Validity::Valid => {}
    }
    let start = regular_file::start::<20>(database).filter(|start| start.starts_with(MAGIC))?;
    let page_size = match u16::from_be_bytes([start[16], start[17]]) {
        1 => 65_536,
        size => u32::from(size),
    };
    let of_wal = header.page_size_bytes;
    if of_wal != page_size {
        let why =
            format!("its pages have {of_wal} bytes, but those of the database have {page_size}");
        return Some(foreign_wal(named, &why));
    }
    if start[19] != WAL_VERSION {
        return Some(foreign_wal(named, "the database is not in WAL mode"));
    }
    let why = beside_another_state(database, cancel).ok().flatten()?;
    Some(foreign_wal(named, why))
}

fn ignored_wal(named: &Named, why: &str) -> Issue {
    let shown = format!("{}-wal", named.path);
    let message = format!("SQLite ignores {shown}, which {why}: the commits in it are lost");
    named
        .issue(IssueCode::WalUnreadable, message, LET_SQLITE)
        .path(shown)
}

fn foreign_wal(named: &Named, why: &str) -> Issue {
    let shown = format!("{}-wal", named.path);
    let message = format!("{shown} does not belong to the database next to it: {why}");
    named
        .issue(IssueCode::WalForeign, message, LET_SQLITE)
        .path(shown)
}

/// Returns the issue of a database that is sound only without its WAL.
pub fn wal_is_foreign(named: &Named) -> Issue {
    let shown = format!("{}-wal", named.path);
    let message = format!(
        "{} is sound without {shown}, but not with it: that WAL is damaged or belongs to another \
         database",
        named.path
    );
    named
        .issue(IssueCode::WalForeign, message, LET_SQLITE)
        .path(shown)
}

pub fn has_wal(database: &Path) -> bool {
    fs::metadata(companion(database, "-wal")).is_ok_and(|found| found.len() > 0)
}

fn on_network(named: &Named, file_system: &str) -> Issue {
    let message = format!(
        "{} lies on a network file system ({file_system}), where SQLite's locks and its WAL may not work",
        named.path
    );
    named.issue(
        IssueCode::NetworkFileSystem,
        message,
        "Move it to a local disk",
    )
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::{super::issue::Part, *};

    #[test]
    fn a_writer_that_can_corrupt_a_wal_is_told_by_the_header_and_only_in_wal_mode() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a.db");
        let named = Named {
            path: "a.db".into(),
            part: Part::Database,
        };
        let found = |version: u32, mode: u8| {
            let mut header = [0; HEADER_BYTES];
            header[..16].copy_from_slice(MAGIC);
            header[18..20].fill(mode);
            header[WRITER_VERSION..].copy_from_slice(&version.to_be_bytes());
            fs::write(&database, header).unwrap();
            old_writer(&database, &named).map(|issue| issue.message)
        };
        assert!(
            found(3_040_001, WAL_VERSION)
                .unwrap()
                .contains("SQLite 3.40.1,")
        );
        assert_eq!(found(3_040_001, 1), None);
        for version in [3_007_000, 3_044_005, 3_045_000, 3_050_006, 3_051_002] {
            assert!(found(version, WAL_VERSION).is_some(), "{version}");
        }
        for version in [0, 3_006_023, 3_044_006, 3_050_007, 3_051_003, 3_053_002] {
            assert_eq!(found(version, WAL_VERSION), None, "{version}");
        }
    }

    #[test]
    fn a_wal_that_its_host_creates_and_deletes_all_the_time_is_no_issue() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a.db");
        let host = rusqlite::Connection::open(&database).unwrap();
        host.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (x)")
            .unwrap();
        let path = companion(&database, "-wal");
        let content = fs::read(&path).unwrap();
        // The copies stand for the host: its locks are not part of this test.
        drop(host);
        let named = Named {
            path: "a.db".into(),
            part: Part::Database,
        };
        let is_done = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    fs::write(&path, &content).unwrap();
                    fs::remove_file(&path).unwrap();
                }
            });
            let found = (0..20_000).find_map(|_| {
                wal(&database, &named, &CancelToken::default())
                    .filter(|issue| issue.code == IssueCode::WalUnreadable)
            });
            is_done.store(true, Ordering::Relaxed);
            assert_eq!(found, None);
        });
    }

    #[test]
    fn a_database_on_a_network_file_system_is_told() {
        let named = Named {
            path: "a.db".into(),
            part: Part::Database,
        };
        let issue = on_network(&named, "NFS");
        assert_eq!(issue.code, IssueCode::NetworkFileSystem);
        assert!(issue.message.contains("(NFS)"), "{}", issue.message);
    }
}
