//! The second walk: follows the settled claims and lists leaves in key order with the holes between
//! them.

use super::{
    BadPage, Claim, Hole, Item, Leaf, MAX_DEPTH, TreeScan, Visit, keys_fit, push_children, root_of,
};
use crate::{
    error::Result,
    sqlite::format::btree::{Page, PageType},
};

/// A result of the second walk, in key order.
pub(super) enum VisitResult {
    Leaf { leaf: Leaf, fits: bool },
    Hole,
}

impl TreeScan<'_> {
    /// Returns whether a leaf holds rows of which the table could hold none. Such a leaf was
    /// written to the wrong place.
    fn is_of_another_table(&self, tree: usize, number: u32, page: &Page) -> bool {
        let (Some(shape), PageType::TableLeaf) = (&self.trees[tree].shape, page.kind) else {
            return false;
        };
        let Some(bytes) = self.source.page(number) else {
            return false;
        };
        !page.cells.is_empty()
            && !page
                .cells
                .iter()
                .any(|cell| shape.allows_cell(&bytes, cell))
    }

    /// Walks a tree for the second time, in key order.
    pub(super) fn follow(&mut self, tree: usize) -> Result<Vec<VisitResult>> {
        let by_rowid = self.trees[tree].by_rowid;
        let mut met = Vec::new();
        let mut stack = root_of(&self.trees[tree]);
        if stack.is_empty() {
            met.push(VisitResult::Hole);
        }
        while let Some(item) = stack.pop() {
            let Item::Visit(visit) = item else {
                met.push(VisitResult::Hole);
                continue;
            };
            self.pause()?;
            let Some(page) = self.claim_page(tree, &visit) else {
                met.push(VisitResult::Hole);
                continue;
            };
            if !by_rowid || !page.kind.is_interior() {
                self.found[tree].cells += page.cells.len() as u64;
                self.found[tree].cells_lost += u64::from(page.bad_cells);
                met.extend(leaf_of(&page, &visit, by_rowid));
                if page.bad_cells > 0 || (!page.exact && page.cells.is_empty()) {
                    met.push(VisitResult::Hole);
                }
            }
            push_children(&mut stack, &page, &visit, !page.exact);
        }
        Ok(met)
    }

    /// Reads a page and makes the tree its owner. Returns `None` if the tree cannot use the page,
    /// and records a page that is lost.
    fn claim_page(&mut self, tree: usize, visit: &Visit) -> Option<Page> {
        let number = visit.page;
        if !self.is_there(number) {
            self.lose(tree, number, "it lies beyond the end of the file");
            return None;
        }
        let is_won = |claim: &Claim| claim.tree == tree as u32 + 1 && claim.parent == visit.parent;
        if self.more_claims.contains_key(&number) && !is_won(&self.claims[number as usize]) {
            self.found[tree].pages_lost += 1;
            return None;
        }
        if visit.depth > MAX_DEPTH || self.is_owned[number as usize] {
            return None;
        }
        let Some((_, page)) = self.read(number, self.trees[tree].by_rowid) else {
            self.lose(tree, number, "it is not a b-tree page of the expected kind");
            return None;
        };
        if self.is_of_another_table(tree, number, &page) {
            self.lose(tree, number, "its rows do not belong to its table");
            return None;
        }
        self.is_owned[number as usize] = true;
        if page.bad_cells > 0 {
            self.bad_pages.push(BadPage {
                page: number,
                reason: "some of its cells could not be read",
            });
        }
        Some(page)
    }

    fn lose(&mut self, tree: usize, page: u32, reason: &'static str) {
        self.found[tree].pages_lost += 1;
        self.bad_pages.push(BadPage { page, reason });
    }

    /// Records the leaves that fit and the holes between them. A leaf outside the key range of its
    /// parents is accepted if it fits between its neighbours, because then the parent is wrong.
    pub(super) fn list(&mut self, tree: usize, met: Vec<VisitResult>) {
        let by_rowid = self.trees[tree].by_rowid;
        let mut next_fitting = vec![None; met.len()];
        let mut following = None;
        for (index, met) in met.iter().enumerate().rev() {
            next_fitting[index] = following;
            if let VisitResult::Leaf { leaf, fits: true } = met {
                following = Some(leaf.first);
            }
        }
        let mut before: Option<i64> = None;
        let mut in_hole = false;
        let mut found = std::mem::take(&mut self.found[tree]);
        for (index, met) in met.into_iter().enumerate() {
            let accepted = match met {
                VisitResult::Hole => None,
                VisitResult::Leaf { leaf, .. } if !by_rowid => Some(leaf),
                VisitResult::Leaf { leaf, fits: true } => {
                    Some(leaf).filter(|leaf| before.is_none_or(|before| before < leaf.first))
                }
                VisitResult::Leaf { leaf, fits: false } => {
                    let place = Hole {
                        after: before,
                        before: next_fitting[index],
                    };
                    let shape = self.trees[tree].shape.as_ref();
                    let fits = place.takes(leaf.first, leaf.last)
                        && shape.is_none_or(|shape| self.looks_like(leaf.page, true, shape));
                    fits.then_some(Leaf {
                        lowest: leaf.first,
                        highest: leaf.last,
                        ..leaf
                    })
                }
            };
            match (accepted, met_page(&met)) {
                (Some(leaf), _) => {
                    if in_hole {
                        found.holes.push(Hole {
                            after: before,
                            before: Some(leaf.first).filter(|_| by_rowid),
                        });
                        in_hole = false;
                    }
                    before = Some(leaf.last).filter(|_| by_rowid);
                    found.leaves.push(leaf);
                }
                (None, refused) => {
                    in_hole = true;
                    if let Some(page) = refused {
                        self.is_owned[page as usize] = false;
                    }
                }
            }
        }
        if in_hole {
            found.holes.push(Hole {
                after: before,
                before: None,
            });
        }
        self.found[tree] = found;
    }
}

/// Returns the leaf with the range of its keys; `None` if it holds no key.
fn leaf_of(page: &Page, visit: &Visit, by_rowid: bool) -> Option<VisitResult> {
    let fits = !by_rowid || keys_fit(page, visit);
    let inside = |rowid: &i64| (visit.lowest..=visit.highest).contains(rowid);
    let mut keys = page
        .cells
        .iter()
        .map(|cell| cell.rowid)
        .filter(|key| !by_rowid || !fits || inside(key));
    let first = keys.next()?;
    let last = keys.next_back().unwrap_or(first);
    Some(VisitResult::Leaf {
        leaf: Leaf {
            page: visit.page,
            lowest: visit.lowest,
            highest: visit.highest,
            first,
            last,
        },
        fits,
    })
}

fn met_page(met: &VisitResult) -> Option<u32> {
    match met {
        VisitResult::Leaf { leaf, .. } => Some(leaf.page),
        VisitResult::Hole => None,
    }
}
