//! Pages without a parent: rows whose path from the root is lost, or leftovers that must not come
//! back.
//!
//! Only pages that parse to the last byte are considered. Interior pages among them combine the
//! pages into subtrees. A subtree goes to a table only if all of these conditions hold:
//!
//! * The subtree is certainly not a leftover.
//! * The table has a hole that the keys fit into.
//! * The rows fit the columns of the table.
//! * No other table could contain the subtree.
//!
//! All other subtrees go to `lost_and_found`.
//!
//! *Certain* means that one of three conditions holds. The freelist is sound, the pointer map names
//! the parent, or every page of the file is accounted for without a sound freelist. In the last
//! case all free pages have been found one by one.
//!
//! If no tree misses anything and the freelist is not sound, pages without a parent are leftovers
//! and are skipped.

use super::{
    duplicate_pages::PAGES_PER_CANCEL_CHECK,
    freelist::{Freelist, trunk},
    overflow::{Chains, Owner},
    walk::{Leaf, MAX_DEPTH, Tree, TreeScan},
};
use crate::{
    error::Result,
    sqlite::{
        format::btree::{PageType, parse},
        row_schema::RowSchema,
    },
    util::operation::CancelToken,
};

/// What is known about one page.
#[derive(Debug, Clone, Copy, Default)]
struct PageState {
    /// It belongs to a tree.
    is_owned: bool,
    /// The freelist lists it, or a trunk page that no freelist names.
    is_free: bool,
    /// It is part of an overflow chain of a tree.
    is_in_tree_chain: bool,
    /// It is part of an overflow chain of a subtree without a parent.
    is_in_orphan_chain: bool,
    /// It is the lock page or a page of the pointer map.
    is_reserved: bool,
    /// Several parents claim it.
    is_disputed: bool,
    /// The type of a page that parses to the last byte and has content.
    page_type: Option<PageType>,
    /// Another such page names it as its child.
    has_parent: bool,
    /// It is part of a subtree that was found.
    is_taken: bool,
}

impl PageState {
    /// Returns whether a page can be a part of a subtree without a parent.
    fn is_unclaimed(&self) -> bool {
        !self.is_owned
            && !self.is_in_tree_chain
            && !self.is_reserved
            && (!self.is_free || self.is_disputed)
    }

    /// Returns whether the purpose of the page is known.
    fn is_explained(&self) -> bool {
        self.is_owned
            || self.is_free
            || self.is_taken
            || self.is_in_tree_chain
            || self.is_in_orphan_chain
            || self.is_reserved
    }
}

#[derive(Debug, Clone)]
pub struct Group {
    pub top: u32,
    pub by_rowid: bool,
    pub leaves: Vec<Leaf>,
    is_disputed: bool,
}

impl Group {
    fn first(&self) -> i64 {
        self.leaves.iter().map(|leaf| leaf.first).min().unwrap_or(0)
    }

    fn last(&self) -> i64 {
        self.leaves.iter().map(|leaf| leaf.last).max().unwrap_or(0)
    }
}

