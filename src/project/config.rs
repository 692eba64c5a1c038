//! The part of `.kg/config.json` that a backup must know: where the database lies.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{CONFIG_FILE, DEFAULT_DATABASE, STATE_DIR};
use crate::{
    error::{Warning, WarningCode},
    paths::normalize,
};

/// Where the graph database lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabasePath {
    pub absolute: PathBuf,
    /// Relative to the root with `/`; `None` where the database lies outside the project.
    pub relative: Option<String>,
}

/// Reads `database.path`, which is relative to the project's root.
///
/// A configuration that is missing or names no database means the default. One that cannot be read does too, and
/// a warning says so: a damaged configuration must not keep anyone from a backup of the database.
pub fn database_path(root: &Path, warnings: &mut Vec<Warning>) -> DatabasePath {
    database_path_in(&root.join(STATE_DIR).join(CONFIG_FILE), root, warnings)
}

/// As [`database_path`], from a configuration that lies elsewhere.
pub fn database_path_in(config: &Path, root: &Path, warnings: &mut Vec<Warning>) -> DatabasePath {
    let configured = match fs::read(config) {
        Ok(text) => match serde_json::from_slice::<Value>(&text) {
            Ok(config) => configured_path(&config, warnings),
            Err(cause) => {
                warn(warnings, format!("The configuration is not valid JSON ({cause}); the default database was used"));
                None
            }
        },
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
        Err(cause) => {
            warn(warnings, format!("The configuration could not be read ({cause}); the default database was used"));
            None
        }
    };
    locate(root, configured.as_deref().unwrap_or(DEFAULT_DATABASE))
}

fn configured_path(config: &Value, warnings: &mut Vec<Warning>) -> Option<String> {
    match config.get("database")?.get("path")? {
        Value::String(path) if !path.is_empty() => Some(path.clone()),
        other => {
            warn(warnings, format!("`database.path` is {other}, not a path; the default database was used"));
            None
        }
    }
}

fn locate(root: &Path, configured: &str) -> DatabasePath {
    let absolute = normalize(&root.join(configured));
    let relative = absolute.strip_prefix(root).ok().and_then(|path| path.to_str()).map(str::to_string);
    DatabasePath { absolute, relative }
}

fn warn(warnings: &mut Vec<Warning>, message: String) {
    warnings.push(Warning::about(WarningCode::Config, format!("{STATE_DIR}/{CONFIG_FILE}"), message));
}

#[cfg(test)]
mod tests {
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
        assert_eq!(found, DatabasePath { absolute: "/var/lib/graph.db".into(), relative: None });
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
