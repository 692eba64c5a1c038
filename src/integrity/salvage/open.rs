//! What is read: the file, and the log beside it where that makes it better.

use std::{collections::HashSet, path::Path};

use super::{
    file::Source,
    freelist::{self, Freelist},
    report::{Salvaged, WalUse},
    schema::{self, Schema},
    wal::Wal,
    walk::{Tree, Walk},
};
use crate::{error::Result, task::Cancel};

/// Free pages as the trees may know them: a list that contradicts itself says nothing.
pub fn in_use(freelist: &Freelist, source: &Source) -> Vec<bool> {
    match freelist.is_sound {
        true => freelist.is_free.clone(),
        false => vec![false; source.present as usize + 1],
    }
}

/// Opens the file with its WAL, where that is of this database.
pub fn open(path: &Path, salvaged: &mut Salvaged, cancel: &Cancel) -> Result<Source> {
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
