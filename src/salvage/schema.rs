//! The schema: the rows of `sqlite_schema`. SQLite executes their texts in the new database and
//! then reports which columns result.

use super::{
    file::Source,
    overflow::{Chains, Owner},
    record::{Value, values},
    walk::{Tree, TreeScan},
};
use crate::{
    error::Result,
    sqlite::{
        format::{
            btree::{Cell, PageType, parse},
            record::{Class, class_of, serial_types},
        },
        row_schema::RowSchema,
    },
    util::operation::CancelToken,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    pub name: String,
    pub table: String,
    /// Root page; 0 if the object has none or it is unknown.
    pub root: u32,
    /// Empty for indexes that SQLite creates with a table.
    pub sql: String,
}

pub struct Schema {
    pub objects: Vec<Object>,
    /// Whether all of `sqlite_schema` could be read.
    pub is_whole: bool,
}

/// Reads `sqlite_schema`. If its tree is damaged, also reads other pages that hold rows of that
/// form.
pub fn read(source: &Source, is_free: &[bool], cancel: &CancelToken) -> Result<Schema> {
    let tree = Tree {
        name: "sqlite_schema".to_string(),
        root: 1,
        by_rowid: true,
        is_index: false,
        shape: Some(RowSchema::of_schema()),
    };
    let mut walk = TreeScan::new(source, vec![tree], is_free.to_vec(), cancel);
    walk.run()?;
    let is_whole = walk.found[0].holes.is_empty() && walk.bad_pages.is_empty();
    let mut pages: Vec<u32> = walk.found[0].leaves.iter().map(|leaf| leaf.page).collect();
    if !is_whole {
        for number in 1..=source.present {
            if number % 256 == 0 {
                cancel.check()?;
            }
            if !walk.is_owned[number as usize]
                && !is_free[number as usize]
                && holds_schema(source, number)
            {
                pages.push(number);
            }
        }
    }
    let mut chains = Chains::new(source);
    for page in &pages {
        if let Some((_, page)) = walk.read(*page, true) {
            chains.claim(&walk, &page, Owner::Tree);
        }
    }
    let mut objects: Vec<Object> = Vec::new();
    let mut is_complete = is_whole;
    let mut seen = std::collections::HashSet::new();
    for number in pages {
        let Some((bytes, page)) = walk.read(number, true) else {
            continue;
        };
        for cell in &page.cells {
            let payload = chains.payload(&walk, number, &bytes, cell, Owner::Tree);
            match payload.ok().and_then(|payload| object(&payload, source)) {
                Some(object) if seen.insert((object.kind.clone(), object.name.clone())) => {
                    objects.push(object)
                }
                Some(_) => {}
                None => is_complete = false,
            }
        }
    }
    Ok(Schema {
        objects,
        is_whole: is_complete,
    })
}

pub fn holds_schema(source: &Source, number: u32) -> bool {
    let Some(bytes) = source.page(number) else {
        return false;
    };
    let Some(page) = parse(&bytes, number, source.geometry) else {
        return false;
    };
    let is_row = |cell: &Cell| {
        let local = cell.local(&bytes);
        let Some((types, at)) = serial_types(local, cell.payload_bytes) else {
            return false;
        };
        let text = types
            .first()
            .filter(|serial| class_of(**serial) == Class::Text);
        let kind = text.and_then(|serial| local.get(at..at + (*serial as usize - 12) / 2));
        let kind: Vec<u8> = kind
            .unwrap_or_default()
            .iter()
            .copied()
            .filter(|byte| *byte != 0)
            .collect();
        types.len() == 5
            && [&b"table"[..], b"index", b"view", b"trigger"].contains(&&kind[..])
            && class_of(types[3]) == Class::Integer
    };
    page.exact
        && page.kind == PageType::TableLeaf
        && !page.cells.is_empty()
        && page.cells.iter().all(is_row)
}

fn object(payload: &[u8], source: &Source) -> Option<Object> {
    let text = |value: &Value<'_>| match value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    let row = values(payload, source.encoding)?;
    let [kind, name, table, root, sql] = &row[..] else {
        return None;
    };
    let kind =
        text(kind).filter(|kind| ["table", "index", "view", "trigger"].contains(&kind.as_str()))?;
    let root = match root {
        Value::Integer(root) => u32::try_from(*root).ok()?,
        Value::Null => 0,
        _ => return None,
    };
    let sql = match sql {
        Value::Null => String::new(),
        sql => text(sql)?,
    };
    Some(Object {
        kind,
        name: text(name)?,
        table: text(table)?,
        root,
        sql,
    })
}