#[derive(Default)]
pub struct Orphans {
    /// By tree: the subtrees that belong to it.
    pub assigned: Vec<Vec<Group>>,
    /// Subtrees that belong to no table, with the reason.
    pub aside: Vec<(Group, &'static str)>,
    /// Number of pages with rows that were skipped as leftovers.
    pub left: u64,
    pub freelist_was_certain: bool,
}

/// Finds the subtrees without a parent and decides where they belong.
pub fn find(
    walk: &TreeScan<'_>,
    chains: &mut Chains,
    freelist: &Freelist,
    schema_is_whole: bool,
    cancel: &CancelToken,
) -> Result<Orphans> {
    let mut finder = Finder::new(walk, chains, freelist);
    let has_strange_trunk = finder.free_strange_trunks(cancel)?;
    let groups = finder.groups(cancel)?;
    finder.claim_chains(&groups, chains);
    let finder = finder;

    let pages = walk.source.present;
    let header_count = walk.source.header.page_count;
    // A freelist that lists a page of a tree is not reliable about other pages either.
    let is_contradicted = (1..=pages as usize).any(|page| {
        let state = &finder.pages[page];
        freelist.is_free[page] && (state.is_owned || state.is_in_tree_chain)
    });
    let is_sound = freelist.is_sound
        && !is_contradicted
        && !has_strange_trunk
        && (header_count == 0 || header_count >= pages);
    let is_certain = is_sound
        || (2..=pages).all(|number| {
            finder.pages[number as usize].is_explained() || is_empty_trunk(walk, number)
        });
    let misses_something =
        !schema_is_whole || walk.found.iter().any(|found| !found.holes.is_empty());

    let mut orphans = Orphans {
        assigned: vec![Vec::new(); walk.trees.len()],
        freelist_was_certain: is_certain,
        ..Orphans::default()
    };
    for group in groups {
        cancel.check()?;
        let by_map = walk.source.pointer(group.top);
        // SQLite loses no page, so if the freelist is sound, a page without a parent is not a
        // leftover.
        let is_leftover = !misses_something && !is_sound;
        if !group.is_disputed && (is_leftover || by_map.is_some_and(|(kind, _)| kind == 2)) {
            orphans.left += group.leaves.len() as u64;
            continue;
        }
        match owner(walk, &group, is_certain, schema_is_whole) {
            Ok(Some(tree)) => orphans.assigned[tree].push(group),
            Ok(None) => orphans.left += group.leaves.len() as u64,
            Err(reason) => orphans.aside.push((group, reason)),
        }
    }
    settle_overlaps(walk, &mut orphans);
    Ok(orphans)
}

/// Returns whether the page is a trunk page without entries: a free page that hides no other.
fn is_empty_trunk(walk: &TreeScan<'_>, number: u32) -> bool {
    walk.source.page(number).is_some_and(|bytes| {
        trunk(walk.source, &bytes).is_some_and(|(_, listed)| listed.is_empty())
            && bytes.iter().any(|byte| *byte != 0)
    })
}

struct Finder<'w, 'a> {
    walk: &'w TreeScan<'a>,
    /// By page number.
    pages: Vec<PageState>,
}

impl<'w, 'a> Finder<'w, 'a> {
    fn new(walk: &'w TreeScan<'a>, chains: &Chains, freelist: &Freelist) -> Self {
        let mut pages = vec![PageState::default(); walk.source.present as usize + 1];
        for (number, state) in (1..).zip(pages.iter_mut().skip(1)) {
            let index = number as usize;
            state.is_owned = walk.is_owned[index];
            state.is_free = freelist.is_free[index];
            state.is_in_tree_chain = chains.in_trees[index] > 0;
            state.is_reserved = walk.source.is_reserved(number);
            state.is_disputed = walk.disputed.binary_search(&number).is_ok();
        }
        Finder { walk, pages }
    }

    /// Marks the pages of trunk pages that the freelist does not name as free. Returns whether there
    /// are such trunk pages.
    fn free_strange_trunks(&mut self, cancel: &CancelToken) -> Result<bool> {
        let listed: Vec<bool> = self.pages.iter().map(|state| state.is_free).collect();
        let mut found = false;
        for number in 1..=self.walk.source.present {
            if number % PAGES_PER_CANCEL_CHECK == 0 {
                cancel.check()?;
            }
            let index = number as usize;
            let state = &self.pages[index];
            let has_purpose = state.is_owned || state.is_in_tree_chain || state.is_reserved;
            if listed[index] || has_purpose {
                continue;
            }
            let source = self.walk.source;
            let entries = source.page(number).and_then(|bytes| trunk(source, &bytes));
            let Some((_, entries)) = entries.filter(|(_, entries)| !entries.is_empty()) else {
                continue;
            };
            found = true;
            for page in entries.into_iter().chain([number]) {
                if let Some(state) = self.pages.get_mut(page as usize) {
                    state.is_free = true;
                }
            }
        }
        Ok(found)
    }

