//! Salvage: a new, sound database of what can be read of a damaged one.
//!
//! ```text
//! file + WAL ─▶ schema ─▶ trees ─▶ overflow chains ─▶ pages without parents ─▶ rows ─▶ new database ─▶ checked
//! ```
//!
//! The source is only read, page by page, never through SQLite. Rules:
//!
//! * A row that was not in the database never gets into one of its tables. Deleted rows (free pages, free blocks) are not read.
//!   What may be a row, but is not certain, goes to the table `lost_and_found` with the reason.
//! * Every row whose pages are intact comes back, whatever happened to the pages above them, as long as it can be told which
//!   table they are of.
//! * Any input ends in a result or an error: each page is visited a bounded number of times. Memory: some 20 bytes a page, one row,
//!   and what SQLite caches.
//!
//! Not guaranteed: a bit that flipped inside a value, and leaves a record that adds up, is not noticed: SQLite's pages have no
//! checksums. A rollback journal is not applied; a warning says that there is one. A page that a tree and a list of free pages
//! without other faults both claim counts as free: the rows on it are lost.

mod file;
mod freelist;
mod orphans;
mod overflow;
mod page;
mod rebuild;
mod record;
pub mod report;
mod rows;
mod schema;
mod wal;
mod walk;

use std::{collections::HashSet, fs, path::Path};

use self::{
    file::Source,
    freelist::Freelist,
    orphans::{Group, Orphans},
    overflow::{Chains, Owner},
    rebuild::{Target, is_virtual, module_of},
    report::{LostBy, MAX_NAMED_PAGES, ObjectReport, Salvaged, TableReport, UnreadablePage, UnreadablePages, WalUse},
    rows::{Filler, LostAndFound, Place, missing_by_index, of_leaf},
    schema::{Object, Schema, Shape},
    wal::Wal,
    walk::{Hole, Leaf, Tree, Walk},
};
use crate::{
    error::{Code, Error, Result},
    sqlite::files::companion,
    task::Cancel,
};

/// More pages than any database that this is for; each takes memory.
const MAX_PAGES: u32 = 1 << 29;
/// Names in one warning.
const MAX_NAMES: usize = 5;

/// Tables, indexes and triggers that the database should have: name and text. Used where the schema is damaged.
pub type FallbackSchema<'a> = &'a [(&'a str, &'a str)];

/// Salvages `source` into a new database at `target`, which must not exist.
///
/// `KG_TARGET_EXISTS`, `KG_DATABASE_DAMAGED` where there is nothing to recover, `KG_ABORTED`, and errors of the file system.
/// Whatever fails, `target` is removed again.
pub fn salvage(source: &Path, target: &Path, fallback: FallbackSchema<'_>, cancel: &Cancel) -> Result<Salvaged> {
    if target.symlink_metadata().is_ok() {
        return Err(Error::new(
            Code::TargetExists,
            format!("{} exists", target.display()),
            "Name a file that does not exist yet",
        ));
    }
    let salvaged = salvage_new(source, target, fallback, cancel);
    if salvaged.is_err() {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // Nothing can be done about a failure, and the first error says what is wrong.
            let _ = fs::remove_file(companion(target, suffix));
        }
    }
    salvaged
}

