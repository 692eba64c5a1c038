//! Finds everything that a backup saves, in the order in which the archive holds it.
//!
//! Walks `.kg/`, leaves out what [`super::exclude`] names, recognises SQLite databases by their header wherever they
//! lie, and names the entry of each source in the archive. A database's `-wal`, `-shm` and `-journal` belong to its
//! snapshot and are not sources themselves.
//!
//! Every header is looked at before any database is opened: closing a plain descriptor of a file drops the locks
//! that SQLite holds on it in this process.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::{CONFIG_FILE, Component, DEFAULT_DATABASE, Project, STATE_DIR, config, exclude};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    sqlite::files::{COMPANIONS, MAGIC, companion},
};

/// The graph database in every archive.
pub const DATABASE_ENTRY: &str = "database.sqlite";

/// How much of a project a backup takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Everything below `.kg/`, as chosen by the options.
    Full,
    /// The graph database alone.
    Database,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Selection {
    pub scope: Scope,
    pub include_vectors: bool,
    pub include_plugin_data: bool,
    pub exclude_patterns: Vec<String>,
}

/// One thing to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Relative to the project's root, with `/`: where a restore puts it.
    pub path: String,
    pub absolute: PathBuf,
    /// Its name in the archive.
    pub entry: String,
    pub component: Component,
    pub is_database: bool,
}

/// What [`discover`] found: the graph database first.
pub fn discover(project: &Project, selection: &Selection, warnings: &mut Vec<Warning>) -> Result<Vec<Source>> {
    let graph = graph_database(project, warnings)?;
    let mut sources = Vec::new();
    if selection.scope == Scope::Full {
        let exclusion = exclude::Exclusion::new(project.root(), &selection.exclude_patterns)?;
        let mut walk = Walk { project, selection, exclusion, graph: &graph, found: Vec::new(), warnings };
        walk.directory(&project.state_dir(), STATE_DIR)?;
        sources = walk.found;
    }
    sources.insert(0, graph);
    drop_companions(&mut sources);
    sources.sort_by(|a, b| (rank(a), &a.path).cmp(&(rank(b), &b.path)));
    name_entries(&mut sources);
    Ok(sources)
}

/// The graph database first, then the configuration, vectors, plugins and the rest.
fn rank(source: &Source) -> (Component, bool) {
    (source.component, source.entry != CONFIG_FILE)
}

fn graph_database(project: &Project, warnings: &mut Vec<Warning>) -> Result<Source> {
    let located = config::database_path(project.root(), warnings);
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
            return Err(Error::new(
                Code::NoDatabase,
                format!("The project has no database at {}", located.absolute.display()),
                "Set `database.path` in .kg/config.json, or restore a backup with `kg diag restore --file latest`",
            ));
        }
        Err(cause) => return Err(Error::io("read", &located.absolute, cause)),
    }
    let path = located.relative.unwrap_or_else(|| {
        let place = free_place(project);
        let message = format!(
            "The database lies outside the project, at {}; a restore into another project puts it at {place}",
            located.absolute.display()
        );
        warnings.push(Warning::new(WarningCode::Config, message));
        place
    });
    Ok(Source {
        path,
        // SQLite opens the file behind a symbolic link, and looks for the WAL beside that file.
        absolute: located.absolute.canonicalize().map_err(|cause| Error::io("read", &located.absolute, cause))?,
        entry: DATABASE_ENTRY.to_string(),
        component: Component::Database,
        is_database: true,
    })
}

/// Where a database from outside would go in the project: the default, or beside a file that is there already.
fn free_place(project: &Project) -> String {
    let others = (1..).map(|number| format!("{STATE_DIR}/graph-{number}.db"));
    let mut places = std::iter::once(DEFAULT_DATABASE.to_string()).chain(others);
    places.find(|place| !project.root().join(place).exists()).unwrap_or_default()
}

struct Walk<'a> {
    project: &'a Project,
    selection: &'a Selection,
    exclusion: exclude::Exclusion,
    graph: &'a Source,
    found: Vec<Source>,
    warnings: &'a mut Vec<Warning>,
}

