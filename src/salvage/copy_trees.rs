//! Copies tables that SQLite cannot create here, page by page.
//!
//! If the definition of a table uses a function, collation or module that only the host has, the
//! new database cannot create it. Its rows then cannot be inserted either. Copying its trees needs
//! no evaluation, but none of their pages may be damaged or contested.
//!
//! The pages are appended to the new database with new numbers. The definitions of the table, its
//! indexes and its triggers are written into `sqlite_schema` unchanged. The definition of a virtual
//! table is copied in the same way, because ordinary tables hold its content.
//!
//! Not copied: tables with a damaged page, and tables of databases with a pointer map, with
//! reserved bytes, or with a schema format before 4. Their rows are inserted if SQLite can do that,
//! otherwise they go to `lost_and_found`.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use rusqlite::{Connection, config::DbConfig};

use super::{
    file::Source,
    not_sound,
    orphans::Orphans,
    overflow::Chains,
    schema::{Object, Schema},
    walk::TreeScan,
};
use crate::{
    error::{Error, Result},
    sqlite::{
        check::{Pragma, everything},
        files::lock_page,
        format::btree::{exact, u16_at, u32_at},
    },
    system::portable::FileExt,
    util::operation::CancelToken,
};

/// Offsets in the header of a database, and the only schema format in which every index has its
/// declared order.
const PAGE_COUNT_AT: u64 = 28;
const SCHEMA_FORMAT_AT: usize = 44;
const SCHEMA_FORMAT: u32 = 4;
/// Offsets in an interior page: the number of the right child, and the start of the cell pointers.
const RIGHT_CHILD_AT: usize = 8;
const POINTERS_AT: usize = 12;

/// A table with its indexes and triggers, which are copied together.
pub struct Unit {
    pub table: String,
    /// The table, followed by its indexes and then its triggers.
    pub objects: Vec<Object>,
    pub rows: u64,
    /// Pages of the trees (`true`) and of their overflow chains (`false`).
    pages: Vec<(u32, bool)>,
}

/// Objects that are added to the new database after everything else.
pub struct Carried {
    pub units: Vec<Unit>,
    /// Definitions of virtual tables.
    pub definitions: Vec<Object>,
    /// Full-text indexes that are rebuilt last, because their content may be in a table of `units`.
    pub full_text: Vec<Object>,
}

impl Carried {
    pub fn has(&self, table: &str) -> bool {
        self.units.iter().any(|unit| unit.table == table)
    }
}

/// Returns the units of those `tables` that are undamaged.
pub fn units(
    walk: &TreeScan<'_>,
    chains: &Chains,
    orphans: &Orphans,
    schema: &Schema,
    tables: &HashSet<String>,
) -> Vec<Unit> {
    let source = walk.source;
    let format = source
        .page(1)
        .and_then(|first| u32_at(&first, SCHEMA_FORMAT_AT));
    let is_plain = source.geometry.usable_bytes == source.page_size && !source.has_pointer_map;
    if !is_plain || format != Some(SCHEMA_FORMAT) {
        return Vec::new();
    }
    let mut tables: Vec<&String> = tables.iter().collect();
    tables.sort();
    tables
        .into_iter()
        .filter_map(|table| unit(walk, chains, orphans, schema, table))
        .collect()
}

fn unit(
    walk: &TreeScan<'_>,
    chains: &Chains,
    orphans: &Orphans,
    schema: &Schema,
    table: &str,
) -> Option<Unit> {
    let of_kind = |kind: &'static str| {
        let objects = schema
            .objects
            .iter()
            .filter(move |object| object.kind == kind);
        objects
            .filter(|object| object.table.eq_ignore_ascii_case(table))
            .cloned()
    };
    let mut objects: Vec<Object> = of_kind("table").collect();
    objects.extend(of_kind("index"));
    let mut unit = Unit {
        table: table.to_string(),
        objects: Vec::new(),
        rows: 0,
        pages: Vec::new(),
    };
    for object in &objects {
        let tree = walk
            .trees
            .iter()
            .position(|tree| tree.name == object.name && tree.root == object.root)?;
        let found = walk.found.get(tree)?;
        let is_whole = found.holes.is_empty() && found.pages_lost == 0 && found.cells_lost == 0;
        let has_orphans = orphans
            .assigned
            .get(tree)
            .is_some_and(|groups| !groups.is_empty());
        if object.root < 2 || !is_whole || has_orphans {
            return None;
        }
        let rows = copy(walk, chains, tree, object.root, &mut unit.pages)?;
        if object.kind == "table" {
            unit.rows = rows;
        }
    }
    objects.extend(of_kind("trigger"));
    unit.objects = objects;
    Some(unit)
}

