//! Which part of a backup a restore takes: whole components, or paths.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::manifest::{FileRecord, Manifest};
use crate::{
    error::{Error, Result},
    project::{Component, STATE_DIR, names},
    sqlite::files::COMPANIONS,
};

/// What is wanted of a backup; by default everything.
#[derive(Debug, Clone, Default)]
pub struct Pick {
    only: Option<Vec<Component>>,
    paths: Option<GlobSet>,
}

impl Pick {
    /// Records of these components whose path is matched; `None` takes all. A pattern is relative to `.kg/` or to the
    /// project: `*` and `?` stay within one name, `**` crosses directories, and whatever matches a directory takes all
    /// that is in it.
    pub fn new(only: Option<Vec<Component>>, patterns: Option<&[String]>) -> Result<Self> {
        let Some(patterns) = patterns else { return Ok(Pick { only, paths: None }) };
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            let refused = |what: &str| {
                let remedy = "Write it relative to .kg, for example `plugins/glossary/**` or `vectors/*.f32`";
                Error::invalid(format!("`{pattern}` is not a pattern for paths: {what}"), remedy)
            };
            let plain = pattern.strip_prefix("./").unwrap_or(pattern).trim_end_matches('/');
            if plain.is_empty() {
                return Err(refused("it is empty"));
            }
            let glob = GlobBuilder::new(plain).literal_separator(true).build();
            globs.add(glob.map_err(|cause| refused(&cause.kind().to_string()))?);
        }
        let globs = globs.build();
        let globs = globs.map_err(|cause| Error::invalid(format!("`paths` cannot be used: {cause}"), "Use fewer"))?;
        Ok(Pick { only, paths: Some(globs) })
    }

    pub fn is_everything(&self) -> bool {
        self.only.is_none() && self.paths.is_none()
    }

    /// The records that are wanted, by their number. The WAL or journal of a damaged database goes with that.
    pub fn select<'a>(&self, manifest: &'a Manifest) -> Vec<(usize, &'a FileRecord)> {
        let files = &manifest.files;
        let databases = manifest.databases();
        let owner = |record: &'a FileRecord| {
            let mut owners = COMPANIONS.iter().filter_map(|suffix| record.path.strip_suffix(suffix));
            owners.find(|owner| databases.contains(owner)).unwrap_or(&record.path)
        };
        let wanted = |record: &'a FileRecord| {
            self.only.as_ref().is_none_or(|only| only.contains(&record.component)) && self.matches(owner(record))
        };
        files.iter().enumerate().filter(|(_, record)| wanted(record)).collect()
    }

    fn matches(&self, path: &str) -> bool {
        let Some(globs) = &self.paths else { return true };
        let Some(path) = names::decode(path) else { return false };
        let below = path.strip_prefix(STATE_DIR).unwrap_or(&path);
        let matches = |path: &Path| path.ancestors().any(|path| path != Path::new("") && globs.is_match(path));
        matches(&path) || matches(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(patterns: &[&str], path: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|pattern| pattern.to_string()).collect();
        Pick::new(None, Some(&patterns)).unwrap().matches(path)
    }

    #[test]
    fn patterns_are_relative_to_the_state_directory_or_the_project_and_take_whole_directories() {
        for pattern in [
            "plugins/glossary/**",
            "plugins/glossary",
            "plugins/glossary/",
            ".kg/plugins/*/terms.json",
            "./plugins",
            "**/terms.*",
        ] {
            assert!(picked(&[pattern], ".kg/plugins/glossary/terms.json"), "{pattern}");
        }
        for pattern in ["plugins/*.json", "glossary", "terms.json", "plugins/gloss", "**/glossary.json"] {
            assert!(!picked(&[pattern], ".kg/plugins/glossary/terms.json"), "{pattern}");
        }
        assert!(picked(&["data/graph.db"], "data/graph.db") && picked(&["50%"], ".kg/50%25"));
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        for pattern in ["", "/", "a[", "{b"] {
            assert_eq!(Pick::new(None, Some(&[pattern.to_string()])).unwrap_err().code.as_str(), "KG_INVALID_OPTION");
        }
    }
}
