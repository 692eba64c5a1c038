//! Decides where each file goes, from the manifest of a backup or from the record of a restore that
//! is undone.
//!
//! This module changes nothing. It refuses every path of an archive that leaves the project or lies
//! outside the part of the project that backups save.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::Read,
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    case_folding::Folding,
    description::Description,
    journal::Spot,
    record::{MadeDir, Touches},
    target::{Target, not_ours, parent},
    texts::{TextId, Texts},
};
use crate::{
    archive::{
        file_record::{EntryKind, FileRecord},
        filter::EntryFilter,
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
    util::{
        dir_handle::EntryHandle,
        entry_stat::{EntryStat, EntryType},
    },
};

/// The prefix of every path except that of the graph database.
const STATE_PREFIX: &str = ".kg/";
/// The directory that keeps a graph database from outside the project, below the undo directory.
const OUTSIDE_PREFIX: &str = "outside/";

/// All files and directories with a destination.
#[derive(Default)]
pub struct Placements {
    texts: Arc<Texts>,
    /// The directory of the new files, with a trailing slash.
    source: String,
    /// The files and links. Databases come before their companions.
    rows: Vec<Row>,
    /// The directories that the backup holds.
    pub directories: Vec<MadeDir>,
    pub size_bytes: u64,
}

struct Row {
    to: TextId,
    from: Source,
    attributes: Option<Attributes>,
    is_database: bool,
}

/// The current place of a file.
#[derive(Clone, Copy)]
enum Source {
    /// The destination is only removed.
    None,
    /// The number of an unpacked file.
    Number(u32),
    /// A location below the directory of the new files.
    Below(TextId),
}

/// The attributes of a file or link according to the list of the backup, in 20 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(Rust, packed(4))]
pub struct Attributes {
    /// Seconds and nanoseconds since the epoch.
    seconds: i64,
    nanoseconds: u32,
    /// The target of a link.
    link: Option<TextId>,
    mode: u16,
    /// Also says in no more bytes whether there are attributes.
    is_link: bool,
}

impl Attributes {
    pub fn mode(&self) -> u32 {
        self.mode.into()
    }

    pub fn modified(&self) -> (i64, i64) {
        (self.seconds, self.nanoseconds.into())
    }

    /// Returns whether a regular file has these permissions and this time.
    pub fn are_those_of(&self, found: &EntryStat) -> bool {
        !self.is_link
            && found.entry_type == EntryType::File
            && found.mode == self.mode()
            && found.modified == self.modified()
    }
}

impl Placements {
    pub fn files(&self) -> impl Iterator<Item = Placement<'_>> {
        self.rows.iter().map(|row| Placement { all: self, row })
    }

    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Returns the file at that index.
    pub fn file(&self, index: usize) -> Option<Placement<'_>> {
        self.rows.get(index).map(|row| Placement { all: self, row })
    }

    /// Returns the texts of all destinations.
    pub fn texts(&self) -> &Arc<Texts> {
        &self.texts
    }

    /// Returns the directory of the new files, with a trailing slash.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// A file or link, and its destination.
#[derive(Clone, Copy)]
pub struct Placement<'a> {
    all: &'a Placements,
    row: &'a Row,
}

impl<'a> Placement<'a> {
    /// Returns the location of the destination.
    pub fn to(&self) -> &'a str {
        self.all.texts.get(self.row.to)
    }

    pub fn destination_id(&self) -> TextId {
        self.row.to
    }

    pub fn is_database(&self) -> bool {
        self.row.is_database
    }

    /// Returns whether there is a new file. Otherwise the destination is only removed.
    pub fn has_new(&self) -> bool {
        !matches!(self.row.from, Source::None)
    }

    /// Returns the current location; `None` if the destination is only removed.
    pub fn from(&self) -> Option<String> {
        let source = &self.all.source;
        match self.row.from {
            Source::None => None,
            Source::Number(number) => Some(format!("{source}{number}")),
            Source::Below(name) => Some(format!("{source}{}", self.all.texts.get(name))),
        }
    }

    /// Returns the current place; `None` if there is no new file or its directory does not exist.
    pub fn staged(&self, target: &Target) -> Result<Option<EntryHandle>> {
        let number = match self.row.from {
            Source::Number(number) => Some(number),
            Source::None | Source::Below(_) => None,
        };
        match target.unpacked(number) {
            Some(unpacked) => Ok(Some(unpacked)),
            None => self.from().map_or(Ok(None), |from| target.place(&from)),
        }
    }

    /// Returns the current location for a list of moves.
    pub fn spot(&self) -> Option<Spot> {
        match self.row.from {
            Source::None => None,
            Source::Number(number) => Some(Spot::Numbered(number)),
            Source::Below(name) => Some(Spot::New(name)),
        }
    }

    /// Returns where to keep the replaced file, below the undo directory.
    pub fn kept_as(&self) -> Cow<'a, str> {
        kept_as(self.to())
    }

    /// Returns the attributes of a file of a backup.
    pub fn attributes(&self) -> Option<&'a Attributes> {
        self.row.attributes.as_ref()
    }

    /// Returns the target of a link of a backup, written as a path.
    pub fn link(&self) -> Option<&'a str> {
        let link = self.row.attributes?.link?;
        Some(self.all.texts.get(link))
    }
}