/// Adds the pages of a tree to `pages` and returns the number of its entries. Returns `None` if a
/// page is not exactly what it must be.
fn copy(
    walk: &TreeScan<'_>,
    chains: &Chains,
    tree: usize,
    root: u32,
    pages: &mut Vec<(u32, bool)>,
) -> Option<u64> {
    let source = walk.source;
    let (mut rows, mut open) = (0, vec![root]);
    while let Some(number) = open.pop() {
        let is_own = walk.claimed_by(number) == Some(tree) && !is_free(walk, number);
        let page =
            exact(&source.page(number)?, number, source.geometry, |_| {}).filter(|_| is_own)?;
        pages.push((number, true));
        let holds_rows = !page.kind.is_interior() || !page.kind.is_table();
        rows += if holds_rows {
            page.cells.len() as u64
        } else {
            0
        };
        if page.kind.is_interior() {
            open.extend(
                page.cells
                    .iter()
                    .map(|cell| cell.child)
                    .chain([page.right_child]),
            );
        }
        for cell in page.cells.iter().filter(|cell| cell.overflow > 0) {
            let rest = cell.payload_bytes.checked_sub(cell.local_bytes as u64)?;
            let length = rest.div_ceil(source.geometry.usable_bytes as u64 - 4);
            let mut next = cell.overflow;
            for _ in 0..length {
                let is_own = chains.in_trees.get(next as usize) == Some(&1);
                let is_owned = walk.is_owned.get(next as usize).copied().unwrap_or(true);
                if !is_own || is_owned || is_free(walk, next) || source.is_reserved(next) {
                    return None;
                }
                pages.push((next, false));
                next = source.first_word(next)?;
            }
            if next != 0 {
                return None;
            }
        }
        // A page has at most one owner, so a tree cannot have more pages than the file.
        if pages.len() > source.present as usize {
            return None;
        }
    }
    Some(rows)
}

fn is_free(walk: &TreeScan<'_>, page: u32) -> bool {
    walk.is_free.get(page as usize).copied().unwrap_or(true)
}

/// Appends the units and the definitions of virtual tables to the new database at `path`, which no
/// connection may have open. Returns the virtual tables whose definition SQLite refuses, with the
/// reason.
///
/// Fails with `KG_INTERNAL` if the new database is not sound afterwards.
pub fn append(
    path: &Path,
    source: &Source,
    carried: &Carried,
    cancel: &CancelToken,
) -> Result<Vec<(Object, String)>> {
    let Carried {
        units, definitions, ..
    } = carried;
    if units.is_empty() && definitions.is_empty() {
        return Ok(Vec::new());
    }
    let written = append_pages(path, source, units, cancel);
    let roots = written.map_err(|cause| Error::io("write", path, cause))?;
    let objects = units.iter().flat_map(|unit| &unit.objects);
    write_schema(path, objects, &roots)?;
    let mut refused = Vec::new();
    for definition in definitions {
        write_schema(path, [definition], &roots)?;
        if let Some(reason) = unsound(path, cancel)? {
            remove(path, definition)?;
            refused.push((definition.clone(), reason));
        }
    }
    match unsound(path, cancel)? {
        None => Ok(refused),
        Some(reason) => Err(not_sound(&reason)),
    }
}

