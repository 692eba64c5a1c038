//! The schema in the new database. Tables are created first to learn their columns and to be
//! filled. Objects that depend on their rows follow.

use std::collections::HashSet;

use super::{
    FallbackSchema,
    copy_trees::{Carried, Unit},
    file::Source,
    rebuild::{Target, is_virtual, module_of},
    report::ObjectReport,
    schema::{Object, Schema},
    walk::Tree,
};
use crate::{
    error::Result,
    sqlite::{format::btree::parse, quoted, row_schema::RowSchema},
};

/// Adds the objects of `fallback` that the schema lacks, with a warning.
pub fn add_fallback(schema: &mut Schema, fallback: FallbackSchema<'_>, warnings: &mut Vec<String>) {
    let known: HashSet<String> = schema
        .objects
        .iter()
        .map(|object| object.name.to_ascii_lowercase())
        .collect();
    let mut added = Vec::new();
    for (name, sql) in fallback
        .iter()
        .filter(|(name, _)| !known.contains(&name.to_ascii_lowercase()))
    {
        let words: Vec<String> = sql
            .split_whitespace()
            .take(3)
            .map(str::to_ascii_lowercase)
            .collect();
        let kinds = ["table", "index", "view", "trigger"];
        let kind = kinds
            .into_iter()
            .find(|kind| words.iter().any(|word| word == kind))
            .unwrap_or("table");
        schema.objects.push(Object {
            kind: kind.to_string(),
            name: name.to_string(),
            table: name.to_string(),
            root: 0,
            sql: sql.to_string(),
        });
        added.push(*name);
    }
    if !added.is_empty() {
        warnings.push(format!(
            "The schema is damaged; these were created from their known definitions: {}",
            added.join(", ")
        ));
    }
}

/// The result of creating the schema.
pub struct Made {
    pub trees: Vec<Tree>,
    /// Tables that belong to virtual tables and whose content is derived.
    pub shadows: HashSet<String>,
    /// Tables that SQLite cannot create here, or not with all indexes, because only the host has
    /// what they use.
    pub unready: HashSet<String>,
    /// Virtual tables whose content is in ordinary tables, which are copied. Only the definition
    /// has to be added.
    pub definitions: Vec<Object>,
}

/// Creates the tables and lists all trees.
pub fn create_tables(target: &mut Target, schema: &mut Schema, source: &Source) -> Result<Made> {
    let (mut contents, mut unready, mut definitions) = (HashSet::new(), HashSet::new(), Vec::new());
    let objects = schema.objects.clone();
    for object in objects.iter().filter(|object| is_virtual(object)) {
        if is_derived(object) && target.create_object(object)? {
            contents.insert(format!("{}_content", object.name));
        } else {
            target.reports.retain(|report| report.name != object.name);
            definitions.push(object.clone());
        }
    }
    // So far only the tables that belong to virtual tables exist.
    let shadows: HashSet<String> = names(target, "table")?.into_iter().collect();
    let mut made: HashSet<String> = shadows.clone();
    // The only table that uses `sqlite_sequence` may be one that is copied as pages.
    if objects
        .iter()
        .any(|object| object.name == "sqlite_sequence")
    {
        target.make_sequences()?;
    }
    for object in objects
        .iter()
        .filter(|object| is_ordinary_table(object) && !shadows.contains(&object.name))
    {
        if object.name.starts_with("sqlite_") {
            continue;
        }
        if target.create_object(object)? {
            made.insert(object.name.clone());
        } else if target.lacks_something_for(object) {
            unready.insert(object.name.clone());
        }
    }
    made.extend(names(target, "table")?);
    for object in objects
        .iter()
        .filter(|object| object.kind == "index" && !object.sql.is_empty())
    {
        if !target.create_object(object)? && target.lacks_something_for(object) {
            unready.insert(object.table.clone());
        }
    }
    for name in shadows
        .iter()
        .filter(|name| !objects.iter().any(|object| object.name == **name))
    {
        if !objects
            .iter()
            .any(|object| is_virtual(object) && object.name == *name)
        {
            let (table, name) = (name.clone(), name.clone());
            schema.objects.push(Object {
                kind: "table".to_string(),
                name,
                table,
                root: 0,
                sql: String::new(),
            });
        }
    }
    let mut trees = vec![Tree {
        name: "sqlite_schema".to_string(),
        root: 1,
        by_rowid: true,
        is_index: false,
        shape: Some(RowSchema::of_schema()),
    }];
    for object in schema.objects.iter().filter(|object| !is_virtual(object)) {
        let shape = match object.kind.as_str() {
            "table" if made.contains(&object.name) => {
                RowSchema::of_table(&target.connection, &object.name).ok()
            }
            "index" => RowSchema::of_index(&target.connection, &object.name)
                .ok()
                .map(|shape| (shape, false)),
            _ => None,
        };
        let is_index = object.kind == "index";
        // If SQLite could not create the object, its root page shows the kind of the tree.
        let root = || {
            source
                .page(object.root)
                .and_then(|bytes| parse(&bytes, object.root, source.geometry))
        };
        let is_table = || root().map_or(!is_index, |page| page.kind.is_table());
        let by_rowid = shape
            .as_ref()
            .map_or_else(is_table, |(_, by_rowid)| *by_rowid);
        if (object.kind == "table" || is_index) && (object.root > 1 || shape.is_some()) {
            let (name, root) = (object.name.clone(), object.root);
            trees.push(Tree {
                name,
                root,
                by_rowid,
                is_index,
                shape: shape.map(|(shape, _)| shape),
            });
        }
    }
    // Filling an index row by row is slow. Only unique indexes are needed now, to find rows that
    // violate them.
    let failed = |target: &Target, cause| target.error(cause);
    for object in objects
        .iter()
        .filter(|object| object.kind == "index" && !is_unique(object) && !object.sql.is_empty())
    {
        if target.has("index", &object.name)? {
            let sql = format!("DROP INDEX {}", quoted(&object.name));
            target
                .connection
                .execute_batch(&sql)
                .map_err(|cause| failed(target, cause))?;
        }
    }
    target
        .reports
        .retain(|report| report.kind != "index" || report.failed.is_some());
    let shadows = shadows
        .into_iter()
        .filter(|name| !contents.contains(name))
        .collect();
    Ok(Made {
        trees,
        shadows,
        unready,
        definitions,
    })
}

