//! Selects the part of a backup that a restore takes: whole components, or paths.

use std::path::Path;

use super::{
    file_list::FileList,
    file_record::{EntryKind, FileRecord},
};
use crate::{
    error::Result,
    project::{Component, names, pattern::Patterns},
    sqlite::files::COMPANIONS,
};

/// The part of a backup to restore; by default everything.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    only: Option<Vec<Component>>,
    paths: Option<Patterns>,
}

impl EntryFilter {
    /// Selects the records of these components whose path matches a pattern.
    /// [`crate::project::pattern`] reads the patterns for the project at `root`. `None` selects
    /// all.
    pub fn new(
        root: &Path,
        only: Option<Vec<Component>>,
        patterns: Option<&[String]>,
    ) -> Result<Self> {
        let paths = patterns
            .map(|patterns| Patterns::new(root, patterns, "paths"))
            .transpose()?;
        Ok(EntryFilter { only, paths })
    }

    /// Returns the patterns that matched nothing in the lists passed to
    /// [`EntryFilter::select`].
    pub fn in_vain(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().flat_map(Patterns::unmatched)
    }

    pub fn is_everything(&self) -> bool {
        self.only.is_none() && self.paths.is_none()
    }

    /// Returns the selected records with their indexes. The WAL or journal of a damaged database is
    /// selected together with the database.
    pub fn select<'a>(&self, files: &'a FileList) -> Vec<(usize, &'a FileRecord)> {
        let databases = files.databases();
        let is_database = |path: &str| databases.contains(path);
        let records = files.records().iter().enumerate();
        records
            .filter(|(_, record)| self.selects(record, is_database))
            .collect()
    }

    /// Returns whether the record is selected. `is_database` knows the paths of all databases.
    pub fn selects(&self, record: &FileRecord, is_database: impl Fn(&str) -> bool) -> bool {
        if self.is_everything() {
            return true;
        }
        let owner = || {
            let mut owners = COMPANIONS
                .iter()
                .filter_map(|suffix| record.path.strip_suffix(suffix));
            owners
                .find(|owner| is_database(owner))
                .unwrap_or(&record.path)
        };
        self.only
            .as_ref()
            .is_none_or(|only| only.contains(&record.component))
            && self.matches(owner(), record.kind)
    }

    fn matches(&self, path: &str, kind: EntryKind) -> bool {
        let Some(paths) = &self.paths else {
            return true;
        };
        names::decode(path).is_some_and(|path| paths.take(&path, kind == EntryKind::Directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(pattern: &str, path: &str) -> bool {
        let pick =
            EntryFilter::new(Path::new("/project"), None, Some(&[pattern.to_string()])).unwrap();
        pick.matches(path, EntryKind::File)
    }

    #[test]
    fn patterns_are_those_of_exclusions_and_ask_for_names_as_they_are_on_disk() {
        assert!(picked(
            "plugins/glossary",
            ".kg/plugins/glossary/terms.json"
        ));
        assert!(picked("terms.json", ".kg/plugins/glossary/terms.json"));
        assert!(!picked("/terms.json", ".kg/plugins/glossary/terms.json"));
        assert!(picked("50%", ".kg/50%25"));
    }
}
