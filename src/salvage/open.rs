//! Opens the source: the file, and the journal or WAL next to it if that improves the result.

use std::{collections::HashSet, path::Path};

use super::{
    file::Source,
    freelist::{self, Freelist},
    journal,
    overlay::Overlay,
    report::{LogUse, Salvaged},
    schema::{self, Schema},
    wal,
    walk::{Tree, TreeScan},
};
use crate::{error::Result, util::operation::CancelToken};

/// Returns the free pages for the tree scan, or no free pages if the freelist contradicts itself.
pub fn in_use(freelist: &Freelist, source: &Source) -> Vec<bool> {
    match freelist.is_sound {
        true => freelist.is_free.clone(),
        false => vec![false; source.present as usize + 1],
    }
}

/// Opens the file with the journal or WAL next to it.
///
/// As in SQLite, an uncommitted transaction is rolled back before the WAL is considered. A database
/// that has both logs is changing its journal mode, and its WAL holds nothing yet.
pub fn open(path: &Path, salvaged: &mut Salvaged, cancel: &CancelToken) -> Result<Source> {
    let alone = Source::open(path, None, cancel)?;
    let journal = Log {
        name: "rollback journal",
        read: journal::read(path, cancel)?,
    };
    let (rolled_back, journal_use) =
        journal.apply_overlay(path, &alone, fits, &mut salvaged.warnings, cancel)?;
    let wal = Log {
        name: "WAL",
        read: wal::read(path, cancel)?,
    };
    salvaged.journal = journal_use;
    if let Some(rolled_back) = rolled_back {
        if !matches!(wal.read, Ok(None)) {
            salvaged.wal = LogUse::Ignored;
            salvaged.warnings.push(
                "The WAL next to the database was ignored: there is a rollback journal too"
                    .to_string(),
            );
        }
        return Ok(rolled_back);
    }
    let (with_wal, wal_use) =
        wal.apply_overlay(path, &alone, foreign, &mut salvaged.warnings, cancel)?;
    salvaged.wal = wal_use;
    Ok(with_wal.unwrap_or(alone))
}

/// Returns why a log does not belong to the database. The first source is without the log, the
/// second with it.
type Objection = fn(&Source, &Source, &CancelToken) -> Result<Option<&'static str>>;

/// A log next to the database, or the reason why it cannot be used.
struct Log {
    name: &'static str,
    read: std::result::Result<Option<Overlay>, String>,
}

impl Log {
    /// Returns the database with the log applied, if there is a log and it belongs to this
    /// database.
    fn apply_overlay(
        self,
        path: &Path,
        alone: &Source,
        objection: Objection,
        warnings: &mut Vec<String>,
        cancel: &CancelToken,
    ) -> Result<(Option<Source>, LogUse)> {
        let reason =
            match self.read {
                Ok(None) => return Ok((None, LogUse::None)),
                Ok(Some(overlay)) => {
                    let lacks = overlay.lacks;
                    let with = Source::open(path, Some(overlay), cancel)?;
                    match objection(alone, &with, cancel)? {
                        None => {
                            warnings.extend(lacks.map(|what| {
                                format!("The {} next to the database {what}", self.name)
                            }));
                            return Ok((Some(with), LogUse::Applied));
                        }
                        Some(reason) => reason.to_string(),
                    }
                }
                Err(reason) => reason,
            };
        warnings.push(format!(
            "The {} next to the database was ignored: {reason}",
            self.name
        ));
        Ok((None, LogUse::Ignored))
    }
}

/// Returns why a journal does not belong to this database. A transaction increments the change
/// counter on the first page. If the counter does not decide, a journal that makes the database
/// worse is rejected.
fn fits(alone: &Source, with: &Source, cancel: &CancelToken) -> Result<Option<&'static str>> {
    if with.overlay().is_none() {
        return Ok(Some("its pages have another size"));
    }
    let (now, before) = (&alone.header, &with.header);
    let is_next = now.change_counter.wrapping_sub(before.change_counter) <= 1;
    if now.is_sound && before.is_sound && is_next && with.overlay_has(1) {
        return Ok(None);
    }
    compare(alone, with, cancel)
}

/// Returns why a WAL does not belong to this database: it would damage the database or replace it
/// with another one.
fn foreign(
    alone: &Source,
    with_wal: &Source,
    cancel: &CancelToken,
) -> Result<Option<&'static str>> {
    let Some(wal) = with_wal.overlay() else {
        return Ok(Some("its pages have another size"));
    };
    if alone.header.is_sound && !alone.header.is_wal {
        return Ok(Some("the database is not in WAL mode"));
    }
    if let Some(reason) = wal::of_another_state(&alone.header, alone.present, wal) {
        return Ok(Some(reason));
    }
    compare(alone, with_wal, cancel)
}

fn compare(alone: &Source, with: &Source, cancel: &CancelToken) -> Result<Option<&'static str>> {
    let (problems_alone, schema_alone) = problems(alone, cancel)?;
    let (problems_with, schema_with) = problems(with, cancel)?;
    if problems_with > problems_alone {
        return Ok(Some("its pages do not fit into the database"));
    }
    let names = |schema: &Schema| -> HashSet<String> {
        schema
            .objects
            .iter()
            .map(|object| object.sql.clone())
            .collect()
    };
    let (alone, with) = (names(&schema_alone), names(&schema_with));
    let is_other = !alone.is_empty() && !with.is_empty() && alone.is_disjoint(&with);
    Ok(is_other.then_some("it has other tables"))
}

/// Counts the faults of the trees, and the indexes whose number of entries does not match their
/// table. Pages of two states of a database can form valid trees, but their indexes rarely agree
/// with their tables.
fn problems(source: &Source, cancel: &CancelToken) -> Result<(usize, Schema)> {
    let freelist = freelist::read(source, cancel)?;
    let in_use = in_use(&freelist, source);
    let schema = schema::read(source, &in_use, cancel)?;
    let rooted = schema.objects.iter().filter(|object| object.root > 0);
    let trees = rooted.map(|object| {
        let by_rowid =
            object.kind == "table" && !object.sql.to_ascii_uppercase().contains("WITHOUT ROWID");
        Tree {
            name: object.name.clone(),
            root: object.root,
            by_rowid,
            is_index: object.kind == "index",
            shape: None,
        }
    });
    let mut walk = TreeScan::new(source, trees.collect(), in_use, cancel);
    walk.run()?;
    let cells = |name: &str, is_index: bool| {
        let tree = walk
            .trees
            .iter()
            .position(|tree| tree.name == name && tree.is_index == is_index)?;
        Some(walk.found[tree].cells)
    };
    let indexes = schema
        .objects
        .iter()
        .filter(|object| object.kind == "index" && object.root > 0);
    let differ =
        indexes.filter(
            |index| match (cells(&index.name, true), cells(&index.table, false)) {
                // A partial index may have fewer entries than its table has rows.
                (Some(entries), Some(rows)) => {
                    entries > rows || (entries < rows && !has_word(&index.sql, "WHERE"))
                }
                _ => false,
            },
        );
    Ok((
        walk.problems() + usize::from(!schema.is_whole) + differ.count(),
        schema,
    ))
}

fn has_word(sql: &str, word: &str) -> bool {
    sql.split(|letter: char| !letter.is_ascii_alphanumeric())
        .any(|other| other.eq_ignore_ascii_case(word))
}
