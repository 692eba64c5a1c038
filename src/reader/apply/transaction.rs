//! Carries out an [`Intent`], or takes it back: now, or in a later process after a kill.
//!
//! ```text
//! journal ─▶ directories ─▶ renames ─▶ databases locked, their content kept ─▶ "decided" ─▶ new content committed ─▶ record ─▶ end
//!            └────────────── a failure or kill here is taken back ───────────┘             └── from a commit on it is completed ─┘
//! ```
//!
//! Taking back and completing look at what is there: a file is only moved or removed where its identity, or what is kept of it,
//! says that it is the one that was moved. So both may be killed and begun again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::OFlag;

use super::{
    journal::{self, Intent, MadeDir, Move, Swapped},
    target::{Target, parent},
};
use crate::{
    beneath::{Occupant, Place},
    durable::PARTIAL_PREFIX,
    error::{Code, Error, Result, Warning, WarningCode},
    project::STATE_DIR,
    sqlite::replace::{self, Swap},
};

/// What became of an interrupted restore, and what should be seen of it.
pub struct Recovered {
    pub completed: bool,
    pub warnings: Vec<Warning>,
}

/// Makes all changes, or none. The target is locked by the caller.
pub fn carry_out(target: &Target, root: &Path, mut intent: Intent, lock_timeout: Duration) -> Result<Vec<Warning>> {
    journal::write(root, &intent)?;
    let mut committed = 0;
    let done =
        make_moves(target, &intent).and_then(|()| make_swaps(target, root, &mut intent, lock_timeout, &mut committed));
    match done {
        Ok(()) => finish(root, target, &intent).map_err(|error| {
            let remedy =
                format!("The files are restored; the next backup or restore completes the rest. {}", error.remedy);
            Error { remedy, ..error }
        }),
        Err(error) => Err(match take_back(target, root, &intent, committed, lock_timeout) {
            Ok(()) => error,
            Err(second) => Error {
                message: format!("{}; and then, taking it back: {}", error.message, second.message),
                remedy: format!("{}; the next backup or restore of this project makes it whole", second.remedy),
                ..error
            },
        }),
    }
}

/// Makes whole what a killed restore left. The target is locked by the caller.
pub fn recover(target: &mut Target, root: &Path, lock_timeout: Duration) -> Result<Option<Recovered>> {
    let Some(intent) = journal::read(root)? else { return Ok(None) };
    target.allow(intent.outside.clone());
    let recovered = if intent.decided {
        complete(target, root, &intent, lock_timeout)
    } else {
        roll_back(target, root, &intent).map(|()| Recovered { completed: false, warnings: Vec::new() })
    };
    recovered.map(Some).map_err(|error| {
        let (journal, undo) = (journal::path(root), intent.undo.as_ref().map_or("", |(dir, _)| dir));
        Error {
            message: format!("An earlier restore was interrupted, and cannot be made whole: {}", error.message),
            remedy: format!(
                "{}; or, to leave everything as it is, look for the old files in {}, then move {} away",
                error.remedy,
                root.join(undo).display(),
                journal.display()
            ),
            ..error
        }
    })
}

fn make_moves(target: &Target, intent: &Intent) -> Result<()> {
    let owner = target.existing(STATE_DIR)?.stat()?.filter(|_| nix::unistd::geteuid().is_root());
    for dir in &intent.made {
        let place = target.existing(&dir.at)?;
        place.make_dir(dir.mode.map_or(0o777, |mode| mode | 0o700))?;
        if let Some(owner) = owner {
            place.set_owner(owner.st_uid, owner.st_gid)?;
        }
    }
    for (number, change) in intent.moves.iter().enumerate() {
        let (from, to) = (target.existing(&change.from)?, target.existing(&change.to)?);
        move_file(&from, &to, &intent.copy_name(number))?;
    }
    let renamed = intent.moves.iter().flat_map(|change| [change.from.as_str(), change.to.as_str()]);
    target.sync(renamed.chain(intent.made.iter().map(|dir| dir.at.as_str())))
}

fn make_swaps(
    target: &Target,
    root: &Path,
    intent: &mut Intent,
    lock_timeout: Duration,
    committed: &mut usize,
) -> Result<()> {
    let swaps = intent.swaps.clone();
    let mut decide = || {
        intent.decided = true;
        journal::write(root, intent)
    };
    if swaps.is_empty() {
        return decide();
    }
    let all: Vec<&Swapped> = swaps.iter().collect();
    swap(target, &all, lock_timeout, decide, |_| *committed += 1)
}

