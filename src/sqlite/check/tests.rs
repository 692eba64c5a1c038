use rusqlite::ErrorCode;

use super::*;

/// Returns the findings of the whole check and those of the separate checks.
fn found(file: &std::path::Path) -> (Integrity, [Vec<String>; 2]) {
    let (open, cancel) = (|| Connection::open(file).unwrap(), CancelToken::default());
    let all_of = |found: Findings| [found.damage, found.rows].concat();
    let parts = [
        full_text(&mut open(), &cancel),
        structure(&mut open(), &cancel),
    ]
    .map(|found| all_of(found.unwrap()));
    let found = everything(&mut open(), Pragma::Quick, &cancel).unwrap();
    let has_rows = !found.rows.is_empty();
    let all = Integrity::of(found, Depth::All);
    assert_eq!(
        all.status == IntegrityStatus::Ok && !has_rows,
        parts.concat().is_empty(),
        "{all:?}, {parts:?}"
    );
    (all, parts)
}

#[test]
fn the_checks_of_parts_find_together_what_the_whole_one_finds() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.db");
    let run = |sql: &str| Connection::open(&file).unwrap().execute_batch(sql).unwrap();
    run(
        r#"CREATE TABLE t (id INTEGER PRIMARY KEY, x NOT NULL); CREATE VIRTUAL TABLE "my ""index""" USING fts5(x);
        INSERT INTO t VALUES (1, 'one'); INSERT INTO "my ""index""" VALUES ('one two three');"#,
    );
    assert_eq!(found(&file).0.status, IntegrityStatus::Ok);
    run(r#"DELETE FROM "my ""index""_data" WHERE id > 10"#);
    let (all, [full_text, structure]) = found(&file);
    assert_eq!((all.messages, structure), (full_text.clone(), vec![]));
    assert!(full_text[0].contains("index"), "{full_text:?}");
    run(
        "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = replace(sql, ', x NOT NULL', ', x NOT NULL, y NOT NULL') WHERE name = 't'",
    );
    let (_, [_, structure]) = found(&file);
    assert_eq!(structure, ["NULL value in t.y"]);
    let of = |table: &str| {
        tables(
            &mut Connection::open(&file).unwrap(),
            [table.to_string()],
            &CancelToken::default(),
        )
        .map(|found| found.rows)
    };
    assert_eq!(
        (of("t").unwrap(), of(r#"my "index"_data"#).unwrap()),
        (structure, vec![])
    );
}

/// Creates a database with these statements, then replaces the definitions with texts that use
/// objects which are missing here.
fn made(dir: &Path, sql: &str, definitions: &[(&str, &str)]) -> std::path::PathBuf {
    let file = dir.join("a.db");
    let connection = Connection::open(&file).unwrap();
    connection.execute_batch(sql).unwrap();
    connection
        .execute_batch("PRAGMA writable_schema = 1")
        .unwrap();
    for (name, text) in definitions {
        let replace = "UPDATE sqlite_schema SET sql = ?2 WHERE name = ?1";
        assert_eq!(connection.execute(replace, (name, text)).unwrap(), 1);
    }
    file
}

const FILL: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO t SELECT 'x' || i FROM n";

#[test]
fn what_is_missing_is_named_and_all_other_tables_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let sql =
        format!("CREATE TABLE t (x); CREATE TABLE u (y); INSERT INTO u VALUES (NULL); {FILL}");
    let texts = [
        (
            "t",
            "CREATE TABLE t (x CHECK (norm(x) = x) COLLATE localized)",
        ),
        ("u", "CREATE TABLE u (y NOT NULL)"),
    ];
    let file = made(dir.path(), &sql, &texts);
    for pragma in [Pragma::Quick, Pragma::Full { most_findings: 10 }] {
        let found = everything(
            &mut Connection::open(&file).unwrap(),
            pragma,
            &CancelToken::default(),
        )
        .unwrap();
        assert_eq!(
            (found.damage.len(), &found.rows[..]),
            (0, &["NULL value in u.y".to_string()][..])
        );
        let [left] = &found.not_checked[..] else {
            panic!("{found:?}")
        };
        assert!(
            left.table == "t" && left.reason.ends_with("is not available here"),
            "{left:?}"
        );
    }
}

#[test]
fn damage_next_to_what_is_missing_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let sql = format!("CREATE TABLE t (x); CREATE INDEX i ON t (x); {FILL}");
    let file = made(
        dir.path(),
        &sql,
        &[("i", "CREATE INDEX i ON t (x COLLATE localized)")],
    );
    let check = || {
        everything(
            &mut Connection::open(&file).unwrap(),
            Pragma::Quick,
            &CancelToken::default(),
        )
        .unwrap()
    };
    let found = check();
    assert_eq!(
        (found.damage.len(), found.not_checked.len()),
        (0, 1),
        "{found:?}"
    );
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 4096;
    bytes[last..].fill(0x55);
    std::fs::write(&file, bytes).unwrap();
    assert!(!check().damage.is_empty());
}

