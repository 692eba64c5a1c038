//! Decides where each file goes, from the manifest of a backup or from the record of a restore that
//! is undone.
//!
//! This module changes nothing. It refuses every path of an archive that leaves the project or lies
//! outside the part of the project that backups save.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    io::Read,
    path::Path,
};

use jiff::Timestamp;

use super::{
    case_folding::Folding,
    record::{MadeDir, Record},
    target::{Target, not_ours, parent},
};
use crate::{
    archive::{
        file_list::FileList,
        file_record::{EntryKind, FileRecord},
        manifest::Manifest,
    },
    error::{Code, Error, Result, Warning, WarningCode},
    project::{
        BACKUPS_DIR, CONFIG_FILE, Component, DEFAULT_DATABASE, STATE_DIR,
        database_path::{self, DatabasePath},
        entry_names::{DATABASE_ENTRY, component_of},
        exclude, names,
    },
    sqlite::files::{COMPANIONS, MAGIC},
};

/// The prefix of every path except that of the graph database.
const STATE_PREFIX: &str = ".kg/";
/// The directory that keeps a graph database from outside the project, below the undo directory.
const OUTSIDE_PREFIX: &str = "outside/";

/// A file or link, and its destination. All paths except `kept_as` are locations.
pub struct Placement<'a> {
    /// The current location; `None` if the destination is only removed.
    pub from: Option<String>,
    pub to: String,
    /// Where to keep the replaced file, below the undo directory.
    pub kept_as: String,
    pub is_database: bool,
    /// The record of the file in the manifest of the backup.
    pub record: Option<&'a FileRecord>,
}

/// All files and directories with a destination.
pub struct Placements<'a> {
    /// The files and links. Databases come before their companions.
    pub files: Vec<Placement<'a>>,
    /// The directories that the backup holds.
    pub directories: Vec<MadeDir>,
}

/// Returns the placements of the selected records of a backup. `staging` is where the backup was
/// unpacked, and `staged_in` is the name of that directory in `.kg`.
pub fn of_backup<'a>(
    target: &mut Target,
    root: &Path,
    staging: &Path,
    staged_in: &OsStr,
    (manifest, files): (&Manifest, &FileList),
    picked: &[(usize, &'a FileRecord)],
    warnings: &mut Vec<Warning>,
) -> Result<Placements<'a>> {
    let database = database_location(target, root, staging, files, picked, warnings)?;
    let staged_in = format!("{STATE_PREFIX}{}", staged_in.to_string_lossy());
    let folding = Folding::of(staging);
    let databases = files.databases();
    let mut taken = HashSet::new();
    let mut placements = Placements {
        files: Vec::new(),
        directories: Vec::new(),
    };
    for (number, record) in picked {
        assert_ours(record)?;
        assert_companion_belongs(manifest, &databases, record)?;
        let to = match record
            .entry
            .strip_prefix(DATABASE_ENTRY)
            .filter(|_| record.component == Component::Database)
        {
            Some(suffix) => format!("{database}{suffix}"),
            None => record.path.clone(),
        };
        if !taken.insert(folding.key(&to)) {
            return Err(not_ours(
                &record.path,
                "is named twice, or differs from another one only in case or accents",
            ));
        }
        if record.kind == EntryKind::Directory {
            let mtime = seconds_and_nanoseconds(record.mtime);
            placements.directories.push(MadeDir {
                at: to,
                mode: Some(record.mode),
                mtime: Some(mtime),
            });
            continue;
        }
        placements.files.push(Placement {
            from: Some(format!("{staged_in}/{number}")),
            kept_as: kept_as(&to),
            to,
            is_database: record.database,
            record: Some(record),
        });
    }
    placements
        .files
        .sort_by_key(|placement| !placement.is_database);
    assert_no_file_is_a_directory(&placements, &folding)?;
    Ok(placements)
}

/// Returns the placements of the files that a restore replaced. `dir` contains its record.
pub fn of_undo<'a>(dir: &str, record: &Record) -> Placements<'a> {
    let placement = |touched: &crate::worker::restore::record::Touched| Placement {
        from: touched.kept.as_ref().map(|kept| format!("{dir}/{kept}")),
        kept_as: kept_as(&touched.path),
        to: touched.path.clone(),
        is_database: touched.database,
        record: None,
    };
    let mut files: Vec<_> = record.files.iter().map(placement).collect();
    files.sort_by_key(|placement| !placement.is_database);
    Placements {
        files,
        directories: record.taken.clone(),
    }
}