fn salvage_new(path: &Path, target: &Path, fallback: FallbackSchema<'_>, cancel: &Cancel) -> Result<Salvaged> {
    let mut salvaged = Salvaged::default();
    let source = open(path, &mut salvaged, cancel)?;
    let nothing = || {
        Error::new(
            Code::DatabaseDamaged,
            format!("{} holds nothing that could be recovered", path.display()),
            "Restore the newest good backup with `kg diag restore --file latest`",
        )
    };
    if source.present > MAX_PAGES {
        return Err(Error::new(
            Code::Unsupported,
            format!("{} has {} pages, more than the {MAX_PAGES} that can be salvaged", path.display(), source.present),
            "Restore the newest good backup",
        ));
    }
    if source.recognised == 0 && source.present <= 1 && !source.header.is_sound {
        return Err(nothing());
    }
    let freelist = freelist::read(&source, cancel)?;
    let in_use = in_use(&freelist, &source);
    let mut schema = schema::read(&source, &in_use, cancel)?;
    salvaged.page_size_bytes = source.page_size as u64;
    salvaged.page_count = u64::from(source.present);
    salvaged.header_readable = source.header.is_sound;
    salvaged.schema_readable = schema.is_whole;
    if !schema.is_whole {
        add_fallback(&mut schema, fallback, &mut salvaged.warnings);
    }
    let mut target = Target::create(target, source.page_size, source.encoding, &source.header, cancel)?;
    let (trees, shadows) = create_tables(&mut target, &mut schema)?;
    let mut walk = Walk::new(&source, trees, in_use, cancel);
    walk.run()?;
    let mut chains = Chains::new(&source);
    for (tree, found) in walk.trees.iter().zip(&walk.found) {
        for leaf in &found.leaves {
            cancel.check()?;
            if let Some((_, page)) = walk.read(leaf.page, tree.by_rowid) {
                chains.claim(&walk, &page, Owner::Tree);
            }
        }
    }
    let orphans = orphans::find(&walk, &mut chains, &freelist, schema.is_whole, cancel)?;
    let rows = Rows { walk: &walk, chains: &chains, orphans: &orphans, shadows: &shadows, cancel };
    rows.fill(&target, &schema, &mut salvaged)?;
    let is_empty = salvaged.tables.iter().all(|table| table.rows_recovered == 0) && salvaged.lost_and_found.is_none();
    if is_empty && !(source.header.is_sound && schema.is_whole) {
        return Err(nothing());
    }
    finish_schema(&mut target, &schema)?;
    rows.count_losses(&target, &mut salvaged)?;
    salvaged.rows_recovered = salvaged.tables.iter().map(|table| table.rows_recovered).sum();
    salvaged.leftover_pages = orphans.left;
    salvaged.unreadable_pages = UnreadablePages {
        count: walk.bad_pages.len() as u64,
        first: walk.bad_pages.iter().take(MAX_NAMED_PAGES).map(|bad| named(bad.page, bad.reason)).collect(),
    };
    warn(&mut salvaged, path, &freelist, &orphans, &target)?;
    salvaged.objects = target.finish(&source.header)?;
    Ok(salvaged)
}

fn named(page: u32, reason: &str) -> UnreadablePage {
    UnreadablePage { page, reason: reason.to_string() }
}

/// Free pages as the trees may know them: a list that contradicts itself says nothing.
fn in_use(freelist: &Freelist, source: &Source) -> Vec<bool> {
    match freelist.is_sound {
        true => freelist.is_free.clone(),
        false => vec![false; source.present as usize + 1],
    }
}

/// Opens the file with its WAL, where that is of this database.
fn open(path: &Path, salvaged: &mut Salvaged, cancel: &Cancel) -> Result<Source> {
    let alone = Source::open(path, None, cancel)?;
    let ignored = match Wal::open(path, cancel)? {
        Ok(None) => return Ok(alone),
        Ok(Some(wal)) => {
            let page_size = wal.page_size_bytes;
            let with_wal = Source::open(path, Some(wal), cancel)?;
            match foreign(&alone, &with_wal, page_size, cancel)? {
                None => {
                    salvaged.wal = WalUse::Applied;
                    return Ok(with_wal);
                }
                Some(reason) => reason.to_string(),
            }
        }
        Err(reason) => reason,
    };
    salvaged.wal = WalUse::Ignored;
    salvaged.warnings.push(format!("The WAL beside the database was ignored: {ignored}"));
    Ok(alone)
}

/// Why a WAL is not of this database: it would make it worse, or something else.
fn foreign(alone: &Source, with_wal: &Source, page_size: usize, cancel: &Cancel) -> Result<Option<&'static str>> {
    let (before, after) = (&alone.header, &with_wal.header);
    if alone.page_size != page_size && with_wal.wal_pages() == 0 {
        return Ok(Some("its pages are of another size"));
    }
    if before.is_sound && !before.is_wal {
        return Ok(Some("the database is not in WAL mode"));
    }
    if before.is_sound && after.is_sound && after.change_counter < before.change_counter {
        return Ok(Some("it is older than the database"));
    }
    let (problems_alone, schema_alone) = problems(alone, cancel)?;
    let (problems_with, schema_with) = problems(with_wal, cancel)?;
    if problems_with > problems_alone {
        return Ok(Some("its pages do not fit into the database"));
    }
    let names =
        |schema: &Schema| -> HashSet<String> { schema.objects.iter().map(|object| object.sql.clone()).collect() };
    let (alone, with) = (names(&schema_alone), names(&schema_with));
    let is_other = !alone.is_empty() && !with.is_empty() && alone.is_disjoint(&with);
    Ok(is_other.then_some("it has other tables"))
}

