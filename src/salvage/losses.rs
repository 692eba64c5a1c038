//! Counts the lost rows: by an index that lists them, or else by an estimate of what fits into the
//! gaps.

use super::{
    copy_rows::Rows,
    overflow::Owner,
    rebuild::Target,
    record::{Value, values},
    report::{LostBy, Salvaged, TableReport},
    rows::of_leaf,
    walk::{Tree, TreeContents},
};
use crate::{error::Result, sqlite::quoted};

impl Rows<'_, '_> {
    pub fn count_losses(&self, target: &Target, salvaged: &mut Salvaged) -> Result<()> {
        for (index, tree) in self.walk.trees.iter().enumerate() {
            let found = &self.walk.found[index];
            let Some(report) = salvaged
                .tables
                .iter_mut()
                .find(|report| report.name == tree.name)
            else {
                continue;
            };
            if found.holes.is_empty() && report.rows_lost == 0 {
                continue;
            }
            report.rows_lost += self.estimate(found, report);
            report.rows_lost_by = LostBy::Estimate;
            if let Some((of_index, is_whole)) = self.index_of(tree, target)? {
                let missing = self
                    .missing_by_index(of_index, tree, target)?
                    .saturating_sub(report.rows_aside);
                if is_whole {
                    (report.rows_lost, report.rows_lost_by) = (missing, LostBy::Index);
                } else if missing > report.rows_lost {
                    (report.rows_lost, report.rows_lost_by) = (missing, LostBy::AtLeast);
                }
            }
        }
        Ok(())
    }

    /// Estimates the number of lost rows. Each lost page counts as many rows as the other pages
    /// hold on average, up to the number of keys that fit into the holes. Unreadable cells are
    /// added.
    fn estimate(&self, found: &TreeContents, report: &TableReport) -> u64 {
        let (reassigned, pages_lost) = (report.pages_reassigned, found.pages_lost);
        let leaves = found.leaves.len() as u64 + reassigned;
        let average = report.rows_recovered.div_ceil(leaves.max(1)).max(1);
        let room = found
            .holes
            .iter()
            .map(|hole| match (hole.after, hole.before) {
                (Some(after), Some(before)) => before.abs_diff(after).saturating_sub(1),
                _ => u64::MAX,
            });
        let room = room.fold(0, u64::saturating_add);
        // An interior page lost no row if all leaves below it were found again.
        let on_pages = if reassigned > 0 && pages_lost <= 1 {
            0
        } else {
            pages_lost * average
        };
        on_pages.min(room) + found.cells_lost
    }

    /// Returns the index to count by, which has an entry for each row of the table, and whether it
    /// is undamaged. An undamaged index is preferred.
    fn index_of(&self, tree: &Tree, target: &Target) -> Result<Option<(usize, bool)>> {
        let listed = || -> rusqlite::Result<Vec<String>> {
            let mut statement = target
                .connection
                .prepare("SELECT name FROM pragma_index_list(?1) WHERE partial = 0")?;
            statement
                .query_map([&tree.name], |row| row.get(0))?
                .collect()
        };
        let indexes = listed().map_err(|cause| target.error(cause))?;
        let known = self
            .walk
            .trees
            .iter()
            .enumerate()
            .filter(|(_, tree)| tree.is_index && indexes.contains(&tree.name));
        let found = known.map(|(index, tree)| {
            (
                index,
                tree.root > 0 && self.walk.found[index].holes.is_empty(),
            )
        });
        let found: Vec<(usize, bool)> = found
            .filter(|(index, _)| !self.walk.found[*index].leaves.is_empty())
            .collect();
        Ok(found
            .iter()
            .find(|(_, is_whole)| *is_whole)
            .or(found.first())
            .copied())
    }

    /// Counts the rows that an index lists but the table does not have.
    fn missing_by_index(&self, index: usize, table: &Tree, target: &Target) -> Result<u64> {
        let failed = |cause| target.error(cause);
        let key = Key::of(&self.walk.trees[index].name, table, target).map_err(failed)?;
        let sql = format!(
            "SELECT count(*) FROM {} WHERE {}",
            quoted(&table.name),
            key.condition
        );
        let mut statement = target.connection.prepare(&sql).map_err(failed)?;
        let mut missing = 0;
        for leaf in &self.walk.found[index].leaves {
            self.cancel.check()?;
            of_leaf(
                self.walk,
                self.chains,
                leaf,
                false,
                Owner::Tree,
                |_, payload| {
                    let Ok(payload) = payload else { return Ok(()) };
                    let Some(entry) = values(&payload, self.walk.source.encoding) else {
                        return Ok(());
                    };
                    let named: Option<Vec<&Value<'_>>> = key
                        .places
                        .iter()
                        .map(|from_end| entry.get(entry.len().checked_sub(*from_end)?))
                        .collect();
                    let is_key = |value: &&Value<'_>| match value {
                        Value::DoubtfulText(_) => false,
                        value => !table.by_rowid || matches!(value, Value::Integer(_)),
                    };
                    let Some(named) = named.filter(|named| named.iter().all(is_key)) else {
                        return Ok(());
                    };
                    let found: i64 = statement
                        .query_row(rusqlite::params_from_iter(named), |row| row.get(0))
                        .map_err(failed)?;
                    missing += u64::from(found == 0);
                    Ok(())
                },
            )?;
        }
        Ok(missing)
    }
}

/// How an index entry identifies its row.
///
/// In a table with rowids, the last field of the entry is the rowid. In a table without rowids, the
/// entry holds the primary key. Columns of that key that the index does not have itself are at the
/// end of the entry.
struct Key {
    condition: String,
    /// Positions of the key in the fields of an entry, counted from its end.
    places: Vec<usize>,
}

impl Key {
    fn of(index: &str, table: &Tree, target: &Target) -> rusqlite::Result<Key> {
        if table.by_rowid {
            return Ok(Key {
                condition: "rowid = ?".to_string(),
                places: vec![1],
            });
        }
        let columns = |sql: &str, name: &str| -> rusqlite::Result<Vec<String>> {
            target
                .connection
                .prepare(sql)?
                .query_map([name], |row| row.get(0))?
                .collect()
        };
        let key = columns(
            "SELECT name FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk",
            &table.name,
        )?;
        let fields = columns(
            "SELECT coalesce(name, '') FROM pragma_index_xinfo(?1) ORDER BY seqno",
            index,
        )?;
        let place = |column: &String| {
            fields
                .iter()
                .rev()
                .position(|field| field == column)
                .map(|at| at + 1)
        };
        let conditions: Vec<String> = key
            .iter()
            .map(|column| format!("{} IS ?", quoted(column)))
            .collect();
        // The position of a missing column lies outside every entry, so no entry is counted.
        let places = key
            .iter()
            .map(|column| place(column).unwrap_or(usize::MAX))
            .collect();
        Ok(Key {
            condition: conditions.join(" AND "),
            places,
        })
    }
}
