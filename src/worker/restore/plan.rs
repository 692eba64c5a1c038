//! Turns placements into changes: which files are in the way, which are kept, and which databases
//! are replaced through SQLite.
//!
//! This module makes every check that could refuse the restore, and changes nothing.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::Path,
    time::Duration,
};

use nix::fcntl::OFlag;

use super::{
    journal::{Intent, Move, Swapped},
    placement::{Placement, Placements, missing_dirs},
    record::{MadeDir, Touched},
    target::Target,
};
use crate::{
    error::{Code, Error, Result},
    project::{STATE_DIR, UNDO_DIR, same_file},
    sqlite::{
        database_lock::{self, Claim},
        files::{self, COMPANIONS, MAGIC},
        replace, wal_in_use,
    },
    system::holders,
    util::dir_handle::{EntryHandle, EntryType, in_the_way},
};

/// A directory below the undo directory. It holds the previous content of live databases until the
/// new content is committed.
const PENDING_DIR: &str = ".kg-pending";
/// The suffix of a WAL index, which is useless without the WAL that it was built from.
const SHARED_MEMORY: &str = COMPANIONS[1];

pub struct Conditions<'a> {
    /// The location of the directory that keeps the replaced files.
    pub undo_dir: &'a str,
    /// Replace a database even if another process has it open.
    pub force: bool,
    pub dry_run: bool,
    pub lock_timeout: Duration,
}

pub struct Plan {
    /// All changes except the steps that follow them.
    pub intent: Intent,
    pub touched: Vec<Touched>,
    /// Held until the restore is done.
    pub claims: Vec<Claim>,
}

pub fn plan(
    target: &Target,
    placements: &Placements<'_>,
    conditions: &Conditions<'_>,
) -> Result<Plan> {
    let elsewhere = used_elsewhere(target, placements)?;
    if let Some(error) = elsewhere
        .values()
        .next()
        .filter(|_| !conditions.force)
        .cloned()
    {
        let remedy = format!(
            "{}; `force` replaces the file and leaves the old one to its other names",
            error.remedy
        );
        return Err(Error { remedy, ..error });
    }
    let owners = placements
        .files
        .iter()
        .map(|placement| placement.to.as_str())
        .collect();
    let (swapped, gone) = (HashSet::new(), HashSet::new());
    let mut planning = Planning {
        target,
        conditions,
        owners,
        elsewhere,
        plan: Plan::new(),
        swapped,
        gone,
    };
    for placement in &placements.files {
        planning.file(placement)?;
    }
    let mut plan = planning.plan;
    // Claimed after all databases were examined, because opening a database drops the locks of this
    // process on it.
    if !conditions.force {
        plan.claims = claims(target, &plan)?;
    }
    plan.directories(target, placements, conditions)?;
    Ok(plan)
}

/// Returns the locations of files whose place is taken, by the file itself or by a companion of a
/// database of its name.
pub fn taken(target: &Target, placements: &Placements<'_>) -> Result<Vec<String>> {
    let mut taken = Vec::new();
    for placement in &placements.files {
        for suffix in parts(placement.is_database) {
            if target.is_taken(&format!("{}{suffix}", placement.to))? {
                taken.push(placement.to.clone());
                break;
            }
        }
    }
    Ok(taken)
}

struct Planning<'a> {
    target: &'a Target,
    conditions: &'a Conditions<'a>,
    /// The locations of all placements.
    owners: HashSet<&'a str>,
    /// The locations of databases whose users commit to another WAL, and why they are not written.
    elsewhere: BTreeMap<&'a str, Error>,
    plan: Plan,
    /// Databases that get new content through SQLite.
    swapped: HashSet<Identity>,
    /// Locations that are empty after the moves planned so far.
    gone: HashSet<String>,
}

