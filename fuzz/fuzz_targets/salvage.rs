//! Fuzzes salvage with any bytes as a damaged database. The result must be a sound database, and
//! the source must stay unchanged.
#![no_main]

use std::fs;

use kg_backup::internals::{salvage::salvage, util::operation::CancelToken};
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;

const SCHEMA: &[(&str, &str)] = &[(
    "nodes",
    "CREATE TABLE nodes (id TEXT PRIMARY KEY, title TEXT)",
)];

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let (source, target) = (
        dir.path().join("damaged.db"),
        dir.path().join("salvaged.db"),
    );
    fs::write(&source, bytes).expect("a file");
    let salvaged = salvage(&source, &target, SCHEMA, &CancelToken::default());
    assert!(
        fs::read(&source).expect("the source") == bytes,
        "the source is as it was"
    );
    if salvaged.is_ok() {
        let connection = Connection::open(&target).expect("a database");
        let check: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .expect("a check");
        assert_eq!(check, "ok");
    } else {
        assert!(!target.exists(), "nothing is left of a salvage that failed");
    }
});
