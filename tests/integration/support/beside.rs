//! Salvage of a database that has a log (a WAL or a rollback journal) next to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kg_backup::internals::{
    salvage::{report::Salvaged, salvage},
    util::operation::CancelToken,
};

/// Salvages the database `name` in `dir`. Returns the path of the result, and the report. Asserts
/// that neither the database nor the log, whose name ends in `suffix`, changes.
pub fn salvage_beside(dir: &Path, name: &str, suffix: &str) -> (PathBuf, Salvaged) {
    let (database, target) = (dir.join(name), dir.join("salvaged.db"));
    let read = || ["", suffix].map(|suffix| fs::read(dir.join(format!("{name}{suffix}"))).unwrap());
    let before = read();
    let _ = fs::remove_file(&target);
    let salvaged = salvage(&database, &target, &[], &CancelToken::default()).unwrap();
    assert!(
        read() == before,
        "neither the database nor its {suffix} is written"
    );
    (target, salvaged)
}