impl Planning<'_> {
    fn file(&mut self, placement: &Placement<'_>) -> Result<()> {
        self.assert_no_companion(placement)?;
        let place = self.target.place(&placement.to)?;
        let occupant = place.as_ref().map_or(Ok(None), EntryHandle::occupant)?;
        let occupant = occupant.filter(|_| !self.gone.contains(&placement.to));
        if let Some(place) = &place {
            assert_replaceable(place, occupant, placement)?;
            if occupant == Some(EntryType::File)
                && !self.is_swapped(place)?
                && self.is_live(place, placement)?
            {
                self.swapped.extend(identity(place)?);
                self.swap(placement);
                return Ok(());
            }
        }
        let is_database = is_database(placement, place.as_ref());
        let is_alias = place
            .as_ref()
            .map_or(Ok(false), |place| self.is_swapped(place))?;
        for suffix in parts(is_database) {
            self.move_away(
                placement,
                suffix,
                is_database && suffix.is_empty() && !is_alias,
            )?;
        }
        if let Some(from) = &placement.from {
            let is_new = !self.gone.contains(&placement.to);
            if is_new {
                self.plan.touched.push(Touched {
                    path: placement.to.clone(),
                    kept: None,
                    database: is_database,
                });
            }
            self.plan
                .intent
                .moves
                .push(self.moved(from, placement.to.clone())?);
            self.gone.remove(&placement.to);
        }
        Ok(())
    }

    /// Returns whether the place is another name of a database that gets new content. Only that
    /// name is moved. A second connection would drop the locks of the first, and the processes that
    /// have the database open keep it.
    fn is_swapped(&self, place: &EntryHandle) -> Result<bool> {
        Ok(identity(place)?.is_some_and(|found| self.swapped.contains(&found)))
    }

    /// Refuses a file that would become the WAL, index or journal of a database that stays.
    fn assert_no_companion(&self, placement: &Placement<'_>) -> Result<()> {
        for owner in COMPANIONS
            .iter()
            .filter_map(|suffix| placement.to.strip_suffix(suffix))
        {
            let stays = !self.owners.contains(owner);
            if let Some(place) = self.target.place(owner)?.filter(|_| stays)
                && place.starts_with(MAGIC)
            {
                return Err(in_the_way(
                    &place.path(),
                    "is a database, and SQLite would use a file of the backup as its WAL or \
                     journal",
                ));
            }
        }
        Ok(())
    }

    /// Returns whether the place holds a sound database that can get the new content through
    /// SQLite.
    fn is_live(&self, place: &EntryHandle, placement: &Placement<'_>) -> Result<bool> {
        let Some(from) = placement.from.as_ref().filter(|_| placement.is_database) else {
            return Ok(false);
        };
        // Processes that write to another WAL would not see what SQLite writes to the file, so they
        // keep the old file. The same applies to another project that shares the file.
        let links = self
            .target
            .root()
            .map_or(0, |root| same_file::links_outside(root, &place.path()));
        if self.elsewhere.contains_key(placement.to.as_str()) || links > 0 {
            return Ok(false);
        }
        // Through a WAL that has another name, SQLite would write to an unrelated file.
        if files::has_shared_companion(&place.path()) {
            return Ok(false);
        }
        // A database that this user may not write can only be replaced as a file.
        if place.open(OFlag::O_RDWR, 0).is_err() {
            return Ok(false);
        }
        let new = if self.conditions.dry_run {
            None
        } else {
            Some(self.target.existing(from)?.path())
        };
        replace::is_possible(&place.path(), new.as_deref(), self.conditions.lock_timeout)
    }

    fn swap(&mut self, placement: &Placement<'_>) {
        let (live, kept) = (placement.to.clone(), placement.kept_as.clone());
        self.plan.touched.push(Touched {
            path: live.clone(),
            kept: Some(kept.clone()),
            database: true,
        });
        let undo_dir = self.conditions.undo_dir;
        let (kept, number) = (format!("{undo_dir}/{kept}"), self.plan.intent.swaps.len());
        let pending = format!("{undo_dir}/{PENDING_DIR}/{number}");
        let new = placement.from.clone().unwrap_or_default();
        self.plan.intent.swaps.push(Swapped {
            new,
            live,
            kept,
            pending,
            digest: None,
        });
    }

    fn moved(&self, from: &str, to: String) -> Result<Move> {
        let found = self
            .target
            .place(from)?
            .map_or(Ok(None), |place| place.stat())?;
        // A dry run unpacked nothing.
        let identity = found.map_or((0, 0), |found| (found.st_dev, found.st_ino));
        Ok(Move {
            from: from.to_string(),
            to,
            identity,
        })
    }

    fn move_away(&mut self, placement: &Placement<'_>, suffix: &str, database: bool) -> Result<()> {
        let path = format!("{}{suffix}", placement.to);
        if self.gone.contains(&path) || !self.target.is_taken(&path)? {
            return Ok(());
        }
        let kept = format!("{}{suffix}", placement.kept_as);
        let to = format!("{}/{kept}", self.conditions.undo_dir);
        self.plan.intent.moves.push(self.moved(&path, to)?);
        if suffix != SHARED_MEMORY {
            self.plan.touched.push(Touched {
                path: path.clone(),
                kept: Some(kept),
                database,
            });
        }
        self.gone.insert(path);
        Ok(())
    }
}

