//! Finds everything that a backup saves, in the order of the archive.
//!
//! It walks `.kg/` and leaves out what [`super::exclude`] names. It recognizes SQLite databases by
//! their header, wherever they are, and names the archive entry of each source. Directories are
//! sources too, and so are symbolic links that lead to a place inside the project. No link is
//! followed.
//!
//! A database that has several names is one source ([`same_file`]). The `-wal`, `-shm` and
//! `-journal` files of a database belong to its snapshot and are not sources.
//!
//! Every header is read before any database is opened. Closing a plain descriptor of a file drops
//! the locks that SQLite holds on it in this process.

use std::{
    cmp::Ordering,
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::{self, DirEntry, FileType},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Component, DEFAULT_DATABASE, Project, STATE_DIR, database_path,
    entry_names::{EntryNames, component_of, entry_name},
    exclude,
    file_state::FoundFile,
    names::{self, path_order},
    same_file,
    source_list::SourceList,
};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    sqlite::{
        files::{COMPANIONS, INDEX_MAGIC, JOURNAL_MAGIC, MAGIC, companion},
        format::wal::WAL_MAGIC,
        in_place::is_cut_off,
    },
    util::{
        dir_handle::{self, DirHandle},
        regular_file,
    },
};

/// The extent of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Everything below `.kg/` that the options select.
    Full,
    /// Only the graph database.
    Database,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Selection {
    pub scope: Scope,
    pub include_vectors: bool,
    pub include_plugin_data: bool,
    pub exclude_patterns: Vec<String>,
}

#[cfg(not(without_internals))]
impl Selection {
    /// Selects everything that a full backup saves.
    pub fn everything() -> Self {
        Selection {
            scope: Scope::Full,
            include_vectors: true,
            include_plugin_data: true,
            exclude_patterns: Vec::new(),
        }
    }
}

impl Selection {
    /// Returns whether the walk saves items of a component. The graph database is always saved, but
    /// the walk does not find it.
    pub fn wants(&self, component: Component) -> bool {
        match component {
            Component::Database => false,
            Component::Vectors => self.include_vectors,
            Component::Plugins => self.include_plugin_data,
            Component::Config | Component::Files => true,
        }
    }
}

/// One database, file, directory or link to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path relative to the project's root, as [`names`] writes it. A restore puts the item there.
    pub path: String,
    /// Where to read it, if not at that path.
    elsewhere: Option<Box<Path>>,
    /// Name of the entry in the archive, if not the one that follows from the path.
    pub(super) named: Option<Box<str>>,
    pub component: Component,
    pub kind: SourceKind,
    /// A plain file as the walk found it.
    pub found: Option<FoundFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    Database,
    File,
    Directory,
    /// A symbolic link with its target, as [`names`] writes it.
    Link(String),
}

impl Source {
    pub fn new(
        path: String,
        component: Component,
        kind: SourceKind,
        found: Option<FoundFile>,
    ) -> Self {
        Source {
            path,
            elsewhere: None,
            named: None,
            component,
            kind,
            found,
        }
    }

    /// Returns whether it is a plain file that the walk found, and that is read at its path.
    pub(super) fn is_found_at_its_path(&self) -> bool {
        self.kind == SourceKind::File && self.found.is_some() && self.elsewhere.is_none()
    }

    /// Compares the places of two sources in an archive: by component, then by path.
    pub fn order(&self, other: &Source) -> Ordering {
        let components = self.component.cmp(&other.component);
        components.then_with(|| path_order(&self.path, &other.path))
    }

    pub fn is_database(&self) -> bool {
        self.kind == SourceKind::Database
    }

    /// Returns where to read it, in the project at `root`.
    pub fn absolute(&self, root: &Path) -> PathBuf {
        let below = || root.join(names::decode(&self.path).unwrap_or_default());
        self.elsewhere.as_deref().map_or_else(below, PathBuf::from)
    }

