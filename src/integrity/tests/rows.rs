//! Tests of indexes, full-text indexes, rows and tables, and of their repair.

use super::*;

#[test]
fn a_sound_project_gives_no_issue_and_is_counted() {
    let report = Fixture::new().check();
    assert_eq!(report.issues, []);
    let Checked {
        nodes,
        edges,
        documents,
        vectors,
        ..
    } = report.checked;
    assert_eq!(
        (nodes, edges, documents, vectors, report.is_graph),
        (200, 200, 200, 400, true)
    );
}

#[test]
fn an_index_that_lacks_an_entry_is_named_and_built_again() {
    let fixture = Fixture::new();
    // The entry is removed only from the index, as a disk fault could do.
    fixture.graph(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX by_path ON nodes(path) WHERE 0' WHERE name = 'by_path'",
    );
    fixture.graph(
        "UPDATE nodes SET path = 'docs/1.md' WHERE id = 'n1'; DELETE FROM nodes_fts WHERE 0",
    );
    fixture.graph("DROP INDEX by_path; CREATE INDEX by_path ON nodes(path) WHERE id <> 'n7'");
    fixture.graph(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = 'CREATE INDEX by_path ON nodes(path)' WHERE name = 'by_path'",
    );
    let issues = fixture.check().issues;
    let issue = issues
        .iter()
        .find(|issue| issue.code == IssueCode::IndexDamaged)
        .unwrap();
    assert_eq!(
        (issue.index.as_deref(), issue.table.as_deref()),
        (Some("by_path"), Some("nodes"))
    );
    assert!(
        issue.repairable && issue.repair.as_ref().unwrap().contains("REINDEX"),
        "{issue:?}"
    );
    assert!(
        issues
            .iter()
            .any(|issue| issue.code == IssueCode::NotChecked)
    );
    let done = fixture.repair();
    assert!(done.iter().all(|done| done.error.is_none()), "{done:?}");
    assert_eq!(fixture.codes(), BTreeSet::new());
}

#[test]
fn a_full_text_index_that_lies_is_found_and_built_again_though_integrity_check_says_ok() {
    let fixture = Fixture::new();
    fixture.graph("UPDATE nodes SET title = 'Other words' WHERE id = 'n5'");
    let connection = Connection::open(fixture.path(".kg/knowledge.db")).unwrap();
    let said: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(said, "ok");
    let issue = fixture.only(IssueCode::FullTextDamaged);
    assert_eq!(
        (issue.table.as_deref(), issue.repairable),
        (Some("nodes_fts"), true)
    );
    fixture.repair();
    assert_eq!(fixture.codes(), BTreeSet::new());
}

#[test]
fn edges_and_tags_that_lead_nowhere_are_moved_aside_with_all_their_columns() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA foreign_keys = off;
         INSERT INTO edges (id, source_id, target_id, weight) VALUES (900, 'gone', 'n1', 0.5), (901, 'n1', 'lost', 1.5);
         INSERT INTO node_tags VALUES ('gone', 1), ('n2', 77)",
    );
    let issues = fixture.check().issues;
    let told: Vec<_> = issues
        .iter()
        .map(|issue| (issue.code, issue.count, issue.rowid, issue.repairable))
        .collect();
    let expected = [
        (IssueCode::EdgeSource, 1, Some(900), true),
        (IssueCode::EdgeTarget, 1, Some(901), true),
        (IssueCode::TagOrphan, 2, None, true),
    ];
    assert_eq!(told, expected);
    assert_eq!(issues[1].examples, ["edge from n1 to lost"]);
    let done = fixture.repair();
    assert_eq!(
        done.iter()
            .map(|done| done.rows_removed)
            .collect::<Vec<_>>(),
        [1, 1, 2]
    );
    assert_eq!(fixture.codes(), BTreeSet::new());
    let removed = fixture.removed(".kg/knowledge.db");
    let (reason, table, row) = &removed[0];
    assert_eq!(
        (reason.as_str(), table.as_str()),
        ("KG_ISSUE_EDGE_SOURCE", "edges")
    );
    assert_eq!(
        row,
        r#"{"context":null,"id":900,"source_id":"gone","target_id":"n1","type":null,"weight":0.5}"#
    );
    assert_eq!(removed.len(), 4);
}

