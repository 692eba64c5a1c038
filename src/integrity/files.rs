//! The files of a project: configuration, documents of nodes, unreadable files, and permissions.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use serde_json::Value;

use super::{
    issue::{Examples, Issue, IssueCode, Part, Severity},
    rows::{columns_of, has_table},
};
use crate::{
    config::{Settings, parse as parse_json},
    error::{Result, plain},
    project::{CONFIG_FILE, Project, STATE_DIR, exclude, names},
    sqlite::files::{COMPANIONS, companion},
    system::{
        portable::{MetadataExt, PermissionsExt},
        user,
    },
    util::{operation::CancelToken, regular_file},
};

/// Maximum size of a configuration file.
const MAX_CONFIG_BYTES: u64 = 16 * 1024 * 1024;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;
const OTHERS_READ: u32 = 0o044;
/// Endings of files that hold keys, whatever the rest of the name is.
const KEY_ENDINGS: [&str; 4] = [".key", ".pem", ".p12", ".age"];
/// Parts of file names and setting names that indicate a secret.
const SECRET_NAMES: [&str; 4] = ["passphrase", "password", "secret", "private_key"];
/// Parts that indicate a secret only at the end of a name: a tokenizer is not a token.
const SECRET_ENDINGS: [&str; 3] = ["token", "apikey", "api_key"];
/// Endings of files that contain data or text, whatever their name is about.
const PLAIN_ENDINGS: [&str; 3] = [".json", ".md", ".txt"];

/// Checks the files of a project below `.kg/`. Returns their number.
pub fn check(
    project: &Project,
    database: &Path,
    cancel: &CancelToken,
    issues: &mut Vec<Issue>,
) -> Result<u64> {
    let journal = project.state_dir().join(exclude::JOURNAL_FILE);
    if let Ok(found) = fs::symlink_metadata(&journal) {
        let message =
            "A restore was interrupted: the project is a mixture of its earlier state and a backup";
        let who = if found.uid() == user::current() {
            String::new()
        } else {
            format!(" as user {}", found.uid())
        };
        let remedy = format!(
            "Run `kg diag backup`{who}, which first rolls the restore back or completes it"
        );
        issues.push(
            Issue::new(IssueCode::RestorePending, Part::Files, message, remedy)
                .path(shown(project, &journal)),
        );
    }
    issues.extend(configuration(project));
    let mut walk = PermissionWalk {
        cancel,
        count: 0,
        unreadable: Examples::default(),
        exposed: Examples::default(),
    };
    walk.directory(&project.state_dir(), STATE_DIR)?;
    let remedy = "Give this user access to them, or remove links that lead nowhere";
    issues.extend(issue_of(
        walk.unreadable,
        IssueCode::FileUnreadable,
        "files cannot be read",
        remedy,
    ));
    let remedy = "Remove the access of group and others: chmod go= FILE";
    issues.extend(issue_of(
        walk.exposed,
        IssueCode::KeyExposed,
        "files that look like keys can be read by others",
        remedy,
    ));
    issues.extend(writable_by_others(project, database));
    Ok(walk.count)
}

fn issue_of(found: Examples, code: IssueCode, what: &str, remedy: &str) -> Option<Issue> {
    let message = format!("{} {what}", found.count);
    let path = found.examples.first().cloned().unwrap_or_default();
    (!found.is_empty()).then(|| {
        Issue::new(code, Part::Files, message, remedy)
            .path(path)
            .found(found)
    })
}

// ---- Configuration ----

fn configuration(project: &Project) -> Vec<Issue> {
    let mut issues = Vec::new();
    for entry in fs::read_dir(project.state_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_config = name == CONFIG_FILE;
        if !name.ends_with(".json")
            || exclude::is_by_product(&name, false)
            || !(is_config || entry.path().is_file())
        {
            continue;
        }
        let path = format!(
            "{STATE_DIR}/{}",
            names::encode(Path::new(&entry.file_name()))
        );
        if is_config && entry.path().exists() && !entry.path().is_file() {
            let message =
                format!("{path} is a directory, pipe or device, so its settings are ignored");
            let remedy = "Put a file in its place, or restore it with `kg diag restore --file latest --config-only`";
            issues.push(
                Issue::new(IssueCode::ConfigInvalid, Part::Files, message, remedy).path(path),
            );
            continue;
        }
        match parse(&entry.path()) {
            Ok(value) if is_config => issues.extend(settings(&value, &path, &entry.path())),
            Ok(_) => {}
            Err((why, remedy)) => {
                let severity = if is_config {
                    Severity::Error
                } else {
                    Severity::Warning
                };
                let message = format!("{path} {why}");
                let issue = Issue::new(IssueCode::ConfigInvalid, Part::Files, message, remedy);
                issues.push(issue.severity(severity).path(path));
            }
        }
    }
    issues
}

