//! A small project, and files outside it that nothing in the project may reach.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use tempfile::TempDir;

pub struct Project {
    dir: TempDir,
    pub root: PathBuf,
    outside: BTreeMap<PathBuf, Vec<u8>>,
}

impl Project {
    pub fn make() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("project");
        for made in [
            "project/.kg/restore-undo/20240115-020000/.kg",
            "project/.kg/restore-staging-1",
            "outside",
        ] {
            fs::create_dir_all(dir.path().join(made)).expect("a directory");
        }
        for name in [
            "config.json",
            "restore-staging-1/0",
            "restore-undo/20240115-020000/.kg/config.json",
        ] {
            fs::write(root.join(".kg").join(name), "{}").expect("a file");
        }
        let database = Connection::open(root.join(".kg/knowledge.db")).expect("a database");
        database
            .execute_batch("CREATE TABLE nodes (id TEXT)")
            .expect("a table");
        fs::write(dir.path().join("outside/secret"), "secret").expect("a file");
        let outside = beside(dir.path());
        Project { dir, root, outside }
    }

    /// Writes `text` to `path`. `@` in `text` stands for the directory that contains the project.
    pub fn write_orders(&self, path: &Path, text: &str) {
        let text = text.replace('@', &self.dir.path().to_string_lossy());
        fs::write(path, text).expect("a file");
    }

    pub fn assert_outside_as_it_was(&self) {
        assert_eq!(beside(self.dir.path()), self.outside);
    }
}

/// Returns the directories and files below `dir`, except those of the project.
fn beside(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("project") {
            found.extend(beside(&path));
            found.insert(path, Vec::new());
        } else if path.is_file() {
            found.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
    found
}
