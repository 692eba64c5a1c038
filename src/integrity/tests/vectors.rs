//! Tests of vector stores in SQLite and in files.

use super::*;

#[test]
fn vectors_in_sqlite_are_checked_number_by_number() {
    let fixture = Fixture::new();
    fixture.vectors(
        "UPDATE embeddings SET embedding = x'00' WHERE id = 'n1';
         UPDATE embeddings SET embedding = x'0000c07f00000000' WHERE id = 'n2';
         UPDATE embeddings SET embedding = zeroblob(8) WHERE id = 'n3';
         UPDATE embeddings SET embedding = x'0000003f0000003f0000003f', dimensions = 3 WHERE id = 'n4'",
    );
    let issues = fixture.check().issues;
    let told: Vec<_> = issues
        .iter()
        .map(|issue| (issue.code.as_str(), issue.examples.join(" ")))
        .collect();
    let expected = [
        ("KG_ISSUE_VECTOR_LENGTH", "n1".to_string()),
        ("KG_ISSUE_VECTOR_DIMENSIONS", "n4 (3)".to_string()),
        ("KG_ISSUE_VECTOR_NOT_FINITE", "n2".to_string()),
        ("KG_ISSUE_VECTOR_ZERO", "n3".to_string()),
    ];
    assert_eq!(told, expected);
    assert!(
        issues
            .iter()
            .all(|issue| issue.path.as_deref() == Some(".kg/vectors.db"))
    );
}

#[test]
fn vectors_of_no_node_are_moved_aside_and_nodes_without_one_are_counted() {
    let fixture = Fixture::new();
    fixture.vectors("UPDATE embeddings SET id = 'gone' WHERE id = 'n9'");
    let issues = fixture.check().issues;
    let told: Vec<_> = issues
        .iter()
        .map(|issue| (issue.code, issue.examples.join(" "), issue.repairable))
        .collect();
    let expected = [
        (IssueCode::VectorOrphan, "gone".into(), true),
        (IssueCode::VectorMissing, "n9".to_string(), false),
    ];
    assert_eq!(told, expected);
    assert_eq!(fixture.repair()[0].rows_removed, 1);
    let removed = fixture.removed(".kg/vectors.db");
    assert!(
        removed[0]
            .2
            .contains(r#""embedding":"X'0000003F0000803F'","id":"gone""#),
        "{removed:?}"
    );
    fixture.only(IssueCode::VectorMissing);
}

#[test]
fn vectors_whose_ids_are_of_something_else_are_not_removed() {
    let fixture = Fixture::new();
    fixture.vectors("UPDATE embeddings SET id = 'chunk-' || id");
    assert!(!fixture.only(IssueCode::VectorOrphan).repairable);
}

#[test]
fn files_of_vectors_must_fit_their_index() {
    let fixture = Fixture::new();
    let whole = vector(&[0.25, 1.0]).repeat(200);
    fixture.write(".kg/vectors/model.f32", &whole[..whole.len() - 3]);
    let issue = fixture.only(IssueCode::VectorFile);
    assert_eq!(issue.path.as_deref(), Some(".kg/vectors/model.f32"));
    let mut odd = whole.clone();
    odd[..8].copy_from_slice(&vector(&[f32::INFINITY, 0.0]));
    odd[8..16].fill(0);
    fixture.write(".kg/vectors/model.f32", &odd);
    assert_eq!(
        fixture.codes(),
        BTreeSet::from(["KG_ISSUE_VECTOR_NOT_FINITE", "KG_ISSUE_VECTOR_ZERO"])
    );
    fixture.write(".kg/vectors/model.f32", &whole);
    let mut ids: Vec<String> = (1..=199).map(|number| format!("n{number}")).collect();
    ids.push("gone".into());
    fixture.write_index(2, &ids);
    let issues = fixture.check().issues;
    assert_eq!(issues[0].code, IssueCode::VectorOrphan);
    assert!(!issues[0].repairable, "a file is not rewritten");
    ids[199] = "n1".into();
    fixture.write_index(2, &ids);
    assert!(
        fixture
            .only(IssueCode::VectorIndex)
            .message
            .contains("twice")
    );
}

#[test]
fn a_damaged_vector_store_is_of_the_vectors() {
    let fixture = Fixture::new();
    let path = fixture.path(".kg/vectors.db");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096..4200].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let issues = fixture.check().issues;
    assert_eq!(
        (issues[0].code, issues[0].component),
        (IssueCode::DatabaseDamaged, Part::Vectors)
    );
}

#[test]
fn what_can_be_read_of_a_damaged_vector_store_is_saved_and_the_graph_stays_as_it_is() {
    let fixture = Fixture::new();
    let (path, graph) = (
        fixture.path(".kg/vectors.db"),
        fs::read(fixture.path(".kg/knowledge.db")).unwrap(),
    );
    let mut bytes = fs::read(&path).unwrap();
    bytes[..100].fill(0);
    fs::write(&path, &bytes).unwrap();
    let count = || -> u64 {
        let connection = Connection::open(&path).unwrap();
        connection
            .query_row("SELECT count(*) FROM embeddings", [], |row| row.get(0))
            .unwrap()
    };
    let done = fixture.repair();
    let salvage = done[0].salvage.as_ref().unwrap();
    assert_eq!(
        (done.len(), done[0].action.part, &done[0].error),
        (1, Part::Vectors, &None)
    );
    assert_eq!(fs::read(&salvage.kept).unwrap(), bytes);
    assert!(
        count() > 0 && salvage.report.rows_recovered == count(),
        "{salvage:?}"
    );
    assert_eq!(fixture.codes(), BTreeSet::new());
    assert_eq!(fs::read(fixture.path(".kg/knowledge.db")).unwrap(), graph);
}