/// Parses a configuration file. An error completes a sentence that begins with the path, and comes
/// with a remedy.
fn parse(path: &Path) -> std::result::Result<Value, (String, &'static str)> {
    let unreadable = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => (
            "is a link that leads nowhere".into(),
            "Mount what it leads to, or remove it",
        ),
        _ => (
            format!("cannot be read: {}", plain(&cause)),
            "Give this user the right to read it",
        ),
    };
    let restore = "Correct it, or restore it with `kg diag restore --file latest --config-only`";
    let text = regular_file::open_linked(path)
        .and_then(|file| regular_file::read(&file, MAX_CONFIG_BYTES))
        .map_err(unreadable)?;
    parse_json(&text).map_err(|why| (why, restore))
}

fn settings(config: &Value, path: &str, file: &Path) -> Vec<Issue> {
    let mut wrong = Examples::default();
    if let Some(value) = config.get("database").filter(|value| !value.is_object()) {
        wrong.add(format!("`database` is {value}: it should be an object"));
    }
    let database = config.pointer("/database/path");
    if let Some(value) = database.filter(|value| value.as_str().is_none_or(str::is_empty)) {
        wrong.add(format!("`database.path` is {value}: it should be a string"));
    }
    let mut told = Vec::new();
    let mut issues = Vec::new();
    let settings = Settings::of(config, &mut |message| told.push(message));
    match settings.assert_usable() {
        Ok(()) => told.into_iter().for_each(|message| wrong.add(message)),
        Err(error) => issues.push(
            Issue::new(
                IssueCode::ConfigInvalid,
                Part::Files,
                error.message,
                error.remedy,
            )
            .path(path),
        ),
    }
    if !wrong.is_empty() {
        let (severity, consequence) = match settings.refuses_backups() {
            Some(_) => (Severity::Error, ", so backups are refused"),
            None => (Severity::Warning, ""),
        };
        let message = format!(
            "{} settings in {path} cannot be used{consequence}",
            wrong.count
        );
        let remedy = "Set them again with `kg config set`, or edit the file";
        let issue =
            Issue::new(IssueCode::ConfigValue, Part::Files, message, remedy).severity(severity);
        issues.push(issue.path(path).found(wrong));
    }
    let is_open =
        fs::metadata(file).is_ok_and(|found| found.permissions().mode() & OTHERS_READ != 0);
    let mut secrets = Examples::default();
    secret_settings(config, "", &mut secrets);
    if is_open && !secrets.is_empty() {
        let message = format!(
            "{path} contains {} secrets, and others can read it",
            secrets.count
        );
        let remedy = format!("Remove the access of group and others: chmod go= {path}");
        issues.push(
            Issue::new(IssueCode::KeyExposed, Part::Files, message, remedy)
                .path(path)
                .found(secrets),
        );
    }
    issues
}

/// Finds settings that hold text and whose names look like secrets. Their values are never shown.
fn secret_settings(value: &Value, name: &str, found: &mut Examples) {
    let Value::Object(fields) = value else { return };
    for (key, field) in fields {
        let full = if name.is_empty() {
            key.clone()
        } else {
            format!("{name}.{key}")
        };
        let is_text = field.as_str().is_some_and(|text| !text.is_empty());
        if is_text && is_secret(key) && !key.to_lowercase().ends_with("file") {
            found.add(&full);
        }
        secret_settings(field, &full, found);
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase().replace(['-', ' '], "_");
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
        || SECRET_ENDINGS.iter().any(|secret| name.ends_with(secret))
}

// ---- What can be read and written ----

struct PermissionWalk<'a> {
    cancel: &'a CancelToken,
    count: u64,
    unreadable: Examples,
    exposed: Examples,
}

