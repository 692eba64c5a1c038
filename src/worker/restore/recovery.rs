//! Recovers a killed restore or undo. It rolls the operation back, or completes it once a database
//! has its new content.
//!
//! Recovery looks at the existing files and at the kept ones, so it may itself be killed and
//! repeated.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    file_steps::{finish, keep, open_dirs, swap},
    journal::{self, Intent, Swapped},
    roll_back::roll_back,
    target::{Target, parent},
};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    sqlite::replace,
    system::{portable::MetadataExt, user},
    util::{atomic_file, dir_handle::EntryHandle, entry_stat::EntryType},
};

/// The outcome of an interrupted restore, and its warnings.
pub struct Recovered {
    pub completed: bool,
    pub warnings: Vec<Warning>,
}

/// Recovers a killed restore. The caller holds the lock of the target.
pub fn recover(
    target: &mut Target,
    root: &Path,
    lock_timeout: Duration,
) -> Result<Option<Recovered>> {
    let Some(mut intent) = journal::read(root)? else {
        return Ok(None);
    };
    target.allow(intent.outside.clone());
    let recovered = if intent.decided {
        complete(target, root, &mut intent, lock_timeout)
    } else {
        roll_back(target, root, &mut intent).map(|()| Recovered {
            completed: false,
            warnings: Vec::new(),
        })
    };
    recovered.map(Some).map_err(|error| {
        // Only the user who ran that restore can read the files that it unpacked.
        let whose = fs::metadata(journal::path(root)).map(|found| found.uid()).ok();
        let as_them = match whose.filter(|user| *user != user::current()) {
            Some(user) => {
                format!("Run `kg diag backup` as user {user}, who ran that restore; otherwise: ")
            }
            None => String::new(),
        };
        let (journal, undo) = (journal::path(root), intent.undo.as_ref().map_or("", |(dir, _)| dir));
        Error {
            message: format!(
                "An earlier restore was interrupted and could not be rolled back or completed: {}",
                error.message
            ),
            remedy: format!(
                "{as_them}{}; or, to leave everything as it is, look for the old files in {}, then move {} away",
                error.remedy,
                root.join(undo).display(),
                journal.display()
            ),
            ..error
        }
    })
}

/// The state in which a killed restore left a live database.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// The new content was committed.
    New,
    /// The database still has the old content.
    Old,
    /// Another process has written to the database since, or removed or damaged it.
    Other,
}

fn left(target: &Target, swapped: &Swapped, lock_timeout: Duration) -> Result<Left> {
    if target.is_taken(&swapped.kept)? {
        return Ok(Left::New);
    }
    let path = |location: &str| -> Result<Option<PathBuf>> {
        let place = target.place(location)?;
        let is_file =
            place.as_ref().map_or(Ok(None), EntryHandle::occupant)? == Some(EntryType::File);
        Ok(place.filter(|_| is_file).map(|place| place.path()))
    };
    let Some(live) = path(&swapped.live)? else {
        return Ok(Left::Other);
    };
    let has = |content: Option<PathBuf>| {
        let Some(content) = content else {
            return Ok(false);
        };
        match replace::has_content_of(&live, &content, lock_timeout) {
            // A damaged database no longer has either content. A database that is only locked or
            // unreadable may have any content, so that error is returned.
            Err(error) if error.code == Code::DatabaseDamaged => Ok(false),
            has => has,
        }
    };
    if has(path(&swapped.new)?)? {
        return Ok(Left::New);
    }
    Ok(if has(path(&swapped.pending)?)? {
        Left::Old
    } else {
        Left::Other
    })
}

