//! Finds the graph database: reads the part of `.kg/config.json` that a backup needs.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{CONFIG_FILE, DEFAULT_DATABASE, STATE_DIR, json};
use crate::{
    error::{Warning, WarningCode, plain},
    system::paths::normalize,
    util::regular_file,
};

/// Maximum length of a configuration.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The path of the graph database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabasePath {
    pub absolute: PathBuf,
    /// Path relative to the root, with `/`; `None` if the database is outside the project.
    pub relative: Option<String>,
}

/// Reads `database.path`, which is relative to the project's root.
///
/// If the configuration is missing or does not name a database, the default applies. If it cannot
/// be read, the default applies too, with a warning: a damaged configuration must not prevent a
/// backup of the database.
pub fn database_path(root: &Path, warnings: &mut Vec<Warning>) -> DatabasePath {
    database_path_in(&root.join(STATE_DIR).join(CONFIG_FILE), root, warnings)
}

/// Does the same as [`database_path`] for a configuration at another path.
pub fn database_path_in(config: &Path, root: &Path, warnings: &mut Vec<Warning>) -> DatabasePath {
    let configured = match read_text(config) {
        Ok(Some(text)) => match json::parse(&text) {
            Ok(config) => configured_path(&config, warnings),
            Err(what) => {
                warn(
                    warnings,
                    format!("The configuration {what}; the default database was used"),
                );
                None
            }
        },
        Ok(None) => None,
        Err(cause) => {
            warn(
                warnings,
                format!(
                    "The configuration could not be read ({}); the default database was used",
                    plain(&cause)
                ),
            );
            None
        }
    };
    locate(root, configured.as_deref().unwrap_or(DEFAULT_DATABASE))
}

/// Returns the root of another project that owns the database that the project at `root` uses. The
/// other project owns it if its `.kg` contains the database or its configuration names it. This
/// happens if a project is copied and the copy's configuration still names the original database.
pub fn other_owner(root: &Path, database: &Path) -> Option<PathBuf> {
    let resolved = |path: &Path| dunce::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let (root, found) = (resolved(root), resolved(database));
    if is_inside(&root, &found) {
        return None;
    }
    // The path as written is checked too, because the `.kg` of the other project may be a link.
    let above = found
        .ancestors()
        .chain(database.ancestors())
        .skip(1)
        .filter(|dir| dir.join(STATE_DIR).is_dir());
    let owns = |other: &Path| {
        let is_below = [&found, database]
            .iter()
            .any(|path| path.starts_with(other.join(STATE_DIR)));
        is_below || resolved(&database_path(other, &mut Vec::new()).absolute) == found
    };
    above
        .map(resolved)
        .find(|other| *other != root && owns(other))
}

/// Returns whether a database is in the project at `root`. Both paths must be free of links.
pub fn is_inside(root: &Path, database: &Path) -> bool {
    // The state directory may be a link.
    let state = root.join(STATE_DIR);
    database.starts_with(root)
        || dunce::canonicalize(state).is_ok_and(|state| database.starts_with(state))
}

fn configured_path(config: &Value, warnings: &mut Vec<Warning>) -> Option<String> {
    match config.get("database")?.get("path")? {
        Value::String(path) if !path.is_empty() => Some(path.clone()),
        other => {
            warn(
                warnings,
                format!("`database.path` is {other}, not a path; the default database was used"),
            );
            None
        }
    }
}

fn locate(root: &Path, configured: &str) -> DatabasePath {
    let absolute = normalize(&root.join(configured));
    let relative = absolute
        .strip_prefix(root)
        .ok()
        .and_then(|path| path.to_str())
        .map(str::to_string);
    DatabasePath { absolute, relative }
}

fn warn(warnings: &mut Vec<Warning>, message: String) {
    warnings.push(Warning::about(
        WarningCode::Config,
        format!("{STATE_DIR}/{CONFIG_FILE}"),
        message,
    ));
}

/// Reads the bytes of a configuration; returns `None` if the file does not exist. It does not wait
/// for a pipe or a device.
pub fn read_text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    regular_file::read_if_there(path, MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(config: Option<&str>) -> (DatabasePath, Vec<Warning>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(STATE_DIR)).unwrap();
        if let Some(config) = config {
            fs::write(dir.path().join(".kg/config.json"), config).unwrap();
        }
        let mut warnings = Vec::new();
        let mut found = database_path(dir.path(), &mut warnings);
        if let Ok(inside) = found.absolute.strip_prefix(dir.path()) {
            found.absolute = inside.to_path_buf();
        }
        (found, warnings)
    }

    #[test]
    fn the_default_applies_where_nothing_is_configured() {
        for config in [None, Some("{}"), Some(r#"{"database":{}}"#)] {
            let (found, warnings) = resolve(config);
            assert_eq!(found.relative.as_deref(), Some(".kg/knowledge.db"));
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn a_configured_path_is_relative_to_the_root_and_normalised() {
        let (found, _) = resolve(Some(r#"{"database":{"path":"./data/../db/graph.db"}}"#));
        assert_eq!(found.relative.as_deref(), Some("db/graph.db"));
    }

    #[test]
    fn a_database_outside_the_project_has_no_relative_path() {
        let (found, _) = resolve(Some(r#"{"database":{"path":"/var/lib/graph.db"}}"#));
        assert_eq!(
            found,
            DatabasePath {
                absolute: "/var/lib/graph.db".into(),
                relative: None
            }
        );
    }

    #[test]
    fn a_database_belongs_to_the_other_project_that_holds_or_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dunce::canonicalize(dir.path()).unwrap().join(path);
        for path in [
            "own/.kg",
            "other/.kg",
            "other/inner/.kg",
            "data",
            "other/data",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        let owner = |path: &str| other_owner(&at("own"), &at(path));
        assert_eq!(owner("other/.kg/knowledge.db"), Some(at("other")));
        assert_eq!(owner("other/inner/.kg/x.db"), Some(at("other/inner")));
        for path in [
            "own/.kg/knowledge.db",
            "own/graph.db",
            "data/graph.db",
            "other/data/graph.db",
        ] {
            assert_eq!(owner(path), None, "{path}");
        }
        fs::write(
            at("other/.kg/config.json"),
            r#"{"database":{"path":"data/graph.db"}}"#,
        )
        .unwrap();
        assert_eq!(owner("other/data/graph.db"), Some(at("other")));
        std::os::unix::fs::symlink(at("data"), at("linked")).unwrap();
        fs::create_dir(at("third")).unwrap();
        std::os::unix::fs::symlink(at("data"), at("third/.kg")).unwrap();
        assert_eq!(owner("third/.kg/graph.db"), Some(at("third")));
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_a_warning_and_means_the_default() {
        for config in ["not json", r#"{"database":{"path":7}}"#] {
            let (found, warnings) = resolve(Some(config));
            assert_eq!(found.relative.as_deref(), Some(".kg/knowledge.db"));
            assert_eq!(warnings.len(), 1);
            assert_eq!(warnings[0].code, WarningCode::Config);
        }
    }
}