/// Replaces the content of live databases; `done` is called after each commit.
fn swap(
    target: &Target,
    swaps: &[&Swapped],
    lock_timeout: Duration,
    decide: impl FnOnce() -> Result<()>,
    mut done: impl FnMut(usize),
) -> Result<()> {
    let mut places = Vec::new();
    for swapped in swaps {
        let (live, growing) = (target.existing(&swapped.live)?, target.existing(&swapped.growing())?);
        growing.remove_file()?;
        let file = growing.create()?;
        dress_as(&growing, &live)?;
        let (new, pending) = (target.existing(&swapped.new)?, target.existing(&swapped.pending)?);
        places.push((live.path(), new.path(), file, growing, pending, target.existing(&swapped.kept)?));
    }
    let databases: Vec<Swap<'_>> =
        places.iter().map(|(live, new, file, ..)| Swap { live, new, keep: Some(file) }).collect();
    let decide = || {
        // Whole from here on, and only what is whole has this name.
        places.iter().try_for_each(|(.., growing, pending, _)| keep(growing, pending))?;
        decide()
    };
    replace::replace(&databases, lock_timeout, decide, |number| {
        done(number);
        let (.., pending, kept) = &places[number];
        keep(pending, kept)
    })
}

/// What a database held gets its name: the new content is committed.
fn keep(pending: &Place, kept: &Place) -> Result<()> {
    pending.rename(kept).map_err(|cause| Error::io("keep", &kept.path(), cause))?;
    kept.dir().sync()
}

/// What is kept of a database may be put back as a file.
fn dress_as(kept: &Place, live: &Place) -> Result<()> {
    let Some(found) = live.stat()? else { return Ok(()) };
    // An undo may have to write to it.
    kept.set_mode(found.st_mode | 0o200)?;
    if nix::unistd::geteuid().is_root() { kept.set_owner(found.st_uid, found.st_gid) } else { Ok(()) }
}

/// What a killed restore left of a live database.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// The new content was committed.
    New,
    /// It still has the old.
    Old,
    /// Somebody wrote to it since, or removed or damaged it.
    Other,
}

fn left(target: &Target, swapped: &Swapped, lock_timeout: Duration) -> Result<Left> {
    if target.is_taken(&swapped.kept)? {
        return Ok(Left::New);
    }
    let path = |location: &str| -> Result<Option<PathBuf>> {
        let place = target.place(location)?;
        let is_file = place.as_ref().map_or(Ok(None), Place::occupant)? == Some(Occupant::File);
        Ok(place.filter(|_| is_file).map(|place| place.path()))
    };
    let Some(live) = path(&swapped.live)? else { return Ok(Left::Other) };
    let has = |content: Option<PathBuf>| {
        let Some(content) = content else { return Ok(false) };
        match replace::has_content_of(&live, &content, lock_timeout) {
            // A damaged one is another one by now. What is only locked, or cannot be read, may be anything.
            Err(error) if error.code == Code::DatabaseDamaged => Ok(false),
            has => has,
        }
    };
    if has(path(&swapped.new)?)? {
        return Ok(Left::New);
    }
    Ok(if has(path(&swapped.pending)?)? { Left::Old } else { Left::Other })
}

/// After a kill once it was decided: without a commit everything is taken back, otherwise the rest is done.
fn complete(target: &Target, root: &Path, intent: &Intent, lock_timeout: Duration) -> Result<Recovered> {
    let lefts = intent.swaps.iter().map(|swapped| left(target, swapped, lock_timeout)).collect::<Result<Vec<_>>>()?;
    if !lefts.is_empty() && lefts.iter().all(|left| *left == Left::Old) {
        roll_back(target, root, intent)?;
        return Ok(Recovered { completed: false, warnings: Vec::new() });
    }
    // Somebody may have tidied them away.
    for location in intent.swaps.iter().flat_map(|swapped| [&swapped.pending, &swapped.kept]) {
        let dir = root.join(parent(location));
        fs::create_dir_all(&dir).map_err(|cause| Error::io("create", &dir, cause))?;
    }
    let mut warnings = Vec::new();
    let mut to_do = Vec::new();
    for (swapped, left) in intent.swaps.iter().zip(lefts) {
        let new_is_there = target.is_taken(&swapped.new)?;
        let (pending, kept) = (target.place(&swapped.pending)?, target.place(&swapped.kept)?);
        let is_pending = pending.as_ref().map_or(Ok(None), Place::occupant)?.is_some();
        if left == Left::Old && new_is_there {
            to_do.push(swapped);
        } else {
            if let (true, Some(pending), Some(kept)) = (is_pending, pending, kept) {
                keep(&pending, &kept)?;
            }
            if left != Left::New {
                let message = format!(
                    "{} was written by others after the restore had been interrupted, and was left as it is; what it held \
                     before is {}",
                    target.absolute(&swapped.live).display(),
                    target.absolute(&swapped.kept).display()
                );
                warnings.push(Warning::about(WarningCode::Recovered, &swapped.live, message));
            }
        }
    }
    if !to_do.is_empty() {
        swap(target, &to_do, lock_timeout, || Ok(()), |_| {})?;
    }
    warnings.extend(finish(root, target, intent)?);
    Ok(Recovered { completed: true, warnings })
}