/// Returns the placements of the records of a backup that `filter` selects. `staging` is where the
/// backup was unpacked, and `staged_in` is the name of that directory in `.kg`.
pub fn of_backup(
    target: &mut Target,
    root: &Path,
    staging: &Path,
    staged_in: &OsStr,
    description: &Description,
    filter: &EntryFilter,
    warnings: &mut Vec<Warning>,
) -> Result<Placements> {
    let database = database_location(target, root, staging, description, filter, warnings)?;
    let folding = Folding::of(staging);
    let mut placing = Placing {
        manifest: &description.manifest,
        databases: &description.databases,
        database,
        folding,
        hashes: RandomState::new(),
        texts: Texts::with_capacity(description.count, description.paths_bytes),
        first: Vec::new(),
        placements: Placements {
            source: format!("{STATE_PREFIX}{}/", staged_in.to_string_lossy()),
            rows: Vec::with_capacity(description.count),
            ..Placements::default()
        },
        keys: Vec::with_capacity(description.count),
        parents: HashSet::new(),
        last_parent: String::new(),
    };
    description.each(|number, record| {
        if filter.selects(&record, |path| description.databases.contains(path)) {
            placing.place(number, &record)?;
        }
        Ok(())
    })?;
    placing.finish()
}

/// Collects the placements of a backup.
struct Placing<'a> {
    manifest: &'a Manifest,
    databases: &'a HashSet<String>,
    /// The location of the graph database.
    database: String,
    folding: Folding,
    hashes: RandomState,
    texts: Texts,
    /// The databases.
    first: Vec<Row>,
    placements: Placements,
    /// The hashes of the keys of all locations. Equal keys are names that the file system treats as
    /// equal.
    keys: Vec<u64>,
    /// The keys of all directories that contain a location.
    parents: HashSet<String>,
    last_parent: String,
}

impl Placing<'_> {
    fn place(&mut self, number: usize, record: &FileRecord) -> Result<()> {
        assert_ours(record)?;
        assert_companion_belongs(self.manifest, self.databases, record)?;
        let to = match record
            .entry
            .strip_prefix(DATABASE_ENTRY)
            .filter(|_| record.component == Component::Database)
        {
            Some(suffix) => Cow::Owned(format!("{}{suffix}", self.database)),
            None => Cow::Borrowed(record.path.as_str()),
        };
        self.keys.push(self.hash(&to));
        self.note_parents(&to);
        let (seconds, nanoseconds) = seconds_and_nanoseconds(record.mtime);
        if record.kind == EntryKind::Directory {
            self.placements.directories.push(MadeDir {
                at: to.into_owned(),
                mode: Some(record.mode),
                mtime: Some((seconds, nanoseconds)),
            });
            return Ok(());
        }
        let link = record
            .target
            .as_deref()
            .filter(|_| record.kind == EntryKind::Link)
            .map(|link| self.texts.push(link))
            .transpose()?;
        let number =
            u32::try_from(number).map_err(|_| Error::internal("The backup has too many files"))?;
        let row = Row {
            to: self.texts.push(&to)?,
            from: Source::Number(number),
            attributes: Some(Attributes {
                seconds,
                nanoseconds: nanoseconds as u32,
                link,
                is_link: record.kind == EntryKind::Link,
                // A database is data, so it never gets execute permission, whatever its record
                // says.
                mode: (record.mode & if record.database { 0o666 } else { 0o777 }) as u16,
            }),
            is_database: record.database,
        };
        self.placements.size_bytes = self.placements.size_bytes.saturating_add(record.size);
        if record.database {
            self.first.push(row);
        } else {
            self.placements.rows.push(row);
        }
        Ok(())
    }

    fn hash(&self, location: &str) -> u64 {
        self.hashes.hash_one(self.folding.key(location))
    }

    fn note_parents(&mut self, location: &str) {
        let mut above = parent(location);
        // Most records follow another one of their directory.
        if above == self.last_parent {
            return;
        }
        self.last_parent = above.to_string();
        while !above.is_empty() && self.parents.insert(self.folding.key(above).into_owned()) {
            above = parent(above);
        }
    }

    fn finish(mut self) -> Result<Placements> {
        self.keys.sort_unstable();
        let twice = self.keys.windows(2).find(|keys| keys[0] == keys[1]);
        if let Some(key) = twice.map(|keys| keys[0]) {
            let directories = self
                .placements
                .directories
                .iter()
                .map(|dir| dir.at.as_str());
            let rows = self.first.iter().chain(&self.placements.rows);
            let mut locations = rows.map(|row| self.texts.get(row.to)).chain(directories);
            let named = locations.find(|location| self.hash(location) == key);
            return Err(not_ours(
                named.unwrap_or_default(),
                "is named twice, or differs from another one only in case or accents",
            ));
        }
        drop(self.keys);
        let (rows, first) = (&mut self.placements.rows, self.first.len());
        rows.append(&mut self.first);
        rows.rotate_right(first);
        self.placements.texts = Arc::new(self.texts);
        // A path must not be a file in one record and a directory in another.
        for placement in self.placements.files() {
            if self.parents.contains(&*self.folding.key(placement.to())) {
                return Err(not_ours(placement.to(), "is both a file and a directory"));
            }
        }
        Ok(self.placements)
    }
}

