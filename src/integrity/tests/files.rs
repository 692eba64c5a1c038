//! Tests of configuration, documents, permissions, and the owner of a database.

use super::*;

#[test]
fn configuration_that_cannot_be_used_is_told_by_setting() {
    let fixture = Fixture::new();
    fixture.write(
        ".kg/config.json",
        br#"{"database":[],"backup":{"enabled":"yes","compressionLevel":12,"excludePatterns":[1],"schedule":""}}"#,
    );
    let issue = fixture.only(IssueCode::ConfigValue);
    assert_eq!(
        (issue.count, issue.path.as_deref()),
        (5, Some(".kg/config.json"))
    );
    assert_eq!(
        issue.examples[1],
        r#"`backup.enabled` is "yes", not true or false; it was ignored"#
    );
    fixture.write(
        ".kg/config.json",
        br#"{"backup":{"encrpyt":true,"mine":1},"bakcup":{}}"#,
    );
    let told = fixture.only(IssueCode::ConfigValue).examples;
    assert!(
        told[0].contains("did you mean `backup.encrypt`")
            && told[1].contains("`backup.mine` is not a setting")
    );
    assert!(told[2].contains("`bakcup` is not a setting: did you mean `backup`"));
    for text in [
        &b"[]"[..],
        b"null",
        br#"{"backup":[]}"#,
        br#"{"backup":null}"#,
    ] {
        fixture.write(".kg/config.json", text);
        let told: Vec<_> = fixture
            .check()
            .issues
            .iter()
            .map(|issue| (issue.code, issue.severity))
            .collect();
        assert_eq!(
            told,
            [(IssueCode::ConfigInvalid, Severity::Error)],
            "{}",
            String::from_utf8_lossy(text)
        );
    }
    fixture.write(".kg/config.json", b"{ not JSON");
    fixture.write(".kg/agents.json", b"[1,");
    let told: Vec<_> = fixture
        .check()
        .issues
        .iter()
        .map(|issue| (issue.code, issue.severity))
        .collect();
    assert_eq!(
        told,
        [
            (IssueCode::ConfigInvalid, Severity::Error),
            (IssueCode::ConfigInvalid, Severity::Warning)
        ]
    );
}

#[test]
fn a_restore_that_was_killed_is_told_until_it_is_completed() {
    let fixture = Fixture::new();
    fixture.write(".kg/restore-journal.json", b"{}");
    fixture.only(IssueCode::RestorePending);
}

#[test]
fn documents_that_are_gone_or_have_no_node_are_named_and_a_copy_without_documents_is_fine() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.path("docs/4.md")).unwrap();
    fixture.write("docs/new.md", b"new");
    fixture.write("docs/picture.png", b"no document");
    let issues = fixture.check().issues;
    let told: Vec<_> = issues
        .iter()
        .map(|issue| (issue.code, issue.severity, issue.examples.join(" ")))
        .collect();
    let expected = [
        (
            IssueCode::DocumentMissing,
            Severity::Warning,
            "docs/4.md".to_string(),
        ),
        (
            IssueCode::DocumentUnindexed,
            Severity::Info,
            "docs/new.md".to_string(),
        ),
    ];
    assert_eq!(told, expected);
    fs::remove_dir_all(fixture.path("docs")).unwrap();
    assert_eq!(
        fixture.only(IssueCode::DocumentMissing).severity,
        Severity::Info
    );
}

#[test]
fn what_cannot_be_read_and_what_others_may_read_or_write_is_told() {
    let fixture = Fixture::new();
    symlink("nowhere", fixture.path(".kg/plugin-data")).unwrap();
    fixture.only(IssueCode::FileUnreadable);
    fs::remove_file(fixture.path(".kg/plugin-data")).unwrap();
    let set = |path: &str, mode| {
        fs::set_permissions(fixture.path(path), fs::Permissions::from_mode(mode)).unwrap()
    };
    set(".kg/knowledge.db", 0o666);
    assert_eq!(
        fixture.only(IssueCode::Permissions).examples,
        [".kg/knowledge.db"]
    );
    // SQLite creates a WAL with the mode of its database.
    for suffix in ["", "-wal", "-shm"]
        .iter()
        .filter(|suffix| fixture.path(&format!(".kg/knowledge.db{suffix}")).exists())
    {
        set(&format!(".kg/knowledge.db{suffix}"), 0o644);
    }
    set(".kg/signing.key", 0o640);
    assert_eq!(
        fixture.only(IssueCode::KeyExposed).path.as_deref(),
        Some(".kg/signing.key")
    );
    set(".kg/signing.key", 0o600);
    for harmless in ["tokenizer.bin", "secret-santa.md", "keynote"] {
        fixture.write(&format!(".kg/{harmless}"), b"text");
    }
    fixture.write(
        ".kg/config.json",
        br#"{"tokenizer":"plain","storage":{"secretAccessKey":"do-not-show"}}"#,
    );
    set(".kg/config.json", 0o644);
    let issue = fixture.only(IssueCode::KeyExposed);
    assert_eq!(issue.examples, ["storage.secretAccessKey"]);
    assert!(!format!("{issue:?}").contains("do-not-show"));
    set(".kg/config.json", 0o600);
    assert_eq!(fixture.codes(), BTreeSet::new());
}

#[test]
fn a_database_is_of_the_project_above_it_or_of_none() {
    let fixture = Fixture::new();
    let of = |path: PathBuf| {
        fixture
            .check_as(&CheckTarget::at(&path), Scope::ALL)
            .checked
            .project
            .is_some()
    };
    assert!(of(fixture.path(".kg/knowledge.db")));
    fs::create_dir(fixture.path("elsewhere")).unwrap();
    Connection::open(fixture.path("elsewhere/other.db"))
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    let report = fixture.check_as(
        &CheckTarget::at(&fixture.path("elsewhere/other.db")),
        Scope::ALL,
    );
    assert_eq!((report.checked.project, report.issues), (None, vec![]));
    assert!(
        fixture
            .check_as(&CheckTarget::at(fixture.dir.path()), Scope::ALL)
            .is_graph
    );
}