impl Plan {
    fn new() -> Self {
        Plan {
            intent: Intent::default(),
            touched: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Plans the directories that the changes need and those that the backup holds.
    fn directories(
        &mut self,
        target: &Target,
        placements: &Placements<'_>,
        conditions: &Conditions<'_>,
    ) -> Result<()> {
        let held = &placements.directories;
        for dir in held {
            if let Some(place) = target.place(&dir.at)?
                && place
                    .occupant()?
                    .is_some_and(|occupant| occupant != EntryType::Directory)
            {
                return Err(in_the_way(
                    &place.path(),
                    "is in the way: the backup has a directory there",
                ));
            }
        }
        // `missing_dirs` looks only at the parents, so any file name serves for a held directory.
        let inside_held: Vec<String> = held.iter().map(|dir| format!("{}/x", dir.at)).collect();
        let moved = self.intent.moves.iter().map(|change| change.to.as_str());
        let kept = self
            .intent
            .swaps
            .iter()
            .flat_map(|swapped| [swapped.kept.as_str(), swapped.pending.as_str()]);
        let record = format!(
            "{}/{}",
            conditions.undo_dir,
            crate::worker::restore::record::RECORD_FILE
        );
        let locations = moved
            .chain(kept)
            .chain(inside_held.iter().map(String::as_str))
            .chain([record.as_str()]);
        self.intent.made = missing_dirs(target, locations, held)?;
        // Kept files may be confidential.
        let undo_root = format!("{STATE_DIR}/{UNDO_DIR}");
        for dir in self
            .intent
            .made
            .iter_mut()
            .filter(|dir| dir.at == undo_root || dir.at == conditions.undo_dir)
        {
            dir.mode = Some(0o700);
        }
        Ok(())
    }

    /// Returns whether the plan puts anything into the undo directory.
    pub fn keeps_in(&self, undo_dir: &str) -> bool {
        let mut places = self.intent.moves.iter().map(|change| &change.to);
        !self.intent.swaps.is_empty() || places.any(|to| is_below(to, undo_dir))
    }

    /// Returns the directories that are created in the project itself, outside the undo
    /// directories.
    pub fn made_in_project(&self) -> Vec<MadeDir> {
        let undo_root = format!("{STATE_DIR}/{UNDO_DIR}");
        self.intent
            .made
            .iter()
            .filter(|dir| !is_below(&dir.at, &undo_root))
            .cloned()
            .collect()
    }
}

fn assert_replaceable(
    place: &EntryHandle,
    occupant: Option<EntryType>,
    placement: &Placement<'_>,
) -> Result<()> {
    match occupant {
        Some(EntryType::Directory) => Err(in_the_way(
            &place.path(),
            "is a directory where the backup has a file",
        )),
        Some(EntryType::Link) if placement.is_database => Err(in_the_way(
            &place.path(),
            "is a symbolic link, and a restore does not follow links; `database.path` can name the \
             database itself",
        )),
        _ => Ok(()),
    }
}

/// Returns whether a location is the directory or lies in it.
fn is_below(location: &str, dir: &str) -> bool {
    location
        .strip_prefix(dir)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Finds databases that must not be written, and returns the refusal for each location.
///
/// In the first case, the users of the database commit to another WAL than the one next to it. In
/// the second case, the database has another name with a WAL of its own. SQLite would take that WAL
/// for one of the new content.
fn used_elsewhere<'a>(
    target: &Target,
    placements: &'a Placements<'_>,
) -> Result<BTreeMap<&'a str, Error>> {
    let mut places = Vec::new();
    for placement in placements
        .files
        .iter()
        .filter(|placement| placement.is_database)
    {
        let place = target.place(&placement.to)?;
        // A link leads to another database, which has another WAL.
        if let Some(place) = place.filter(|place| {
            place
                .occupant()
                .is_ok_and(|found| found != Some(EntryType::Link))
        }) {
            places.push((placement.to.as_str(), place.path()));
        }
    }
    let paths: Vec<&Path> = places.iter().map(|(_, path)| path.as_path()).collect();
    let mut refusals = BTreeMap::new();
    for (number, found) in wal_in_use::find_all(&paths) {
        refusals.extend(
            places
                .get(number)
                .map(|(location, path)| (*location, found.refusal(path))),
        );
    }
    // A database that is itself replaced is moved away with its WAL.
    let is_placed = |other: &str| {
        placements
            .files
            .iter()
            .any(|placement| placement.to == other)
    };
    for (location, path) in &places {
        let others = target
            .root()
            .map(|root| same_file::others_with_wal(root, path))
            .unwrap_or_default();
        if let Some(other) = others.iter().find(|(shown, _)| !is_placed(shown)) {
            refusals
                .entry(location)
                .or_insert_with(|| other_name(path, &other.1));
        }
    }
    Ok(refusals)
}

fn other_name(path: &Path, other: &Path) -> Error {
    Error::new(
        Code::DatabaseInUse,
        format!(
            "{} is another name of {} and has its own WAL or journal, which SQLite would apply to \
             the new content",
            other.display(),
            path.display()
        ),
        "Nothing was changed; open and close the database once by that name while nothing else \
         uses it, then run it again",
    )
}

/// Returns the suffixes of a file and of its companions.
fn parts(is_database: bool) -> &'static [&'static str] {
    if is_database {
        &["", COMPANIONS[0], COMPANIONS[1], COMPANIONS[2]]
    } else {
        &[""]
    }
}