    /// Notes the overflow chains of the rows in the subtrees.
    fn claim_chains(&mut self, groups: &[Group], chains: &mut Chains) {
        for group in groups {
            for leaf in &group.leaves {
                if let Some((_, page)) = self.walk.read(leaf.page, group.by_rowid) {
                    chains.claim(self.walk, &page, Owner::Orphan);
                }
            }
        }
        for (state, in_orphans) in self.pages.iter_mut().zip(&chains.in_orphans) {
            state.is_in_orphan_chain = *in_orphans > 0;
        }
    }

    fn groups(&mut self, cancel: &CancelToken) -> Result<Vec<Group>> {
        for number in 1..=self.walk.source.present {
            if number % PAGES_PER_CANCEL_CHECK == 0 {
                cancel.check()?;
            }
            self.parse(number);
        }
        let mut groups = Vec::new();
        for number in 1..=self.walk.source.present {
            let state = self.pages[number as usize];
            let is_top = !state.has_parent || state.is_disputed;
            if state.page_type.is_some() && is_top {
                groups.extend(self.group(number, state.is_disputed, cancel)?);
            }
        }
        Ok(groups)
    }

    /// Notes the type and the children of a page without an owner, if it parses to the last byte.
    fn parse(&mut self, number: u32) {
        if !self.pages[number as usize].is_unclaimed() {
            return;
        }
        let source = self.walk.source;
        let Some(page) = source
            .page(number)
            .and_then(|bytes| parse(&bytes, number, source.geometry))
            .filter(|page| page.exact && (page.kind.is_interior() || !page.cells.is_empty()))
        else {
            return;
        };
        self.pages[number as usize].page_type = Some(page.kind);
        if !page.kind.is_interior() {
            return;
        }
        let children = page.cells.iter().map(|cell| cell.child);
        for child in children.chain([page.right_child]) {
            if child != number
                && let Some(state) = self.pages.get_mut(child as usize)
            {
                state.has_parent = true;
            }
        }
    }

