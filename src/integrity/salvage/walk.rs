//! Trees: which pages belong to which table or index.
//!
//! A page of a sound database has one parent. In a damaged one a pointer may lead to a page of another tree, so all trees are
//! walked twice. The first walk notes every claim to a page; a page that several parents claim is given to the one whose keys it
//! fits, whose columns it fits, or which the pointer map names, and to none where that does not decide. The second walk
//! follows what was decided. It lists the leaves of each tree in order, and the *holes* between them, where a page or a cell
//! could not be read: what is found without a parent may belong there.

use std::collections::{HashMap, HashSet};

use super::{file::Source, schema::Shape, twins};
use crate::{
    error::Result,
    sqlite::btree::{Kind, Page, parse},
    task::Cancel,
};

/// More claims to one page than this settle nothing.
const MAX_CLAIMS: usize = 4;
/// No tree of SQLite is deeper.
const MAX_DEPTH: usize = 40;
const PAGES_PER_CANCEL_CHECK: u32 = 256;

/// A b-tree that the schema names.
#[derive(Debug, Clone)]
pub struct Tree {
    pub name: String,
    /// 0 where it is not known.
    pub root: u32,
    /// Whether rows are kept by rowid; indexes and tables without rowid are kept by their records.
    pub by_rowid: bool,
    pub is_index: bool,
    /// Of what could be made in the new database.
    pub shape: Option<Shape>,
}

/// A leaf, and the keys that it may hold, both inclusive. For a tree of records they say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Leaf {
    pub page: u32,
    pub lowest: i64,
    pub highest: i64,
    /// The keys it does hold.
    pub first: i64,
    pub last: i64,
}

/// Where something is missing: between these keys, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    pub after: Option<i64>,
    pub before: Option<i64>,
}

impl Hole {
    pub fn takes(&self, first: i64, last: i64) -> bool {
        self.after.is_none_or(|after| after < first) && self.before.is_none_or(|before| last < before)
    }
}

/// What a tree consists of.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// In the order of their keys. Of a tree of records: every page, as interior ones hold rows too.
    pub leaves: Vec<Leaf>,
    pub holes: Vec<Hole>,
    /// Rows or keys on the pages of the tree that could be read, whether or not they fit.
    pub cells: u64,
    /// Pages that are named, but could not be read as what they should be.
    pub pages_lost: u64,
    /// Rows or keys on other pages that could not be read.
    pub cells_lost: u64,
}

/// A page that could not be used, and why.
#[derive(Debug, Clone, Copy)]
pub struct BadPage {
    pub page: u32,
    pub reason: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    /// One more than its index; 0 for no claim.
    tree: u32,
    parent: u32,
    fits: bool,
}

const NO_CLAIM: Claim = Claim { tree: 0, parent: 0, fits: false };

pub struct Walk<'a> {
    pub source: &'a Source,
    cancel: &'a Cancel,
    pub trees: Vec<Tree>,
    pub found: Vec<Found>,
    claims: Vec<Claim>,
    more_claims: HashMap<u32, Vec<Claim>>,
    /// Pages that belong to nobody, although somebody claims them.
    pub disputed: Vec<u32>,
    /// By page: it belongs to a tree.
    pub is_owned: Vec<bool>,
    /// By page: it is on the freelist.
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

/// What the second walk meets, in order.
enum Met {
    Leaf { leaf: Leaf, fits: bool },
    Hole,
}