/// How many places of the trees are not as they should be.
fn problems(source: &Source, cancel: &Cancel) -> Result<(usize, Schema)> {
    let freelist = freelist::read(source, cancel)?;
    let in_use = in_use(&freelist, source);
    let schema = schema::read(source, &in_use, cancel)?;
    let rooted = schema.objects.iter().filter(|object| object.root > 0);
    let trees = rooted.map(|object| {
        let by_rowid = object.kind == "table" && !object.sql.to_ascii_uppercase().contains("WITHOUT ROWID");
        Tree { name: object.name.clone(), root: object.root, by_rowid, is_index: object.kind == "index", shape: None }
    });
    let mut walk = Walk::new(source, trees.collect(), in_use, cancel);
    walk.run()?;
    Ok((walk.problems() + usize::from(!schema.is_whole), schema))
}

/// Adds what the database should have, and the schema lacks.
fn add_fallback(schema: &mut Schema, fallback: FallbackSchema<'_>, warnings: &mut Vec<String>) {
    let known: HashSet<String> = schema.objects.iter().map(|object| object.name.to_ascii_lowercase()).collect();
    let mut added = Vec::new();
    for (name, sql) in fallback.iter().filter(|(name, _)| !known.contains(&name.to_ascii_lowercase())) {
        let words: Vec<String> = sql.split_whitespace().take(3).map(str::to_ascii_lowercase).collect();
        let kinds = ["table", "index", "view", "trigger"];
        let kind = kinds.into_iter().find(|kind| words.iter().any(|word| word == kind)).unwrap_or("table");
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
        warnings.push(format!("The schema is damaged; these were made as they are known to be: {}", added.join(", ")));
    }
}

/// Creates the tables, and lists all trees. The second list names the tables that belong to virtual tables.
fn create_tables(target: &mut Target, schema: &mut Schema) -> Result<(Vec<Tree>, HashSet<String>)> {
    let mut contents = HashSet::new();
    let objects = schema.objects.clone();
    for object in objects.iter().filter(|object| is_virtual(object)) {
        if target.create_object(object)? && module_of(object).starts_with("fts") {
            contents.insert(format!("{}_content", object.name));
        }
    }
    // What exists now are the tables of virtual tables.
    let shadows: HashSet<String> = names(target, "table")?.into_iter().collect();
    let mut made: HashSet<String> = shadows.clone();
    for object in objects.iter().filter(|object| is_ordinary_table(object) && !shadows.contains(&object.name)) {
        if !object.name.starts_with("sqlite_") && target.create_object(object)? {
            made.insert(object.name.clone());
        }
    }
    made.extend(names(target, "table")?);
    for object in objects.iter().filter(|object| object.kind == "index" && !object.sql.is_empty()) {
        target.create_object(object)?;
    }
    for name in shadows.iter().filter(|name| !objects.iter().any(|object| object.name == **name)) {
        if !objects.iter().any(|object| is_virtual(object) && object.name == *name) {
            let (table, name) = (name.clone(), name.clone());
            schema.objects.push(Object { kind: "table".to_string(), name, table, root: 0, sql: String::new() });
        }
    }
    let mut trees = vec![Tree {
        name: "sqlite_schema".to_string(),
        root: 1,
        by_rowid: true,
        is_index: false,
        shape: Some(Shape::of_schema()),
    }];
    for object in schema.objects.iter().filter(|object| !is_virtual(object)) {
        let shape = match object.kind.as_str() {
            "table" if made.contains(&object.name) => Shape::of_table(&target.connection, &object.name).ok(),
            "index" => Shape::of_index(&target.connection, &object.name).ok().map(|shape| (shape, false)),
            _ => None,
        };
        let is_index = object.kind == "index";
        let by_rowid = shape.as_ref().map_or(!is_index, |(_, by_rowid)| *by_rowid);
        if (object.kind == "table" || is_index) && (object.root > 1 || shape.is_some()) {
            let (name, root) = (object.name.clone(), object.root);
            trees.push(Tree { name, root, by_rowid, is_index, shape: shape.map(|(shape, _)| shape) });
        }
    }
    // Filling an index row by row is slow; unique ones have to be there to see which rows break them.
    let failed = |target: &Target, cause| target.error(cause);
    for object in objects.iter().filter(|object| object.kind == "index" && !is_unique(object) && !object.sql.is_empty())
    {
        if target.has("index", &object.name)? {
            let sql = format!("DROP INDEX {}", rebuild::quoted(&object.name));
            target.connection.execute_batch(&sql).map_err(|cause| failed(target, cause))?;
        }
    }
    target.reports.retain(|report| report.kind != "index" || report.failed.is_some());
    let shadows = shadows.into_iter().filter(|name| !contents.contains(name)).collect();
    Ok((trees, shadows))
}