impl Walk<'_> {
    /// `path` is `directory` relative to the root.
    fn directory(&mut self, directory: &Path, path: &str) -> Result<()> {
        let entries = match fs::read_dir(directory).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()) {
            Ok(entries) => entries,
            // Removed while we walked: then it is not part of the project any more.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => {
                self.warn(WarningCode::FileUnreadable, path, format!("{path} could not be read: {cause}"));
                return Ok(());
            }
        };
        let at_top = path == STATE_DIR;
        for entry in entries {
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                let lossy = format!("{path}/{}", name.to_string_lossy());
                self.warn(
                    WarningCode::FileUnreadable,
                    &lossy,
                    format!("The name of {lossy} is not UTF-8; it was left out"),
                );
                continue;
            };
            let child = format!("{path}/{name}");
            let Ok(kind) = entry.file_type() else { continue };
            if at_top && exclude::is_by_product(name, kind.is_dir())
                || self.exclusion.excludes(Path::new(&child), kind.is_dir())
            {
                continue;
            }
            if kind.is_dir() {
                if self.wants(component_of(&child, true)) {
                    self.directory(&entry.path(), &child)?;
                }
            } else if kind.is_file() {
                self.file(entry.path(), child);
            } else {
                self.warn(
                    WarningCode::NotAFile,
                    &child,
                    format!("{child} is a symbolic link, socket or device and was left out"),
                );
            }
        }
        Ok(())
    }

    fn file(&mut self, absolute: PathBuf, path: String) {
        let component = component_of(&path, false);
        if !self.wants(component) || self.is_graph(&absolute) || belongs_to_database(&absolute) {
            return;
        }
        match starts_like_sqlite(&absolute) {
            Ok(is_database) => {
                let entry = entry_name(&path, component);
                self.found.push(Source { path, absolute, entry, component, is_database });
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => {
                self.warn(
                    WarningCode::FileUnreadable,
                    &path,
                    format!("{path} could not be read and was left out: {cause}"),
                );
            }
        }
    }

    /// Also where `.kg` is a symbolic link, and the path that was walked is not the one that SQLite opens.
    fn is_graph(&self, path: &Path) -> bool {
        let graph = self.graph.absolute.as_path();
        path.file_name() == graph.file_name() && path.canonicalize().is_ok_and(|path| path == graph)
    }

    fn wants(&self, component: Component) -> bool {
        match component {
            Component::Vectors => self.selection.include_vectors,
            Component::Plugins => self.selection.include_plugin_data,
            _ => true,
        }
    }

    fn warn(&mut self, code: WarningCode, path: &str, message: String) {
        debug_assert!(Path::new(path).starts_with(STATE_DIR), "{} in {:?}", path, self.project);
        self.warnings.push(Warning::about(code, path, message));
    }
}

fn component_of(path: &str, is_dir: bool) -> Component {
    let below = path.strip_prefix(".kg/").unwrap_or(path);
    match below.split('/').next().unwrap_or(below) {
        "vectors" | "vectors.db" | "vectors.db-wal" | "vectors.db-shm" | "vectors.db-journal" | "reasoning-bank" => {
            Component::Vectors
        }
        "plugins" => Component::Plugins,
        name if name == below && !is_dir && name.ends_with(".json") => Component::Config,
        _ => Component::Files,
    }
}

/// `config.json`, `config/…`, `vectors/…`, `plugins/…`, `files/…`.
fn entry_name(path: &str, component: Component) -> String {
    let below = path.strip_prefix(".kg/").unwrap_or(path);
    match component {
        Component::Database => DATABASE_ENTRY.to_string(),
        Component::Config if below == CONFIG_FILE => CONFIG_FILE.to_string(),
        Component::Config => format!("config/{below}"),
        Component::Vectors => format!("vectors/{}", below.strip_prefix("vectors/").unwrap_or(below)),
        Component::Plugins => below.to_string(),
        Component::Files => format!("files/{below}"),
    }
}

/// The component of an entry of an archive, by its name; `None` for the manifest and the checksums.
pub fn component_of_entry(entry: &str) -> Option<Component> {
    match entry.split_once('/') {
        Some(("config", _)) => Some(Component::Config),
        Some(("vectors", _)) => Some(Component::Vectors),
        Some(("plugins", _)) => Some(Component::Plugins),
        Some(("files", _)) => Some(Component::Files),
        Some(_) => None,
        None if entry.starts_with(CONFIG_FILE) => Some(Component::Config),
        None if entry.starts_with(DATABASE_ENTRY) => Some(Component::Database),
        None => None,
    }
}

/// Whether the file is the WAL, index or journal of a database beside it, be that saved or not: restored without its
/// database it would hide or undo what that holds by then.
fn belongs_to_database(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let mut databases = COMPANIONS.iter().filter_map(|suffix| name.strip_suffix(suffix));
    databases.any(|database| starts_like_sqlite(&path.with_file_name(database)).unwrap_or(false))
}

/// Whether the file starts like a database; a link or device in its place is an error.
fn starts_like_sqlite(path: &Path) -> io::Result<bool> {
    let mut start = [0; MAGIC.len()];
    match open_plain(path)?.read_exact(&mut start) {
        Ok(()) => Ok(start == *MAGIC),
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(cause) => Err(cause),
    }
}

