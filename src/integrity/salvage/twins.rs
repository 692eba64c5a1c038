//! Pages that are the same to the last byte in two places: one was also written where it does not belong.
//!
//! A page does not say where it lies, so a copy adds up as well as the original. But each has a place, with keys and columns that are
//! expected there. Where one of them fits and the others do not, that one is the original. Where more fit, it cannot be told which of
//! the trees the rows are of, and all of these pages belong to nobody. Many of them between the same two trees are no accident: then one
//! table is a copy of the other.

use std::collections::HashMap;

use super::file::Source;
use crate::{error::Result, sqlite::btree::parse, task::Cancel};

/// More pages that two trees have in common are a table and its copy.
const MOST_ACCIDENTS: usize = 3;
const PAGES_PER_CANCEL_CHECK: u32 = 256;

/// Groups of equal pages with rows or keys on them, among those that `is_claimed` names.
pub fn find(source: &Source, is_claimed: impl Fn(u32) -> bool, cancel: &Cancel) -> Result<Vec<Vec<u32>>> {
    let mut hashes = Vec::new();
    for number in (1..=source.present).filter(|number| is_claimed(*number)) {
        if number.is_multiple_of(PAGES_PER_CANCEL_CHECK) {
            cancel.check()?;
        }
        let Some(bytes) = source.page(number) else { continue };
        if parse(&bytes, number, source.geometry).is_some_and(|page| !page.cells.is_empty()) {
            hashes.push((crate::sqlite::pages::hash(&bytes), number));
        }
    }
    hashes.sort_unstable();
    let equal = hashes.chunk_by(|(one, _), (other, _)| one == other).filter(|group| group.len() > 1);
    Ok(equal.map(|group| group.iter().map(|(_, number)| *number).collect()).collect())
}

/// Without the groups of pages that two trees have in common because one is a copy of the other. `tree_of` names the tree of a page.
pub fn accidents(mut groups: Vec<Vec<u32>>, tree_of: impl Fn(u32) -> u32) -> Vec<Vec<u32>> {
    let trees = |group: &Vec<u32>| {
        let mut trees: Vec<u32> = group.iter().map(|page| tree_of(*page)).collect();
        trees.sort_unstable();
        trees.dedup();
        trees
    };
    let mut counts: HashMap<Vec<u32>, usize> = HashMap::new();
    groups.iter().for_each(|group| *counts.entry(trees(group)).or_default() += 1);
    groups.retain(|group| counts.get(&trees(group)).is_none_or(|count| *count <= MOST_ACCIDENTS));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_two_trees_have_in_common_by_the_dozen_are_no_accident() {
        // Tree 1 has the pages to 100, tree 2 those to 200, tree 3 the others.
        let tree_of = |page: u32| page / 101 + 1;
        let copies: Vec<Vec<u32>> = (1..=12).map(|page| vec![page, page + 101]).collect();
        let accident = vec![50, 250];
        let groups = [copies, vec![accident.clone()]].concat();
        assert_eq!(accidents(groups, tree_of), [accident]);
    }
}
