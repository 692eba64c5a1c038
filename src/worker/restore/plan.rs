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

use super::{
    NAMED_PATHS,
    journal::{Intent, Moves, Spot, Swapped},
    placement::{Placement, Placements, missing_dirs},
    record::{MadeDir, TouchedRow, Touches},
    target::{Target, parent},
    texts::TextId,
};
use crate::{
    error::{Code, Error, Result},
    project::{STATE_DIR, UNDO_DIR, same_file},
    sqlite::{
        database_lock::{self, Claim},
        files::{self, COMPANIONS, MAGIC},
        replace, wal_in_use,
    },
    system::{holders, user},
    util::{
        dir_handle::{Access, EntryHandle, in_the_way},
        entry_stat::{EntryStat, EntryType},
    },
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
    pub touched: Touches,
    /// The indexes of the files that do not have the attributes and the owner of the originals yet,
    /// except databases that get new content through SQLite.
    pub undressed: Vec<usize>,
    /// Held until the restore is done.
    pub claims: Vec<Claim>,
}

pub fn plan(target: &Target, placements: &Placements, conditions: &Conditions<'_>) -> Result<Plan> {
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
    let (swapped, gone) = (HashSet::new(), HashSet::new());
    let mut planning = Planning {
        target,
        conditions,
        owned: owned(placements),
        elsewhere,
        plan: Plan::new(placements, conditions),
        swapped,
        gone,
        is_root: user::is_root(),
        last_owner: None,
    };
    for (index, placement) in placements.files().enumerate() {
        planning.file(index, &placement)?;
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

/// The files whose place is taken.
#[derive(Default)]
pub struct Taken {
    pub count: u64,
    /// The locations of the first of them.
    pub first: Vec<String>,
}

/// Returns the files whose place is taken, by the file itself or by a companion of a database of its
/// name.
pub fn taken(target: &Target, placements: &Placements) -> Result<Taken> {
    let mut taken = Taken::default();
    for placement in placements.files() {
        if is_taken(target, &placement)? {
            taken.count += 1;
            if taken.first.len() < NAMED_PATHS {
                taken.first.push(placement.to().to_string());
            }
        }
    }
    Ok(taken)
}

fn is_taken(target: &Target, placement: &Placement) -> Result<bool> {
    if target.is_taken(placement.to())? {
        return Ok(true);
    }
    let companions = parts(placement.is_database()).iter().skip(1);
    for suffix in companions {
        if target.is_taken(&format!("{}{suffix}", placement.to()))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the databases of companions that are placed themselves.
fn owned(placements: &Placements) -> HashSet<&str> {
    let owners = placements
        .files()
        .flat_map(|placement| owners(placement.to()));
    let owners: HashSet<&str> = owners.collect();
    if owners.is_empty() {
        return owners;
    }
    let all = placements.files().map(|placement| placement.to());
    all.filter(|location| owners.contains(location)).collect()
}

/// Returns the databases that a file of this name could be a companion of.
fn owners(location: &str) -> impl Iterator<Item = &str> {
    let suffixes = COMPANIONS.iter();
    suffixes.filter_map(|suffix| location.strip_suffix(suffix))
}

struct Planning<'a> {
    target: &'a Target,
    conditions: &'a Conditions<'a>,
    /// The databases of companions that are placed themselves.
    owned: HashSet<&'a str>,
    /// The locations of databases whose users commit to another WAL, and why they are not written.
    elsewhere: BTreeMap<&'a str, Error>,
    plan: Plan,
    /// Databases that get new content through SQLite.
    swapped: HashSet<Identity>,
    /// Locations with the name of a companion that are empty after the moves planned so far. A file
    /// of the backup may have such a name too.
    gone: HashSet<String>,
    is_root: bool,
    /// The directory that was looked at last, and the owner of its new files.
    last_owner: Option<(String, Option<(u32, u32)>)>,
}

impl Planning<'_> {
    fn file(&mut self, index: usize, placement: &Placement) -> Result<()> {
        self.assert_no_companion(placement)?;
        let place = self.target.place(placement.to())?;
        let stat = place.as_ref().map_or(Ok(None), EntryHandle::stat)?;
        let found = stat.map(|found| found.entry_type);
        let occupant = found.filter(|_| !self.gone.contains(placement.to()));
        if let Some(place) = &place {
            assert_replaceable(place, occupant, placement)?;
            if occupant == Some(EntryType::File)
                && !self.is_swapped(place)?
                && self.is_live(place, placement)?
            {
                self.swapped.extend(identity(place)?);
                return self.swap(placement);
            }
        }
        let existing = place.as_ref().filter(|_| found.is_some());
        let is_database = is_database(placement, existing);
        let is_alias = existing.map_or(Ok(false), |place| self.is_swapped(place))?;
        let mut is_new = !self.gone.contains(placement.to());
        if occupant.is_some() {
            self.move_away(placement, "", is_database && !is_alias)?;
            is_new = false;
        }
        for suffix in parts(is_database).iter().skip(1) {
            self.move_away(placement, suffix, false)?;
        }
        if let Some(spot) = placement.spot() {
            let to = placement.destination_id();
            if is_new {
                self.plan.touched.push(TouchedRow {
                    path: to,
                    kept: None,
                    database: is_database,
                });
            }
            let staged = placement.staged(self.target)?;
            let staged = staged.map_or(Ok(None), |staged| staged.stat())?;
            if let Some(attributes) = placement.attributes() {
                // A link is made when it gets its attributes.
                let is_dressed = match &staged {
                    Some(staged) if attributes.are_those_of(staged) => {
                        self.has_owner(staged, placement.to(), stat.as_ref())?
                    }
                    _ => false,
                };
                if !is_dressed {
                    self.plan.undressed.push(index);
                }
            }
            // A dry run unpacked nothing.
            let identity = staged.map_or((0, 0), |staged| staged.identity());
            self.plan.intent.moves.push(spot, Spot::At(to), identity)?;
            self.gone.remove(placement.to());
        }
        Ok(())
    }

    /// Returns whether an unpacked file has the owner that it gets: that of the file that it
    /// replaces, or else of the directory. Only root can change the owner.
    fn has_owner(
        &mut self,
        staged: &EntryStat,
        to: &str,
        replaced: Option<&EntryStat>,
    ) -> Result<bool> {
        if !self.is_root {
            return Ok(true);
        }
        if let Some(replaced) = replaced {
            return Ok(replaced.owner() == staged.owner());
        }
        let dir = parent(to);
        let owner = match &self.last_owner {
            Some((last, owner)) if last == dir => *owner,
            _ => {
                let of = if to.starts_with('/') { to } else { dir };
                let owner = self.target.owner_of(of)?;
                self.last_owner = Some((dir.to_string(), owner));
                owner
            }
        };
        Ok(owner.is_none_or(|owner| owner == staged.owner()))
    }

    /// Returns whether the place is another name of a database that gets new content. Only that
    /// name is moved. A second connection would drop the locks of the first, and the processes that
    /// have the database open keep it.
    fn is_swapped(&self, place: &EntryHandle) -> Result<bool> {
        Ok(identity(place)?.is_some_and(|found| self.swapped.contains(&found)))
    }

    /// Refuses a file that would become the WAL, index or journal of a database that stays.
    fn assert_no_companion(&self, placement: &Placement) -> Result<()> {
        for owner in owners(placement.to()) {
            let stays = !self.owned.contains(owner);
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
    fn is_live(&self, place: &EntryHandle, placement: &Placement) -> Result<bool> {
        let Some(from) = placement.from().filter(|_| placement.is_database()) else {
            return Ok(false);
        };
        // Processes that write to another WAL would not see what SQLite writes to the file, so they
        // keep the old file. The same applies to another project that shares the file.
        let links = self
            .target
            .root()
            .map_or(0, |root| same_file::links_outside(root, &place.path()));
        if self.elsewhere.contains_key(placement.to()) || links > 0 {
            return Ok(false);
        }
        // Through a WAL that has another name, SQLite would write to an unrelated file.
        if files::has_shared_companion(&place.path()) {
            return Ok(false);
        }
        // A database that this user may not write can only be replaced as a file.
        if place.open(Access::ReadWrite).is_err() {
            return Ok(false);
        }
        let new = if self.conditions.dry_run {
            None
        } else {
            Some(self.target.existing(&from)?.path())
        };
        replace::is_possible(&place.path(), new.as_deref(), self.conditions.lock_timeout)
    }

    fn swap(&mut self, placement: &Placement) -> Result<()> {
        let (live, kept) = (placement.to().to_string(), placement.kept_as());
        let kept_id = self.kept(placement, "")?.touched;
        self.plan.touched.push(TouchedRow {
            path: placement.destination_id(),
            kept: Some(kept_id),
            database: true,
        });
        let undo_dir = self.conditions.undo_dir;
        let (kept, number) = (format!("{undo_dir}/{kept}"), self.plan.intent.swaps.len());
        let pending = format!("{undo_dir}/{PENDING_DIR}/{number}");
        let new = placement.from().unwrap_or_default();
        self.plan.intent.swaps.push(Swapped {
            new,
            live,
            kept,
            pending,
            digest: None,
        });
        Ok(())
    }

    fn move_away(&mut self, placement: &Placement, suffix: &str, database: bool) -> Result<()> {
        let path = format!("{}{suffix}", placement.to());
        if self.gone.contains(&path) {
            return Ok(());
        }
        let place = self.target.place(&path)?;
        let identity = place.as_ref().map_or(Ok(None), identity)?;
        let Some(identity) = identity else {
            return Ok(());
        };
        let (moves, touched) = (&mut self.plan.intent.moves, &mut self.plan.touched);
        let (from, path_touched) = match suffix {
            "" => (placement.destination_id(), placement.destination_id()),
            _ => (moves.text(&path)?, touched.text(&path)?),
        };
        let kept = self.kept(placement, suffix)?;
        let moves = &mut self.plan.intent.moves;
        moves.push(Spot::At(from), Spot::Kept(kept.moved), identity)?;
        if suffix != SHARED_MEMORY {
            self.plan.touched.push(TouchedRow {
                path: path_touched,
                kept: Some(kept.touched),
                database,
            });
        }
        if owners(&path).next().is_some() {
            self.gone.insert(path);
        }
        Ok(())
    }

    /// Returns the numbers of the location, below the undo directory, that keeps a part of the
    /// replaced file.
    fn kept(&mut self, placement: &Placement, suffix: &str) -> Result<KeptIds> {
        let kept = placement.kept_as();
        if suffix.is_empty() && kept == placement.to() {
            let id = placement.destination_id();
            return Ok(KeptIds {
                moved: id,
                touched: id,
            });
        }
        let kept = format!("{kept}{suffix}");
        Ok(KeptIds {
            moved: self.plan.intent.moves.text(&kept)?,
            touched: self.plan.touched.text(&kept)?,
        })
    }
}

/// The numbers of one text in the list of moves and in the list of changed files.
struct KeptIds {
    moved: TextId,
    touched: TextId,
}

impl Plan {
    fn new(placements: &Placements, conditions: &Conditions<'_>) -> Self {
        let (source, texts) = (placements.source().to_string(), placements.texts());
        let undo = format!("{}/", conditions.undo_dir);
        let count = placements.count();
        Plan {
            intent: Intent {
                moves: Moves::between(source, undo, texts.clone(), count),
                ..Intent::default()
            },
            touched: Touches::after(texts.clone(), count),
            undressed: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Plans the directories that the changes need and those that the backup holds.
    fn directories(
        &mut self,
        target: &Target,
        placements: &Placements,
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
        let destinations = self.intent.moves.destinations();
        let moved = destinations.iter().map(String::as_str);
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
    pub fn keeps_any(&self) -> bool {
        !self.intent.swaps.is_empty() || self.intent.moves.keep_any()
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
    placement: &Placement,
) -> Result<()> {
    match occupant {
        Some(EntryType::Directory) => Err(in_the_way(
            &place.path(),
            "is a directory where the backup has a file",
        )),
        Some(EntryType::Link) if placement.is_database() => Err(in_the_way(
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
    placements: &'a Placements,
) -> Result<BTreeMap<&'a str, Error>> {
    let mut places = Vec::new();
    for placement in placements.files().filter(Placement::is_database) {
        let place = target.place(placement.to())?;
        // A link leads to another database, which has another WAL.
        if let Some(place) = place.filter(|place| {
            place
                .occupant()
                .is_ok_and(|found| found != Some(EntryType::Link))
        }) {
            places.push((placement.to(), place.path()));
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
    let is_placed = |other: &str| placements.files().any(|placement| placement.to() == other);
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
fn is_database(placement: &Placement, place: Option<&EntryHandle>) -> bool {
    placement.is_database() || place.is_some_and(|place| place.starts_with(MAGIC))
}

/// Keeps other processes out of the databases whose files are replaced or removed.
fn claims(target: &Target, plan: &Plan) -> Result<Vec<Claim>> {
    let swapped: HashSet<&str> = plan
        .intent
        .swaps
        .iter()
        .map(|swapped| swapped.live.as_str())
        .collect();
    let is_moved = |(touched, path): &(&TouchedRow, &str)| {
        touched.database && touched.kept.is_some() && !swapped.contains(path)
    };
    let moved = plan.touched.rows().filter(is_moved);
    moved
        .filter_map(|(_, path)| claim(target, path).transpose())
        .collect()
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(place: &EntryHandle) -> Result<Option<Identity>> {
    Ok(place.stat()?.map(|found| found.identity()))
}

/// Keeps other processes out of the database at a location. `KG_DATABASE_IN_USE` if a process has
/// it open.
pub fn claim(target: &Target, database: &str) -> Result<Option<Claim>> {
    let place = target.existing(database)?;
    if place.occupant()? != Some(EntryType::File) {
        return Ok(None);
    }
    let path = place.path();
    let process = match place.open(Access::ReadWrite) {
        Ok(file) => match database_lock::claim(file, &path)? {
            Ok(claim) => return Ok(Some(claim)),
            Err(process) => process,
        },
        // Only a writable file can be locked, but a readable file shows the locks of others. A
        // process may have opened it before its permissions changed, or may run as another user.
        Err(_) => {
            let file = place
                .open(Access::Read)
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
