//! How many rows are not there: by an index that names them, else by what fits into the gaps.

use super::{
    fill::Rows,
    rebuild::Target,
    report::{LostBy, Salvaged, TableReport},
    rows::missing_by_index,
    walk::{Hole, Tree},
};
use crate::error::Result;

impl Rows<'_, '_> {
    pub fn count_losses(&self, target: &Target, salvaged: &mut Salvaged) -> Result<()> {
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