/// Fails with `KG_CHECKSUM_MISMATCH` unless the new content of a live database is the content that
/// was decided on. A disk may have lost it.
fn assert_as_decided(target: &Target, intent: &Intent, swapped: &Swapped) -> Result<()> {
    let new = target.existing(&swapped.new)?.path();
    let is_empty = fs::metadata(&new).is_ok_and(|found| found.len() == 0);
    let digest = replace::content_digest(&new)?;
    if !is_empty
        && swapped
            .digest
            .as_ref()
            .is_none_or(|decided| *decided == digest)
    {
        return Ok(());
    }
    let kept = intent.undo.as_ref().map_or("", |(dir, _)| dir);
    Err(Error::new(
        Code::ChecksumMismatch,
        format!(
            "{} is not the content that the restore had prepared, so {} was left with its previous \
             content",
            new.display(),
            target.absolute(&swapped.live).display()
        ),
        format!(
            "The previous content of other databases is in {}; put it back, then restore the \
             backup again",
            target.absolute(kept).display()
        ),
    ))
}

/// Recovers a restore that was killed after it was decided. Rolls everything back if no database
/// was committed, and otherwise completes the rest.
fn complete(
    target: &Target,
    root: &Path,
    intent: &mut Intent,
    lock_timeout: Duration,
) -> Result<Recovered> {
    let lefts = intent
        .swaps
        .iter()
        .map(|swapped| left(target, swapped, lock_timeout))
        .collect::<Result<Vec<_>>>()?;
    if !lefts.is_empty() && lefts.iter().all(|left| *left == Left::Old) {
        roll_back(target, root, intent)?;
        return Ok(Recovered {
            completed: false,
            warnings: Vec::new(),
        });
    }
    open_dirs(target, intent)?;
    // A user may have removed these directories.
    for location in intent
        .swaps
        .iter()
        .flat_map(|swapped| [&swapped.pending, &swapped.kept])
    {
        let dir = root.join(parent(location));
        atomic_file::create_dirs(&dir).map_err(|cause| Error::io("create", &dir, cause))?;
    }
    let (to_do, mut warnings) = settle_swaps(target, intent, lefts)?;
    if !to_do.is_empty() {
        to_do
            .iter()
            .try_for_each(|swapped| assert_as_decided(target, intent, swapped))?;
        swap(target, &to_do, lock_timeout, |_| Ok(()), |_| {})?;
    }
    warnings.extend(finish(root, target, intent)?);
    Ok(Recovered {
        completed: true,
        warnings,
    })
}

