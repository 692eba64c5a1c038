use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::*;

const PAGE: u64 = 512;

/// Creates a database with trees of several levels, overflow chains and free pages.
fn made(dir: &Path, first: &str, more: &str) -> PathBuf {
    let file = dir.join("a.db");
    let sql = format!(
        "PRAGMA page_size = {PAGE}; {first};
         CREATE TABLE t (id INTEGER PRIMARY KEY, x, y); CREATE INDEX by_x ON t (x);
         CREATE TABLE w (k PRIMARY KEY, v) WITHOUT ROWID; CREATE TABLE gone (x);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
             INSERT INTO t SELECT i, 'x' || i, hex(zeroblob(i)) FROM n;
         INSERT INTO w SELECT x, y FROM t; INSERT INTO gone SELECT hex(zeroblob(300)) FROM t LIMIT 200;
         {more}; DROP TABLE gone;"
    );
    Connection::open(&file)
        .unwrap()
        .execute_batch(&sql)
        .unwrap();
    file
}

fn accounts(file: &Path) -> Vec<String> {
    account(&Connection::open(file).unwrap(), &CancelToken::default())
        .unwrap()
        .damage
}

fn word(file: &Path, at: u64) -> u64 {
    let mut bytes = [0; 4];
    OpenOptions::new()
        .read(true)
        .open(file)
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    u32::from_be_bytes(bytes).into()
}

fn set_word(file: &Path, at: u64, value: u64) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&u32::try_from(value).unwrap().to_be_bytes(), at)
        .unwrap();
}

const SETTINGS: [&str; 4] = [
    "PRAGMA auto_vacuum = NONE",
    "PRAGMA auto_vacuum = FULL",
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA encoding = 'UTF-16'",
];
/// Objects that SQLite lists first because they are created last. A view or virtual table in this
/// place makes SQLite run only a partial check.
const LISTED_FIRST: [&str; 4] = [
    "",
    "CREATE VIEW v AS SELECT * FROM t",
    "CREATE VIRTUAL TABLE f USING fts5(x)",
    "CREATE TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM w; END",
];

#[test]
fn sound_databases_of_every_setting_are_accounted_for() {
    for setting in SETTINGS {
        for more in LISTED_FIRST {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(
                accounts(&made(dir.path(), setting, more)),
                Vec::<String>::new(),
                "{setting}, {more}"
            );
        }
    }
    assert!(accounts(Path::new(":memory:")).is_empty());
}

#[test]
fn a_free_page_that_is_in_use_is_found_whatever_heads_the_schema() {
    for more in LISTED_FIRST {
        let dir = tempfile::tempdir().unwrap();
        let file = made(dir.path(), SETTINGS[0], more);
        let live =
            "SELECT pageno FROM dbstat WHERE name = 't' AND pagetype = 'leaf' LIMIT 1 OFFSET 9";
        let live: u64 = Connection::open(&file)
            .unwrap()
            .query_row(live, [], |row| row.get(0))
            .unwrap();
        let trunk = word(&file, 32);
        set_word(&file, (trunk - 1) * PAGE + 8, live);
        let found = accounts(&file);
        assert!(
            found.contains(&format!("Freelist: 2nd reference to page {live}")),
            "{more}: {found:?}"
        );
        assert!(
            found.iter().any(|line| line.ends_with("never used")),
            "{more}: {found:?}"
        );
    }
}

#[test]
fn nothing_is_called_damage_that_sqlite_has_nothing_to_say_of() {
    let dir = tempfile::tempdir().unwrap();
    let file = made(dir.path(), SETTINGS[1], LISTED_FIRST[0]);
    let sound = std::fs::read(&file).unwrap();
    let (mut found, mut seed) = (0, 1_u64);
    for _ in 0..400 {
        let mut bytes = sound.clone();
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The heads of pages contain what is accounted for.
        let at = (seed >> 40) as usize % (bytes.len() / PAGE as usize) * PAGE as usize
            + (seed >> 33) as usize % 16;
        bytes[at] ^= 1 << (seed >> 20 & 7);
        std::fs::write(&file, &bytes).unwrap();
        let connection = Connection::open(&file).unwrap();
        let Ok(Findings { damage: lines, .. }) = account(&connection, &CancelToken::default())
        else {
            continue;
        };
        let said = connection.query_row("PRAGMA integrity_check(1)", [], |row| {
            row.get::<_, String>(0)
        });
        found += usize::from(!lines.is_empty());
        assert!(
            lines.is_empty() || said.as_deref() != Ok("ok"),
            "byte {at}: {lines:?}"
        );
    }
    assert!(found > 100, "{found}");
}