    /// Returns the subtree below a page. A leaf whose keys do not fit becomes a subtree of its own.
    fn group(&mut self, top: u32, is_disputed: bool, cancel: &CancelToken) -> Result<Vec<Group>> {
        let Some(by_rowid) = self.pages[top as usize].page_type.map(PageType::is_table) else {
            return Ok(Vec::new());
        };
        let mut group = Group {
            top,
            by_rowid,
            leaves: Vec::new(),
            is_disputed,
        };
        let mut apart = Vec::new();
        let mut stack = vec![(top, i64::MIN, i64::MAX, 0)];
        while let Some((number, lowest, highest, depth)) = stack.pop() {
            let Some(state) = self.pages.get_mut(number as usize) else {
                continue;
            };
            let is_of_kind = state
                .page_type
                .is_some_and(|page_type| page_type.is_table() == by_rowid);
            if !is_of_kind || depth > MAX_DEPTH || std::mem::replace(&mut state.is_taken, true) {
                continue;
            }
            cancel.check()?;
            let Some((_, page)) = self.walk.read(number, by_rowid) else {
                continue;
            };
            if !by_rowid || !page.kind.is_interior() {
                let (Some(first), Some(last)) = (page.cells.first(), page.cells.last()) else {
                    continue;
                };
                let leaf = Leaf {
                    page: number,
                    lowest: i64::MIN,
                    highest: i64::MAX,
                    first: first.rowid,
                    last: last.rowid,
                };
                if by_rowid && (leaf.first < lowest || leaf.last > highest) {
                    apart.push(Group {
                        top: number,
                        by_rowid,
                        leaves: vec![leaf],
                        is_disputed,
                    });
                } else {
                    group.leaves.push(leaf);
                }
            }
            if page.kind.is_interior() {
                let start = stack.len();
                let mut from = lowest;
                for cell in &page.cells {
                    stack.push((cell.child, from, cell.rowid.min(highest), depth + 1));
                    from = from.max(cell.rowid.saturating_add(1));
                }
                stack.push((page.right_child, from, highest, depth + 1));
                if !by_rowid {
                    stack[start..]
                        .iter_mut()
                        .for_each(|entry| (entry.1, entry.2) = (i64::MIN, i64::MAX));
                }
                stack[start..].reverse();
            }
        }
        apart.push(group);
        Ok(apart
            .into_iter()
            .filter(|group| !group.leaves.is_empty())
            .collect())
    }
}

/// Returns the tree that a subtree belongs to, or `None` if it is only a part of an index. An error
/// is the reason why the subtree goes to `lost_and_found`.
fn owner(
    walk: &TreeScan<'_>,
    group: &Group,
    is_certain: bool,
    schema_is_whole: bool,
) -> std::result::Result<Option<usize>, &'static str> {
    let (first, last) = (group.first(), group.last());
    let mut could_be: Vec<usize> = Vec::new();
    for (index, tree) in walk.trees.iter().enumerate() {
        let Some(shape) = tree
            .shape
            .as_ref()
            .filter(|_| tree.by_rowid == group.by_rowid)
        else {
            continue;
        };
        let has_place = |hole: &super::walk::Hole| !tree.by_rowid || hole.takes(first, last);
        if walk.found[index].holes.iter().any(has_place) && fits(walk, group, shape) {
            could_be.push(index);
        }
    }
    let are_rows = |tree: &Tree| {
        !tree.by_rowid
            && !tree.is_index
            && tree
                .shape
                .as_ref()
                .is_some_and(|shape| fits(walk, group, shape))
    };
    if !group.by_rowid && could_be.iter().all(|index| walk.trees[*index].is_index) {
        let is_of_index = !could_be.is_empty() || !walk.trees.iter().any(are_rows);
        return if is_of_index {
            Ok(None)
        } else {
            Err("nothing is missing from its table")
        };
    }
    if group.is_disputed {
        return Err("the page is claimed from more than one place");
    }
    let parent = match walk.source.pointer(group.top) {
        Some((5, parent)) => walk.claimed_by(parent),
        _ => None,
    };
    if let Some(tree) = parent {
        return if could_be.contains(&tree) {
            Ok(Some(tree))
        } else {
            Err("it does not fit its table")
        };
    }
    if !is_certain {
        return Err("the list of free pages is damaged: these rows may have been deleted");
    }
    match could_be[..] {
        [tree] if schema_is_whole || walk.trees[tree].root == 0 => {
            Ok(Some(tree).filter(|_| !walk.trees[tree].is_index))
        }
        [_] => Err("the schema is damaged: it may be part of an unknown table"),
        [] => Err("it is not part of a known table"),
        _ => Err("it could be part of more than one table"),
    }
}

fn fits(walk: &TreeScan<'_>, group: &Group, shape: &RowSchema) -> bool {
    group.leaves.iter().all(|leaf| {
        let page = walk.read(leaf.page, group.by_rowid);
        page.is_some_and(|(bytes, page)| {
            page.cells.iter().all(|cell| shape.fits_cell(&bytes, cell))
        })
    })
}

/// Puts aside subtrees that claim the same keys or the same unknown root. A table has one root and
/// each key once, so not all of these subtrees belong to it.
fn settle_overlaps(walk: &TreeScan<'_>, orphans: &mut Orphans) {
    for (index, tree) in walk.trees.iter().enumerate() {
        let mut groups = std::mem::take(&mut orphans.assigned[index]);
        if tree.root == 0 && groups.len() > 1 {
            let reason = "more than one tree could be this table";
            orphans
                .aside
                .extend(groups.drain(..).map(|group| (group, reason)));
        }
        groups.sort_by_key(Group::first);
        let mut clashes = vec![false; groups.len()];
        let mut highest: Option<(i64, usize)> = None;
        for (at, group) in groups.iter().enumerate().filter(|_| tree.by_rowid) {
            if let Some((last, before)) = highest
                && group.first() <= last
            {
                clashes[at] = true;
                clashes[before] = true;
            }
            if highest.is_none_or(|(last, _)| group.last() > last) {
                highest = Some((group.last(), at));
            }
        }
        for (group, clashes) in groups.into_iter().zip(clashes) {
            if clashes {
                orphans.aside.push((
                    group,
                    "its keys overlap with those of another part without a parent",
                ));
            } else {
                orphans.assigned[index].push(group);
            }
        }
    }
}