#[test]
fn rows_that_mean_nothing_are_reported_and_left_alone() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA foreign_keys = off; PRAGMA ignore_check_constraints = on;
         UPDATE nodes SET frontmatter = '{' WHERE id = 'n3';
         UPDATE nodes SET path = 'docs/9.md' WHERE id = 'n8';
         INSERT INTO children VALUES (1, 5, 1), (2, NULL, 99)",
    );
    // Rows that violate a constraint are on sound pages, so all other checks run too.
    let codes = fixture.codes();
    assert!(
        codes.contains("KG_ISSUE_CONSTRAINT") && codes.contains("KG_ISSUE_FOREIGN_KEY"),
        "{codes:?}"
    );
    assert!(!codes.contains("KG_ISSUE_NOT_CHECKED"), "{codes:?}");
    fixture.graph("UPDATE children SET size = 1");
    let issues = fixture.check().issues;
    let told: Vec<_> = issues
        .iter()
        .map(|issue| {
            (
                issue.code.as_str(),
                issue.examples.join(" "),
                issue.repairable,
            )
        })
        .collect();
    let expected = [
        (
            "KG_ISSUE_FOREIGN_KEY",
            "row 1, to parents".to_string(),
            false,
        ),
        ("KG_ISSUE_FRONTMATTER", "n3".to_string(), false),
        (
            "KG_ISSUE_DUPLICATE_PATH",
            "docs/9.md (2 nodes)".to_string(),
            false,
        ),
        (
            "KG_ISSUE_DOCUMENT_UNINDEXED",
            "docs/8.md".to_string(),
            false,
        ),
    ];
    assert_eq!(told, expected);
}

#[test]
fn tables_and_triggers_of_the_host_that_are_missing_are_named() {
    let fixture = Fixture::new();
    fixture.graph("DROP TRIGGER nodes_ai; DROP TABLE metadata; DROP TABLE edges");
    let told: Vec<_> = fixture
        .check()
        .issues
        .into_iter()
        .map(|issue| (issue.code, issue.severity, issue.table.unwrap()))
        .collect();
    let expected = [
        (
            IssueCode::TableMissing,
            Severity::Error,
            "edges".to_string(),
        ),
        (
            IssueCode::TableMissing,
            Severity::Warning,
            "metadata".to_string(),
        ),
        (
            IssueCode::TriggerMissing,
            Severity::Warning,
            "nodes_fts".to_string(),
        ),
    ];
    assert_eq!(told, expected);
}

#[test]
fn what_needs_something_that_is_not_here_is_said_to_be_unchecked() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA writable_schema = on;
         UPDATE sqlite_schema SET sql = replace(sql, 'title, content,', 'title, content, tokenize = ''of_the_host'',') WHERE name = 'nodes_fts'",
    );
    assert!(
        fixture.codes().contains("KG_ISSUE_NOT_CHECKED"),
        "{:?}",
        fixture.codes()
    );
}

#[test]
fn an_action_that_fails_is_taken_back_and_the_others_stay() {
    let fixture = Fixture::new();
    fixture.graph(
        "PRAGMA foreign_keys = off; INSERT INTO edges (source_id, target_id) VALUES ('gone', 'n1')",
    );
    let action = |code, work| repair::Action {
        code,
        part: Part::Database,
        work,
    };
    let actions = [
        action(
            IssueCode::IndexDamaged,
            repair::Work::Reindex {
                index: "no such".into(),
            },
        ),
        action(
            IssueCode::EdgeSource,
            repair::Work::Remove {
                table: "edges".into(),
                columns: vec!["source_id".into()],
            },
        ),
    ];
    let done = fixture.perform(&actions);
    assert_eq!(
        done.iter()
            .map(|done| done.error.is_none())
            .collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(fixture.codes(), BTreeSet::new());
}
