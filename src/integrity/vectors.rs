//! The supported vector stores: a SQLite file with a table `embeddings`, and `NAME.f32` files next
//! to an `index.json`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufReader, Read},
    path::Path,
};

use rusqlite::{Connection, types::ValueRef};
use serde::Deserialize;

use super::{
    Named,
    issue::{Examples, Issue, IssueCode, Part, Severity},
    rows::{columns_of, has_table},
};
use crate::{
    error::{Error, Result},
    project::names,
    sqlite::quoted,
    util::{operation::CancelToken, regular_file, wording},
};

/// Table of vectors in a SQLite store.
pub const TABLE: &str = "embeddings";
/// Names below the state directory: the SQLite store, and the directory of the other stores.
pub const DATABASE: &str = "vectors.db";
pub const DIRECTORY: &str = "vectors";
const INDEX: &str = "index.json";
const ENDING: &str = "f32";
const NUMBER_BYTES: u64 = 4;
/// Maximum size of an index file: 64 bytes for each of 16 million vectors.
pub const MAX_INDEX_BYTES: u64 = 1 << 30;
/// Name under which the graph is attached to a connection to a store.
pub const ATTACHED: &str = "graph";
const REGENERATE: &str = "Generate the vectors again: `kg graph --regenerate-vectors`";

/// Vectors with faulty numbers, by kind of fault.
#[derive(Default)]
struct Numbers {
    length: Examples,
    not_finite: Examples,
    zero: Examples,
}

impl Numbers {
    fn issues(self, named: &Named) -> Vec<Issue> {
        let path = &named.path;
        let of = [
            (
                self.length,
                IssueCode::VectorLength,
                "vectors do not have the length that their dimensions require",
            ),
            (
                self.not_finite,
                IssueCode::VectorNotFinite,
                "vectors contain a value that is not a finite number",
            ),
            (
                self.zero,
                IssueCode::VectorZero,
                "vectors contain only zeros, so they are similar to nothing",
            ),
        ];
        let issue = |(found, code, what): (Examples, _, _)| {
            let message = format!("{} of {path}: {what}", found.count);
            (!found.is_empty()).then(|| named.issue(code, message, REGENERATE).found(found))
        };
        of.into_iter().filter_map(issue).collect()
    }

    fn judge(&mut self, vector: &[u8], name: impl Fn() -> String) {
        let mut is_zero = true;
        for number in vector.chunks_exact(NUMBER_BYTES as usize) {
            let number = f32::from_le_bytes([number[0], number[1], number[2], number[3]]);
            if !number.is_finite() {
                self.not_finite.add(name());
                return;
            }
            is_zero &= number == 0.0;
        }
        if is_zero {
            self.zero.add(name());
        }
    }
}

/// Checks a SQLite store and returns the number of its vectors. `connection` must be to a private
/// copy. If `has_graph` is set, a sound graph is attached to it as `graph`.
pub fn check_database(
    connection: &Connection,
    named: &Named,
    has_graph: bool,
    cancel: &CancelToken,
    issues: &mut Vec<Issue>,
) -> Result<u64> {
    let mut count = 0;
    let mut all = || -> rusqlite::Result<Vec<Issue>> {
        let columns = columns_of(connection, TABLE)?;
        if !["id", "embedding", "dimensions"]
            .iter()
            .all(|column| columns.contains(*column))
        {
            return Ok(Vec::new());
        }
        let mut issues = Vec::new();
        count = numbers_of(connection, named, cancel, &mut issues)?;
        if has_graph && has_nodes(connection)? {
            let ids = format!("SELECT id FROM {TABLE}");
            issues.extend(compare(connection, named, &ids, count, ATTACHED)?);
        }
        Ok(issues)
    };
    match all() {
        Ok(found) => issues.extend(found),
        Err(cause) => {
            cancel.check()?;
            let message = format!(
                "The vectors of {} could not be checked: {cause}",
                named.path
            );
            issues.push(named.issue(IssueCode::NotChecked, message, REGENERATE));
        }
    }
    Ok(count)
}

