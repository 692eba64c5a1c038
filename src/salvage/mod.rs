//! Salvage: writes what can be read of a damaged database into a new, sound one.
//!
//! ```text
//! file + journal or WAL ─▶ schema ─▶ trees ─▶ overflow chains ─▶ pages without parents
//!                       ─▶ rows ─▶ new database ─▶ integrity check
//! ```
//!
//! Salvage reads the source page by page, never through SQLite, and never writes to it. Rules:
//!
//! * A row that was not in the database never gets into one of its tables. Deleted rows (free
//!   pages, free blocks) are not read. An uncertain row goes to the table `lost_and_found` with the
//!   reason.
//! * Every row whose pages are intact comes back, even if the pages above them are damaged. The
//!   only condition is that the table of the row can be determined.
//! * Any input ends in a result or an error, because each page is visited a bounded number of
//!   times. Memory use is about 20 bytes per page, one row, and the cache of SQLite.
//!
//! Not guaranteed: SQLite pages have no checksums. A flipped bit inside a value goes unnoticed if
//! the record remains well formed. A page that was also written in place of another page is noticed
//! only while the original exists too (`duplicate_pages`). If both the freelist and a tree without
//! rowids claim a page, it belongs to neither, and its rows go to `lost_and_found`.

mod copy_rows;
mod copy_trees;
mod duplicate_pages;
mod file;
mod freelist;
mod journal;
mod losses;
mod objects;
mod open;
mod orphans;
mod overflow;
mod overlay;
pub mod readable;
mod rebuild;
mod record;
pub mod report;
mod rows;
mod schema;
mod wal;
mod walk;

use std::{fs, path::Path};

pub use self::wal::beside_another_state;
use self::{
    copy_rows::Rows,
    copy_trees::{Carried, Unit},
    file::Source,
    freelist::Freelist,
    open::{in_use, open},
    orphans::Orphans,
    overflow::{Chains, Owner},
    rebuild::{Target, is_virtual},
    report::{MAX_NAMED_PAGES, Salvaged, UnreadablePage, UnreadablePages},
    schema::{Object, Schema},
    walk::TreeScan,
};
use crate::{
    error::{Code, Error, Result},
    sqlite::files::companion,
    util::operation::CancelToken,
};

/// Maximum number of pages that a salvage accepts, because each page takes memory.
const MAX_PAGES: u32 = 1 << 29;
/// Maximum number of names in one warning.
const MAX_NAMES: usize = 5;

/// Name and SQL text of the tables, indexes and triggers that the database should have. Salvage
/// uses them if the schema is damaged.
pub type FallbackSchema<'a> = &'a [(&'a str, &'a str)];

/// Salvages `source` into a new database at `target`, which must not exist.
///
/// Fails with `KG_TARGET_EXISTS`, `KG_UNSUPPORTED` if the source has too many pages,
/// `KG_DATABASE_DAMAGED` if nothing can be recovered, `KG_ABORTED`, and errors of the file system.
/// After any failure, `target` is removed again.
pub fn salvage(
    source: &Path,
    target: &Path,
    fallback: FallbackSchema<'_>,
    cancel: &CancelToken,
) -> Result<Salvaged> {
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
            // A failure to remove is ignored because the first error already names the problem.
            let _ = fs::remove_file(companion(target, suffix));
        }
    }
    salvaged
}

/// Describes a salvaged database that SQLite does not find sound.
fn not_sound(findings: &str) -> Error {
    Error::new(
        Code::Internal,
        format!("The salvaged database is not sound: {findings}"),
        "Nothing was changed; restore the newest good backup, and please report this",
    )
}