    /// Sets where to read it.
    pub fn read_at(&mut self, absolute: &Path) {
        self.elsewhere = Some(absolute.into());
    }

    /// Returns the name of the entry in the archive.
    pub fn entry(&self) -> String {
        let usual = || entry_name(&self.path, self.component);
        self.named.as_deref().map_or_else(usual, str::to_string)
    }

    /// Returns the WAL or journal of a damaged database as a source of its own.
    pub fn companion(&self, suffix: &str, names: &mut EntryNames) -> Source {
        let entry = names.take(&format!("{}{suffix}", self.entry()));
        Source {
            path: format!("{}{suffix}", self.path),
            named: Some(entry.into()),
            kind: SourceKind::File,
            found: None,
            ..self.clone()
        }
    }
}

/// Tells whether a file is known to be plain, so that its header need not be read.
pub type IsPlain<'a> = &'a dyn Fn(&FoundFile) -> bool;

/// Finds the sources of a backup, and names their entries. The graph database comes first. Fails
/// with `KG_NO_DATABASE` if there is none.
pub fn discover(
    project: &Project,
    selection: &Selection,
    is_plain: IsPlain<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<(SourceList, EntryNames)> {
    let graph = graph_database(project, warnings)?;
    let mut sources = SourceList::default();
    if selection.scope == Scope::Full {
        let exclusion = exclude::Exclusion::new(project.root(), &selection.exclude_patterns)?;
        let mut walk = ProjectWalk {
            project,
            selection,
            exclusion,
            graph: &graph,
            is_plain,
            found: SourceList::default(),
            warnings,
        };
        walk.directory(&project.state_dir(), STATE_DIR);
        sources = walk.found;
        let in_vain = walk.exclusion.in_vain();
        warnings.extend(in_vain);
    }
    let graph_is_outside = graph.is_outside;
    let others = &mut sources.others;
    others.insert(0, graph.source);
    drop_companions(project.root(), others);
    same_file::unite(project.root(), graph_is_outside, others, warnings);
    sources.sort();
    let names = sources.name_entries();
    Ok((sources, names))
}

struct Graph {
    source: Source,
    /// Path of the database according to the configuration. Its last name may be a symbolic link;
    /// its directories are resolved.
    name: PathBuf,
    /// The database itself.
    file: PathBuf,
    is_outside: bool,
}

/// Describes a project whose database does not exist.
pub fn no_database(path: &Path) -> Error {
    Error::new(
        Code::NoDatabase,
        format!("The project has no database at {}", path.display()),
        "Set `database.path` in .kg/config.json, or restore a backup with `kg diag restore --file \
         latest`",
    )
}

fn graph_database(project: &Project, warnings: &mut Vec<Warning>) -> Result<Graph> {
    let located = database_path::database_path(project.root(), warnings);
    match fs::metadata(&located.absolute) {
        Ok(found) if found.is_file() => {}
        Ok(_) => {
            return Err(Error::new(
                Code::NoDatabase,
                format!("{} is not a file", located.absolute.display()),
                "Set `database.path` in .kg/config.json to the project's database",
            ));
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(no_database(&located.absolute));
        }
        Err(cause) => return Err(Error::io("read", &located.absolute, cause)),
    }
    let is_outside = located.relative.is_none();
    let path = located.relative.unwrap_or_else(|| {
        let place = free_place(project);
        let message = format!(
            "The database lies outside the project, at {}; a restore into another project puts it at {place}",
            located.absolute.display()
        );
        warnings.push(Warning::new(WarningCode::Config, message));
        place
    });
    if let Some(owner) = database_path::other_owner(project.root(), &located.absolute) {
        let message = format!(
            "The configuration names the database of another project, {}, so the backup contains \
             that database. If this project is a copy, set `database.path` in .kg/config.json to a \
             database of its own",
            owner.display()
        );
        warnings.push(Warning::new(WarningCode::Config, message));
    }
    let failed = |cause| Error::io("read", &located.absolute, cause);
    // SQLite opens the target of a symbolic link and expects the WAL next to the target.
    let file = dir_handle::resolve(&located.absolute).map_err(failed)?;
    let mut source = Source::new(path, Component::Database, SourceKind::Database, None);
    source.read_at(&file);
    Ok(Graph {
        source,
        name: directory_entry(&located.absolute).map_err(failed)?,
        file,
        is_outside,
    })
}

/// Returns the path with its directories resolved, but not its last name.
fn directory_entry(path: &Path) -> io::Result<PathBuf> {
    Ok(DirHandle::around(path)?.path())
}

/// Returns the path in the project for a database from outside. It is the default, or another one
/// if a file exists there.
fn free_place(project: &Project) -> String {
    let others = (1..).map(|number| format!("{STATE_DIR}/graph-{number}.db"));
    let mut places = std::iter::once(DEFAULT_DATABASE.to_string()).chain(others);
    places
        .find(|place| !project.root().join(place).exists())
        .unwrap_or_default()
}

struct ProjectWalk<'a> {
    project: &'a Project,
    selection: &'a Selection,
    exclusion: exclude::Exclusion,
    graph: &'a Graph,
    is_plain: IsPlain<'a>,
    found: SourceList,
    warnings: &'a mut Vec<Warning>,
}