/// What comes after the changes; may be done twice.
fn finish(root: &Path, target: &Target, intent: &Intent) -> Result<Vec<Warning>> {
    let mut warnings = Vec::new();
    // Innermost first: nothing changes in a directory any more when it gets its time.
    for dir in intent.made.iter().rev() {
        if let Err(error) = dress_dir(target, dir) {
            warnings.push(Warning::about(WarningCode::Attributes, &dir.at, error.message));
        }
    }
    if let Some((dir, record)) = &intent.undo {
        let path = root.join(dir);
        fs::create_dir_all(&path).map_err(|cause| Error::io("create", &path, cause))?;
        record.write(root, &path)?;
        target.sync([dir.as_str()])?;
    }
    if let Some(retired) = intent.retired.as_ref().filter(|retired| super::undo::is_dir(retired)) {
        let dir = root.join(retired);
        match fs::remove_dir_all(&dir) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &dir, cause)),
            _ => target.sync([retired.as_str()])?,
        }
    }
    for dir in intent.emptied.iter().rev() {
        if let Some(place) = target.place(dir)? {
            // One that holds something by now stays.
            place.remove_dir();
        }
    }
    journal::end(root)?;
    Ok(warnings)
}

fn dress_dir(target: &Target, dir: &MadeDir) -> Result<()> {
    let Some(place) = target.place(&dir.at)? else { return Ok(()) };
    if place.occupant()? != Some(Occupant::Directory) {
        return Ok(());
    }
    dir.mtime.map_or(Ok(()), |(seconds, nanoseconds)| place.set_modified(seconds, nanoseconds))?;
    // The mode last: it may keep this user out.
    dir.mode.map_or(Ok(()), |mode| place.set_mode(mode))
}

/// After a failure: the first `committed` databases have their new content.
///
/// What they held stays under a name that the journal knows until everything is back.
fn take_back(target: &Target, root: &Path, intent: &Intent, committed: usize, lock_timeout: Duration) -> Result<()> {
    for swapped in intent.swaps[..committed].iter().rev() {
        let (live, pending, kept) =
            (target.existing(&swapped.live)?, target.existing(&swapped.pending)?, target.existing(&swapped.kept)?);
        if pending.occupant()?.is_none() {
            kept.rename(&pending).map_err(|cause| Error::io("put back", &kept.path(), cause))?;
        }
        let old = Swap { live: &live.path(), new: &pending.path(), keep: None };
        replace::replace(&[old], lock_timeout, || Ok(()), |_| Ok(()))?;
    }
    roll_back(target, root, intent)
}

/// Takes back what was renamed and made; may be done twice.
fn roll_back(target: &Target, root: &Path, intent: &Intent) -> Result<()> {
    if intent.decided {
        // A full disk may refuse it. It is needed only where this is killed between the last removal and the end.
        let _ = journal::write(root, &Intent { decided: false, ..intent.clone() });
    }
    for number in (0..intent.moves.len()).rev() {
        move_back(target, intent, number)?;
    }
    for swapped in &intent.swaps {
        for kept in [swapped.growing(), swapped.pending.clone()] {
            target.place(&kept)?.map_or(Ok(()), |kept| kept.remove_file())?;
        }
    }
    for dir in intent.made.iter().rev() {
        if let Some(place) = target.place(&dir.at)? {
            place.remove_dir();
        }
    }
    target.sync(intent.moves.iter().map(|change| change.from.as_str()))?;
    journal::end(root)
}