fn is_ordinary_table(object: &Object) -> bool {
    object.kind == "table" && !is_virtual(object)
}

fn is_unique(object: &Object) -> bool {
    object.sql.split_whitespace().nth(1).is_some_and(|word| word.eq_ignore_ascii_case("UNIQUE"))
}

fn names(target: &Target, kind: &str) -> Result<Vec<String>> {
    let listed = || -> rusqlite::Result<Vec<String>> {
        let mut statement = target.connection.prepare("SELECT name FROM sqlite_schema WHERE type = ?1")?;
        statement.query_map([kind], |row| row.get(0))?.collect()
    };
    listed().map_err(|cause| target.error(cause))
}

/// Indexes, views, full-text indexes and triggers, after the rows.
fn finish_schema(target: &mut Target, schema: &Schema) -> Result<()> {
    for object in schema.objects.iter().filter(|object| object.kind == "index" && !object.sql.is_empty()) {
        let has_failed = target.reports.iter().any(|report| report.kind == "index" && report.name == object.name);
        if is_unique(object) && !has_failed {
            let report = ObjectReport { kind: "index".to_string(), name: object.name.clone(), failed: None };
            target.reports.push(report);
        } else if !has_failed {
            target.create_object(object)?;
        }
    }
    for object in schema.objects.iter().filter(|object| object.kind == "view") {
        target.create_object(object)?;
    }
    for object in schema.objects.iter().filter(|object| is_virtual(object)) {
        target.rebuild_full_text(object)?;
    }
    for object in schema.objects.iter().filter(|object| object.kind == "trigger") {
        target.create_object(object)?;
    }
    if schema.objects.iter().any(|object| object.name == "sqlite_stat1") {
        // Statistics are of the rows that are there now.
        target.in_savepoint(|connection| connection.execute_batch("ANALYZE"))?;
    }
    Ok(())
}

fn warn(salvaged: &mut Salvaged, path: &Path, freelist: &Freelist, orphans: &Orphans, target: &Target) -> Result<()> {
    if fs::metadata(companion(path, "-journal")).is_ok_and(|journal| journal.len() > 0) {
        salvaged.warnings.push(
            "A rollback journal lies beside the database: a transaction that was never committed may be half in it. The journal was not applied"
                .to_string(),
        );
    }
    if !freelist.is_sound && !orphans.freelist_was_certain && !orphans.aside.is_empty() {
        salvaged.warnings.push(
            "The list of free pages is damaged: rows on pages without a parent may have been deleted, and are in lost_and_found".to_string(),
        );
    }
    let sql = "SELECT DISTINCT \"table\" FROM pragma_foreign_key_check LIMIT ?1";
    let broken = || -> rusqlite::Result<Vec<String>> {
        let mut statement = target.connection.prepare(sql)?;
        statement.query_map([MAX_NAMES], |row| row.get(0))?.collect()
    };
    // It fails where a foreign key names a table that is not there, which then is in the reports.
    if let Ok(tables) = broken()
        && !tables.is_empty()
    {
        salvaged
            .warnings
            .push(format!("Rows refer by foreign key to rows that are not there, in: {}", tables.join(", ")));
    }
    salvaged.warnings.sort();
    salvaged.warnings.dedup();
    Ok(())
}