/// Returns the placement of a single database that lies at `from`.
pub fn of_database<'a>(from: String, to: String) -> Placements<'a> {
    let kept_as = kept_as(&to);
    let placement = Placement {
        from: Some(from),
        to,
        kept_as,
        is_database: true,
        record: None,
    };
    Placements {
        files: vec![placement],
        directories: Vec::new(),
    }
}

/// Splits a time as the system does: the nanoseconds are never negative.
pub fn seconds_and_nanoseconds(at: Timestamp) -> (i64, i64) {
    const BILLION: i128 = 1_000_000_000;
    let nanoseconds = at.as_nanosecond();
    (
        nanoseconds.div_euclid(BILLION) as i64,
        nanoseconds.rem_euclid(BILLION) as i64,
    )
}

/// Returns where to keep the file that is replaced at a location, below the undo directory.
pub fn kept_as(location: &str) -> String {
    match location.rsplit_once('/') {
        Some((_, name)) if location.starts_with('/') => format!("{OUTSIDE_PREFIX}{name}"),
        _ => location.to_string(),
    }
}

/// Refuses a record that no backup of this tool contains.
fn assert_ours(record: &FileRecord) -> Result<()> {
    let refuse = |what: &str| Err(not_ours(&record.path, what));
    let Some(path) = names::decode(&record.path).filter(|path| names::stays_below(path)) else {
        return refuse("does not stay inside the project");
    };
    if record.database && !record.kind.is_file() {
        return refuse("is not a file but is recorded as a database");
    }
    let target = record.target.as_deref().and_then(names::decode);
    if (record.kind == EntryKind::Link)
        != target
            .as_ref()
            .is_some_and(|to| names::link_stays_below(&path, to))
    {
        return refuse("is not a link that stays inside the project");
    }
    let below = path
        .strip_prefix(STATE_DIR)
        .ok()
        .filter(|below| !below.as_os_str().is_empty());
    let top = below
        .and_then(|below| below.iter().next())
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    // The folded name also catches variants on a file system that ignores case. No file of a
    // project has such a name in other letter case.
    let top = &folded(top);
    let is_dir = record.kind == EntryKind::Directory
        || below.is_some_and(|below| below.components().count() > 1);
    if exclude::is_reserved(top, is_dir) {
        return refuse("is reserved, and no backup may contain it");
    }
    if path == Path::new(STATE_DIR)
        || target.is_some_and(|to| record.kind != EntryKind::Link || to.as_os_str().is_empty())
    {
        return refuse("is not a valid path for a file");
    }
    let is_graph = record
        .entry
        .strip_prefix(DATABASE_ENTRY)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    if is_graph != (record.component == Component::Database) {
        return refuse("is recorded as a part of the project that it does not belong to");
    }
    if record.component == Component::Database {
        if below.is_none() && is_hidden(&path) {
            return refuse("is not a valid path for a database");
        }
        return match record.entry.strip_prefix(DATABASE_ENTRY) {
            Some("") if record.database => Ok(()),
            Some(suffix) if COMPANIONS.contains(&suffix) && record.kind.is_file() => Ok(()),
            _ => refuse("is not part of a graph database"),
        };
    }
    match below {
        None => refuse("does not lie in .kg"),
        Some(_) => {
            // A link may stand for a file or a directory.
            let is_by_product = exclude::is_by_product(top, is_dir)
                || exclude::is_by_product(top, record.kind == EntryKind::Link);
            if is_by_product {
                refuse("is not part of a backup")
            } else if component_of(&record.path, record.kind == EntryKind::Directory)
                != record.component
            {
                refuse("is recorded as a part of the project that it does not belong to")
            } else {
                Ok(())
            }
        }
    }
}

/// Removes case: to upper case and back, because some letters have two lower-case forms.
fn folded(name: &str) -> String {
    name.to_uppercase().to_lowercase()
}