impl<'a> Walk<'a> {
    pub fn new(source: &'a Source, trees: Vec<Tree>, is_free: Vec<bool>, cancel: &'a Cancel) -> Self {
        let pages = source.present as usize + 1;
        Walk {
            source,
            cancel,
            found: vec![Found::default(); trees.len()],
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

    /// How many places are not as they should be: of two readings of one database the one with fewer is right. A place counts once,
    /// however many pages are missing there: a misplaced page names all children of another one.
    pub fn problems(&self) -> usize {
        self.found.iter().map(|found| found.holes.len()).sum::<usize>() + self.disputed.len()
    }

    /// The tree that claimed the page first, whether or not the page could be read.
    pub fn claimed_by(&self, page: u32) -> Option<usize> {
        let claim = self.claims.get(page as usize)?;
        (claim.tree > 0 && !self.more_claims.contains_key(&page)).then(|| claim.tree as usize - 1)
    }

    /// Reads a page as one of a tree of that kind.
    pub fn read(&self, page: u32, by_rowid: bool) -> Option<(Vec<u8>, Page)> {
        let bytes = self.source.page(page)?;
        let parsed = parse(&bytes, page, self.source.geometry)?;
        (parsed.kind.is_table() == by_rowid).then_some((bytes, parsed))
    }

    fn pause(&mut self) -> Result<()> {
        self.visited = self.visited.wrapping_add(1);
        if self.visited.is_multiple_of(PAGES_PER_CANCEL_CHECK) { self.cancel.check() } else { Ok(()) }
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
            let fits = page.as_ref().is_some_and(|page| !by_rowid || keys_fit(page, &visit));
            let claim = Claim { tree: tree as u32 + 1, parent: visit.parent, fits };
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

    /// Gives each page that several claim to one of them, or to none.
    fn settle(&mut self) -> Result<()> {
        let contested: Vec<u32> = self.more_claims.keys().copied().collect();
        for page in contested {
            self.pause()?;
            let mut claims = self.more_claims.get(&page).cloned().unwrap_or_default();
            let too_many = claims.len() >= MAX_CLAIMS;
            claims.push(self.claims[page as usize]);
            let winner = if too_many { None } else { self.winner(page, claims) };
            if winner.is_none() {
                self.disputed.push(page);
            }
            self.claims[page as usize] = winner.unwrap_or(NO_CLAIM);
        }
        for page in 1..self.is_free.len() {
            let claim = self.claims[page];
            if self.is_free[page] && claim.tree > 0 && !self.outweighs_freelist(page as u32, claim) {
                self.dispossess(page as u32);
            }
        }
        let mut twins = twins::find(self.source, |page| self.claims[page as usize].tree, self.cancel)?;
        for group in &mut twins.groups {
            *group = self.expel_strangers(group);
        }
        let mut first = HashSet::new();
        // A root that was written over makes a tree look short, but leaves pages without a parent.
        if twins.groups.iter().any(|group| group.len() > 1) && !self.has_strays()? {
            first.extend(self.trees.iter().filter_map(|tree| self.first_leaf(tree.root, tree.by_rowid)));
        }
        let tree_of = |page: u32| self.claims[page as usize].tree;
        for page in twins.accidents(tree_of, |page| first.contains(&page)).concat() {
            self.dispossess(page);
        }
        Ok(())
    }

    /// Whether a page with rows or keys is neither free nor claimed.
    fn has_strays(&mut self) -> Result<bool> {
        for number in 2..=self.source.present {
            self.pause()?;
            let is_known = self.claims[number as usize].tree > 0 || self.is_free[number as usize];
            let bytes = if is_known || !self.is_there(number) { None } else { self.source.page(number) };
            let page = bytes.and_then(|bytes| parse(&bytes, number, self.source.geometry));
            if page.is_some_and(|page| page.exact && !page.cells.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes equal pages from trees that they do not fit, where they fit another. Returns those that fit.
    fn expel_strangers(&mut self, twins: &[u32]) -> Vec<u32> {
        let is_at_home = |page: &u32| {
            let claim = self.claims[*page as usize];
            let tree = &self.trees[claim.tree as usize - 1];
            claim.fits && tree.shape.as_ref().is_none_or(|shape| self.looks_like(*page, tree.by_rowid, shape))
        };
        let (at_home, strangers): (Vec<u32>, Vec<u32>) = twins.iter().copied().partition(is_at_home);
        if !at_home.is_empty() {
            strangers.into_iter().for_each(|page| self.dispossess(page));
        }
        at_home
    }

    fn dispossess(&mut self, page: u32) {
        self.disputed.push(page);
        self.more_claims.entry(page).or_default();
        self.claims[page as usize] = NO_CLAIM;
    }

    /// Whether a page is its tree's although the freelist names it: the pointer map says so, or it adds up to the last byte and holds
    /// the columns and the keys that are expected there. Keys of records are not compared, so for those only the map counts.
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
            && tree.shape.as_ref().is_some_and(|shape| self.looks_like(page, true, shape))
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
                tree.shape.as_ref().is_none_or(|shape| self.looks_like(page, tree.by_rowid, shape))
            });
        }
        (claims.len() == 1).then(|| claims[0])
    }

    /// Whether the first leaf at or below the page holds rows of that shape; of a tree of records, the page itself.
    fn looks_like(&self, page: u32, by_rowid: bool, shape: &Shape) -> bool {
        let rows = if by_rowid { self.first_leaf(page, true) } else { Some(page) };
        let Some((bytes, page)) = rows.and_then(|page| self.read(page, by_rowid)) else { return false };
        page.cells.iter().all(|cell| shape.fits_cell(&bytes, cell))
    }

    /// The first leaf at or below the page.
    fn first_leaf(&self, page: u32, by_rowid: bool) -> Option<u32> {
        let mut next = page;
        for _ in 0..MAX_DEPTH {
            let (_, page) = self.read(next, by_rowid)?;
            if !page.kind.is_interior() {
                return Some(next);
            }
            next = page.cells.first().map_or(page.right_child, |cell| cell.child);
        }
        None
    }

    /// Whether a leaf holds rows, and none that the table could hold: then it was written to the wrong place.
    fn is_of_another_table(&self, tree: usize, number: u32, page: &Page) -> bool {
        let (Some(shape), Kind::TableLeaf) = (&self.trees[tree].shape, page.kind) else { return false };
        let Some(bytes) = self.source.page(number) else { return false };
        !page.cells.is_empty() && !page.cells.iter().any(|cell| shape.allows_cell(&bytes, cell))
    }

    /// The second walk of a tree, in the order of its keys.
    fn follow(&mut self, tree: usize) -> Result<Vec<Met>> {
        let by_rowid = self.trees[tree].by_rowid;
        let mut met = Vec::new();
        let mut stack = root_of(&self.trees[tree]);
        if stack.is_empty() {
            met.push(Met::Hole);
        }
        while let Some(item) = stack.pop() {
            let Item::Visit(visit) = item else {
                met.push(Met::Hole);
                continue;
            };
            self.pause()?;
            let number = visit.page;
            let mut lose = |walk: &mut Self, reason: &'static str| {
                walk.found[tree].pages_lost += 1;
                walk.bad_pages.push(BadPage { page: number, reason });
                met.push(Met::Hole);
            };
            if !self.is_there(number) {
                lose(self, "it lies beyond the end of the file");
                continue;
            }
            let is_won = |claim: &Claim| claim.tree == tree as u32 + 1 && claim.parent == visit.parent;
            if self.more_claims.contains_key(&number) && !is_won(&self.claims[number as usize]) {
                met.push(Met::Hole);
                self.found[tree].pages_lost += 1;
                continue;
            }
            if visit.depth > MAX_DEPTH || self.is_owned[number as usize] {
                met.push(Met::Hole);
                continue;
            }
            let Some((_, page)) = self.read(number, by_rowid) else {
                lose(self, "it is no page of a b-tree of its kind");
                continue;
            };
            if self.is_of_another_table(tree, number, &page) {
                lose(self, "its rows are none of its table");
                continue;
            }
            self.is_owned[number as usize] = true;
            if page.bad_cells > 0 {
                self.bad_pages.push(BadPage { page: number, reason: "some of its cells could not be read" });
            }
            if !by_rowid || !page.kind.is_interior() {
                self.found[tree].cells += page.cells.len() as u64;
                self.found[tree].cells_lost += u64::from(page.bad_cells);
                let fits = !by_rowid || keys_fit(&page, &visit);
                let inside = |rowid: &i64| (visit.lowest..=visit.highest).contains(rowid);
                let mut keys = page.cells.iter().map(|cell| cell.rowid).filter(|key| !by_rowid || !fits || inside(key));
                let first = keys.next();
                let last = keys.next_back().or(first);
                if let (Some(first), Some(last)) = (first, last) {
                    let (lowest, highest) = (visit.lowest, visit.highest);
                    met.push(Met::Leaf { leaf: Leaf { page: number, lowest, highest, first, last }, fits });
                }
                if page.bad_cells > 0 || (!page.exact && page.cells.is_empty()) {
                    met.push(Met::Hole);
                }
            }
            push_children(&mut stack, &page, &visit, !page.exact);
        }
        Ok(met)
    }

    /// Leaves that fit, and holes between them. A leaf that does not fit the keys of its parents is accepted where it fits
    /// between its neighbours: then it is the parent that is wrong.
    fn list(&mut self, tree: usize, met: Vec<Met>) {
        let by_rowid = self.trees[tree].by_rowid;
        let mut next_fitting = vec![None; met.len()];
        let mut following = None;
        for (index, met) in met.iter().enumerate().rev() {
            next_fitting[index] = following;
            if let Met::Leaf { leaf, fits: true } = met {
                following = Some(leaf.first);
            }
        }
        let mut before: Option<i64> = None;
        let mut in_hole = false;
        let mut found = std::mem::take(&mut self.found[tree]);
        for (index, met) in met.into_iter().enumerate() {
            let accepted = match met {
                Met::Hole => None,
                Met::Leaf { leaf, .. } if !by_rowid => Some(leaf),
                Met::Leaf { leaf, fits: true } => {
                    Some(leaf).filter(|leaf| before.is_none_or(|before| before < leaf.first))
                }
                Met::Leaf { leaf, fits: false } => {
                    let place = Hole { after: before, before: next_fitting[index] };
                    let shape = self.trees[tree].shape.as_ref();
                    let fits = place.takes(leaf.first, leaf.last)
                        && shape.is_none_or(|shape| self.looks_like(leaf.page, true, shape));
                    fits.then_some(Leaf { lowest: leaf.first, highest: leaf.last, ..leaf })
                }
            };
            match (accepted, met_page(&met)) {
                (Some(leaf), _) => {
                    if in_hole {
                        found.holes.push(Hole { after: before, before: Some(leaf.first).filter(|_| by_rowid) });
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
            found.holes.push(Hole { after: before, before: None });
        }
        self.found[tree] = found;
    }
}

fn met_page(met: &Met) -> Option<u32> {
    match met {
        Met::Leaf { leaf, .. } => Some(leaf.page),
        Met::Hole => None,
    }
}

fn root_of(tree: &Tree) -> Vec<Item> {
    if tree.root == 0 {
        return Vec::new();
    }
    vec![Item::Visit(Visit { page: tree.root, parent: 0, depth: 0, lowest: i64::MIN, highest: i64::MAX })]
}

/// Whether the keys are those that the parents announce. Of a page that does not add up, most of them.
fn keys_fit(page: &Page, visit: &Visit) -> bool {
    let inside = page.cells.iter().filter(|cell| (visit.lowest..=visit.highest).contains(&cell.rowid)).count();
    if page.exact { inside == page.cells.len() } else { inside * 2 > page.cells.len() }
}

/// Puts the children onto the stack, so that the first is on top.
fn push_children(stack: &mut Vec<Item>, page: &Page, visit: &Visit, with_holes: bool) {
    if !page.kind.is_interior() {
        return;
    }
    let child = |page: u32, lowest: i64, highest: i64| {
        Item::Visit(Visit { page, parent: visit.page, depth: visit.depth + 1, lowest, highest })
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
