//! Which files stay out of a backup: the project's own by-products, and what the caller's patterns name.

use std::path::Path;

use super::{BACKUPS_DIR, HOOKS_FILE, STAGING_PREFIX, UNDO_DIR, pattern::Patterns};
use crate::{
    error::{Result, Warning, WarningCode},
    util::atomic_file::PARTIAL_PREFIX,
};

/// Of a restore that is at work; written by the reader.
pub const JOURNAL_FILE: &str = "restore-journal.json";
/// Directories directly below `.kg/` that hold nothing worth a backup.
const DIRECTORIES: &[&str] = &[BACKUPS_DIR, "cache", "caches", ".cache", "logs", "tmp"];
/// Endings of files directly below `.kg/` that mean something only while their process lives.
const ENDINGS: &[&str] = &[".lock", ".pid", ".log", ".sock"];

/// `excludePatterns`, compiled.
#[derive(Debug)]
pub struct Exclusion {
    patterns: Patterns,
}

impl Exclusion {
    /// Patterns as [`super::pattern`] reads them.
    pub fn new(root: &Path, patterns: &[String]) -> Result<Self> {
        Ok(Exclusion {
            patterns: Patterns::new(root, patterns, "excludePatterns")?,
        })
    }

    /// A warning for each pattern that has left nothing out of what was asked about.
    pub fn in_vain(&self) -> Vec<Warning> {
        let warn = |pattern: &str| {
            let message = format!(
                "`{pattern}` in excludePatterns matched nothing that could be left out of the backup"
            );
            Warning::new(WarningCode::Exclude, message)
        };
        self.patterns.unmatched().map(warn).collect()
    }

    /// `path` is relative to the project's root; its parents were asked before it.
    pub fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        self.patterns.name(path, is_dir)
    }
}

/// What a restore itself keeps; `name` stands directly below `.kg/`.
pub fn is_of_restore(name: &str, is_dir: bool) -> bool {
    name == JOURNAL_FILE
        || name == UNDO_DIR
        || name.starts_with(PARTIAL_PREFIX)
        || is_dir && name.starts_with(STAGING_PREFIX)
}

/// What no archive may bring, and no restore touches: what restores keep, and what decides what runs here.
/// `name` stands directly below `.kg/`.
pub fn is_reserved(name: &str, is_dir: bool) -> bool {
    name == HOOKS_FILE || is_of_restore(name, is_dir)
}

/// By-products of the host and of this tool; `name` stands directly below `.kg/`.
pub fn is_by_product(name: &str, is_dir: bool) -> bool {
    if is_reserved(name, is_dir) {
        true
    } else if is_dir {
        DIRECTORIES.contains(&name)
    } else {
        ENDINGS.iter().any(|ending| name.ends_with(ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_gitignore() {
        let patterns = ["*.tmp", "/.kg/plugins/a/", "secret/**", "!keep.tmp"].map(String::from);
        let exclusion = Exclusion::new(Path::new("/project"), &patterns).unwrap();
        let excludes = |path: &str, is_dir| exclusion.excludes(Path::new(path), is_dir);
        assert!(excludes(".kg/plugins/x/scratch.tmp", false));
        assert!(excludes(".kg/plugins/a", true));
        assert!(!excludes(".kg/plugins/ab", true));
        assert!(!excludes(".kg/plugins/keep.tmp", false));
        assert!(!excludes(".kg/config.json", false));
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        let error = Exclusion::new(Path::new("/project"), &["{a".to_string()]).unwrap_err();
        assert_eq!(error.code.as_str(), "KG_INVALID_OPTION");
        assert!(error.message.contains("{a"));
    }
}