/// Everything that is known when rows are copied.
struct Rows<'r, 'w> {
    walk: &'r Walk<'w>,
    chains: &'r Chains,
    orphans: &'r Orphans,
    /// Tables whose content is derived.
    shadows: &'r HashSet<String>,
    cancel: &'r Cancel,
}

impl Rows<'_, '_> {
    /// Copies the rows of all tables, and what belongs to none.
    fn fill(&self, target: &Target, schema: &Schema, salvaged: &mut Salvaged) -> Result<()> {
        let taken: HashSet<String> = schema.objects.iter().map(|object| object.name.to_ascii_lowercase()).collect();
        let mut lost = LostAndFound::new(|name| taken.contains(name));
        // Whatever the sequences are, rows come first: inserting moves them.
        let mut order: Vec<usize> = (1..self.walk.trees.len()).collect();
        order.sort_by_key(|index| self.walk.trees[*index].name == "sqlite_sequence");
        for index in order {
            let tree = &self.walk.trees[index];
            let is_derived = self.shadows.contains(&tree.name) || tree.name.starts_with("sqlite_stat");
            if !tree.is_index && !is_derived {
                let report = self.fill_table(index, target, &mut lost, salvaged)?;
                if tree.name != "sqlite_sequence" {
                    salvaged.tables.push(report);
                }
            }
        }
        for (group, reason) in &self.orphans.aside {
            let holds_schema =
                group.by_rowid && group.leaves.iter().all(|leaf| schema::holds_schema(self.walk.source, leaf.page));
            if !holds_schema {
                self.put_aside(group, reason, target, &mut lost)?;
            }
        }
        salvaged.lost_and_found = lost.report();
        Ok(())
    }

    fn fill_table(
        &self,
        index: usize,
        target: &Target,
        lost: &mut LostAndFound,
        salvaged: &mut Salvaged,
    ) -> Result<TableReport> {
        let (tree, found) = (&self.walk.trees[index], &self.walk.found[index]);
        let mut report = TableReport { name: tree.name.clone(), ..TableReport::default() };
        let mut leaves: Vec<(Leaf, Owner)> = found.leaves.iter().map(|leaf| (*leaf, Owner::Tree)).collect();
        let assigned = self.orphans.assigned[index].iter().flat_map(|group| &group.leaves);
        leaves.extend(assigned.map(|leaf| (*leaf, Owner::Orphan)));
        report.pages_reassigned = (leaves.len() - found.leaves.len()) as u64;
        report.pages_lost = found.pages_lost;
        if tree.by_rowid {
            leaves.sort_by_key(|(leaf, _)| leaf.first);
        }
        let encoding = self.walk.source.encoding;
        let mut filler =
            tree.shape.as_ref().map(|shape| Filler::new(&target.connection, &tree.name, shape, tree.by_rowid));
        if filler.as_ref().is_some_and(|filler| !filler.keeps_rowids()) {
            salvaged
                .warnings
                .push(format!("{} has columns that hide its rowid: its rows were numbered anew", tree.name));
        }
        if tree.name == "sqlite_sequence" && filler.is_some() {
            target.connection.execute_batch("DELETE FROM sqlite_sequence").map_err(|cause| target.error(cause))?;
        }
        for (leaf, owner) in &leaves {
            self.cancel.check()?;
            of_leaf(self.walk, self.chains, leaf, tree.by_rowid, *owner, |cell, payload| {
                let payload = match payload {
                    Ok(payload) => payload,
                    Err(_) => {
                        report.rows_lost += 1;
                        return Ok(());
                    }
                };
                let inserted = match &mut filler {
                    Some(filler) => {
                        filler.insert(cell.rowid, &payload, encoding).map_err(|cause| target.error(cause))?
                    }
                    None => Err("its table could not be created".to_string()),
                };
                match inserted {
                    Ok(()) => report.rows_recovered += 1,
                    Err(reason) => {
                        let rowid = tree.by_rowid.then_some(cell.rowid);
                        let place = Place { table: &tree.name, page: leaf.page, rowid };
                        lost.put(target, place, &payload, encoding, &reason)?;
                        report.rows_aside += 1;
                    }
                }
                Ok(())
            })?;
        }
        Ok(report)
    }

