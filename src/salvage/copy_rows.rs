//! Decides which rows go into which table, and which go to `lost_and_found`.

use std::collections::HashSet;

use super::{
    copy_trees::Carried,
    file::Encoding,
    orphans::{Group, Orphans},
    overflow::{Chains, Owner, Unread},
    rebuild::Target,
    report::{Salvaged, TableReport},
    rows::{Filler, LostAndFound, RowLocation, of_leaf},
    schema::{self, Schema},
    walk::{Leaf, Tree, TreeScan},
};
use crate::{error::Result, sqlite::format::btree::Cell, util::operation::CancelToken};

/// The results of all earlier steps, which copying rows needs.
pub struct Rows<'r, 'w> {
    pub walk: &'r TreeScan<'w>,
    pub chains: &'r Chains,
    pub orphans: &'r Orphans,
    /// Tables whose content is derived from other tables.
    pub shadows: &'r HashSet<String>,
    /// Tables that are copied page by page.
    pub carried: &'r Carried,
    pub cancel: &'r CancelToken,
}

impl Rows<'_, '_> {
    /// Copies the rows of all tables, and those that belong to no table.
    pub fn fill(&self, target: &Target, schema: &Schema, salvaged: &mut Salvaged) -> Result<()> {
        let taken: HashSet<String> = schema
            .objects
            .iter()
            .map(|object| object.name.to_ascii_lowercase())
            .collect();
        let mut lost = LostAndFound::new(|name| taken.contains(name));
        // The table `sqlite_sequence` comes last, because inserting rows changes it.
        let mut order: Vec<usize> = (1..self.walk.trees.len()).collect();
        order.sort_by_key(|index| self.walk.trees[*index].name == "sqlite_sequence");
        for index in order {
            let tree = &self.walk.trees[index];
            let is_derived =
                self.shadows.contains(&tree.name) || tree.name.starts_with("sqlite_stat");
            let unit = self
                .carried
                .units
                .iter()
                .find(|unit| unit.table == tree.name);
            if let Some(unit) = unit.filter(|_| !tree.is_index) {
                let rows_recovered = unit.rows;
                salvaged.tables.push(TableReport {
                    name: tree.name.clone(),
                    rows_recovered,
                    ..TableReport::default()
                });
            } else if !tree.is_index && !is_derived {
                let report = self.fill_table(index, target, &mut lost, salvaged)?;
                if tree.name != "sqlite_sequence" {
                    salvaged.tables.push(report);
                }
            }
        }
        for (group, reason) in &self.orphans.aside {
            let holds_schema = group.by_rowid
                && group
                    .leaves
                    .iter()
                    .all(|leaf| schema::holds_schema(self.walk.source, leaf.page));
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
        let leaves = self.leaves_of(index);
        let filler = tree
            .shape
            .as_ref()
            .map(|shape| Filler::new(&target.connection, &tree.name, shape, tree.by_rowid));
        if filler.as_ref().is_some_and(|filler| !filler.keeps_rowids()) {
            salvaged.warnings.push(format!(
                "{} has columns that hide its rowid: its rows were renumbered",
                tree.name
            ));
        }
        if tree.name == "sqlite_sequence" && filler.is_some() {
            target
                .connection
                .execute_batch("DELETE FROM sqlite_sequence")
                .map_err(|cause| target.error(cause))?;
        }
        let mut table = TableCopy {
            tree,
            target,
            encoding: self.walk.source.encoding,
            filler,
            lost,
            report: TableReport {
                name: tree.name.clone(),
                pages_reassigned: (leaves.len() - found.leaves.len()) as u64,
                pages_lost: found.pages_lost,
                ..TableReport::default()
            },
        };
        for (leaf, owner) in &leaves {
            self.cancel.check()?;
            of_leaf(
                self.walk,
                self.chains,
                leaf,
                tree.by_rowid,
                *owner,
                |cell, payload| table.add(leaf.page, cell, payload),
            )?;
        }
        Ok(table.report)
    }

    /// Returns the leaves of a tree and the leaves without parents that were assigned to it, in key
    /// order.
    fn leaves_of(&self, index: usize) -> Vec<(Leaf, Owner)> {
        let own = self.walk.found[index].leaves.iter();
        let assigned = self.orphans.assigned[index]
            .iter()
            .flat_map(|group| &group.leaves);
        let mut leaves: Vec<(Leaf, Owner)> = own
            .map(|leaf| (*leaf, Owner::Tree))
            .chain(assigned.map(|leaf| (*leaf, Owner::Orphan)))
            .collect();
        if self.walk.trees[index].by_rowid {
            leaves.sort_by_key(|(leaf, _)| leaf.first);
        }
        leaves
    }

    fn put_aside(
        &self,
        group: &Group,
        reason: &str,
        target: &Target,
        lost: &mut LostAndFound,
    ) -> Result<()> {
        for leaf in &group.leaves {
            self.cancel.check()?;
            of_leaf(
                self.walk,
                self.chains,
                leaf,
                group.by_rowid,
                Owner::Orphan,
                |cell, payload| {
                    let (payload, reason) = match payload {
                        Ok(payload) => (payload, reason),
                        Err(Unread {
                            reason,
                            contested: Some(payload),
                        }) => (payload, reason),
                        Err(_) => return Ok(()),
                    };
                    let place = RowLocation {
                        table: "",
                        page: leaf.page,
                        rowid: group.by_rowid.then_some(cell.rowid),
                    };
                    lost.put(target, place, &payload, self.walk.source.encoding, reason)
                },
            )?;
        }
        Ok(())
    }
}

/// A table whose rows are being copied.
struct TableCopy<'t> {
    tree: &'t Tree,
    target: &'t Target,
    encoding: Encoding,
    /// `None` if SQLite could not create the table.
    filler: Option<Filler<'t>>,
    lost: &'t mut LostAndFound,
    report: TableReport,
}

impl TableCopy<'_> {
    /// Inserts a row into the table. If it does not fit there, or if another row uses one of its
    /// pages, puts it into `lost_and_found`.
    fn add(&mut self, page: u32, cell: &Cell, payload: Result<Vec<u8>, Unread>) -> Result<()> {
        match payload {
            Ok(payload) => match self.insert(cell, &payload)? {
                Ok(()) => self.report.rows_recovered += 1,
                Err(reason) => self.put_aside(page, cell, &payload, &reason)?,
            },
            Err(Unread {
                reason,
                contested: Some(payload),
            }) => self.put_aside(page, cell, &payload, reason)?,
            Err(_) => {
                self.report.rows_lost += 1;
                self.report.rows_broken += 1;
            }
        }
        Ok(())
    }

    /// Inserts a row, or returns the reason why it cannot belong to the table.
    fn insert(&mut self, cell: &Cell, payload: &[u8]) -> Result<Result<(), String>> {
        match &mut self.filler {
            Some(filler) => filler
                .insert(cell.rowid, payload, self.encoding)
                .map_err(|cause| self.target.error(cause)),
            None => Ok(Err("its table could not be created".to_string())),
        }
    }

    fn put_aside(&mut self, page: u32, cell: &Cell, payload: &[u8], reason: &str) -> Result<()> {
        let place = RowLocation {
            table: &self.tree.name,
            page,
            rowid: self.tree.by_rowid.then_some(cell.rowid),
        };
        self.lost
            .put(self.target, place, payload, self.encoding, reason)?;
        self.report.rows_aside += 1;
        Ok(())
    }
}
