//! Handles databases that have several names: hard links, bind mounts, symbolic links in a path.
//!
//! SQLite's locks belong to the inode and its WAL to the name. So a database is opened once,
//! through the name whose WAL is in use. Another name would not show what was committed there, and
//! closing it would drop the locks of the first. The backup holds the content once. The other names
//! become symbolic links to it, because SQLite follows those to the same WAL.
//!
//! Only the worker may use this module, because it opens files of the live project.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    Component, STATE_DIR,
    discover::{Source, SourceKind, starts_with},
    exclude, names,
};
use crate::{
    error::{Warning, WarningCode},
    sqlite::{
        files::{COMPANIONS, JOURNAL_MAGIC, companion},
        wal_in_use,
    },
    system::file_id::{FileId, Identity},
};

/// The WAL or journal in the same directory as a name of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Beside {
    Nothing,
    /// A WAL or a journal with content. The identity is that of the WAL or journal.
    Left(Identity),
    /// A WAL that a process has open.
    InUse(Identity),
}

/// Turns all names of a database into one source, and its other names into links.
/// `graph_is_outside` is set if a restore may put the graph database at a different path than its
/// source has.
pub fn unite(
    root: &Path,
    graph_is_outside: bool,
    sources: &mut Vec<Source>,
    warnings: &mut Vec<Warning>,
) {
    let mut groups: BTreeMap<Identity, Vec<usize>> = BTreeMap::new();
    for (number, source) in sources
        .iter()
        .enumerate()
        .filter(|(_, source)| source.is_database())
    {
        if let Ok(found) = FileId::at(&source.absolute(root)) {
            groups.entry(found.identity).or_default().push(number);
        }
    }
    let mut left_out = Vec::new();
    for (identity, members) in groups {
        let mut names: Vec<PathBuf> = Vec::new();
        for source in members.iter().filter_map(|number| sources.get(*number)) {
            // A link may lead to a file that is another source.
            let name = resolved(&source.absolute(root));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let links = names
            .first()
            .and_then(|name| FileId::at(name).ok())
            .map_or(1, |found| found.names);
        let mut outside = 0;
        if links > 1 {
            let (others, kept) = names_below(root, identity);
            names.extend(
                others
                    .into_iter()
                    .filter(|other| !names.contains(other))
                    .collect::<Vec<_>>(),
            );
            outside = links.saturating_sub(names.len() as u64 + kept);
        }
        if members.len() > 1 || links > 1 {
            let group = Group {
                root,
                graph_is_outside,
                members,
                names,
                outside,
            };
            left_out.extend(group.unite(sources, warnings));
        }
    }
    let mut number = 0;
    sources.retain(|_| {
        number += 1;
        !left_out.contains(&(number - 1))
    });
}

/// Returns the other names of a database below `.kg` that have a WAL or journal of their own. Each
/// comes as messages show it, and as a path.
pub fn others_with_wal(root: &Path, database: &Path) -> Vec<(String, PathBuf)> {
    let Some(found) = FileId::at(database).ok().filter(|found| found.names > 1) else {
        return Vec::new();
    };
    let own = beside(database);
    let (others, _) = names_below(root, found.identity);
    let differs = |other: &PathBuf| match (beside(other), own) {
        (Beside::Nothing, _) => false,
        (Beside::Left(other) | Beside::InUse(other), Beside::Left(own) | Beside::InUse(own)) => {
            other != own
        }
        (_, Beside::Nothing) => true,
    };
    let others = others
        .into_iter()
        .filter(|other| other != database && differs(other));
    others.map(|other| (shown(root, &other), other)).collect()
}

/// Returns how many names (hard links) a database has outside `.kg`, not counting `database`
/// itself.
pub fn links_outside(root: &Path, database: &Path) -> u64 {
    let Some(found) = FileId::at(database).ok().filter(|found| found.names > 1) else {
        return 0;
    };
    let (known, kept) = names_below(root, found.identity);
    let others = known.iter().filter(|name| *name != database).count() as u64;
    found.names.saturating_sub(others + kept + 1)
}

/// One database with several names.
struct Group<'a> {
    root: &'a Path,
    graph_is_outside: bool,
    /// Indexes of its sources. The graph database comes first.
    members: Vec<usize>,
    /// Absolute paths: first those of the sources, in their order, then those that are not sources.
    names: Vec<PathBuf>,
    /// Number of further names outside `.kg`.
    outside: u64,
}

