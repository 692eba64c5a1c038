//! Puts an unpacked, checked backup into its place.
//!
//! Everything that could refuse is asked first: where each file goes, whether something would be replaced, whether a
//! database is in use. Then every file that is in the way is moved to a directory that keeps it, and the new one is moved
//! in. A sound database is not moved but gets its new content through SQLite, last, so that whoever has it open sees
//! it. A damaged one goes as a set: beside the new one there is no WAL, index or journal of the old. A failure half way
//! puts everything back.
//!
//! A kill at any instant is taken back by the next restore or backup of the project (see [`journal`]).
//!
//! Not guaranteed: databases that are replaced through SQLite are one transaction each. A kill in the instant between the
//! commit of the last one and the removal of the journal leaves the new database with the old files.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File, FileTimes, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Component as PathComponent, Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::{Timestamp, tz::TimeZone};

use super::{
    journal::{self, Rename},
    protocol::{Applied, ApplyRequest},
};
use crate::{
    archive::manifest::{FileRecord, MANIFEST_ENTRY, Manifest},
    durable,
    error::{Code, Error, Result, Warning, WarningCode},
    project::{
        CONFIG_FILE, Component, DEFAULT_DATABASE, STATE_DIR, UNDO_DIR,
        config::{self, DatabasePath},
        discover::DATABASE_ENTRY,
    },
    sqlite::{
        files::{COMPANIONS, companion},
        in_use, replace,
    },
};

/// What every path but that of the graph database begins with.
const STATE_PREFIX: &str = ".kg/";
/// How many paths a message names.
const NAMED_PATHS: usize = 3;

pub fn apply(request: &ApplyRequest) -> Result<Applied> {
    let manifest = read_manifest(&request.staging)?;
    let mut warnings = Vec::new();
    let placements = place(request, &manifest, &mut warnings)?;
    let replaced: Vec<&Placement> = placements.iter().filter(|placement| placement.is_taken()).collect();
    if !replaced.is_empty() && !request.overwrite {
        return Err(target_exists(&replaced));
    }
    // A sound database is replaced through SQLite, after all files were moved.
    let mut live = Vec::new();
    let mut moved = Vec::new();
    for placement in &placements {
        if placement.goes_through_sqlite(request)? {
            live.push(placement);
        } else {
            placement.assert_movable()?;
            moved.push(placement);
        }
    }
    let mut applied = Applied {
        files_restored: placements.len() as u64,
        bytes_restored: placements.iter().map(|placement| placement.record.size).sum(),
        files_replaced: replaced.len() as u64,
        safety_copy: None,
        warnings,
    };
    if request.dry_run {
        return Ok(applied);
    }
    if !replaced.is_empty() {
        applied.safety_copy = Some(free_undo_dir(&request.target));
    }
    // A later restore that finds this staging directory waits for it: this process may outlive whoever started it.
    let _at_work = lock_dir(&request.staging)?;
    let state = request.target.join(STATE_DIR);
    let keep_in = applied.safety_copy.as_deref();
    let mut renames = Vec::new();
    for placement in &moved {
        dress(&placement.staged(&request.staging), placement.record)?;
        renames.extend(placement.renames(&request.staging, keep_in)?);
    }
    journal::begin(&state, &renames)?;
    let mut changes = Changes { lock_timeout: Duration::from_millis(request.lock_timeout_ms), ..Changes::default() };
    let done = renames
        .iter()
        .try_for_each(|rename| changes.rename(&rename.from, &rename.to))
        .and_then(|()| {
            live.iter().try_for_each(|placement| placement.write_in(&request.staging, keep_in, &mut changes))
        })
        .and_then(|()| changes.sync());
    match done {
        Ok(()) => journal::end(&state).map(|()| applied),
        Err(error) => Err(changes.take_back(error, &state)),
    }
}

fn lock_dir(dir: &Path) -> Result<File> {
    let locked = File::open(dir).and_then(|dir| dir.lock().map(|()| dir));
    locked.map_err(|cause| Error::io("lock", dir, cause))
}

fn read_manifest(staging: &Path) -> Result<Manifest> {
    let path = staging.join(MANIFEST_ENTRY);
    let json = fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
    Manifest::parse(&json, "the backup")
}

/// One file and where it goes.
struct Placement<'a> {
    /// Of the staged file.
    number: usize,
    record: &'a FileRecord,
    to: PathBuf,
}