fn numbers_of(
    connection: &Connection,
    named: &Named,
    cancel: &CancelToken,
    issues: &mut Vec<Issue>,
) -> rusqlite::Result<u64> {
    let mut numbers = Numbers::default();
    let mut by_dimensions: BTreeMap<i64, Examples> = BTreeMap::new();
    let mut statement =
        connection.prepare(&format!("SELECT id, embedding, dimensions FROM {TABLE}"))?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        if cancel.is_cancelled() {
            break;
        }
        let id = match row.get_ref(0)? {
            ValueRef::Text(id) => String::from_utf8_lossy(id).into_owned(),
            other => format!("{other:?}"),
        };
        let dimensions = row.get_ref(2)?.as_i64().unwrap_or(-1);
        by_dimensions.entry(dimensions).or_default().add(&id);
        match row.get_ref(1)? {
            ValueRef::Blob(vector)
                if dimensions > 0 && vector.len() as u64 == dimensions as u64 * NUMBER_BYTES =>
            {
                numbers.judge(vector, || id.clone());
            }
            _ => numbers.length.add(id),
        }
    }
    issues.extend(
        numbers
            .issues(named)
            .into_iter()
            .map(|issue| issue.table(TABLE)),
    );
    if by_dimensions.len() > 1 {
        let usual = by_dimensions
            .iter()
            .max_by_key(|(_, found)| found.count)
            .map_or(0, |(dimensions, _)| *dimensions);
        let mut odd = Examples::default();
        for (dimensions, found) in by_dimensions
            .iter()
            .filter(|(dimensions, _)| **dimensions != usual)
        {
            found
                .examples
                .iter()
                .for_each(|id| odd.add(format!("{id} ({dimensions})")));
            odd.count += found.count - found.examples.len() as u64;
        }
        let message = format!(
            "{} of {} {} dimensions that differ from the usual {usual}",
            wording::count(odd.count, "vector"),
            named.path,
            wording::agree(odd.count, "has", "have")
        );
        issues.push(
            named
                .issue(IssueCode::VectorDimensions, message, REGENERATE)
                .found(odd)
                .table(TABLE),
        );
    }
    Ok(count)
}

fn has_nodes(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM graph.sqlite_schema WHERE type = 'table' AND name = 'nodes'";
    connection
        .query_row(sql, [], |row| row.get::<_, u64>(0))
        .map(|count| count > 0)
}

/// Returns an SQL condition for embeddings that belong to no node of the database `graph`.
pub fn orphan(graph: &str) -> String {
    format!("id NOT IN (SELECT id FROM {graph}.nodes WHERE id IS NOT NULL)")
}

/// Compares the `ids` of vectors, a query, with those of the nodes in the database `graph` of the
/// connection.
fn compare(
    connection: &Connection,
    named: &Named,
    ids: &str,
    count: u64,
    graph: &str,
) -> rusqlite::Result<Vec<Issue>> {
    let found = |sql: &str| -> rusqlite::Result<Examples> {
        let mut found = Examples::default();
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref(0)?;
            found.add(name.as_str().unwrap_or("an id that is not text"));
        }
        Ok(found)
    };
    let nodes: u64 =
        connection.query_row(&format!("SELECT count(*) FROM {graph}.nodes"), [], |row| {
            row.get(0)
        })?;
    let orphans = found(&format!("SELECT id FROM ({ids}) WHERE {}", orphan(graph)))?;
    let mut issues = Vec::new();
    // If no id matches, the ids do not identify nodes. Then no vector is an orphan and none is
    // removed.
    let is_other = orphans.count == count && nodes > 0;
    if !orphans.is_empty() && is_other {
        let message = format!(
            "None of the {count} vectors of {} belongs to a node",
            named.path
        );
        issues.push(
            named
                .issue(IssueCode::VectorOrphan, message, REGENERATE)
                .found(orphans),
        );
    } else if !orphans.is_empty() {
        let message = format!(
            "{} of {} {}",
            wording::count(orphans.count, "vector"),
            named.path,
            wording::agree(
                orphans.count,
                "belongs to a node that does not exist",
                "belong to nodes that do not exist"
            )
        );
        issues.push(
            named
                .issue(IssueCode::VectorOrphan, message, REGENERATE)
                .found(orphans)
                .table(TABLE),
        );
    }
    let missing = found(&format!(
        "SELECT id FROM {graph}.nodes WHERE id NOT IN (SELECT id FROM ({ids}) WHERE id IS NOT NULL)"
    ))?;
    if !missing.is_empty() && count > 0 && !is_other {
        let message = format!(
            "{} {} no vector in {}",
            wording::count(missing.count, "node"),
            wording::agree(missing.count, "has", "have"),
            named.path
        );
        issues.push(
            named
                .issue(IssueCode::VectorMissing, message, REGENERATE)
                .found(missing),
        );
    }
    Ok(issues)
}

#[derive(Deserialize)]
struct Index {
    dimensions: u64,
    ids: Vec<String>,
}