/// Opens a regular file without following a link and without waiting for the other end of a pipe.
pub fn open_plain(path: &Path) -> io::Result<fs::File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Removes the files that belong to a database's snapshot.
fn drop_companions(sources: &mut Vec<Source>) {
    let companions: HashSet<PathBuf> = sources
        .iter()
        .filter(|source| source.is_database)
        .flat_map(|source| COMPANIONS.map(|suffix| companion(&source.absolute, suffix)))
        .collect();
    sources.retain(|source| source.is_database || !companions.contains(&source.absolute));
}

/// Two sources can want one entry name (`.kg/vectors.db` and `.kg/vectors/vectors.db`): the later gets a suffix.
/// The manifest maps entries to paths, so nothing depends on the name.
fn name_entries(sources: &mut [Source]) {
    let mut taken = HashSet::new();
    for source in sources {
        let wanted = source.entry.clone();
        let mut number = 2;
        while !taken.insert(source.entry.clone()) {
            source.entry = format!("{wanted}~{number}");
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Project) {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let project = Project::open(dir.path()).unwrap();
        (dir, project)
    }

    fn everything() -> Selection {
        Selection { scope: Scope::Full, include_vectors: true, include_plugin_data: true, exclude_patterns: vec![] }
    }

    fn entries(project: &Project, selection: &Selection) -> Vec<String> {
        let found = discover(project, selection, &mut Vec::new()).unwrap();
        found.into_iter().map(|source| source.entry).collect()
    }

    const DATABASE: &[u8] = b"SQLite format 3\0 and more";

    #[test]
    fn sources_come_in_the_order_of_the_archive_and_by_products_stay_out() {
        let (_dir, project) = project(&[
            (".kg/knowledge.db", DATABASE),
            (".kg/knowledge.db-wal", b"wal"),
            (".kg/knowledge.db-shm", b"shm"),
            (".kg/config.json", b"{}"),
            (".kg/agents.json", b"{}"),
            (".kg/vectors.db", DATABASE),
            (".kg/vectors.db-journal", b"journal"),
            (".kg/vectors/a.f32", b"1234"),
            (".kg/reasoning-bank/b", b""),
            (".kg/plugins/p/data.json", b"{}"),
            (".kg/plugins/p/state", DATABASE),
            (".kg/plugins/p/yarn.lock", b"data of a plugin"),
            (".kg/notes.txt", b"n"),
            (".kg/server.pid", b"1"),
            (".kg/backups/kg-backup-x.tar.gz", b"b"),
            (".kg/logs/a.log", b"l"),
            (".kg/cache/c", b"c"),
            (".kg/restore-staging-1/0", b"s"),
            ("docs/readme.md", b"not state"),
        ]);
        assert_eq!(
            entries(&project, &everything()),
            [
                "database.sqlite",
                "config.json",
                "config/agents.json",
                "vectors/reasoning-bank/b",
                "vectors/vectors.db",
                "vectors/a.f32",
                "plugins/p/data.json",
                "plugins/p/state",
                "plugins/p/yarn.lock",
                "files/notes.txt",
            ]
        );
    }

    #[test]
    fn vectors_plugins_and_patterns_are_left_out_on_request_but_never_the_graph_database() {
        let (_dir, project) = project(&[
            (".kg/knowledge.db", DATABASE),
            (".kg/vectors.db", DATABASE),
            (".kg/plugins/p", b"p"),
            (".kg/other.db", b"o"),
        ]);
        let selection = Selection {
            scope: Scope::Full,
            include_vectors: false,
            include_plugin_data: false,
            exclude_patterns: vec!["*.db".into()],
        };
        assert_eq!(entries(&project, &selection), ["database.sqlite"]);
        let database_only = Selection { scope: Scope::Database, ..everything() };
        assert_eq!(entries(&project, &database_only), ["database.sqlite"]);
    }

    #[test]
    fn two_sources_never_share_an_entry() {
        let (_dir, project) =
            project(&[(".kg/knowledge.db", DATABASE), (".kg/vectors.db", DATABASE), (".kg/vectors/vectors.db", b"x")]);
        assert_eq!(entries(&project, &everything()), ["database.sqlite", "vectors/vectors.db", "vectors/vectors.db~2"]);
    }

    #[test]
    fn links_are_reported_and_not_followed() {
        let (dir, project) = project(&[(".kg/knowledge.db", DATABASE), ("outside", b"x")]);
        std::os::unix::fs::symlink(dir.path().join("outside"), dir.path().join(".kg/link")).unwrap();
        let mut warnings = Vec::new();
        let found = discover(&project, &everything(), &mut warnings).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((warnings[0].code, warnings[0].path.as_deref()), (WarningCode::NotAFile, Some(".kg/link")));
    }

    #[test]
    fn a_project_without_a_database_is_an_error() {
        let (_dir, project) = project(&[(".kg/config.json", b"{}")]);
        let error = discover(&project, &everything(), &mut Vec::new()).unwrap_err();
        assert_eq!(error.code, Code::NoDatabase);
    }
}