impl ProjectWalk<'_> {
    /// Walks `directory`. `path` is the same directory relative to the root.
    fn directory(&mut self, directory: &Path, path: &str) {
        let entries = self.entries(directory, path);
        let companions = companions_among(&entries);
        for entry in entries {
            let name = entry.file_name();
            let child = format!("{path}/{}", names::encode(Path::new(&name)));
            let location = Path::new(path).join(&name);
            let Ok(kind) = entry.file_type() else {
                // The code that saves the file reports that it cannot be read.
                if !self.exclusion.excludes(&location, false) {
                    let component = component_of(&child, false);
                    self.add(child, component, SourceKind::File, None);
                }
                continue;
            };
            if self.leaves_out(&location, &child, kind) {
                continue;
            }
            if names::stays_below(&location) {
                self.entry(&entry, child, kind, &companions);
            } else {
                let message = format!(
                    "{child} was left out: on other systems its name leads out of the project"
                );
                self.warn(WarningCode::FileUnreadable, &child, message);
            }
        }
    }

    /// Lists a directory in the order of an archive. A directory that cannot be read is empty and
    /// causes a warning.
    fn entries(&mut self, directory: &Path, path: &str) -> Vec<DirEntry> {
        let entries = fs::read_dir(directory).and_then(Iterator::collect);
        let sorted = |mut entries: Vec<DirEntry>| {
            entries.sort_by_cached_key(|entry| names::encode(Path::new(&entry.file_name())));
            entries
        };
        entries.map(sorted).unwrap_or_else(|cause: io::Error| {
            // A directory that was removed during the walk is no longer part of the project.
            if cause.kind() != io::ErrorKind::NotFound {
                self.warn(
                    WarningCode::FileUnreadable,
                    path,
                    format!("{path} could not be read: {cause}"),
                );
            }
            Vec::new()
        })
    }

    /// Returns whether an entry is the graph database, is excluded by a pattern, or is a by-product
    /// of this program.
    fn leaves_out(&mut self, location: &Path, child: &str, kind: FileType) -> bool {
        // Patterns cannot exclude the graph database. All other items are checked against the
        // patterns first, so that a pattern that matches nothing can be reported.
        if child == self.graph.source.path && !kind.is_dir() {
            return true;
        }
        // A directory of by-products may be a link to another place.
        let may_be_dir = kind.is_dir() || kind.is_symlink();
        let is_by_product = location.parent() == Some(Path::new(STATE_DIR))
            && location
                .file_name()
                .and_then(OsStr::to_str)
                .is_some_and(|name| exclude::is_by_product(name, may_be_dir));
        self.exclusion.excludes(location, kind.is_dir()) || is_by_product
    }

    /// Adds an entry according to its type. `companions` are the names in its directory that may be
    /// those of a WAL or journal.
    fn entry(
        &mut self,
        entry: &DirEntry,
        child: String,
        kind: FileType,
        companions: &HashSet<OsString>,
    ) {
        let absolute = entry.path();
        if kind.is_dir() {
            let component = component_of(&child, true);
            if self.wants(component) {
                self.add(child.clone(), component, SourceKind::Directory, None);
                self.directory(&absolute, &child);
            }
        } else if kind.is_file() {
            self.file(entry, child, companions);
        } else if kind.is_symlink() {
            self.link(absolute, child);
        } else {
            self.warn(
                WarningCode::NotAFile,
                &child,
                format!("{child} is a socket or device and was left out"),
            );
        }
    }

    fn add(
        &mut self,
        path: String,
        component: Component,
        kind: SourceKind,
        found: Option<FoundFile>,
    ) {
        self.found.push(Source::new(path, component, kind, found));
    }

    fn file(&mut self, entry: &DirEntry, path: String, companions: &HashSet<OsString>) {
        let component = component_of(&path, false);
        let (absolute, name) = (entry.path(), entry.file_name());
        let is_companion = companions.contains(&name);
        let is_saved_already =
            self.is_graph(&absolute) || is_companion && self.belongs_to_graph(&absolute);
        if !self.wants(component)
            || is_saved_already
            || is_companion && belongs_to_database(&absolute)
        {
            return;
        }
        let found = match entry.metadata() {
            Ok(found) => Some(FoundFile::new(&found)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return,
            // The code that saves the file reports that it cannot be read.
            Err(_) => None,
        };
        // A database that was truncated has no header, but still has its WAL or journal.
        let mut suffixes = COMPANIONS.iter().filter(|_| !companions.is_empty());
        let has_companion = suffixes.any(|suffix| {
            let companion = companion(Path::new(&name), suffix);
            companions.contains(companion.as_os_str())
        });
        let is_plain = !has_companion && found.is_some_and(|found| (self.is_plain)(&found));
        let is_database = match is_plain {
            true => Ok(false),
            false => starts_with(&absolute, &[MAGIC])
                .map(|starts| starts || has_companion && is_cut_off(&absolute)),
        };
        match is_database {
            Ok(true) => self.add(path, component, SourceKind::Database, None),
            Ok(false) if is_companion && is_orphan(&absolute) => {
                let message = format!(
                    "{path} is the WAL or journal of a database that no longer exists, and was \
                     left out"
                );
                self.warn(WarningCode::FileUnreadable, &path, message);
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            // The code that saves the file reports that it cannot be read.
            Ok(false) | Err(_) => self.add(path, component, SourceKind::File, found),
        }
    }

    /// Returns whether `path` is the WAL, index or journal of the graph database. This includes a
    /// graph database without a valid header.
    fn belongs_to_graph(&self, path: &Path) -> bool {
        let Ok(path) = directory_entry(path) else {
            return false;
        };
        let names = [&self.graph.name, &self.graph.file];
        names.iter().any(|name| {
            COMPANIONS
                .iter()
                .any(|suffix| companion(name, suffix) == path)
        })
    }

    fn link(&mut self, absolute: PathBuf, path: String) {
        let component = component_of(&path, false);
        if !self.wants(component) || self.is_graph(&absolute) {
            return;
        }
        let target = match fs::read_link(&absolute) {
            Ok(target) => target,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return,
            // The code that saves the file reports that it cannot be read.
            Err(_) => return self.add(path, component, SourceKind::File, None),
        };
        let leads_to_graph =
            || dunce::canonicalize(absolute).is_ok_and(|path| path == self.graph.file);
        if names::decode(&path).is_some_and(|path| names::link_stays_below(&path, &target)) {
            self.add(
                path,
                component,
                SourceKind::Link(names::encode(&target)),
                None,
            );
        } else if !self.graph.is_outside && leads_to_graph() {
            let graph = &self.graph.source.path;
            let (kind, message) = (
                SourceKind::Link(same_file::relative(&path, graph)),
                format!(
                    "{path} leads to the graph database through a path outside the project; it is saved as a link to {graph}"
                ),
            );
            self.warn(WarningCode::SameFile, &path, message);
            self.add(path, component, kind, None);
        } else {
            let message = format!(
                "{path} is a symbolic link out of the project, to {}; it was left out",
                target.display()
            );
            self.warn(WarningCode::LinkOutside, &path, message);
        }
    }

    /// Returns whether `path` is the configured name of the graph database, even if `.kg` is a
    /// symbolic link.
    fn is_graph(&self, path: &Path) -> bool {
        path.file_name() == self.graph.name.file_name()
            && directory_entry(path).is_ok_and(|path| path == self.graph.name)
    }

    fn wants(&self, component: Component) -> bool {
        self.selection.wants(component)
    }

    fn warn(&mut self, code: WarningCode, path: &str, message: String) {
        debug_assert!(
            Path::new(path).starts_with(STATE_DIR),
            "{} in {:?}",
            path,
            self.project
        );
        self.warnings.push(Warning::about(code, path, message));
    }
}

/// Returns whether the file is the WAL, index or journal of a database in the same directory,
/// whether or not that is saved. Restored without its database, the file would hide or undo later
/// content of the database.
fn belongs_to_database(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let mut databases = COMPANIONS
        .iter()
        .filter_map(|suffix| name.strip_suffix(suffix));
    databases.any(|database| starts_like_sqlite(&path.with_file_name(database)).unwrap_or(false))
}

/// Returns the names that end like those of a WAL, an index or a journal.
fn companions_among(entries: &[DirEntry]) -> HashSet<OsString> {
    let is_companion = |name: &OsString| {
        let name = name.as_encoded_bytes();
        COMPANIONS
            .iter()
            .any(|suffix| name.ends_with(suffix.as_bytes()))
    };
    entries
        .iter()
        .map(DirEntry::file_name)
        .filter(is_companion)
        .collect()
}

/// Returns whether a file with such a name is the WAL, index or journal of a database that no longer
/// exists. Restored next to another database of that name, the file would change that database.
fn is_orphan(path: &Path) -> bool {
    starts_with(path, &[WAL_MAGIC, INDEX_MAGIC, JOURNAL_MAGIC]).unwrap_or(false)
}

/// Returns whether the file starts like a database, or was a database before it was truncated.
/// Fails if the path is a link or a device.
fn starts_like_sqlite(path: &Path) -> io::Result<bool> {
    Ok(starts_with(path, &[MAGIC])? || is_cut_off(path))
}

pub fn starts_with(path: &Path, magics: &[&[u8]]) -> io::Result<bool> {
    let mut start = Vec::new();
    regular_file::open(path)?
        .take(MAGIC.len() as u64)
        .read_to_end(&mut start)?;
    Ok(magics.iter().any(|magic| start.starts_with(magic)))
}

/// Removes the sources that belong to a database's snapshot.
fn drop_companions(root: &Path, sources: &mut Vec<Source>) {
    let companions: HashSet<PathBuf> = sources
        .iter()
        .filter(|source| source.is_database())
        .flat_map(|source| COMPANIONS.map(|suffix| companion(&source.absolute(root), suffix)))
        .collect();
    let is_companion = |source: &Source| {
        let mut suffixes = COMPANIONS.iter();
        suffixes.any(|suffix| source.path.ends_with(suffix))
            && companions.contains(&source.absolute(root))
    };
    sources.retain(|source| source.is_database() || !is_companion(source));
}

#[cfg(test)]
mod tests;
