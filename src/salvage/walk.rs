//! Trees: determines which pages belong to which table or index.
//!
//! A page of a sound database has one parent. In a damaged database a pointer may lead to a page of
//! another tree, so all trees are walked twice.
//!
//! The first walk records every claim to a page. A page that several parents claim goes to the
//! parent whose keys or columns it fits, or that the pointer map names. If that does not decide,
//! the page goes to no parent.
//!
//! The second walk follows these decisions and lists the leaves of each tree in order. It also
//! lists the *holes*, where a page or a cell could not be read. A page without a parent may belong
//! into a hole.

mod follow;
mod settle;

use std::collections::HashMap;

use super::file::Source;
use crate::{
    error::Result,
    sqlite::{
        format::btree::{Page, parse},
        row_schema::RowSchema,
    },
    util::operation::CancelToken,
};

/// Number of additional claims to one page at which no claim wins.
const MAX_CLAIMS: usize = 4;
/// Maximum depth of a tree; no b-tree of SQLite is deeper.
pub(super) const MAX_DEPTH: usize = 40;
const PAGES_PER_CANCEL_CHECK: u32 = 256;

/// A b-tree that the schema names.
#[derive(Debug, Clone)]
pub struct Tree {
    pub name: String,
    /// 0 if unknown.
    pub root: u32,
    /// Whether the tree is keyed by rowid. Indexes and tables without rowids are keyed by their
    /// records.
    pub by_rowid: bool,
    pub is_index: bool,
    /// Columns of the table or index, if it could be created in the new database.
    pub shape: Option<RowSchema>,
}

/// A leaf and the inclusive range of keys that it may hold. The range is meaningless in a tree that
/// is keyed by records.
#[derive(Debug, Clone, Copy)]
pub struct Leaf {
    pub page: u32,
    pub lowest: i64,
    pub highest: i64,
    /// The first and last key that the leaf holds.
    pub first: i64,
    pub last: i64,
}

/// A gap in a tree, between two keys that are both exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    pub after: Option<i64>,
    pub before: Option<i64>,
}

impl Hole {
    pub fn takes(&self, first: i64, last: i64) -> bool {
        self.after.is_none_or(|after| after < first)
            && self.before.is_none_or(|before| last < before)
    }
}

/// The leaves and holes of a tree, with counts.
#[derive(Debug, Clone, Default)]
pub struct TreeContents {
    /// Leaves in key order. A tree keyed by records lists every page, because interior pages hold
    /// rows too.
    pub leaves: Vec<Leaf>,
    pub holes: Vec<Hole>,
    /// Rows or keys on the readable pages of the tree, whether or not they fit.
    pub cells: u64,
    /// Pages that a parent names but that could not be read as pages of this tree.
    pub pages_lost: u64,
    /// Unreadable rows or keys on pages that could otherwise be read.
    pub cells_lost: u64,
}

/// A page that could not be used, and the reason.
#[derive(Debug, Clone, Copy)]
pub struct BadPage {
    pub page: u32,
    pub reason: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    /// Index of the tree plus one; 0 if there is no claim.
    tree: u32,
    parent: u32,
    fits: bool,
}

const NO_CLAIM: Claim = Claim {
    tree: 0,
    parent: 0,
    fits: false,
};

pub struct TreeScan<'a> {
    pub source: &'a Source,
    cancel: &'a CancelToken,
    pub trees: Vec<Tree>,
    pub found: Vec<TreeContents>,
    claims: Vec<Claim>,
    more_claims: HashMap<u32, Vec<Claim>>,
    /// Pages that belong to no tree although at least one tree claims them.
    pub disputed: Vec<u32>,
    /// By page: whether it belongs to a tree.
    pub is_owned: Vec<bool>,
    /// By page: whether the freelist lists it.
    pub is_free: Vec<bool>,
    pub bad_pages: Vec<BadPage>,
    visited: u32,
}

struct Visit {
    page: u32,
    parent: u32,
    depth: usize,
    lowest: i64,
    highest: i64,
}

enum Item {
    Visit(Visit),
    Hole,
}

impl<'a> TreeScan<'a> {
    pub fn new(
        source: &'a Source,
        trees: Vec<Tree>,
        is_free: Vec<bool>,
        cancel: &'a CancelToken,
    ) -> Self {
        let pages = source.present as usize + 1;
        TreeScan {
            source,
            cancel,
            found: vec![TreeContents::default(); trees.len()],
            trees,
            claims: vec![NO_CLAIM; pages],
            more_claims: HashMap::new(),
            disputed: Vec::new(),
            is_owned: vec![false; pages],
            is_free,
            bad_pages: Vec::new(),
            visited: 0,
        }
    }