impl Group<'_> {
    /// Returns the indexes of the sources that are left out.
    fn unite(&self, sources: &mut [Source], warnings: &mut Vec<Warning>) -> Vec<usize> {
        let (read, others) = self.choose();
        let mut left_out = Vec::new();
        let Some(kept) = self.kept(sources, &read) else {
            return left_out;
        };
        let Some(saved) = sources.get_mut(kept) else {
            return left_out;
        };
        saved.read_at(&read);
        let (path, is_graph) = (saved.path.clone(), saved.component == Component::Database);
        let through = if shown(self.root, &read) == path {
            String::new()
        } else {
            format!(", read as {}", shown(self.root, &read))
        };
        for other in &others {
            let other = shown(self.root, other);
            let message = format!(
                "{} and {other} are names of one database, and each has its own WAL or journal: \
                 which of them contains the commits cannot be determined. {path} is saved{through}",
                shown(self.root, &read)
            );
            warnings.push(Warning::about(WarningCode::SameFile, &path, message));
            let message =
                format!("The commits in {other}-wal are not in the backup; see KG_WARN_SAME_FILE");
            warnings.push(Warning::about(WarningCode::WalNotInUse, &other, message));
        }
        for number in self.members.iter().filter(|number| **number != kept) {
            let Some(source) = sources.get_mut(*number) else {
                continue;
            };
            let what = if is_graph && self.graph_is_outside {
                left_out.push(*number);
                "is not saved, because a restore may put the database outside the project"
                    .to_string()
            } else {
                source.kind = SourceKind::Link(relative(&source.path, &path));
                format!(
                    "is saved as a symbolic link to {path}, because processes that use different names of a file do not see each \
                     other's WAL"
                )
            };
            let message = format!(
                "{} is another name of {path}. {path} is saved{through}; {} {what}",
                source.path, source.path
            );
            warnings.push(Warning::about(WarningCode::SameFile, &source.path, message));
        }
        if self.outside > 0 {
            let message = format!(
                "{path} has {} more names (hard links) outside {STATE_DIR}: commits in a WAL next \
                 to one of those are not in the backup",
                self.outside
            );
            warnings.push(Warning::about(WarningCode::SameFile, &path, message));
        }
        left_out
    }

    /// Returns the name to read, and the other names that have a WAL or journal of their own.
    fn choose(&self) -> (PathBuf, Vec<PathBuf>) {
        let mut claims: Vec<(Identity, bool, &PathBuf)> = Vec::new();
        for name in &self.names {
            match beside(name) {
                Beside::Left(wal) if claims.iter().all(|(known, ..)| *known != wal) => {
                    claims.push((wal, false, name))
                }
                Beside::InUse(wal) if claims.iter().all(|(known, ..)| *known != wal) => {
                    claims.push((wal, true, name))
                }
                _ => {}
            }
        }
        // The sort is stable: if several WALs are in use, the first name wins, which is that of the
        // graph database.
        claims.sort_by_key(|(_, is_in_use, _)| !is_in_use);
        let mut claims = claims.into_iter().map(|(.., name)| name.clone());
        let read = claims
            .next()
            .or_else(|| self.names.first().cloned())
            .unwrap_or_default();
        (read, claims.collect())
    }

    /// Returns the source to save: the graph database, else the name that is read, else the first.
    fn kept(&self, sources: &[Source], read: &Path) -> Option<usize> {
        let is_graph = |number: &usize| {
            sources
                .get(*number)
                .is_some_and(|source| source.component == Component::Database)
        };
        let is_read = |number: &usize| {
            sources
                .get(*number)
                .is_some_and(|source| resolved(&source.absolute(self.root)) == read)
        };
        let mut members = self.members.iter().copied();
        members
            .clone()
            .find(is_graph)
            .or_else(|| members.clone().find(is_read))
            .or_else(|| members.next())
    }
}