/// Checks the vector files of a directory and its subdirectories, and returns the number of their
/// vectors. `graph` is a connection to a sound private copy of the graph, if there is one.
pub fn check_files(
    dir: &Path,
    path: &str,
    graph: Option<&Connection>,
    cancel: &CancelToken,
    issues: &mut Vec<Issue>,
) -> Result<u64> {
    let mut count = 0;
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let name = names::encode(Path::new(&entry.file_name()));
        if kind.is_dir() {
            count += check_files(
                &entry.path(),
                &format!("{path}/{name}"),
                graph,
                cancel,
                issues,
            )?;
        } else if kind.is_file()
            && entry
                .path()
                .extension()
                .is_some_and(|ending| ending == ENDING)
        {
            files.push((entry.path(), format!("{path}/{name}")));
        }
    }
    let index_file = dir.join(INDEX);
    if files.is_empty() || !index_file.is_file() {
        return Ok(count);
    }
    let index = match read_index(&index_file) {
        Ok(index) => index,
        Err(why) => {
            let path = format!("{path}/{INDEX}");
            let message = format!("{path} cannot be used: {why}");
            issues.push(
                Issue::new(IssueCode::VectorIndex, Part::Vectors, message, REGENERATE).path(path),
            );
            return Ok(count);
        }
    };
    files.sort();
    for (file, path) in files {
        let named = Named {
            path,
            part: Part::Vectors,
        };
        count += check_file(&file, &index, &named, cancel, issues)?;
        if let Some(graph) = graph {
            issues.extend(compare_ids(graph, &index.ids, &named)?);
        }
    }
    Ok(count)
}

fn read_index(path: &Path) -> std::result::Result<Index, String> {
    let file = regular_file::open(path).map_err(|cause| cause.to_string())?;
    let index: Index = serde_json::from_reader(BufReader::new(file.take(MAX_INDEX_BYTES)))
        .map_err(|cause| cause.to_string())?;
    let mut sorted: Vec<&String> = index.ids.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        _ if index.dimensions == 0 || index.dimensions > u64::from(u32::MAX) => {
            Err("`dimensions` is out of range".into())
        }
        Some(pair) => Err(format!("the id {} occurs twice", pair[0])),
        None => Ok(index),
    }
}

fn check_file(
    file: &Path,
    index: &Index,
    named: &Named,
    cancel: &CancelToken,
    issues: &mut Vec<Issue>,
) -> Result<u64> {
    let failed = |cause| Error::io("read", file, cause);
    let opened: File = match regular_file::open(file) {
        Ok(opened) => opened,
        // Another check reports files that cannot be read.
        Err(_) => return Ok(0),
    };
    let size = opened.metadata().map_err(failed)?.len();
    let vector_bytes = index.dimensions * NUMBER_BYTES;
    let expected = index.ids.len() as u64 * vector_bytes;
    if size != expected {
        let what = if size < expected {
            "cut off"
        } else {
            "longer than its index"
        };
        let message = format!(
            "{} is {what}: it has {size} bytes, but its index describes {expected}",
            named.path
        );
        issues.push(
            named
                .issue(IssueCode::VectorFile, message, REGENERATE)
                .severity(Severity::Error),
        );
    }
    let mut numbers = Numbers::default();
    let mut reader = BufReader::with_capacity(1 << 20, opened);
    let whole = (size / vector_bytes).min(index.ids.len() as u64);
    let mut vector = Vec::new();
    for id in index.ids.iter().take(whole as usize) {
        cancel.check()?;
        vector.clear();
        reader
            .by_ref()
            .take(vector_bytes)
            .read_to_end(&mut vector)
            .map_err(failed)?;
        numbers.judge(&vector, || id.clone());
    }
    issues.extend(numbers.issues(named));
    Ok(whole)
}

/// Compares ids with those of the nodes. The ids are copied to a temporary table so that SQL can
/// compare them.
fn compare_ids(graph: &Connection, ids: &[String], named: &Named) -> Result<Vec<Issue>> {
    let table = quoted("kg_vector_ids");
    let compared = || -> rusqlite::Result<Vec<Issue>> {
        graph.execute_batch(&format!("CREATE TEMP TABLE {table} (id TEXT); BEGIN"))?;
        let mut insert = graph.prepare(&format!("INSERT INTO temp.{table} VALUES (?1)"))?;
        for id in ids {
            insert.execute([id])?;
        }
        graph.execute_batch("COMMIT")?;
        if !has_table(graph, "nodes")? {
            return Ok(Vec::new());
        }
        let issues = compare(
            graph,
            named,
            &format!("SELECT id FROM temp.{table}"),
            ids.len() as u64,
            "main",
        )?;
        Ok(issues
            .into_iter()
            .map(|issue| Issue {
                table: None,
                ..issue
            })
            .collect())
    };
    let done = compared();
    let _ = graph.execute_batch(&format!("DROP TABLE IF EXISTS temp.{table}"));
    Ok(done.unwrap_or_else(|cause| {
        let message = format!("The ids of {} could not be compared: {cause}", named.path);
        vec![named.issue(IssueCode::NotChecked, message, "Check the database first")]
    }))
}
