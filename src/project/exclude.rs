//! Decides which files stay out of a backup: the by-products of the project, and files that match
//! the user's patterns.

use std::path::Path;

use super::{
    BACKUPS_DIR, HOOKS_FILE, STAGING_PREFIX, UNDO_DIR, identity::ID_FILE, pattern::Patterns,
};
use crate::{
    error::{Result, Warning, WarningCode},
    util::atomic_file::PARTIAL_PREFIX,
};

/// Journal of a restore in progress. The worker writes it.
pub const JOURNAL_FILE: &str = "restore-journal.json";
/// Directories directly below `.kg/` that hold nothing worth saving.
const DIRECTORIES: &[&str] = &[BACKUPS_DIR, "cache", "caches", ".cache", "logs", "tmp"];
/// Suffixes of files directly below `.kg/` that are useful only while their process runs.
const ENDINGS: &[&str] = &[".lock", ".pid", ".log", ".sock"];

/// The compiled `excludePatterns`.
#[derive(Debug)]
pub struct Exclusion {
    patterns: Patterns,
}

impl Exclusion {
    /// Compiles the patterns, whose syntax is described in [`super::pattern`].
    pub fn new(root: &Path, patterns: &[String]) -> Result<Self> {
        Ok(Exclusion {
            patterns: Patterns::new(root, patterns, "excludePatterns")?,
        })
    }

    /// Returns a warning for each pattern that has excluded nothing.
    pub fn in_vain(&self) -> Vec<Warning> {
        let warn = |pattern: &str| {
            let message = format!(
                "`{pattern}` in `excludePatterns` matched nothing that could be left out of the backup"
            );
            Warning::new(WarningCode::Exclude, message)
        };
        self.patterns.unmatched().map(warn).collect()
    }

    /// Returns whether the patterns exclude `path`, which is relative to the project's root. The
    /// caller must check the parents of `path` first.
    pub fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        self.patterns.name(path, is_dir)
    }
}

/// Returns whether a restore keeps this item for itself. `name` is directly below `.kg/`.
pub fn is_of_restore(name: &str, is_dir: bool) -> bool {
    name == JOURNAL_FILE
        || name == UNDO_DIR
        || name.starts_with(PARTIAL_PREFIX)
        || is_dir && name.starts_with(STAGING_PREFIX)
}

/// Returns whether this item is reserved: an archive may not contain it, and a restore does not
/// touch it. These are the items that restores keep, the file that decides which commands run here,
/// and the id of the project. `name` is directly below `.kg/`.
pub fn is_reserved(name: &str, is_dir: bool) -> bool {
    name == HOOKS_FILE || name == ID_FILE || is_of_restore(name, is_dir)
}

/// Returns whether this item is a by-product of the host or of this tool. `name` is directly below
/// `.kg/`.
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