fn place<'a>(
    request: &ApplyRequest,
    manifest: &'a Manifest,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Placement<'a>>> {
    let wanted = |record: &FileRecord| request.only.as_ref().is_none_or(|only| only.contains(&record.component));
    let database = database_target(request, manifest, &wanted, warnings)?;
    let mut taken = HashSet::new();
    let mut placements = Vec::new();
    for (number, record) in manifest.files.iter().enumerate().filter(|(_, record)| wanted(record)) {
        let recorded = inside(&request.target, &record.path)?;
        let to = match (record.component, record.entry.strip_prefix(DATABASE_ENTRY)) {
            (Component::Database, Some("")) => database.clone(),
            (Component::Database, Some(suffix)) if COMPANIONS.contains(&suffix) => companion(&database, suffix),
            (Component::Database, _) => return Err(not_ours(&record.entry, "is no part of a database")),
            _ if record.path.starts_with(STATE_PREFIX) => recorded,
            _ => return Err(not_ours(&record.path, "does not lie in .kg")),
        };
        if !taken.insert(to.clone()) {
            return Err(not_ours(&record.path, "is named twice"));
        }
        placements.push(Placement { number, record, to });
    }
    Ok(placements)
}

/// Where the graph database goes: where the configuration has it that is in force after the restore. A place outside the
/// project is only believed when the target itself names it already.
fn database_target(
    request: &ApplyRequest,
    manifest: &Manifest,
    wanted: &dyn Fn(&FileRecord) -> bool,
    warnings: &mut Vec<Warning>,
) -> Result<PathBuf> {
    let target = &request.target;
    let Some(record) = manifest.files.iter().find(|record| record.entry == DATABASE_ENTRY) else {
        return Ok(target.join(DEFAULT_DATABASE));
    };
    let recorded = inside(target, &record.path)?;
    let own_config = target.join(STATE_DIR).join(CONFIG_FILE);
    let own = own_config.exists().then(|| config::database_path(target, warnings));
    let restored = manifest.files.iter().position(|record| record.entry == CONFIG_FILE && wanted(record));
    let restored = restored.map(|number| request.staging.join(number.to_string())).filter(|staged| staged.exists());
    let in_force = match &restored {
        Some(staged) => Some(config::database_path_in(staged, target, warnings)),
        None => own.clone(),
    };
    match in_force {
        Some(DatabasePath { relative: Some(relative), .. }) => inside(target, &relative),
        Some(DatabasePath { absolute, relative: None }) if own.is_some_and(|own| own.absolute == absolute) => {
            let place = absolute.display();
            let message = format!("The database was restored to {place}, where the target's configuration has it");
            warnings.push(Warning::new(WarningCode::Config, message));
            Ok(absolute)
        }
        Some(DatabasePath { absolute, relative: None }) => {
            let (place, named) = (recorded.display(), absolute.display());
            let message = format!(
                "The database was restored to {place}; the restored configuration names {named}, outside the project: \
                 set `database.path`"
            );
            warnings.push(Warning::new(WarningCode::Config, message));
            Ok(recorded)
        }
        None => Ok(recorded),
    }
}

/// `path`, relative with `/`, below `target`; refused where it leaves the target, by its name or through a link.
fn inside(target: &Path, path: &str) -> Result<PathBuf> {
    let is_plain = |part: PathComponent<'_>| matches!(part, PathComponent::Normal(_));
    if path.is_empty() || path.contains('\0') || !Path::new(path).components().all(is_plain) {
        return Err(not_ours(path, "does not stay inside the project"));
    }
    let to = target.join(path);
    // `.kg` itself may be a link of the user's.
    let state = target.join(STATE_DIR);
    let parents = to.ancestors().skip(1).take_while(|parent| parent.starts_with(target) && *parent != target);
    for parent in parents.filter(|parent| *parent != state) {
        match fs::symlink_metadata(parent) {
            Ok(found) if !found.is_dir() => {
                return Err(Error::new(
                    Code::TargetInvalid,
                    format!(
                        "{} is in the way: it is a link or a file where the backup has a directory",
                        parent.display()
                    ),
                    "Move it away, or restore into another directory with `targetDir` (`--target`)",
                ));
            }
            _ => {}
        }
    }
    Ok(to)
}

fn not_ours(path: &str, what: &str) -> Error {
    Error::new(
        Code::NotABackup,
        format!("The archive was not made by this tool: the path {path:?} {what}"),
        "Nothing was changed; do not use this archive",
    )
}