/// Returns whether a component of the path is hidden from directory listings. Tools keep their own
/// files in such directories.
fn is_hidden(path: &Path) -> bool {
    path.iter()
        .any(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Refuses a WAL or journal unless the backup found its database damaged. Next to a sound database,
/// it would change the content of that database. A WAL index is always refused.
fn assert_companion_belongs(
    manifest: &Manifest,
    databases: &HashSet<&str>,
    record: &FileRecord,
) -> Result<()> {
    for suffix in COMPANIONS {
        let Some(owner) = record.path.strip_suffix(suffix) else {
            continue;
        };
        if !databases.contains(owner) {
            continue;
        }
        let said = manifest
            .integrity
            .messages
            .iter()
            .any(|message| message.starts_with(&format!("{owner}: ")));
        if !said || suffix == COMPANIONS[1] {
            return Err(not_ours(
                &record.path,
                "is a WAL or journal of a database that is sound",
            ));
        }
    }
    Ok(())
}

/// Refuses a path that is a file in one record and a directory in another.
fn assert_no_file_is_a_directory(placements: &Placements<'_>, folding: &Folding) -> Result<()> {
    let files: HashSet<String> = placements
        .files
        .iter()
        .map(|placement| folding.key(&placement.to))
        .collect();
    let directories = placements
        .directories
        .iter()
        .map(|directory| directory.at.as_str());
    for location in placements
        .files
        .iter()
        .map(|placement| placement.to.as_str())
        .chain(directories)
    {
        let mut above = parent(location);
        while !above.is_empty() {
            if files.contains(&folding.key(above)) {
                return Err(not_ours(above, "is both a file and a directory"));
            }
            above = parent(above);
        }
    }
    Ok(())
}

/// Returns the location of the graph database: the one that the configuration in force after the
/// restore names. A path outside the project counts only if the configuration of the target already
/// names it.
fn database_location(
    target: &mut Target,
    root: &Path,
    staging: &Path,
    files: &FileList,
    picked: &[(usize, &FileRecord)],
    warnings: &mut Vec<Warning>,
) -> Result<String> {
    let record = files
        .records()
        .iter()
        .find(|record| record.entry == DATABASE_ENTRY);
    let recorded = record
        .map_or(DEFAULT_DATABASE, |record| record.path.as_str())
        .to_string();
    if record.is_none() {
        return Ok(recorded);
    }
    let own_config = root.join(STATE_DIR).join(CONFIG_FILE);
    let own = own_config
        .exists()
        .then(|| database_path::database_path(root, warnings));
    let restored = picked
        .iter()
        .find(|(_, record)| record.entry == CONFIG_FILE && record.kind.is_file());
    let restored = restored
        .map(|(number, _)| staging.join(number.to_string()))
        .filter(|staged| staged.exists());
    let in_force = match &restored {
        Some(staged) => Some(database_path::database_path_in(staged, root, warnings)),
        None => own.clone(),
    };
    let warn = |message: String| Warning::new(WarningCode::Config, message);
    let own_location = own
        .as_ref()
        .and_then(|own| own.relative.as_deref())
        .map(|path| names::encode(Path::new(path)));
    let believed = |location: String| {
        let is_own = own_location.as_ref() == Some(&location);
        assert_place_for_database(&location, is_own, staging, files)?;
        Ok(location)
    };
    match in_force {
        Some(DatabasePath {
            relative: Some(relative),
            ..
        }) => believed(names::encode(Path::new(&relative))),
        Some(DatabasePath {
            absolute,
            relative: None,
        }) if own.is_some_and(|own| own.absolute == absolute) => {
            assert_own_database(target, root, &absolute, &recorded)?;
            let place = absolute.display();
            warnings.push(warn(format!(
                "The database is restored to {place}, the path in the configuration of the target"
            )));
            let location = names::encode(&absolute);
            target.allow(Some(absolute));
            Ok(location)
        }
        Some(DatabasePath {
            absolute,
            relative: None,
        }) => {
            let (place, named) = (root.join(&recorded), absolute);
            let message = format!(
                "The database is restored to {}, but the restored configuration names {}, which is \
                 outside the project: set `database.path`",
                place.display(),
                named.display()
            );
            warnings.push(warn(message));
            believed(recorded)
        }
        None => believed(recorded),
    }
}

/// Refuses to write to a database outside the project that may belong to the original of a copied
/// project.
fn assert_own_database(target: &Target, root: &Path, outside: &Path, recorded: &str) -> Result<()> {
    assert_not_of_another(root, outside)?;
    // A restore into a copy puts its database there.
    if target.is_taken(recorded)? {
        let other = root.join(recorded);
        return Err(not_own(
            root,
            outside,
            &format!(
                "outside the project, and another database exists at {}",
                other.display()
            ),
        ));
    }
    Ok(())
}

/// Refuses to write to a database that belongs to another project.
pub fn assert_not_of_another(root: &Path, outside: &Path) -> Result<()> {
    match database_path::other_owner(root, outside) {
        Some(owner) => Err(not_own(
            root,
            outside,
            &format!("the database of another project, {}", owner.display()),
        )),
        None => Ok(()),
    }
}

fn not_own(root: &Path, outside: &Path, why: &str) -> Error {
    Error::new(
        Code::TargetInvalid,
        format!(
            "{} would be written as the database of {}, but it is {why}",
            outside.display(),
            root.display()
        ),
        "Nothing was changed; set `database.path` in .kg/config.json to the intended database, or \
         restore into the project that it belongs to",
    )
}

/// Refuses an unsuitable path for the graph database, such as the directories of restores and
/// backups. If only the archive names the path, this also refuses a hidden directory (`.git/hooks`)
/// and, outside `.kg`, content that is not a database.
fn assert_place_for_database(
    location: &str,
    is_own: bool,
    staging: &Path,
    files: &FileList,
) -> Result<()> {
    let refuse = |what: &str| Err(not_ours(location, what));
    let Some(path) = names::decode(location).filter(|path| names::stays_below(path)) else {
        return refuse("does not stay inside the project");
    };
    let below = path.strip_prefix(STATE_DIR).ok();
    if let Some(below) = below {
        let top = below
            .iter()
            .next()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let top = folded(top);
        let is_taken = exclude::is_reserved(&top, below.components().count() > 1)
            || top == BACKUPS_DIR
            || below == Path::new(CONFIG_FILE);
        if is_taken || top.is_empty() || !is_own && is_hidden(below) {
            return refuse("is not a valid path for a database");
        }
        return Ok(());
    }
    if is_own {
        return Ok(());
    }
    if is_hidden(&path) {
        return refuse("is not a valid path for a database");
    }
    let number = files
        .records()
        .iter()
        .position(|record| record.entry == DATABASE_ENTRY);
    // A dry run unpacks nothing.
    let staged = number.and_then(|number| File::open(staging.join(number.to_string())).ok());
    let mut start = Vec::new();
    let read = staged.map(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start));
    // An empty file is an empty database.
    if read.is_none() || start.is_empty() || start == *MAGIC {
        return Ok(());
    }
    refuse("is outside .kg, and its content is not a database")
}

/// Returns the directories on the way to these locations that do not exist yet, parents first, with
/// the attributes that the backup recorded.
pub fn missing_dirs<'a>(
    target: &Target,
    locations: impl Iterator<Item = &'a str>,
    recorded: &[MadeDir],
) -> Result<Vec<MadeDir>> {
    let recorded: HashMap<&str, &MadeDir> =
        recorded.iter().map(|dir| (dir.at.as_str(), dir)).collect();
    let mut seen = HashSet::new();
    let mut missing = Vec::new();
    for location in locations {
        let mut above = Vec::new();
        let mut dir = parent(location);
        // The directory of a database outside the project must exist, otherwise the restore fails.
        while !dir.is_empty()
            && !dir.starts_with('/')
            && dir != STATE_DIR
            && seen.insert(dir.to_string())
        {
            if !target.is_taken(dir)? {
                let plain = MadeDir {
                    at: dir.to_string(),
                    mode: None,
                    mtime: None,
                };
                above.push(recorded.get(dir).map_or(plain, |dir| (*dir).clone()));
            }
            dir = parent(dir);
        }
        missing.extend(above.into_iter().rev());
    }
    Ok(missing)
}
