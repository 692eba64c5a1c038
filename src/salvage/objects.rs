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
    let objects = schema.objects.clone();
    let virtual_tables = create_virtual_tables(target, &objects)?;
    // So far only the tables that belong to virtual tables exist.
    let mut shadows = table_names(target)?;
    // The only table that uses `sqlite_sequence` may be one that is copied as pages.
    if objects
        .iter()
        .any(|object| object.name == "sqlite_sequence")
    {
        target.make_sequences()?;
    }
    let tables = create_ordinary_tables(target, &objects, &shadows)?;
    create_indexes(target, &objects)?;
    let unready = unready_tables(target, &objects);
    schema.objects.extend(unlisted(&objects, &shadows));
    let trees = trees(target, &schema.objects, &tables, source);
    drop_plain_indexes(target, &objects)?;
    target
        .reports
        .retain(|report| report.kind != "index" || report.failed.is_some());
    shadows.retain(|name| !virtual_tables.contents.contains(name));
    Ok(Made {
        trees,
        shadows,
        unready,
        definitions: virtual_tables.definitions,
    })
}

/// The virtual tables of the schema.
struct VirtualTables {
    /// Names of the tables that hold the content of the created full-text indexes.
    contents: HashSet<String>,
    /// The virtual tables that were not created.
    definitions: Vec<Object>,
}

/// Creates the full-text indexes that can be rebuilt from their content. The other virtual tables
/// are only listed.
fn create_virtual_tables(target: &mut Target, objects: &[Object]) -> Result<VirtualTables> {
    let (mut contents, mut definitions) = (HashSet::new(), Vec::new());
    for object in objects.iter().filter(|object| is_virtual(object)) {
        if is_derived(object) && target.create_object(object)? {
            contents.insert(format!("{}_content", object.name));
        } else {
            target.reports.retain(|report| report.name != object.name);
            definitions.push(object.clone());
        }
    }
    Ok(VirtualTables {
        contents,
        definitions,
    })
}

/// Creates the tables that are neither virtual nor belong to a virtual table. Returns the names of
/// all tables that exist then.
fn create_ordinary_tables(
    target: &mut Target,
    objects: &[Object],
    shadows: &HashSet<String>,
) -> Result<HashSet<String>> {
    let mut created = HashSet::new();
    for object in objects.iter().filter(|object| {
        is_ordinary_table(object)
            && !shadows.contains(&object.name)
            && !object.name.starts_with("sqlite_")
    }) {
        if target.create_object(object)? {
            created.insert(object.name.clone());
        }
    }
    created.extend(table_names(target)?);
    Ok(created)
}

fn create_indexes(target: &mut Target, objects: &[Object]) -> Result<()> {
    for index in objects.iter().filter(|object| is_explicit_index(object)) {
        target.create_object(index)?;
    }
    Ok(())
}

/// Returns the tables that could not be created completely because this build of SQLite lacks
/// something that their definition or one of their indexes uses.
fn unready_tables(target: &Target, objects: &[Object]) -> HashSet<String> {
    objects
        .iter()
        .filter(|object| target.lacks_something_for(object))
        .map(|object| match object.kind.as_str() {
            "index" => object.table.clone(),
            _ => object.name.clone(),
        })
        .collect()
}

/// Returns an object for each table of a virtual table that the damaged schema does not list.
fn unlisted(objects: &[Object], shadows: &HashSet<String>) -> Vec<Object> {
    let listed: HashSet<&String> = objects.iter().map(|object| &object.name).collect();
    shadows
        .iter()
        .filter(|name| !listed.contains(name))
        .map(|name| Object {
            kind: "table".to_string(),
            name: name.clone(),
            table: name.clone(),
            root: 0,
            sql: String::new(),
        })
        .collect()
}

/// Lists the trees of the schema itself and of all tables and indexes.
fn trees(
    target: &Target,
    objects: &[Object],
    tables: &HashSet<String>,
    source: &Source,
) -> Vec<Tree> {
    let mut trees = vec![Tree {
        name: "sqlite_schema".to_string(),
        root: 1,
        by_rowid: true,
        is_index: false,
        shape: Some(RowSchema::of_schema()),
    }];
    trees.extend(
        objects
            .iter()
            .filter(|object| !is_virtual(object))
            .filter_map(|object| tree(target, object, tables, source)),
    );
    trees
}

/// Returns the tree of a table or an index; `None` if its root is unknown and SQLite could not
/// create it.
fn tree(
    target: &Target,
    object: &Object,
    tables: &HashSet<String>,
    source: &Source,
) -> Option<Tree> {
    let is_index = object.kind == "index";
    let shape = match object.kind.as_str() {
        "table" if tables.contains(&object.name) => {
            RowSchema::of_table(&target.connection, &object.name).ok()
        }
        "index" => RowSchema::of_index(&target.connection, &object.name)
            .ok()
            .map(|shape| (shape, false)),
        _ => None,
    };
    let has_tree = object.kind == "table" || is_index;
    if !has_tree || (object.root <= 1 && shape.is_none()) {
        return None;
    }
    let (shape, by_rowid) = match shape {
        Some((shape, by_rowid)) => (Some(shape), by_rowid),
        // SQLite could not create the object, but its root page shows the kind of the tree.
        None => (
            None,
            root_is_of_table(source, object.root).unwrap_or(!is_index),
        ),
    };
    Some(Tree {
        name: object.name.clone(),
        root: object.root,
        by_rowid,
        is_index,
        shape,
    })
}

/// Returns whether a root page belongs to a tree with rowids; `None` if the page is unreadable.
fn root_is_of_table(source: &Source, root: u32) -> Option<bool> {
    let bytes = source.page(root)?;
    parse(&bytes, root, source.geometry).map(|page| page.kind.is_table())
}

/// Drops the indexes that are not unique, because filling an index row by row is slow. Only unique
/// indexes are needed now, to find rows that violate them.
fn drop_plain_indexes(target: &Target, objects: &[Object]) -> Result<()> {
    for index in objects
        .iter()
        .filter(|object| is_explicit_index(object) && !is_unique(object))
    {
        if target.has("index", &index.name)? {
            target
                .connection
                .execute_batch(&format!("DROP INDEX {}", quoted(&index.name)))
                .map_err(|cause| target.error(cause))?;
        }
    }
    Ok(())
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

/// Returns whether an object is an index with a definition of its own. SQLite creates the others
/// together with their tables.
fn is_explicit_index(object: &Object) -> bool {
    object.kind == "index" && !object.sql.is_empty()
}

fn table_names(target: &Target) -> Result<HashSet<String>> {
    let listed = || -> rusqlite::Result<HashSet<String>> {
        let mut statement = target
            .connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    listed().map_err(|cause| target.error(cause))
}

/// Creates the indexes, views and triggers, after the rows were inserted.
pub fn finish(target: &mut Target, schema: &Schema, carried: &Carried) -> Result<()> {
    let is_made_here = |object: &&Object| !carried.has(&object.table);
    let indexes = schema
        .objects
        .iter()
        .filter(|object| is_explicit_index(object));
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