fn move_back(target: &Target, intent: &Intent, number: usize) -> Result<()> {
    let Move { from, to, identity } = &intent.moves[number];
    let Some(now) = target.place(to)? else { return Ok(()) };
    let copy = now.beside(&intent.copy_name(number))?;
    copy.remove_file()?;
    let Some(found) = now.stat()? else {
        // Not made yet, or taken back already.
        return Ok(());
    };
    let is_renamed = ({ found.st_dev }, { found.st_ino }) == *identity;
    let was = target.place(from)?;
    let original = was.as_ref().map_or(Ok(None), Place::stat)?;
    let is_at_home = original.is_some_and(|found| ({ found.st_dev }, { found.st_ino }) == *identity);
    // A copy from another file system has an identity of its own; what stood in its place tells that it is one.
    let is_copied = found.st_dev != identity.0 && is_vacated(target, intent, number)?;
    match (was, original) {
        // Copied, and not removed where it came from.
        (_, Some(_)) if is_at_home && is_copied => now.remove_file(),
        // Not made yet; or something else is there by now, and what was moved stays where it is kept.
        (_, Some(_)) => Ok(()),
        (Some(was), None) if is_renamed || is_copied => move_file(&now, &was, &intent.copy_name(number)),
        // The directory that it was unpacked into is gone: it is still in the archive.
        (None, None) if (is_renamed || is_copied) && intent.is_staged(from) => now.remove_file(),
        _ => Ok(()),
    }
}

/// Whether what had stood at the destination of this move was moved away, or nothing had.
fn is_vacated(target: &Target, intent: &Intent, number: usize) -> Result<bool> {
    let to = &intent.moves[number].to;
    match intent.moves[..number].iter().find(|earlier| earlier.from == *to) {
        Some(earlier) => target.is_taken(&earlier.to),
        None => Ok(true),
    }
}

/// Renames; where the two lie on different file systems, copies under a temporary name first.
fn move_file(from: &Place, to: &Place, copy_name: &str) -> Result<()> {
    let failed = |cause| Error::io("move", &from.path(), cause);
    match from.rename(to) {
        Err(cause) if cause.kind() == io::ErrorKind::CrossesDevices => {
            let copy = to.beside(copy_name)?;
            copy.remove_file()?;
            if from.occupant()? == Some(Occupant::Link) {
                copy.make_link(&fs::read_link(from.path()).map_err(failed)?)?;
            } else {
                let mut source = from.open(OFlag::O_RDONLY, 0).map_err(failed)?;
                let mut file = copy.create()?;
                io::copy(&mut source, &mut file).map_err(failed)?;
                let found = source.metadata().map_err(failed)?;
                file.set_permissions(found.permissions()).map_err(failed)?;
                let modified = found.modified().map_err(failed)?;
                file.set_times(fs::FileTimes::new().set_modified(modified)).map_err(failed)?;
                file.sync_all().map_err(failed)?;
            }
            copy.rename(to).map_err(failed)?;
            to.dir().sync()?;
            from.remove_file()
        }
        moved => moved.map_err(failed),
    }
}

impl Intent {
    /// Of a file that is copied from another file system, until it is whole.
    fn copy_name(&self, number: usize) -> String {
        format!("{PARTIAL_PREFIX}{}-{number}", self.token)
    }