/// Returns the placements of the files that a restore replaced. `dir` contains its record.
pub fn of_undo(dir: &str, files: Touches, removed: &[MadeDir]) -> Result<Placements> {
    let (texts, touched) = files.into_parts()?;
    let rows = touched.iter().map(|touched| Row {
        to: touched.path,
        from: touched.kept.map_or(Source::None, Source::Below),
        attributes: None,
        is_database: touched.database,
    });
    let (mut first, others): (Vec<Row>, Vec<Row>) = rows.partition(|row| row.is_database);
    first.extend(others);
    Ok(Placements {
        texts,
        source: format!("{dir}/"),
        rows: first,
        directories: removed.to_vec(),
        size_bytes: 0,
    })
}

/// Returns the placement of a single database that lies at `from`.
pub fn of_database(from: &str, to: &str) -> Result<Placements> {
    let mut texts = Texts::default();
    let row = Row {
        from: Source::Below(texts.push(from)?),
        to: texts.push(to)?,
        attributes: None,
        is_database: true,
    };
    Ok(Placements {
        texts: Arc::new(texts),
        rows: vec![row],
        ..Placements::default()
    })
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
pub fn kept_as(location: &str) -> Cow<'_, str> {
    match location.rsplit_once('/') {
        Some((_, name)) if location.starts_with('/') => format!("{OUTSIDE_PREFIX}{name}").into(),
        _ => location.into(),
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
    databases: &HashSet<String>,
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

/// Returns the location of the graph database: the one that the configuration in force after the
/// restore names. A path outside the project counts only if the configuration of the target already
/// names it.
fn database_location(
    target: &mut Target,
    root: &Path,
    staging: &Path,
    description: &Description,
    filter: &EntryFilter,
    warnings: &mut Vec<Warning>,
) -> Result<String> {
    let Some((number, recorded)) = description.graph.clone() else {
        return Ok(DEFAULT_DATABASE.to_string());
    };
    let own_config = root.join(STATE_DIR).join(CONFIG_FILE);
    let own = own_config
        .exists()
        .then(|| database_path::database_path(root, warnings));
    let is_database = |path: &str| description.databases.contains(path);
    let restored = description.config.as_ref();
    let restored = restored
        .filter(|(_, record)| filter.selects(record, is_database))
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
        assert_place_for_database(&location, is_own, &staging.join(number.to_string()))?;
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
fn assert_place_for_database(location: &str, is_own: bool, staged: &Path) -> Result<()> {
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
    let mut start = Vec::new();
    // A dry run unpacks nothing.
    let read = File::open(staged)
        .ok()
        .map(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_takes_little_memory() {
        assert!(size_of::<Row>() <= 36, "{} bytes", size_of::<Row>());
    }
}
