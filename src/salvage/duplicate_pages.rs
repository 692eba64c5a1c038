//! Duplicate pages: finds pages that are equal to the last byte, one of which was written to the
//! wrong place.
//!
//! A page does not record its own number, so a copy is as valid as the original. But each place has
//! keys and columns that are expected there. If only one of the pages fits its place, that one is
//! the original. If several fit, the owner of the rows is unknown, and all of these pages belong to
//! no tree.
//!
//! The exception is a table that is a copy of another. Such tables have many pages in common. Short
//! tables, and tables that have grown since, have in common at least half the pages of the shorter
//! table. These pages must include the first page of both. In that case no page of any tree may
//! have lost its parent.

use std::collections::HashMap;

use super::file::Source;
use crate::{error::Result, sqlite::format::btree::parse, util::operation::CancelToken};

/// Maximum number of common pages that counts as an accident. If trees have more pages in common,
/// one table is a copy of the other.
const MOST_ACCIDENTS: usize = 3;
/// How many pages are looked at between two checks for a cancellation.
pub(super) const PAGES_PER_CANCEL_CHECK: u32 = 256;

#[derive(Default)]
pub struct DuplicatePages {
    /// Groups of equal pages that hold rows or keys.
    pub groups: Vec<Vec<u32>>,
    /// By tree: the number of leaves with rows or keys.
    leaves: HashMap<u32, usize>,
}

/// Finds duplicates among the pages that belong to a tree. `tree_of` returns the tree of a page, or
/// 0 if there is none.
pub fn find(
    source: &Source,
    tree_of: impl Fn(u32) -> u32,
    cancel: &CancelToken,
) -> Result<DuplicatePages> {
    let (mut hashes, mut twins) = (Vec::new(), DuplicatePages::default());
    for number in (1..=source.present).filter(|number| tree_of(*number) > 0) {
        if number.is_multiple_of(PAGES_PER_CANCEL_CHECK) {
            cancel.check()?;
        }
        let Some(bytes) = source.page(number) else {
            continue;
        };
        if let Some(page) =
            parse(&bytes, number, source.geometry).filter(|page| !page.cells.is_empty())
        {
            hashes.push((crate::util::content_hash::content_hash(&bytes), number));
            *twins.leaves.entry(tree_of(number)).or_default() +=
                usize::from(!page.kind.is_interior());
        }
    }
    hashes.sort_unstable();
    let equal = hashes
        .chunk_by(|(one, _), (other, _)| one == other)
        .filter(|group| group.len() > 1);
    twins.groups = equal
        .map(|group| group.iter().map(|(_, number)| *number).collect())
        .collect();
    Ok(twins)
}

impl DuplicatePages {
    /// Returns the groups of equal pages in different trees of which none is a copy of another.
    /// `is_first` returns whether a page is the first leaf of its tree.
    pub fn accidents(
        self,
        tree_of: impl Fn(u32) -> u32,
        is_first: impl Fn(u32) -> bool,
    ) -> Vec<Vec<u32>> {
        let trees = |group: &[u32]| {
            let mut trees: Vec<u32> = group.iter().map(|page| tree_of(*page)).collect();
            trees.sort_unstable();
            trees.dedup();
            trees
        };
        // For each set of trees: the number of common pages, and whether they include the first
        // leaves.
        let mut common: HashMap<Vec<u32>, (usize, bool)> = HashMap::new();
        for group in &self.groups {
            let (count, with_first) = common.entry(trees(group)).or_default();
            *count += 1;
            *with_first |= group.iter().all(|page| is_first(*page));
        }
        let shortest = |trees: &[u32]| {
            trees
                .iter()
                .map(|tree| self.leaves.get(tree).copied().unwrap_or(0))
                .min()
                .unwrap_or(0)
        };
        let is_copy = |trees: &[u32]| match common.get(trees) {
            Some((count, with_first)) => {
                *count > MOST_ACCIDENTS || (*with_first && *count * 2 >= shortest(trees))
            }
            None => false,
        };
        self.groups
            .iter()
            .filter(|group| {
                let trees = trees(group);
                trees.len() > 1 && !is_copy(&trees)
            })
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds the accidents among groups of pages: tree 1 has the pages from 1, tree 2 those from
    /// 101, and tree 3 those from 201.
    fn accidents(groups: &[Vec<u32>], leaves: [usize; 3]) -> Vec<Vec<u32>> {
        let twins = DuplicatePages {
            groups: groups.to_vec(),
            leaves: (1..).zip(leaves).collect(),
        };
        twins.accidents(|page| page / 100 + 1, |page| page % 100 == 1)
    }

    #[test]
    fn pages_that_two_trees_have_in_common_by_the_dozen_are_no_accident() {
        let copies: Vec<Vec<u32>> = (5..=17).map(|page| vec![page, page + 100]).collect();
        let accident = vec![50, 250];
        assert_eq!(
            accidents(&[copies, vec![accident.clone()]].concat(), [90, 90, 90]),
            [accident]
        );
    }

    #[test]
    fn short_trees_of_the_same_pages_are_copies_and_of_one_page_by_chance_are_not() {
        let none: [Vec<u32>; 0] = [];
        assert_eq!(accidents(&[vec![1, 101]], [1, 1, 0]), none);
        assert_eq!(accidents(&[vec![1, 101]], [2, 60, 0]), none);
        assert_eq!(accidents(&[vec![1, 101], vec![2, 102]], [3, 60, 0]), none);
        for (group, leaves) in [
            (vec![7, 101], [60, 1, 0]),
            (vec![1, 101], [3, 3, 0]),
            (vec![2, 102], [3, 3, 0]),
        ] {
            assert_eq!(accidents(std::slice::from_ref(&group), leaves), [group]);
        }
    }
}