/// Returns whether an object is a full-text index that can be rebuilt from its content.
fn is_derived(object: &Object) -> bool {
    let plain: String = object.sql.to_lowercase().split_whitespace().collect();
    let has_content = !plain.contains("content=''") && !plain.contains("content=\"\"");
    has_content && ["fts3", "fts4", "fts5"].contains(&module_of(object).as_str())
}

/// Drops what was created of the tables that are copied as pages.
pub fn leave(target: &mut Target, units: &[Unit]) -> Result<()> {
    for unit in units {
        target.in_savepoint(|connection| {
            connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&unit.table)))
        })?;
        let is_of_unit =
            |report: &ObjectReport| unit.objects.iter().any(|object| object.name == report.name);
        target.reports.retain(|report| !is_of_unit(report));
        let carried = unit
            .objects
            .iter()
            .filter(|object| object.kind != "table" && !object.sql.is_empty());
        target.reports.extend(carried.map(|object| ObjectReport {
            kind: object.kind.clone(),
            name: object.name.clone(),
            failed: None,
        }));
    }
    Ok(())
}

fn is_ordinary_table(object: &Object) -> bool {
    object.kind == "table" && !is_virtual(object)
}

fn is_unique(object: &Object) -> bool {
    object
        .sql
        .split_whitespace()
        .nth(1)
        .is_some_and(|word| word.eq_ignore_ascii_case("UNIQUE"))
}

fn names(target: &Target, kind: &str) -> Result<Vec<String>> {
    let listed = || -> rusqlite::Result<Vec<String>> {
        let mut statement = target
            .connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = ?1")?;
        statement.query_map([kind], |row| row.get(0))?.collect()
    };
    listed().map_err(|cause| target.error(cause))
}

/// Creates the indexes, views and triggers, after the rows were inserted.
pub fn finish(target: &mut Target, schema: &Schema, carried: &Carried) -> Result<()> {
    let is_made_here = |object: &&Object| !carried.has(&object.table);
    let indexes = schema
        .objects
        .iter()
        .filter(|object| object.kind == "index" && !object.sql.is_empty());
    for object in indexes.filter(is_made_here) {
        let has_failed = target
            .reports
            .iter()
            .any(|report| report.kind == "index" && report.name == object.name);
        if is_unique(object) && !has_failed {
            let report = ObjectReport {
                kind: "index".to_string(),
                name: object.name.clone(),
                failed: None,
            };
            target.reports.push(report);
        } else if !has_failed {
            target.create_object(object)?;
        }
    }
    for object in schema.objects.iter().filter(|object| object.kind == "view") {
        target.create_object(object)?;
    }
    for object in schema
        .objects
        .iter()
        .filter(|object| object.kind == "trigger")
        .filter(is_made_here)
    {
        target.create_object(object)?;
    }
    if schema
        .objects
        .iter()
        .any(|object| object.name == "sqlite_stat1")
    {
        // ANALYZE computes the statistics for the rows that exist now.
        target.in_savepoint(|connection| connection.execute_batch("ANALYZE"))?;
    }
    Ok(())
}