/// Keeps the previous content of the databases that do not need their new content any more, and
/// warns if another process wrote to one of them. Returns the other databases, and the warnings.
fn settle_swaps<'a>(
    target: &Target,
    intent: &'a Intent,
    lefts: Vec<Left>,
) -> Result<(Vec<&'a Swapped>, Vec<Warning>)> {
    let (mut to_do, mut warnings) = (Vec::new(), Vec::new());
    for (swapped, left) in intent.swaps.iter().zip(lefts) {
        let new_is_there = target.is_taken(&swapped.new)?;
        let (pending, kept) = (
            target.place(&swapped.pending)?,
            target.place(&swapped.kept)?,
        );
        let is_pending = pending
            .as_ref()
            .map_or(Ok(None), EntryHandle::occupant)?
            .is_some();
        if left == Left::Old && new_is_there {
            to_do.push(swapped);
        } else {
            if let (true, Some(pending), Some(kept)) = (is_pending, pending, kept) {
                keep(&pending, &kept)?;
            }
            if left != Left::New {
                let message = format!(
                    "Another process wrote to {} after the restore was interrupted, so it was left \
                     as it is; its previous content is {}",
                    target.absolute(&swapped.live).display(),
                    target.absolute(&swapped.kept).display()
                );
                warnings.push(Warning::about(
                    WarningCode::Recovered,
                    &swapped.live,
                    message,
                ));
            }
        }
    }
    Ok((to_do, warnings))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::{
        project::STATE_DIR,
        sqlite::replace::Swap,
        worker::restore::{
            record::{Record, Touches},
            transaction::carry_out,
        },
    };

    /// Creates a database with one row that identifies it.
    fn make(path: &Path, row: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = wal; CREATE TABLE t (a); INSERT INTO t VALUES ('{row}')"
            ))
            .unwrap();
    }

    fn row(path: &Path) -> String {
        Connection::open(path)
            .unwrap()
            .query_row("SELECT a FROM t", [], |row| row.get(0))
            .unwrap()
    }

    const UNDO: &str = ".kg/restore-undo/20240101-000000";

    /// Creates a project whose two live databases are about to be replaced.
    fn project() -> (tempfile::TempDir, Intent) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            make(
                &dir.path().join(format!(".kg/{name}.db")),
                &format!("old {name}"),
            );
            make(
                &dir.path().join(format!(".kg/restore-staging-1/{name}")),
                &format!("new {name}"),
            );
        }
        for made in [".kg-pending", ".kg"] {
            fs::create_dir_all(dir.path().join(UNDO).join(made)).unwrap();
        }
        let swapped = |name: &str| Swapped {
            new: format!(".kg/restore-staging-1/{name}"),
            live: format!(".kg/{name}.db"),
            kept: format!("{UNDO}/.kg/{name}.db"),
            pending: format!("{UNDO}/.kg-pending/{name}"),
            digest: None,
        };
        let undo = Some((
            UNDO.to_string(),
            Record::new("backup-1".into(), Touches::default()),
        ));
        let intent = Intent {
            swaps: vec![swapped("a"), swapped("b")],
            undo,
            ..Intent::default()
        };
        (dir, intent)
    }

    fn rows(root: &Path) -> [String; 2] {
        ["a", "b"].map(|name| row(&root.join(format!(".kg/{name}.db"))))
    }

    #[test]
    fn a_failure_after_any_commit_puts_the_old_content_of_all_databases_back() {
        for blocked in ["a", "b"] {
            let (dir, intent) = project();
            let root = dir.path();
            // The rename to this name fails because a directory has it.
            fs::create_dir_all(root.join(UNDO).join(format!(".kg/{blocked}.db/x"))).unwrap();
            let target = Target::open(root).unwrap();
            assert!(carry_out(&target, root, intent, Duration::from_secs(1)).is_err());
            assert_eq!(rows(root), ["old a", "old b"]);
            assert!(!journal::is_pending(&root.join(STATE_DIR)));
            assert_eq!(
                fs::read_dir(root.join(UNDO).join(".kg-pending"))
                    .unwrap()
                    .count(),
                0
            );
        }
    }

    /// Creates the state after a kill of a decided restore of two databases, after `commits`
    /// commits.
    fn killed(commits: usize, kept: usize) -> (tempfile::TempDir, Target) {
        let (dir, mut intent) = project();
        let root = dir.path().to_path_buf();
        let target = Target::open(&root).unwrap();
        for (number, swapped) in intent.swaps.iter().enumerate() {
            let at = |location: &str| root.join(location);
            make(
                &at(&swapped.pending),
                &format!("old {}", ["a", "b"][number]),
            );
            if number < commits {
                let swap = Swap {
                    live: &at(&swapped.live),
                    new: &at(&swapped.new),
                    keep: None,
                };
                replace::replace(&[swap], Duration::from_secs(1), || Ok(()), |_| Ok(())).unwrap();
            }
            if number < kept {
                fs::rename(at(&swapped.pending), at(&swapped.kept)).unwrap();
            }
        }
        intent.decided = true;
        journal::write(&root, &intent).unwrap();
        (dir, target)
    }

    #[test]
    fn a_restore_that_was_killed_before_its_first_commit_is_taken_back_and_after_it_completed() {
        for (commits, kept) in [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)] {
            let (dir, mut target) = killed(commits, kept);
            let recovered = recover(&mut target, dir.path(), Duration::from_secs(1))
                .unwrap()
                .unwrap();
            let expected = if commits == 0 {
                ["old a", "old b"]
            } else {
                ["new a", "new b"]
            };
            assert_eq!(rows(dir.path()), expected, "{commits} commits, {kept} kept");
            assert_eq!(
                (recovered.completed, recovered.warnings),
                (commits > 0, vec![])
            );
            for name in ["a", "b"].iter().filter(|_| commits > 0) {
                assert_eq!(
                    row(&dir.path().join(UNDO).join(format!(".kg/{name}.db"))),
                    format!("old {name}")
                );
            }
            assert!(
                recover(&mut target, dir.path(), Duration::ZERO)
                    .unwrap()
                    .is_none()
            );
        }
    }

    #[test]
    fn new_content_that_the_disk_lost_is_not_put_into_a_live_database() {
        for lost in [b"".as_slice(), b"SQLite format 3\0, and no more"] {
            let (dir, mut target) = killed(1, 1);
            let root = dir.path();
            let mut intent = journal::read(root).unwrap().unwrap();
            for swapped in &mut intent.swaps {
                swapped.digest = Some(replace::content_digest(&root.join(&swapped.new)).unwrap());
            }
            journal::write(root, &intent).unwrap();
            fs::write(root.join(".kg/restore-staging-1/b"), lost).unwrap();
            let error = recover(&mut target, root, Duration::from_secs(1))
                .map(|_| ())
                .unwrap_err();
            assert!(
                error.message.contains("restore-staging-1/b") && error.remedy.contains(UNDO),
                "{error}"
            );
            assert_eq!(rows(root), ["new a", "old b"]);
            // Recovery abandons nothing.
            assert!(journal::is_pending(&root.join(STATE_DIR)));
            assert_eq!(row(&root.join(UNDO).join(".kg/a.db")), "old a");
        }
    }

    #[test]
    fn a_recovery_that_is_killed_while_it_keeps_a_database_loses_nothing() {
        let (dir, mut target) = killed(1, 0);
        // The incomplete copy that a kill leaves.
        fs::write(dir.path().join(UNDO).join(".kg-pending/b~"), "half").unwrap();
        let recovered = recover(&mut target, dir.path(), Duration::from_secs(1))
            .unwrap()
            .unwrap();
        assert_eq!(
            (rows(dir.path()), recovered.warnings),
            (["new a", "new b"].map(String::from), vec![])
        );
        assert_eq!(row(&dir.path().join(UNDO).join(".kg/b.db")), "old b");
    }

    #[test]
    fn a_recovery_does_without_directories_that_were_tidied_away() {
        let (dir, mut target) = killed(1, 0);
        fs::remove_dir(dir.path().join(UNDO).join(".kg")).unwrap();
        assert!(
            recover(&mut target, dir.path(), Duration::from_secs(1))
                .unwrap()
                .unwrap()
                .completed
        );
        assert_eq!(rows(dir.path()), ["new a", "new b"]);
        assert_eq!(row(&dir.path().join(UNDO).join(".kg/a.db")), "old a");
    }

    #[test]
    fn a_database_that_is_only_locked_is_waited_for_and_never_taken_for_another_one() {
        let (dir, mut target) = killed(0, 0);
        let connection = Connection::open(dir.path().join(".kg/b.db")).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = delete; BEGIN EXCLUSIVE")
            .unwrap();
        let refused = recover(&mut target, dir.path(), Duration::from_millis(100));
        assert_eq!(
            refused.err().map(|error| error.code),
            Some(Code::DatabaseBusy)
        );
        assert!(journal::is_pending(&dir.path().join(STATE_DIR)));
        connection.execute_batch("COMMIT").unwrap();
        drop(connection);
        let recovered = recover(&mut target, dir.path(), Duration::from_secs(1))
            .unwrap()
            .unwrap();
        assert_eq!(
            (rows(dir.path()), recovered.completed),
            (["old a", "old b"].map(String::from), false)
        );
    }

    #[test]
    fn what_others_wrote_after_the_kill_is_left_alone_and_said() {
        let (dir, mut target) = killed(1, 0);
        let written = dir.path().join(".kg/b.db");
        Connection::open(&written)
            .unwrap()
            .execute_batch("UPDATE t SET a = 'mine'")
            .unwrap();
        let recovered = recover(&mut target, dir.path(), Duration::from_secs(1))
            .unwrap()
            .unwrap();
        assert_eq!(rows(dir.path()), ["new a", "mine"]);
        assert_eq!(recovered.warnings.len(), 1);
        assert_eq!(row(&dir.path().join(UNDO).join(".kg/b.db")), "old b");
    }
}