    pub fn run(&mut self) -> Result<()> {
        for tree in 0..self.trees.len() {
            self.claim(tree)?;
        }
        self.settle()?;
        for tree in 0..self.trees.len() {
            let met = self.follow(tree)?;
            self.list(tree, met);
        }
        self.disputed.sort_unstable();
        self.disputed.dedup();
        self.disputed.retain(|page| !self.is_owned[*page as usize]);
        Ok(())
    }

    /// Returns the number of faults. Of two readings of one database, the one with fewer faults is
    /// right. A hole counts once however many pages are missing there, because a misplaced page
    /// names all children of another page.
    pub fn problems(&self) -> usize {
        self.found
            .iter()
            .map(|found| found.holes.len())
            .sum::<usize>()
            + self.disputed.len()
    }

    /// Returns the tree that claims the page, or `None` if no parent or more than one parent claims
    /// it. The page need not be readable.
    pub fn claimed_by(&self, page: u32) -> Option<usize> {
        let claim = self.claims.get(page as usize)?;
        (claim.tree > 0 && !self.more_claims.contains_key(&page)).then(|| claim.tree as usize - 1)
    }

    /// Reads a page, and returns `None` if it is not a page of a tree of that kind.
    pub fn read(&self, page: u32, by_rowid: bool) -> Option<(Vec<u8>, Page)> {
        let bytes = self.source.page(page)?;
        let parsed = parse(&bytes, page, self.source.geometry)?;
        (parsed.kind.is_table() == by_rowid).then_some((bytes, parsed))
    }

    fn pause(&mut self) -> Result<()> {
        self.visited = self.visited.wrapping_add(1);
        if self.visited.is_multiple_of(PAGES_PER_CANCEL_CHECK) {
            self.cancel.check()
        } else {
            Ok(())
        }
    }

    fn is_there(&self, page: u32) -> bool {
        (1..=self.source.present).contains(&page) && !self.source.is_reserved(page)
    }

    fn claim(&mut self, tree: usize) -> Result<()> {
        let by_rowid = self.trees[tree].by_rowid;
        let mut stack = root_of(&self.trees[tree]);
        while let Some(item) = stack.pop() {
            let Item::Visit(visit) = item else { continue };
            if !self.is_there(visit.page) || visit.depth > MAX_DEPTH {
                continue;
            }
            self.pause()?;
            let page = self.read(visit.page, by_rowid).map(|(_, page)| page);
            let fits = page
                .as_ref()
                .is_some_and(|page| !by_rowid || keys_fit(page, &visit));
            let claim = Claim {
                tree: tree as u32 + 1,
                parent: visit.parent,
                fits,
            };
            let first = &mut self.claims[visit.page as usize];
            if first.tree > 0 {
                let more = self.more_claims.entry(visit.page).or_default();
                if more.len() < MAX_CLAIMS {
                    more.push(claim);
                }
                continue;
            }
            *first = claim;
            if let Some(page) = page {
                push_children(&mut stack, &page, &visit, false);
            }
        }
        Ok(())
    }
}

fn root_of(tree: &Tree) -> Vec<Item> {
    if tree.root == 0 {
        return Vec::new();
    }
    vec![Item::Visit(Visit {
        page: tree.root,
        parent: 0,
        depth: 0,
        lowest: i64::MIN,
        highest: i64::MAX,
    })]
}

/// Returns whether the keys of a page lie in the range that its parents give. If the page cannot be
/// parsed exactly, more than half of its keys must lie there.
fn keys_fit(page: &Page, visit: &Visit) -> bool {
    let inside = page
        .cells
        .iter()
        .filter(|cell| (visit.lowest..=visit.highest).contains(&cell.rowid))
        .count();
    if page.exact {
        inside == page.cells.len()
    } else {
        inside * 2 > page.cells.len()
    }
}

/// Pushes the children onto the stack so that the first child is on top.
fn push_children(stack: &mut Vec<Item>, page: &Page, visit: &Visit, with_holes: bool) {
    if !page.kind.is_interior() {
        return;
    }
    let child = |page: u32, lowest: i64, highest: i64| {
        Item::Visit(Visit {
            page,
            parent: visit.page,
            depth: visit.depth + 1,
            lowest,
            highest,
        })
    };
    let start = stack.len();
    let mut lowest = visit.lowest;
    for cell in &page.cells {
        stack.push(child(cell.child, lowest, cell.rowid.min(visit.highest)));
        lowest = lowest.max(cell.rowid.saturating_add(1));
        if with_holes {
            stack.push(Item::Hole);
        }
    }
    stack.push(child(page.right_child, lowest, visit.highest));
    stack[start..].reverse();
}