impl PermissionWalk<'_> {
    fn directory(&mut self, directory: &Path, path: &str) -> Result<()> {
        self.cancel.check()?;
        let Ok(entries) = fs::read_dir(directory) else {
            self.unreadable.add(path);
            return Ok(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let child = format!("{path}/{}", names::encode(Path::new(&name)));
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if path == STATE_DIR
                && name
                    .to_str()
                    .is_some_and(|name| exclude::is_by_product(name, kind.is_dir()))
            {
                continue;
            }
            if kind.is_dir() {
                self.directory(&entry.path(), &child)?;
                continue;
            }
            self.count += 1;
            match fs::metadata(entry.path()) {
                Ok(found) => {
                    if found.is_file() && !user::may_read(&entry.path()) {
                        self.unreadable.add(&child);
                    }
                    if is_key(&name.to_string_lossy(), &found) {
                        self.exposed.add(child);
                    }
                }
                // A file that is not a link was removed meanwhile.
                Err(_) if kind.is_symlink() => self
                    .unreadable
                    .add(format!("{child} (a link that leads nowhere)")),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Returns whether a file looks like a key that other users can read.
fn is_key(name: &str, found: &Metadata) -> bool {
    let name = name.to_lowercase();
    let looks = KEY_ENDINGS.iter().any(|ending| name.ends_with(ending))
        || name == "key"
        || name == ".env"
        || name.starts_with("id_") && !name.contains('.')
        || !PLAIN_ENDINGS.iter().any(|ending| name.ends_with(ending)) && is_secret(&name);
    looks && found.is_file() && found.permissions().mode() & OTHERS_READ != 0
}

fn writable_by_others(project: &Project, database: &Path) -> Option<Issue> {
    let state = project.state_dir();
    let mut paths = vec![
        state.clone(),
        state.join(CONFIG_FILE),
        database.to_path_buf(),
    ];
    paths.extend(COMPANIONS.iter().map(|suffix| companion(database, suffix)));
    paths.extend(database.parent().map(Path::to_path_buf));
    paths.dedup();
    let mut found = Examples::default();
    let mut seen = HashSet::new();
    for path in paths {
        let Ok(of) = fs::metadata(&path) else {
            continue;
        };
        if everyone_may_write(&of) && seen.insert(path.clone()) {
            found.add(shown(project, &path));
        }
    }
    let remedy = "Remove the write permission of others: chmod o-w FILE";
    issue_of(
        found,
        IssueCode::Permissions,
        "files or directories of the database can be written by everyone",
        remedy,
    )
}

/// Returns whether everyone may change a file or directory, or replace the entries of the
/// directory.
pub fn everyone_may_write(found: &fs::Metadata) -> bool {
    let mode = found.permissions().mode();
    // In a sticky directory, only the owner of a file can remove it.
    mode & OTHERS_WRITE != 0 && !(found.is_dir() && mode & STICKY != 0)
}

/// Returns a path relative to the project, or the full path if it is outside.
fn shown(project: &Project, path: &Path) -> String {
    names::encode(path.strip_prefix(project.root()).unwrap_or(path))
}

// ---- Documents ----

/// Finds missing documents of nodes, and documents without a node in directories where nodes have
/// documents. Returns the number of documents that nodes name.
pub fn documents(
    connection: &Connection,
    project: &Project,
    cancel: &CancelToken,
    issues: &mut Vec<Issue>,
) -> Result<u64> {
    let mut paths = HashSet::new();
    let read = |paths: &mut HashSet<PathBuf>| -> rusqlite::Result<()> {
        if !has_table(connection, "nodes")? || !columns_of(connection, "nodes")?.contains("path") {
            return Ok(());
        }
        let sql = "SELECT path FROM nodes WHERE typeof(path) = 'text' AND path <> ''";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            paths.insert(PathBuf::from(row.get::<_, String>(0)?));
        }
        Ok(())
    };
    if let Err(cause) = read(&mut paths) {
        cancel.check()?;
        let message = format!("The documents of nodes could not be checked: {cause}");
        issues.push(Issue::new(
            IssueCode::NotChecked,
            Part::Files,
            message,
            "Check the database first",
        ));
        return Ok(0);
    }
    let mut gone = Examples::default();
    let mut beside: BTreeMap<PathBuf, HashSet<String>> = BTreeMap::new();
    for path in &paths {
        cancel.check()?;
        if fs::metadata(project.root().join(path)).is_err() {
            gone.add(path.to_string_lossy());
        } else if let (Some(dir), Some(ending)) = (path.parent(), path.extension()) {
            beside
                .entry(dir.to_path_buf())
                .or_default()
                .insert(ending.to_string_lossy().into_owned());
        }
    }
    let all_gone = gone.count == paths.len() as u64;
    if !gone.is_empty() {
        let message = format!(
            "The documents of {} of {} nodes are missing",
            gone.count,
            paths.len()
        );
        let remedy = if all_gone {
            "Nothing to do in a copy of a project, which contains no documents"
        } else {
            "Put the documents back, or let the host read the project again"
        };
        let severity = if all_gone {
            Severity::Info
        } else {
            Severity::Warning
        };
        issues.push(
            Issue::new(IssueCode::DocumentMissing, Part::Files, message, remedy)
                .severity(severity)
                .found(gone),
        );
    }
    issues.extend(unindexed(project, &paths, &beside));
    Ok(paths.len() as u64)
}

/// Finds files without a node in directories where nodes have documents with the same file
/// extension.
fn unindexed(
    project: &Project,
    paths: &HashSet<PathBuf>,
    beside: &BTreeMap<PathBuf, HashSet<String>>,
) -> Option<Issue> {
    let mut found = Examples::default();
    for (dir, endings) in beside {
        let mut new: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(project.root().join(dir))
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = dir.join(entry.file_name());
            let fits = path
                .extension()
                .is_some_and(|ending| endings.contains(&*ending.to_string_lossy()));
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if fits
                && !is_hidden
                && !paths.contains(&path)
                && entry.file_type().is_ok_and(|kind| kind.is_file())
            {
                new.push(path);
            }
        }
        new.sort();
        new.iter()
            .for_each(|path| found.add(path.to_string_lossy()));
    }
    let remedy = "Let the host read the project again if they should be in the graph";
    issue_of(
        found,
        IssueCode::DocumentUnindexed,
        "documents are next to those of nodes but have no node",
        remedy,
    )
}