    fn put_aside(&self, group: &Group, reason: &str, target: &Target, lost: &mut LostAndFound) -> Result<()> {
        for leaf in &group.leaves {
            self.cancel.check()?;
            of_leaf(self.walk, self.chains, leaf, group.by_rowid, Owner::Orphan, |cell, payload| {
                let Ok(payload) = payload else { return Ok(()) };
                let place = Place { table: "", page: leaf.page, rowid: group.by_rowid.then_some(cell.rowid) };
                lost.put(target, place, &payload, self.walk.source.encoding, reason)
            })?;
        }
        Ok(())
    }

    /// Says of each table how many rows are not there.
    fn count_losses(&self, target: &Target, salvaged: &mut Salvaged) -> Result<()> {
        for (index, tree) in self.walk.trees.iter().enumerate() {
            let found = &self.walk.found[index];
            let Some(report) = salvaged.tables.iter_mut().find(|report| report.name == tree.name) else { continue };
            if found.holes.is_empty() && report.rows_lost == 0 {
                continue;
            }
            report.rows_lost += self.estimate(found.pages_lost, &found.holes, report);
            report.rows_lost_by = LostBy::Estimate;
            if let Some((of_index, is_whole)) = self.index_of(tree, target)? {
                let leaves = &self.walk.found[of_index].leaves;
                let missing = missing_by_index(self.walk, self.chains, leaves, target, &tree.name, self.cancel)?;
                let missing = missing.saturating_sub(report.rows_aside);
                if is_whole {
                    (report.rows_lost, report.rows_lost_by) = (missing, LostBy::Index);
                } else if missing > report.rows_lost {
                    (report.rows_lost, report.rows_lost_by) = (missing, LostBy::AtLeast);
                }
            }
        }
        Ok(())
    }

    /// For each lost page what the others hold on average, but no more than there are keys in the holes.
    fn estimate(&self, pages_lost: u64, holes: &[Hole], report: &TableReport) -> u64 {
        let reassigned = report.pages_reassigned;
        let tree = self.walk.trees.iter().position(|tree| tree.name == report.name).unwrap_or(0);
        let leaves = self.walk.found[tree].leaves.len() as u64 + reassigned;
        let average = report.rows_recovered.div_ceil(leaves.max(1)).max(1);
        let room = holes.iter().map(|hole| match (hole.after, hole.before) {
            (Some(after), Some(before)) => before.abs_diff(after).saturating_sub(1),
            _ => u64::MAX,
        });
        let room = room.fold(0, u64::saturating_add);
        // A page above leaves that were all found again lost no row.
        if reassigned > 0 && pages_lost <= 1 { 0 } else { (pages_lost * average).min(room) }
    }

    /// The index to count by: one that has each row of the table, preferably a whole one.
    fn index_of(&self, tree: &Tree, target: &Target) -> Result<Option<(usize, bool)>> {
        if !tree.by_rowid {
            return Ok(None);
        }
        let listed = || -> rusqlite::Result<Vec<String>> {
            let mut statement =
                target.connection.prepare("SELECT name FROM pragma_index_list(?1) WHERE partial = 0")?;
            statement.query_map([&tree.name], |row| row.get(0))?.collect()
        };
        let indexes = listed().map_err(|cause| target.error(cause))?;
        let known =
            self.walk.trees.iter().enumerate().filter(|(_, tree)| tree.is_index && indexes.contains(&tree.name));
        let found = known.map(|(index, tree)| (index, tree.root > 0 && self.walk.found[index].holes.is_empty()));
        let found: Vec<(usize, bool)> = found.filter(|(index, _)| !self.walk.found[*index].leaves.is_empty()).collect();
        Ok(found.iter().find(|(_, is_whole)| *is_whole).or(found.first()).copied())
    }
}