/// Returns whether the placement concerns a database. A plain file of the backup may have become a
/// database in the project.
fn is_database(placement: &Placement<'_>, place: Option<&EntryHandle>) -> bool {
    placement.is_database || place.is_some_and(|place| place.starts_with(MAGIC))
}

/// Keeps other processes out of the databases whose files are replaced or removed.
fn claims(target: &Target, plan: &Plan) -> Result<Vec<Claim>> {
    let swapped: HashSet<&str> = plan
        .intent
        .swaps
        .iter()
        .map(|swapped| swapped.live.as_str())
        .collect();
    let is_moved = |touched: &&Touched| {
        touched.database && touched.kept.is_some() && !swapped.contains(touched.path.as_str())
    };
    let moved = plan.touched.iter().filter(is_moved);
    moved
        .filter_map(|touched| claim(target, &touched.path).transpose())
        .collect()
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(place: &EntryHandle) -> Result<Option<Identity>> {
    Ok(place.stat()?.map(|found| (found.st_dev, found.st_ino)))
}

/// Keeps other processes out of the database at a location. `KG_DATABASE_IN_USE` if a process has
/// it open.
pub fn claim(target: &Target, database: &str) -> Result<Option<Claim>> {
    let place = target.existing(database)?;
    if place.occupant()? != Some(EntryType::File) {
        return Ok(None);
    }
    let path = place.path();
    let process = match place.open(OFlag::O_RDWR, 0) {
        Ok(file) => match database_lock::claim(file, &path)? {
            Ok(claim) => return Ok(Some(claim)),
            Err(process) => process,
        },
        // Only a writable file can be locked, but a readable file shows the locks of others. A
        // process may have opened it before its permissions changed, or may run as another user.
        Err(_) => {
            let file = place
                .open(OFlag::O_RDONLY, 0)
                .map_err(|cause| cannot_tell(&path, cause))?;
            match database_lock::holder_of_database(&file, &path)? {
                Some(process) => process,
                None => return Ok(None),
            }
        }
    };
    Err(Error::new(
        Code::DatabaseInUse,
        format!(
            "{} cannot be replaced through SQLite and is open in {}; the writes of that process \
             would be lost",
            path.display(),
            holders::name(process)
        ),
        "Close it there or stop that process, then run it again; `force` replaces it anyway",
    ))
}

/// Reports a permission error as an unknown state. Any other failure to open the file keeps its own
/// message.
fn cannot_tell(path: &Path, cause: io::Error) -> Error {
    if cause.kind() != io::ErrorKind::PermissionDenied {
        return Error::io("open", path, cause);
    }
    Error::new(
        Code::PermissionDenied,
        format!(
            "This user cannot read {}, so it is unknown whether a process has it open; the writes \
             of that process would be lost",
            path.display()
        ),
        "Run it as a user who can read the database. If no process has it open, `force` \
         replaces it",
    )
    .with_cause(cause)
}