fn target_exists(replaced: &[&Placement<'_>]) -> Error {
    let named: Vec<String> =
        replaced.iter().take(NAMED_PATHS).map(|placement| placement.to.display().to_string()).collect();
    let more = replaced.len().saturating_sub(NAMED_PATHS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Error::new(
        Code::TargetExists,
        format!("The restore would replace {}{more}", named.join(", ")),
        "Nothing was changed; allow it with `overwrite` (what is replaced is kept), or restore into another directory",
    )
}

impl Placement<'_> {
    /// What stands where this goes: the file itself, and what belongs to a database of its name.
    fn in_the_way(&self) -> Vec<PathBuf> {
        let suffixes: &[&str] =
            if self.record.database { &["", COMPANIONS[0], COMPANIONS[1], COMPANIONS[2]] } else { &[""] };
        let paths = suffixes.iter().map(|suffix| companion(&self.to, suffix));
        paths.filter(|path| fs::symlink_metadata(path).is_ok()).collect()
    }

    fn is_taken(&self) -> bool {
        !self.in_the_way().is_empty()
    }

    fn staged(&self, staging: &Path) -> PathBuf {
        staging.join(self.number.to_string())
    }

    fn goes_through_sqlite(&self, request: &ApplyRequest) -> Result<bool> {
        if !self.record.database || !fs::metadata(&self.to).is_ok_and(|found| found.is_file()) {
            return Ok(false);
        }
        let staged = (!request.dry_run).then(|| self.staged(&request.staging));
        replace::is_possible(&self.to, staged.as_deref(), Duration::from_millis(request.lock_timeout_ms))
    }

    fn assert_movable(&self) -> Result<()> {
        if fs::symlink_metadata(&self.to).is_ok_and(|found| found.is_dir()) {
            return Err(Error::new(
                Code::TargetInvalid,
                format!("{} is a directory where the backup has a file", self.to.display()),
                "Move it away, or restore into another directory with `targetDir` (`--target`)",
            ));
        }
        if !self.record.database {
            return Ok(());
        }
        match in_use::holder(&self.to)? {
            None => Ok(()),
            Some(process) => Err(Error::new(
                Code::DatabaseInUse,
                format!(
                    "{} is damaged or of another page size, and open in {}; what that process writes would be lost",
                    self.to.display(),
                    name(process)
                ),
                "Close it there or stop that process, then run it again",
            )),
        }
    }

    /// What is in the way goes where it is kept, then the staged file into its place.
    fn renames(&self, staging: &Path, keep_in: Option<&Path>) -> Result<Vec<Rename>> {
        let mut renames = Vec::new();
        for old in self.in_the_way() {
            // The suffix of a companion comes after the path that the file has in the project.
            let suffix = old.as_os_str().to_string_lossy()[self.to.as_os_str().len()..].to_string();
            let keep_in = keep_in.ok_or_else(|| appeared(&old))?;
            let to = companion(&keep_in.join(&self.record.path), &suffix);
            renames.push(Rename { from: old, to });
        }
        renames.push(Rename { from: self.staged(staging), to: self.to.clone() });
        Ok(renames)
    }

    /// Writes the staged database into the live one, and keeps what that held.
    fn write_in(&self, staging: &Path, keep_in: Option<&Path>, changes: &mut Changes) -> Result<()> {
        let keep_in = keep_in.ok_or_else(|| appeared(&self.to))?;
        changes.write(&self.staged(staging), &self.to, &keep_in.join(&self.record.path))
    }
}

fn appeared(path: &Path) -> Error {
    let message = format!("{} appeared during the restore", path.display());
    Error::new(Code::TargetExists, message, "Nothing was changed; run it again")
}

/// Gives a staged file the permissions and the time of the original, and writes that to the disk.
fn dress(staged: &Path, record: &FileRecord) -> Result<()> {
    let failed = |cause| Error::io("set the attributes of", staged, cause);
    let file = File::options().write(true).open(staged).map_err(failed)?;
    file.set_times(FileTimes::new().set_modified(SystemTime::from(record.mtime))).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(record.mode & 0o777)).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// `.kg/restore-undo/20240115-020000`, with a number where that second is taken. The target is locked by the caller.
fn free_undo_dir(target: &Path) -> PathBuf {
    let all = target.join(STATE_DIR).join(UNDO_DIR);
    let stamp = Timestamp::now().to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%S").to_string();
    let numbered = (2..).map(|number| all.join(format!("{stamp}-{number}")));
    std::iter::once(all.join(&stamp)).chain(numbered).find(|dir| !dir.exists()).unwrap_or(all)
}

/// What was changed, in order, so that it can be taken back.
#[derive(Default)]
struct Changes {
    made: Vec<Change>,
    made_dirs: Vec<PathBuf>,
    lock_timeout: Duration,
}

enum Change {
    Renamed {
        from: PathBuf,
        to: PathBuf,
    },
    /// New content was written into `database`; `kept` holds what it was.
    Written {
        database: PathBuf,
        kept: PathBuf,
    },
}

impl Changes {
    fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.make_parents(to)?;
        move_file(from, to)?;
        self.made.push(Change::Renamed { from: from.to_path_buf(), to: to.to_path_buf() });
        Ok(())
    }

    fn write(&mut self, staged: &Path, database: &Path, kept: &Path) -> Result<()> {
        self.make_parents(kept)?;
        replace::replace(database, staged, kept, self.lock_timeout).inspect_err(|_| {
            // What was kept of an unchanged database is of no use.
            let _ = fs::remove_file(kept);
        })?;
        self.made.push(Change::Written { database: database.to_path_buf(), kept: kept.to_path_buf() });
        Ok(())
    }

    fn make_parents(&mut self, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), |parent| self.make_dirs(parent))
    }

    fn make_dirs(&mut self, dir: &Path) -> Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            fs::create_dir(dir).map_err(|cause| Error::io("create", dir, cause))?;
            self.made_dirs.push(dir.to_path_buf());
        }
        Ok(())
    }

    /// Makes the renames durable; what SQLite wrote is.
    fn sync(&self) -> Result<()> {
        let paths = self.made.iter().flat_map(|change| match change {
            Change::Renamed { from, to } => [from, to],
            Change::Written { kept, .. } => [kept, kept],
        });
        let dirs: BTreeSet<&Path> = paths.chain(&self.made_dirs).filter_map(|path| path.parent()).collect();
        dirs.into_iter().try_for_each(durable::sync_dir)
    }

    /// Takes everything back after `error`; what cannot be taken back is named.
    fn take_back(self, mut error: Error, state: &Path) -> Error {
        let mut by_hand = Vec::new();
        for change in self.made.iter().rev() {
            let (taken_back, remedy) = match change {
                Change::Renamed { from, to } => {
                    (move_file(to, from), format!("Move {} back to {} by hand", to.display(), from.display()))
                }
                Change::Written { database, kept } => {
                    let (from, to) = (kept.display(), database.display());
                    (write_back(database, kept, self.lock_timeout), format!("Copy {from} back into {to} by hand"))
                }
            };
            if let Err(second) = taken_back {
                error.message = format!("{}; and then: {}", error.message, second.message);
                by_hand.push(remedy);
            }
        }
        if by_hand.is_empty() {
            by_hand.extend(journal::end(state).err().map(|error| error.remedy));
        }
        if !by_hand.is_empty() {
            error.remedy = by_hand.join("; ");
            return error;
        }
        for dir in self.made_dirs.iter().rev() {
            // One that holds something by now is somebody else's.
            let _ = fs::remove_dir(dir);
        }
        error
    }
}