#[test]
fn constraints_that_take_too_long_are_not_checked_and_the_rest_is() {
    let dir = tempfile::tempdir().unwrap();
    let terms = vec!["abs(length(x) + length(x || x)) <> -1"; 900].join(" AND ");
    let file = made(
        dir.path(),
        &format!("CREATE TABLE t (x); {FILL}"),
        &[("t", &format!("CREATE TABLE t (x, CHECK ({terms}))"))],
    );
    let found = everything(
        &mut Connection::open(&file).unwrap(),
        Pragma::Quick,
        &CancelToken::default(),
    )
    .unwrap();
    assert_eq!(found.damage, Vec::<String>::new());
    let left: Vec<String> = found
        .not_checked
        .iter()
        .map(NotChecked::to_string)
        .collect();
    assert_eq!(
        left,
        ["the CHECK constraints of the table t: that takes too long"]
    );
}

#[test]
fn an_error_is_damage_only_if_sqlite_says_so_and_the_schema_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = made(
        dir.path(),
        "CREATE TABLE t (x)",
        &[("t", "CREATE TABLE t (x) FUTURE")],
    );
    let cause = Connection::open(&file)
        .unwrap()
        .prepare("SELECT * FROM t")
        .unwrap_err();
    assert!(
        cause.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) && !is_damage(&cause),
        "{cause}"
    );
    let found = everything(
        &mut Connection::open(&file).unwrap(),
        Pragma::Quick,
        &CancelToken::default(),
    )
    .unwrap();
    assert_eq!(
        Integrity::of(found, Depth::All).status,
        IntegrityStatus::Partial
    );
    std::fs::write(&file, "no database".repeat(1000)).unwrap();
    assert!(is_damage(
        &Connection::open(&file)
            .unwrap()
            .prepare("SELECT * FROM t")
            .unwrap_err()
    ));
}

#[test]
fn rows_that_break_what_their_table_declares_are_no_damage_and_hide_none() {
    let dir = tempfile::tempdir().unwrap();
    let broken = |rows: u32| {
        let sql = format!(
            "CREATE TABLE t (x); CREATE TABLE u (y); WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT NULL FROM n;"
        );
        let file = dir.path().join(rows.to_string());
        std::fs::create_dir(&file).unwrap();
        made(&file, &sql, &[("t", "CREATE TABLE t (x NOT NULL)")])
    };
    let check = |file: &Path| {
        everything(
            &mut Connection::open(file).unwrap(),
            Pragma::Quick,
            &CancelToken::default(),
        )
        .unwrap()
    };
    let few = check(&broken(3));
    assert_eq!(
        (few.damage.len(), few.rows.len(), few.not_checked.len()),
        (0, 1, 0),
        "{few:?}"
    );
    assert_eq!(Integrity::of(few, Depth::All).status, IntegrityStatus::Ok);
    // SQLite stops after this many lines, so it has not checked the rest.
    let many = check(&broken(150));
    assert_eq!((many.damage.len(), many.rows.len()), (0, 1), "{many:?}");
    assert_eq!(
        Integrity::of(many, Depth::All).status,
        IntegrityStatus::Partial
    );
}

#[test]
fn lines_about_rows_are_told_from_lines_about_pages() {
    for line in [
        "NULL value in t.y",
        "NUMERIC value in t.y",
        "TEXT value in t.y",
        "non-INTEGER value in t.y",
        "CHECK constraint failed in t",
        "non-unique entry in index i",
    ] {
        assert!(broken_rows(line).is_some(), "{line}");
    }
    for line in [
        "row 1 missing from index NULL value in x",
        "wrong # of entries in index non-unique entry in index i",
        "Page 3: never used",
    ] {
        assert!(broken_rows(line).is_none(), "{line}");
    }
}
