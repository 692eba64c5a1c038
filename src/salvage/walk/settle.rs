//! Settles who owns a page that several parents claim, that is also free, or that exists twice.

use std::collections::HashSet;

use super::{super::duplicate_pages, Claim, MAX_CLAIMS, MAX_DEPTH, NO_CLAIM, TreeScan};
use crate::{
    error::Result,
    sqlite::{format::btree::parse, row_schema::RowSchema},
};

impl TreeScan<'_> {
    /// Assigns each contested page to one of its claimants or to none.
    pub(super) fn settle(&mut self) -> Result<()> {
        let contested: Vec<u32> = self.more_claims.keys().copied().collect();
        for page in contested {
            self.pause()?;
            let mut claims = self.more_claims.get(&page).cloned().unwrap_or_default();
            let too_many = claims.len() >= MAX_CLAIMS;
            claims.push(self.claims[page as usize]);
            let winner = if too_many {
                None
            } else {
                self.winner(page, claims)
            };
            if winner.is_none() {
                self.disputed.push(page);
            }
            self.claims[page as usize] = winner.unwrap_or(NO_CLAIM);
        }
        for page in 1..self.is_free.len() {
            let claim = self.claims[page];
            if self.is_free[page] && claim.tree > 0 && !self.outweighs_freelist(page as u32, claim)
            {
                self.release_page(page as u32);
            }
        }
        let mut twins = duplicate_pages::find(
            self.source,
            |page| self.claims[page as usize].tree,
            self.cancel,
        )?;
        for group in &mut twins.groups {
            *group = self.drop_non_matching(group);
        }
        let mut first = HashSet::new();
        // An overwritten root makes a tree look short, but it also leaves pages without a parent.
        if twins.groups.iter().any(|group| group.len() > 1) && !self.has_strays()? {
            first.extend(
                self.trees
                    .iter()
                    .filter_map(|tree| self.first_leaf(tree.root, tree.by_rowid)),
            );
        }
        let tree_of = |page: u32| self.claims[page as usize].tree;
        for page in twins
            .accidents(tree_of, |page| first.contains(&page))
            .concat()
        {
            self.release_page(page);
        }
        Ok(())
    }

    /// Returns whether any page with rows or keys is neither free nor claimed.
    fn has_strays(&mut self) -> Result<bool> {
        for number in 2..=self.source.present {
            self.pause()?;
            let is_known = self.claims[number as usize].tree > 0 || self.is_free[number as usize];
            let bytes = if is_known || !self.is_there(number) {
                None
            } else {
                self.source.page(number)
            };
            let page = bytes.and_then(|bytes| parse(&bytes, number, self.source.geometry));
            if page.is_some_and(|page| page.exact && !page.cells.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Releases those duplicates that do not fit their tree, if at least one of the group fits its
    /// own. Returns the pages that fit.
    fn drop_non_matching(&mut self, twins: &[u32]) -> Vec<u32> {
        let is_at_home = |page: &u32| {
            let claim = self.claims[*page as usize];
            let tree = &self.trees[claim.tree as usize - 1];
            claim.fits
                && tree
                    .shape
                    .as_ref()
                    .is_none_or(|shape| self.looks_like(*page, tree.by_rowid, shape))
        };
        let (at_home, strangers): (Vec<u32>, Vec<u32>) =
            twins.iter().copied().partition(is_at_home);
        if !at_home.is_empty() {
            strangers
                .into_iter()
                .for_each(|page| self.release_page(page));
        }
        at_home
    }

    fn release_page(&mut self, page: u32) {
        self.disputed.push(page);
        self.more_claims.entry(page).or_default();
        self.claims[page as usize] = NO_CLAIM;
    }

    /// Returns whether a page belongs to its tree although the freelist lists it. The pointer map
    /// decides if it names the page as a root, as a child or as free.
    ///
    /// Otherwise the page and its parent must parse to the last byte, and its keys and columns must
    /// match. Keys that are records are not compared, so in those trees only the pointer map
    /// counts.
    fn outweighs_freelist(&self, page: u32, claim: Claim) -> bool {
        let tree = &self.trees[claim.tree as usize - 1];
        match self.source.pointer(page) {
            Some((1 | 5, _)) => return true,
            Some((2, _)) => return false,
            _ => {}
        }
        let is_exact = |page: u32| self.read(page, true).is_some_and(|(_, page)| page.exact);
        tree.by_rowid
            && claim.fits
            && is_exact(page)
            && (claim.parent == 0 || is_exact(claim.parent))
            && tree
                .shape
                .as_ref()
                .is_some_and(|shape| self.looks_like(page, true, shape))
    }

    fn winner(&self, page: u32, mut claims: Vec<Claim>) -> Option<Claim> {
        match self.source.pointer(page) {
            Some((1, _)) => claims.retain(|claim| claim.parent == 0),
            Some((5, parent)) if claims.iter().any(|claim| claim.parent == parent) => {
                claims.retain(|claim| claim.parent == parent);
            }
            _ => {}
        }
        claims.retain(|claim| claim.fits);
        if claims.len() > 1 {
            claims.retain(|claim| {
                let tree = &self.trees[claim.tree as usize - 1];
                tree.shape
                    .as_ref()
                    .is_none_or(|shape| self.looks_like(page, tree.by_rowid, shape))
            });
        }
        (claims.len() == 1).then(|| claims[0])
    }

    /// Returns whether all rows of the first leaf at or below the page fit `shape`. In a tree keyed
    /// by records, checks the page itself.
    pub(super) fn looks_like(&self, page: u32, by_rowid: bool, shape: &RowSchema) -> bool {
        let rows = if by_rowid {
            self.first_leaf(page, true)
        } else {
            Some(page)
        };
        let Some((bytes, page)) = rows.and_then(|page| self.read(page, by_rowid)) else {
            return false;
        };
        page.cells.iter().all(|cell| shape.fits_cell(&bytes, cell))
    }

    /// Returns the first leaf at or below the page.
    fn first_leaf(&self, page: u32, by_rowid: bool) -> Option<u32> {
        let mut next = page;
        for _ in 0..MAX_DEPTH {
            let (_, page) = self.read(next, by_rowid)?;
            if !page.kind.is_interior() {
                return Some(next);
            }
            next = page
                .cells
                .first()
                .map_or(page.right_child, |cell| cell.child);
        }
        None
    }
}
