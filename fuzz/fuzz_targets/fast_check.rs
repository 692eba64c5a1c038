//! Fuzzes the fast check with any bytes as a database. If it proves the database sound, SQLite must
//! find it sound too.
#![no_main]

use std::{fs, path::Path};

use kg_backup::internals::{
    sqlite::{fast_check::FastCheck, forget_fulltext, open_read_only, quoted, snapshot::Snapshot},
    util::operation::CancelToken,
};
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;

/// The bytes of the header that say how the database is written. 1 is a rollback journal.
const WRITE_VERSIONS: std::ops::Range<usize> = 18..20;

/// Returns the tables that are left to SQLite, or `None` if everything is.
fn left(file: &Path) -> Option<Vec<String>> {
    let cancel = CancelToken::default();
    let (ask, asked) = crossbeam_channel::unbounded();
    let snapshot = Snapshot::pin(open_read_only(file).ok()?, file).ok()?;
    let mut check = FastCheck::begin(&snapshot, ask, &cancel).ok()??;
    let visit = |page: &[u8]| {
        check.page(page, None);
        Ok(())
    };
    snapshot.pages(&cancel, visit).ok()?;
    check.end().then(|| asked.try_iter().collect())
}

/// Returns SQLite's result for one table, or for all.
fn quick_check(file: &Path, table: Option<&str>) -> String {
    let check = || -> rusqlite::Result<String> {
        let connection = Connection::open(file)?;
        forget_fulltext(&connection);
        let of = table.map(|table| format!("({})", quoted(table)));
        let sql = format!("PRAGMA quick_check{}", of.unwrap_or_default());
        connection.query_row(&sql, [], |row| row.get(0))
    };
    check().unwrap_or_else(|cause| cause.to_string())
}

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.db");
    let mut bytes = bytes.to_vec();
    if let Some(versions) = bytes.get_mut(WRITE_VERSIONS) {
        versions.fill(1);
    }
    fs::write(&file, bytes).expect("a file");
    let Some(tables) = left(&file) else {
        return;
    };
    let is_proven = tables
        .iter()
        .all(|table| quick_check(&file, Some(table)) == "ok");
    if is_proven {
        assert_eq!(quick_check(&file, None), "ok");
    }
});
