//! The target of a check: a database, and the project that it belongs to.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Named, environment,
    issue::{Issue, IssueCode, Severity},
};
use crate::{
    error::Result,
    project::{Project, STATE_DIR, database_path, same_file},
    system::paths,
    util::dir_handle,
};

const SET_PATH: &str =
    "Set `database.path` in .kg/config.json to a database in this project, or remove that setting";

/// What the caller wants to check. The host can create it, because paths alone show which project a
/// database may belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTarget {
    /// The database; `None` means the one in the configuration of the project.
    pub database: Option<PathBuf>,
    /// The root of the project. If `is_given` is false, it is the nearest root above the database,
    /// which may belong to another project.
    pub root: Option<PathBuf>,
    pub is_given: bool,
}

impl CheckTarget {
    /// Creates a target from `path`, which is the root of a project or a database.
    pub fn at(path: &Path) -> Self {
        if path.is_dir() {
            return CheckTarget {
                database: None,
                root: Some(path.to_path_buf()),
                is_given: true,
            };
        }
        // The parents of a relative path do not include the directories above the working
        // directory.
        let absolute = paths::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let root = absolute.parent().and_then(Project::find_root);
        CheckTarget {
            database: Some(path.to_path_buf()),
            root,
            is_given: false,
        }
    }

    /// Creates a target from the root of a project and optionally a database of it.
    pub fn of(root: &Path, database: Option<PathBuf>) -> Self {
        CheckTarget {
            database,
            root: Some(root.to_path_buf()),
            is_given: true,
        }
    }

    /// Resolves the target. Only the worker calls this, because it reads the configuration of the
    /// project.
    pub fn resolve(&self) -> Result<Resolved> {
        let project = match &self.root {
            Some(root) if self.is_given => Some(Project::open(root)?),
            Some(root) => Project::open(root).ok(),
            None => None,
        };
        let mut warnings = Vec::new();
        let configured = project
            .as_ref()
            .map(|project| database_path::database_path(project.root(), &mut warnings).absolute);
        let configured = configured.map(dir_handle::resolve_if_there).transpose()?;
        let given = self.database.as_ref().map(|path| {
            let path = paths::absolute(path).unwrap_or_else(|_| path.clone());
            // SQLite opens the file that a link leads to, and looks for the WAL next to that file.
            dir_handle::resolve_if_there(path)
        });
        let given = given.transpose()?;
        let database = given.or_else(|| configured.clone()).unwrap_or_default();
        let belongs = |project: &Project| {
            let state = project.root().join(STATE_DIR);
            let state = dunce::canonicalize(&state).unwrap_or(state);
            self.is_given || database.starts_with(state) || configured.as_ref() == Some(&database)
        };
        let project = project.filter(belongs);
        let is_graph = project.is_some() && configured.as_ref() == Some(&database);
        let is_named = self.database.is_some();
        Ok(Resolved {
            database,
            project,
            is_graph,
            is_named,
        })
    }
}

/// A resolved target, according to the files of the project.
pub struct Resolved {
    /// Absolute path, with links resolved if it exists.
    pub database: PathBuf,
    pub project: Option<Project>,
    /// Whether this is the graph database of the project.
    pub is_graph: bool,
    /// Whether the caller named the database instead of the configuration.
    is_named: bool,
}

impl Resolved {
    /// Returns the root of the other project that the configured database belongs to, if any.
    pub fn owner(&self) -> Option<PathBuf> {
        let project = self.project.as_ref().filter(|_| !self.is_named)?;
        database_path::other_owner(project.root(), &self.database)
    }

    /// Returns the issues about the location of the database and about its other names.
    pub(super) fn issues(&self, named: &Named) -> Vec<Issue> {
        let Some(project) = &self.project else {
            return Vec::new();
        };
        let mut issues = Vec::new();
        if let Some(owner) = self.owner() {
            let message = format!(
                "The configuration names {}, the database of another project, {}: it was not checked. This project may be a copy of that \
                 one",
                named.path,
                owner.display()
            );
            issues.push(named.issue(IssueCode::DatabaseOutside, message, SET_PATH));
        } else if !self.is_named && !database_path::is_inside(project.root(), &self.database) {
            let message = format!(
                "{} lies outside the project: a copy of the project uses it too",
                named.path
            );
            let remedy = "Leave it there if that is intended; a repair changes it if it is named";
            issues.push(
                named
                    .issue(IssueCode::DatabaseOutside, message, remedy)
                    .severity(Severity::Warning),
            );
        }
        if !self.database.exists() {
            issues.extend(environment::wal_not_in_use(&self.database, named));
        }
        let links = same_file::links_outside(project.root(), &self.database);
        if !self.is_named && links > 0 {
            let message = format!(
                "{} has {links} more names (hard links) outside {STATE_DIR}: it may be the database of another project too",
                named.path
            );
            let remedy = "Make it a separate file: copy it with `sqlite3 … 'VACUUM INTO …'`, and \
                          replace it with the copy";
            issues.push(
                named
                    .issue(IssueCode::DatabaseOutside, message, remedy)
                    .severity(Severity::Warning),
            );
        }
        for (other, _) in same_file::others_with_wal(project.root(), &self.database) {
            let message = format!(
                "{other} is another name of {}, and has its own WAL or journal: the commits in \
                 {other}-wal are not visible here",
                named.path
            );
            let remedy = "Open it once by that name and close it, while nothing else uses it; then \
                          use only one name";
            issues.push(named.issue(IssueCode::WalNotInUse, message, remedy));
        }
        issues
    }
}
