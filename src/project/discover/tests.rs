use super::*;

fn project(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Project) {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let project = Project::open(dir.path()).unwrap();
    (dir, project)
}

/// Returns everything that a full backup saves.
fn found(project: &Project, warnings: &mut Vec<Warning>) -> Result<Vec<Source>> {
    let (sources, _) = discover(project, &Selection::everything(), &|_| false, warnings)?;
    Ok(sources.iter().collect())
}

fn entries(project: &Project, selection: &Selection) -> Vec<String> {
    let (found, _) = discover(project, selection, &|_| false, &mut Vec::new()).unwrap();
    found.iter().map(|source| source.entry()).collect()
}

const DATABASE: &[u8] = b"SQLite format 3\0 and more";

#[test]
fn sources_come_in_the_order_of_the_archive_and_by_products_stay_out() {
    let (_dir, project) = project(&[
        (".kg/knowledge.db", DATABASE),
        (".kg/knowledge.db-wal", b"wal"),
        (".kg/knowledge.db-shm", b"shm"),
        (".kg/config.json", b"{}"),
        (".kg/agents.json", b"{}"),
        (".kg/vectors.db", DATABASE),
        (".kg/vectors.db-journal", b"journal"),
        (".kg/vectors/a.f32", b"1234"),
        (".kg/reasoning-bank/b", b""),
        (".kg/plugins/p/data.json", b"{}"),
        (".kg/plugins/p/state", DATABASE),
        (".kg/plugins/p/yarn.lock", b"data of a plugin"),
        (".kg/notes.txt", b"n"),
        (".kg/server.pid", b"1"),
        (".kg/backups/kg-backup-x.tar.gz", b"b"),
        (".kg/logs/a.log", b"l"),
        (".kg/cache/c", b"c"),
        (".kg/restore-staging-1/0", b"s"),
        ("docs/readme.md", b"not state"),
    ]);
    assert_eq!(
        entries(&project, &Selection::everything()),
        [
            "database.sqlite",
            "config/agents.json",
            "config.json",
            "vectors/reasoning-bank",
            "vectors/reasoning-bank/b",
            "vectors",
            "vectors/a.f32",
            "vectors/vectors.db",
            "plugins",
            "plugins/p",
            "plugins/p/data.json",
            "plugins/p/state",
            "plugins/p/yarn.lock",
            "files/notes.txt",
        ]
    );
}

#[test]
fn vectors_plugins_and_patterns_are_left_out_on_request_but_never_the_graph_database() {
    let (_dir, project) = project(&[
        (".kg/knowledge.db", DATABASE),
        (".kg/vectors.db", DATABASE),
        (".kg/plugins/p", b"p"),
        (".kg/other.db", b"o"),
    ]);
    let selection = Selection {
        scope: Scope::Full,
        include_vectors: false,
        include_plugin_data: false,
        exclude_patterns: vec!["*.db".into()],
    };
    assert_eq!(entries(&project, &selection), ["database.sqlite"]);
    let database_only = Selection {
        scope: Scope::Database,
        ..Selection::everything()
    };
    assert_eq!(entries(&project, &database_only), ["database.sqlite"]);
}

#[test]
fn two_sources_never_share_an_entry() {
    let (_dir, project) = project(&[
        (".kg/knowledge.db", DATABASE),
        (".kg/vectors.db", DATABASE),
        (".kg/vectors/vectors.db", b"x"),
    ]);
    let expected = [
        "database.sqlite",
        "vectors",
        "vectors/vectors.db",
        "vectors/vectors.db~2",
    ];
    assert_eq!(entries(&project, &Selection::everything()), expected);
}

#[test]
fn links_are_not_followed_and_kept_where_they_stay_inside() {
    let (dir, project) = project(&[(".kg/knowledge.db", DATABASE), ("inside", b"x")]);
    let link = |target: &Path, name: &str| {
        std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap()
    };
    link(Path::new("../inside"), ".kg/link");
    link(&dir.path().join("inside"), ".kg/absolute");
    link(Path::new("../../outside"), ".kg/outside");
    link(Path::new("knowledge.db"), ".kg/graph");
    let mut warnings = Vec::new();
    let found = found(&project, &mut warnings).unwrap();
    let kinds: Vec<_> = found
        .iter()
        .map(|source| (source.entry(), source.kind.clone()))
        .collect();
    let expected = [
        ("database.sqlite", SourceKind::Database),
        ("files/graph", SourceKind::Link("knowledge.db".into())),
        ("files/link", SourceKind::Link("../inside".into())),
    ]
    .map(|(entry, kind)| (entry.to_string(), kind));
    assert_eq!(kinds, expected);
    let mut warned: Vec<_> = warnings
        .iter()
        .map(|warning| (warning.code, warning.path.as_deref().unwrap()))
        .collect();
    warned.sort_by_key(|(_, path)| *path);
    assert_eq!(
        warned,
        [
            (WarningCode::LinkOutside, ".kg/absolute"),
            (WarningCode::LinkOutside, ".kg/outside")
        ]
    );
}

#[test]
fn names_that_are_not_utf8_are_written_as_text_and_keep_their_place() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, project) = project(&[(".kg/knowledge.db", DATABASE), (".kg/50%", b"")]);
    fs::write(
        dir.path()
            .join(".kg")
            .join(std::ffi::OsStr::from_bytes(b"caf\xe9")),
        b"x",
    )
    .unwrap();
    let found = found(&project, &mut Vec::new()).unwrap();
    let named: Vec<_> = found
        .iter()
        .map(|source| (source.path.as_str(), source.entry()))
        .collect();
    let expected = [
        (".kg/knowledge.db", "database.sqlite"),
        (".kg/50%25", "files/50%"),
        (".kg/caf%E9", "files/caf%E9"),
    ]
    .map(|(path, entry)| (path, entry.to_string()));
    assert_eq!(named, expected);
}

#[test]
fn a_project_without_a_database_is_an_error() {
    let (_dir, project) = project(&[(".kg/config.json", b"{}")]);
    let error = found(&project, &mut Vec::new()).unwrap_err();
    assert_eq!(error.code, Code::NoDatabase);
}