fn resolved(path: &Path) -> PathBuf {
    dunce::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Returns a name as messages show it. `.kg` may be a link.
fn shown(root: &Path, name: &Path) -> String {
    let state = resolved(&root.join(STATE_DIR));
    let below = name
        .strip_prefix(&state)
        .map(|below| Path::new(STATE_DIR).join(below));
    let below = below.or_else(|_| name.strip_prefix(root).map(Path::to_path_buf));
    below.map_or_else(
        |_| name.display().to_string(),
        |below| names::encode(&below),
    )
}

fn beside(name: &Path) -> Beside {
    let [wal, _, journal] = COMPANIONS.map(|suffix| companion(name, suffix));
    let identity = |path: &Path| {
        let found = fs::symlink_metadata(path).ok()?;
        let id = FileId::of_link(path).ok()?;
        found.is_file().then_some((id.identity, found.len()))
    };
    match (identity(&wal), identity(&journal)) {
        (Some((wal, _)), _) if wal_in_use::is_index_in_use(name) => Beside::InUse(wal),
        (Some((wal, length)), _) if length > 0 => Beside::Left(wal),
        (_, Some((of_journal, _))) if starts_with(&journal, &[JOURNAL_MAGIC]).unwrap_or(false) => {
            Beside::Left(of_journal)
        }
        _ => Beside::Nothing,
    }
}

/// Returns every name of a file below `.kg`, resolved, including names in places that a backup
/// skips. The number counts further names that restores keep and no process uses.
fn names_below(root: &Path, identity: Identity) -> (Vec<PathBuf>, u64) {
    let state = resolved(&root.join(STATE_DIR));
    let (mut found, mut kept) = (Vec::new(), 0);
    let mut directories = vec![(state.clone(), false)];
    while let Some((directory, is_kept)) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let is_of_restore =
                |name: &str| directory == state && exclude::is_of_restore(name, kind.is_dir());
            let is_kept = is_kept || entry.file_name().to_str().is_some_and(is_of_restore);
            if kind.is_dir() {
                directories.push((entry.path(), is_kept));
            } else if kind.is_file()
                && FileId::of_link(&entry.path()).is_ok_and(|found| found.identity == identity)
            {
                if is_kept {
                    kept += 1
                } else {
                    found.push(entry.path())
                }
            }
        }
    }
    found.sort();
    (found, kept)
}

/// Returns the target of a symbolic link at `from` that leads to `to`. Both are relative to the
/// project's root.
pub fn relative(from: &str, to: &str) -> String {
    let (from, to): (Vec<&str>, Vec<&str>) = (from.split('/').collect(), to.split('/').collect());
    let directories = from.len().saturating_sub(1);
    let common = from
        .iter()
        .take(directories)
        .zip(&to)
        .take_while(|(from, to)| from == to)
        .count();
    let up = std::iter::repeat_n("..", directories.saturating_sub(common));
    up.chain(to.into_iter().skip(common))
        .collect::<Vec<_>>()
        .join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_up_to_the_common_directory_and_down_again() {
        assert_eq!(
            relative(".kg/plugins/a/x.db", ".kg/knowledge.db"),
            "../../knowledge.db"
        );
        assert_eq!(relative(".kg/a.db", ".kg/b.db"), "b.db");
        assert_eq!(relative(".kg/a.db", "db/graph.db"), "../db/graph.db");
        assert_eq!(
            relative(".kg/plugins/a/x.db", ".kg/plugins/b/x.db"),
            "../b/x.db"
        );
    }
}
