//! Salvage of a database that has a log beside it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kg_backup::internals::{
    salvage::{report::Salvaged, salvage},
    util::operation::CancelToken,
};

/// What is salvaged of the database `name` in `dir`, and the report. Neither it nor the log, whose name ends like `suffix`, is written.
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