/// Appends the pages of the units and returns the new number of each page.
fn append_pages(
    path: &Path,
    source: &Source,
    units: &[Unit],
    cancel: &CancelToken,
) -> io::Result<HashMap<u32, u32>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let page_bytes = source.page_size as u64;
    let lock_page = u32::try_from(lock_page(page_bytes)).unwrap_or(u32::MAX);
    let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
    let mut last = u32::try_from(file.metadata()?.len() / page_bytes).map_err(|_| too_large())?;
    let mut numbers = HashMap::new();
    for (number, _) in units.iter().flat_map(|unit| &unit.pages) {
        last = last.checked_add(1).ok_or_else(too_large)?;
        if last == lock_page {
            last = last.checked_add(1).ok_or_else(too_large)?;
        }
        numbers.insert(*number, last);
    }
    for (number, is_of_tree) in units.iter().flat_map(|unit| &unit.pages) {
        cancel.check().map_err(io::Error::other)?;
        let page = source
            .page(*number)
            .and_then(|bytes| renumbered(bytes, *number, *is_of_tree, source, &numbers));
        let (Some(page), Some(new)) = (page, numbers.get(number)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        file.write_all_at(&page, u64::from(*new - 1) * page_bytes)?;
    }
    set_page_count(&file, last)?;
    Ok(numbers)
}

fn set_page_count(file: &File, count: u32) -> io::Result<()> {
    file.write_all_at(&count.to_be_bytes(), PAGE_COUNT_AT)
}

/// Returns the page with the new numbers of the pages that it refers to.
fn renumbered(
    mut bytes: Vec<u8>,
    number: u32,
    is_of_tree: bool,
    source: &Source,
    numbers: &HashMap<u32, u32>,
) -> Option<Vec<u8>> {
    if !is_of_tree {
        let next = u32_at(&bytes, 0)?;
        return set_number(
            &mut bytes,
            0,
            if next == 0 { 0 } else { *numbers.get(&next)? },
        )
        .map(|()| bytes);
    }
    let page = exact(&bytes, number, source.geometry, |_| {})?;
    for (index, cell) in page.cells.iter().enumerate() {
        if page.kind.is_interior() {
            let at = usize::from(u16_at(&bytes, POINTERS_AT + 2 * index)?);
            set_number(&mut bytes, at, *numbers.get(&cell.child)?)?;
        }
        if cell.overflow > 0 {
            set_number(
                &mut bytes,
                cell.local_start + cell.local_bytes,
                *numbers.get(&cell.overflow)?,
            )?;
        }
    }
    if page.kind.is_interior() {
        set_number(&mut bytes, RIGHT_CHILD_AT, *numbers.get(&page.right_child)?)?;
    }
    Some(bytes)
}

fn set_number(bytes: &mut [u8], at: usize, number: u32) -> Option<()> {
    bytes
        .get_mut(at..at.checked_add(4)?)?
        .copy_from_slice(&number.to_be_bytes());
    Some(())
}

fn write_schema<'o>(
    path: &Path,
    objects: impl IntoIterator<Item = &'o Object>,
    roots: &HashMap<u32, u32>,
) -> Result<()> {
    let written = || -> rusqlite::Result<()> {
        let connection = opened(path)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let sql = "INSERT INTO sqlite_schema (type, name, tbl_name, rootpage, sql) VALUES (?1, ?2, ?3, ?4, ?5)";
        for object in objects {
            let Object {
                kind,
                name,
                table,
                root,
                sql: text,
            } = object;
            let text = Some(text).filter(|text| !text.is_empty());
            connection.execute(
                sql,
                (
                    kind,
                    name,
                    table,
                    roots.get(root).copied().unwrap_or(0),
                    text,
                ),
            )?;
        }
        connection.execute_batch("COMMIT")
    };
    written().map_err(|cause| Error::sqlite("write", path, cause))
}

fn remove(path: &Path, object: &Object) -> Result<()> {
    let sql = "DELETE FROM sqlite_schema WHERE type = ?1 AND name = ?2 AND rootpage = 0";
    let removed =
        opened(path).and_then(|connection| connection.execute(sql, (&object.kind, &object.name)));
    removed
        .map(|_| ())
        .map_err(|cause| Error::sqlite("write", path, cause))
}

fn opened(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
    Ok(connection)
}

/// Checks the new database on a new connection and returns the first finding.
fn unsound(path: &Path, cancel: &CancelToken) -> Result<Option<String>> {
    let failed = |cause| Error::sqlite("check", path, cause);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)
        .map_err(failed)?;
    let found = everything(&mut connection, Pragma::Full { most_findings: 10 }, cancel)?;
    // The number of findings is limited, so findings about rows could hide damage.
    Ok(found.damage.into_iter().chain(found.rows).next())
}