fn salvage_new(
    path: &Path,
    target: &Path,
    fallback: FallbackSchema<'_>,
    cancel: &CancelToken,
) -> Result<Salvaged> {
    let mut salvaged = Salvaged::default();
    let source = open(path, &mut salvaged, cancel)?;
    assert_salvageable(path, &source)?;
    let freelist = freelist::read(&source, cancel)?;
    let in_use = in_use(&freelist, &source);
    let mut schema = schema::read(&source, &in_use, cancel)?;
    salvaged.page_size_bytes = source.page_size as u64;
    salvaged.page_count = u64::from(source.present);
    salvaged.header_readable = source.header.is_sound;
    salvaged.schema_readable = schema.is_whole;
    if !schema.is_whole {
        objects::add_fallback(&mut schema, fallback, &mut salvaged.warnings);
    }
    let mut target = Target::create(
        target,
        source.page_size,
        source.encoding,
        &source.header,
        cancel,
    )?;
    let made = objects::create_tables(&mut target, &mut schema, &source)?;
    let mut walk = TreeScan::new(&source, made.trees, in_use, cancel);
    walk.run()?;
    let mut chains = claim_chains(&walk, cancel)?;
    let orphans = orphans::find(&walk, &mut chains, &freelist, schema.is_whole, cancel)?;
    let units = copy_trees::units(&walk, &chains, &orphans, &schema, &made.unready);
    objects::leave(&mut target, &units)?;
    let carried = carried(units, made.definitions, &schema);
    let rows = Rows {
        walk: &walk,
        chains: &chains,
        orphans: &orphans,
        shadows: &made.shadows,
        carried: &carried,
        cancel,
    };
    rows.fill(&target, &schema, &mut salvaged)?;
    if salvaged.has_no_rows() && !(source.header.is_sound && schema.is_whole) {
        return Err(nothing_salvaged(path));
    }
    objects::finish(&mut target, &schema, &carried)?;
    rows.count_losses(&target, &mut salvaged)?;
    salvaged.count();
    salvaged.leftover_pages = orphans.left;
    salvaged.unreadable_pages = unreadable_pages(&walk);
    warn(&mut salvaged, &freelist, &orphans, &target)?;
    salvaged.objects = target.finish(&source, &carried, cancel)?;
    Ok(salvaged)
}

/// Fails if the source has too many pages, or if it is empty or not a database.
fn assert_salvageable(path: &Path, source: &Source) -> Result<()> {
    if source.present > MAX_PAGES {
        return Err(Error::new(
            Code::Unsupported,
            format!(
                "{} has {} pages, more than the {MAX_PAGES} that can be salvaged",
                path.display(),
                source.present
            ),
            "Restore the newest good backup",
        ));
    }
    if source.recognised == 0 && source.present <= 1 && !source.header.is_sound {
        return Err(nothing_salvaged(path));
    }
    Ok(())
}

fn nothing_salvaged(path: &Path) -> Error {
    Error::damaged(format!(
        "{} contains nothing that could be salvaged",
        path.display()
    ))
}

/// Assigns overflow pages to the cells of all leaves that belong to a tree.
fn claim_chains(walk: &TreeScan<'_>, cancel: &CancelToken) -> Result<Chains> {
    let mut chains = Chains::new(walk.source);
    for (tree, found) in walk.trees.iter().zip(&walk.found) {
        for leaf in &found.leaves {
            cancel.check()?;
            if let Some((_, page)) = walk.read(leaf.page, tree.by_rowid) {
                chains.claim(walk, &page, Owner::Tree);
            }
        }
    }
    Ok(chains)
}

/// Returns what is copied as pages or definitions. The full-text indexes are those of the schema
/// that exist in the new database.
fn carried(units: Vec<Unit>, definitions: Vec<Object>, schema: &Schema) -> Carried {
    let is_derived = |object: &&Object| is_virtual(object) && !definitions.contains(object);
    let full_text = schema.objects.iter().filter(is_derived).cloned().collect();
    Carried {
        units,
        definitions,
        full_text,
    }
}

/// Lists the pages that could not be read, with the reason for the first of them.
fn unreadable_pages(walk: &TreeScan<'_>) -> UnreadablePages {
    UnreadablePages {
        count: walk.bad_pages.len() as u64,
        first: walk
            .bad_pages
            .iter()
            .take(MAX_NAMED_PAGES)
            .map(|bad| UnreadablePage {
                page: bad.page,
                reason: bad.reason.to_string(),
            })
            .collect(),
    }
}

fn warn(
    salvaged: &mut Salvaged,
    freelist: &Freelist,
    orphans: &Orphans,
    target: &Target,
) -> Result<()> {
    if !freelist.is_sound && !orphans.freelist_was_certain && !orphans.aside.is_empty() {
        salvaged.warnings.push(
            "The list of free pages is damaged: rows on pages without a parent may have been deleted, and are in lost_and_found".to_string(),
        );
    }
    let sql = "SELECT DISTINCT \"table\" FROM pragma_foreign_key_check LIMIT ?1";
    let broken = || -> rusqlite::Result<Vec<String>> {
        let mut statement = target.connection.prepare(sql)?;
        statement
            .query_map([MAX_NAMES], |row| row.get(0))?
            .collect()
    };
    // The check fails if a foreign key names a missing table. The reports already list that table.
    if let Ok(tables) = broken()
        && !tables.is_empty()
    {
        salvaged.warnings.push(format!(
            "Rows refer by foreign key to rows that do not exist, in: {}",
            tables.join(", ")
        ));
    }
    salvaged.warnings.sort();
    salvaged.warnings.dedup();
    Ok(())
}