fn write_back(database: &Path, kept: &Path, lock_timeout: Duration) -> Result<()> {
    let replaced = companion(kept, "-replaced");
    replace::replace(database, kept, &replaced, lock_timeout)?;
    let removed = fs::remove_file(&replaced).and_then(|()| fs::remove_file(kept));
    removed.map_err(|cause| Error::io("remove", &replaced, cause))
}

/// Renames; where the two lie on different file systems, copies under a temporary name first.
fn move_file(from: &Path, to: &Path) -> Result<()> {
    let failed = |cause| Error::io("move", from, cause);
    match fs::rename(from, to) {
        Err(cause) if cause.kind() == io::ErrorKind::CrossesDevices => {
            let parent = to.parent().unwrap_or(to);
            let mut copy = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
            let mut source = File::open(from).map_err(failed)?;
            io::copy(&mut source, &mut copy).map_err(failed)?;
            let found = source.metadata().map_err(failed)?;
            copy.as_file().set_permissions(found.permissions()).map_err(failed)?;
            let modified = found.modified().map_err(failed)?;
            copy.as_file().set_times(FileTimes::new().set_modified(modified)).map_err(failed)?;
            copy.as_file().sync_all().map_err(failed)?;
            copy.persist(to).map_err(|cause| failed(cause.error))?;
            durable::sync_dir(parent)?;
            fs::remove_file(from).map_err(failed)
        }
        moved => moved.map_err(failed),
    }
}

/// A process as a person knows it.
fn name(process: i32) -> String {
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(command) => format!("process {process} ({})", command.trim()),
        Err(_) => format!("process {process}"),
    }
}