    fn is_staged(&self, location: &str) -> bool {
        self.staging.as_ref().is_some_and(|staging| location.starts_with(staging))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::reader::apply::undo::Record;

    /// A database with one row, which says what it is.
    fn make(path: &Path, row: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(&format!("PRAGMA journal_mode = wal; CREATE TABLE t (a); INSERT INTO t VALUES ('{row}')"))
            .unwrap();
    }

    fn row(path: &Path) -> String {
        Connection::open(path).unwrap().query_row("SELECT a FROM t", [], |row| row.get(0)).unwrap()
    }

    const UNDO: &str = ".kg/restore-undo/20240101-000000";

    /// A project whose two live databases are about to be replaced.
    fn project() -> (tempfile::TempDir, Intent) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            make(&dir.path().join(format!(".kg/{name}.db")), &format!("old {name}"));
            make(&dir.path().join(format!(".kg/restore-staging-1/{name}")), &format!("new {name}"));
        }
        for made in [".kg-pending", ".kg"] {
            fs::create_dir_all(dir.path().join(UNDO).join(made)).unwrap();
        }
        let swapped = |name: &str| Swapped {
            new: format!(".kg/restore-staging-1/{name}"),
            live: format!(".kg/{name}.db"),
            kept: format!("{UNDO}/.kg/{name}.db"),
            pending: format!("{UNDO}/.kg-pending/{name}"),
        };
        let undo = Some((UNDO.to_string(), Record::new("backup-1".into(), Vec::new())));
        let intent = Intent { swaps: vec![swapped("a"), swapped("b")], undo, ..Intent::default() };
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
            // Nothing can be kept under a name that a directory has.
            fs::create_dir_all(root.join(UNDO).join(format!(".kg/{blocked}.db/x"))).unwrap();
            let target = Target::open(root).unwrap();
            assert!(carry_out(&target, root, intent, Duration::from_secs(1)).is_err());
            assert_eq!(rows(root), ["old a", "old b"]);
            assert!(!journal::is_pending(&root.join(STATE_DIR)));
            assert_eq!(fs::read_dir(root.join(UNDO).join(".kg-pending")).unwrap().count(), 0);
        }
    }

    /// What is there when a restore of two databases was killed after so many commits, decided.
    fn killed(commits: usize, kept: usize) -> (tempfile::TempDir, Target) {
        let (dir, mut intent) = project();
        let root = dir.path().to_path_buf();
        let target = Target::open(&root).unwrap();
        for (number, swapped) in intent.swaps.iter().enumerate() {
            let at = |location: &str| root.join(location);
            make(&at(&swapped.pending), &format!("old {}", ["a", "b"][number]));
            if number < commits {
                let swap = Swap { live: &at(&swapped.live), new: &at(&swapped.new), keep: None };
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
            let recovered = recover(&mut target, dir.path(), Duration::from_secs(1)).unwrap().unwrap();
            let expected = if commits == 0 { ["old a", "old b"] } else { ["new a", "new b"] };
            assert_eq!(rows(dir.path()), expected, "{commits} commits, {kept} kept");
            assert_eq!((recovered.completed, recovered.warnings), (commits > 0, vec![]));
            for name in ["a", "b"].iter().filter(|_| commits > 0) {
                assert_eq!(row(&dir.path().join(UNDO).join(format!(".kg/{name}.db"))), format!("old {name}"));
            }
            assert!(recover(&mut target, dir.path(), Duration::ZERO).unwrap().is_none());
        }
    }

    #[test]
    fn a_recovery_that_is_killed_while_it_keeps_a_database_loses_nothing() {
        let (dir, mut target) = killed(1, 0);
        // What a kill leaves of a copy that was not whole yet.
        fs::write(dir.path().join(UNDO).join(".kg-pending/b~"), "half").unwrap();
        let recovered = recover(&mut target, dir.path(), Duration::from_secs(1)).unwrap().unwrap();
        assert_eq!((rows(dir.path()), recovered.warnings), (["new a", "new b"].map(String::from), vec![]));
        assert_eq!(row(&dir.path().join(UNDO).join(".kg/b.db")), "old b");
    }

    #[test]
    fn a_recovery_does_without_directories_that_were_tidied_away() {
        let (dir, mut target) = killed(1, 0);
        fs::remove_dir(dir.path().join(UNDO).join(".kg")).unwrap();
        assert!(recover(&mut target, dir.path(), Duration::from_secs(1)).unwrap().unwrap().completed);
        assert_eq!(rows(dir.path()), ["new a", "new b"]);
        assert_eq!(row(&dir.path().join(UNDO).join(".kg/a.db")), "old a");
    }

    #[test]
    fn a_database_that_is_only_locked_is_waited_for_and_never_taken_for_another_one() {
        let (dir, mut target) = killed(0, 0);
        let connection = Connection::open(dir.path().join(".kg/b.db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode = delete; BEGIN EXCLUSIVE").unwrap();
        let refused = recover(&mut target, dir.path(), Duration::from_millis(100));
        assert_eq!(refused.err().map(|error| error.code), Some(Code::DatabaseBusy));
        assert!(journal::is_pending(&dir.path().join(STATE_DIR)));
        connection.execute_batch("COMMIT").unwrap();
        drop(connection);
        let recovered = recover(&mut target, dir.path(), Duration::from_secs(1)).unwrap().unwrap();
        assert_eq!((rows(dir.path()), recovered.completed), (["old a", "old b"].map(String::from), false));
    }

    #[test]
    fn what_others_wrote_after_the_kill_is_left_alone_and_said() {
        let (dir, mut target) = killed(1, 0);
        let written = dir.path().join(".kg/b.db");
        Connection::open(&written).unwrap().execute_batch("UPDATE t SET a = 'mine'").unwrap();
        let recovered = recover(&mut target, dir.path(), Duration::from_secs(1)).unwrap().unwrap();
        assert_eq!(rows(dir.path()), ["new a", "mine"]);
        assert_eq!(recovered.warnings.len(), 1);
        assert_eq!(row(&dir.path().join(UNDO).join(".kg/b.db")), "old b");
    }
}
