//! Pages that are the same to the last byte in two places: one was also written where it does not belong.
//!
//! A page does not say where it lies, so a copy adds up as well as the original. But each has a place, with keys and columns that are
//! expected there. Where one of them fits and the others do not, that one is the original. Where more fit, it cannot be told which of
//! the trees the rows are of, and all of these pages belong to nobody: unless one table is a copy of the other. Then they have many
//! pages in common, or half of those that the shorter one has, the first of both among them, as of tables that
//! have grown since, and no page of any tree has lost its parent.

use std::collections::HashMap;

use super::file::Source;
use crate::{error::Result, sqlite::format::btree::parse, util::operation::CancelToken};

/// More pages that two trees have in common are a table and its copy.
const MOST_ACCIDENTS: usize = 3;
const PAGES_PER_CANCEL_CHECK: u32 = 256;

#[derive(Default)]
pub struct DuplicatePages {
    /// Groups of equal pages with rows or keys on them.
    pub groups: Vec<Vec<u32>>,
    /// How many leaves with rows or keys a tree has.
    leaves: HashMap<u32, usize>,
}

/// Looks at the pages that are of a tree, which `tree_of` names; 0 is none.
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
    /// The groups of pages of several trees that are not in common because one tree is a copy of the other. `is_first` names the pages
    /// that are the first leaves of their trees.
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
        // How many pages trees have in common, and whether those that they begin with.
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

    /// Tree 1 has the pages from 1, tree 2 those from 101, tree 3 those from 201.
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
