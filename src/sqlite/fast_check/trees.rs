//! Assigns a role to each page. One tree, one overflow chain or the freelist must claim each page,
//! or there is no proof.

use super::{
    super::{files::lock_page, holds, scrub, snapshot::Snapshot},
    CheckResult, Inconclusive, must,
    schema::Schema,
};
use crate::{
    sqlite::format::{
        btree::{Cell, Geometry, Page, PageType, exact, u32_at},
        header::Header,
    },
    util::operation::CancelToken,
};

/// SQLite does not read trees with more levels above their leaves.
const MAX_DEPTH: u32 = 19;

/// When this many chains wait for pages that have not been read, the chains are followed and
/// finished ones are removed.
const LEAST_CHAINS: usize = if cfg!(test) { 4 } else { 4096 };

/// What is known about one page. It takes 4 bytes, because a large database has many pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageRole(u32);

impl PageRole {
    /// Nothing has claimed the page and it has not been read, so it can only belong to an overflow
    /// chain.
    const UNCLAIMED: PageRole = PageRole(0);
    /// The page needs no further check.
    const DONE: PageRole = PageRole(u32::MAX);
    const FIRST_LEAF: u32 = 1 << 31;
    /// The number of the last leaf that a role can have.
    const MOST_LEAVES: u32 = u32::MAX - PageRole::FIRST_LEAF;

    /// The page with this number among all leaves, which count from 1.
    fn of_leaf(leaf: u32) -> PageRole {
        PageRole(PageRole::FIRST_LEAF + leaf)
    }

    /// A page that was read and may belong to an overflow chain; 0 if it is the last of one.
    fn of_chain(next: u32) -> PageRole {
        PageRole(next)
    }

    fn leaf(self) -> Option<u32> {
        self.0
            .checked_sub(PageRole::FIRST_LEAF)
            .filter(|_| self != PageRole::DONE)
    }

    /// Returns the next page of the chain if this page can belong to one.
    fn next_in_chain(self) -> Option<u32> {
        Some(self.0).filter(|next| *next < PageRole::FIRST_LEAF)
    }
}

/// An overflow chain with pages that are still to be read.
#[derive(Debug, Clone, Copy)]
struct Chain {
    next: u32,
    pages_left: u32,
}

pub struct Trees {
    geometry: Geometry,
    /// Indexed by page number, from 1.
    pages: Vec<PageRole>,
    /// The number of pages that were read.
    seen: u32,
    /// In the order of their leaves.
    trees: Vec<Tree>,
    leaves: u32,
    /// The largest key that each leaf of a table may have.
    limits: Vec<i64>,
    chains: Vec<Chain>,
    most_chains: usize,
}

struct Tree {
    /// The position in the tables of the schema.
    table: usize,
    kind: TreeKind,
    first_leaf: u32,
    last_leaf: u32,
    /// The position in [`Trees::limits`] of the first leaf's limit. Only trees of tables with
    /// rowids have limits.
    first_limit: usize,
    entries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeKind {
    Table,
    TableWithoutRowids,
    Index,
    PartialIndex,
}

impl TreeKind {
    fn of_pages(self, is_leaf: bool) -> PageType {
        match (self, is_leaf) {
            (TreeKind::Table, true) => PageType::TableLeaf,
            (TreeKind::Table, false) => PageType::TableInterior,
            (_, true) => PageType::IndexLeaf,
            (_, false) => PageType::IndexInterior,
        }
    }
}

/// The role of a page that was read.
pub enum Seen {
    /// A leaf of a table, with the position of the table in the schema.
    Rows(usize, Page),
    Other,
}

impl Trees {
    /// Reads the interior pages and the freelist.
    pub fn read(snapshot: &Snapshot, schema: &Schema, cancel: &CancelToken) -> CheckResult<Trees> {
        let first = page_of(snapshot, 1, cancel)?;
        let geometry =
            scrub::geometry(&first, snapshot.page_count()).ok_or(Inconclusive::Unproven)?;
        let places = geometry.page_count as usize + 1;
        let mut trees = Trees {
            geometry,
            pages: vec![PageRole::UNCLAIMED; places],
            seen: 0,
            trees: Vec::new(),
            leaves: 0,
            limits: Vec::new(),
            chains: Vec::new(),
            most_chains: LEAST_CHAINS,
        };
        must(geometry.page_count < PageRole::MOST_LEAVES)?;
        let lock_page = lock_page(snapshot.page_size_bytes()) as usize;
        trees
            .pages
            .get_mut(lock_page)
            .into_iter()
            .for_each(|page| *page = PageRole::DONE);
        let mut walk = TreeReader {
            snapshot,
            cancel,
            trees,
        };
        let header = Header::read(&first);
        // Incremental vacuum needs a pointer map, and this database has none.
        must(!header.is_incremental)?;
        walk.free_pages(header)?;
        for (table, made) in schema.tables.iter().enumerate() {
            let kind = if made.has_rowid {
                TreeKind::Table
            } else {
                TreeKind::TableWithoutRowids
            };
            walk.tree(made.root, table, kind)?;
        }
        for index in &schema.indexes {
            let kind = if index.is_partial {
                TreeKind::PartialIndex
            } else {
                TreeKind::Index
            };
            walk.tree(index.root, index.table, kind)?;
        }
        Ok(walk.trees)
    }

    /// Checks the next page, which the caller may have parsed already. Returns `None` if the page
    /// is not as expected.
    pub fn page(&mut self, bytes: &[u8], read: Option<Page>) -> Option<Seen> {
        let number = self.seen.checked_add(1)?;
        let page = self.pages.get_mut(number as usize)?;
        self.seen = number;
        if *page == PageRole::DONE {
            return Some(Seen::Other);
        }
        let Some(leaf) = page.leaf() else {
            let next = u32_at(bytes, 0).filter(|next| *next <= self.geometry.page_count)?;
            *page = PageRole::of_chain(next);
            return Some(Seen::Other);
        };
        *page = PageRole::DONE;
        let page = read.or_else(|| exact(bytes, number, self.geometry, |_| {}))?;
        let of = self
            .trees
            .partition_point(|tree| tree.first_leaf <= leaf)
            .checked_sub(1)?;
        let tree = &mut self.trees[of];
        holds(page.kind == tree.kind.of_pages(true))?;
        holds(!page.cells.is_empty() || tree.first_leaf == tree.last_leaf)?;
        tree.entries += page.cells.len() as u64;
        let (table, is_table) = (tree.table, tree.kind == TreeKind::Table);
        if let (true, [first, .., last] | [first @ last]) = (is_table, &page.cells[..]) {
            let limit = tree.first_limit + (leaf - tree.first_leaf) as usize;
            holds(last.rowid <= *self.limits.get(limit)?)?;
            holds(leaf == tree.first_leaf || first.rowid > *self.limits.get(limit - 1)?)?;
        }
        self.payloads(&page.cells, bytes)?;
        Some(if is_table {
            Seen::Rows(table, page)
        } else {
            Seen::Other
        })
    }

    /// Records where the overflow chains of cells begin. Returns `None` if a payload cannot be a
    /// record.
    fn payloads(&mut self, cells: &[Cell], bytes: &[u8]) -> Option<()> {
        let page_bytes = self.geometry.usable_bytes as u64 - 4;
        for cell in cells {
            // A record starts with the length of its header, which covers this length and at least
            // one value.
            holds(*cell.local(bytes).first()? > 1)?;
            if cell.overflow != 0 {
                let rest = cell.payload_bytes - cell.local_bytes as u64;
                self.chains.push(Chain {
                    next: cell.overflow,
                    pages_left: rest.div_ceil(page_bytes) as u32,
                });
            }
        }
        if self.chains.len() < self.most_chains {
            return Some(());
        }
        self.follow_chains()?;
        self.most_chains = LEAST_CHAINS.max(2 * self.chains.len());
        Some(())
    }

    /// Claims the pages of chains that have been read so far. Returns `None` if a chain has the
    /// wrong length or leads to a page with another role.
    fn follow_chains(&mut self) -> Option<()> {
        let Trees {
            pages,
            chains,
            seen,
            ..
        } = self;
        let mut are_right = true;
        chains.retain_mut(|chain| {
            while are_right && chain.pages_left > 0 && chain.next <= *seen {
                let number = chain.next as usize;
                let page = pages.get_mut(number).filter(|_| number > 0);
                let next = page.as_ref().and_then(|page| page.next_in_chain());
                are_right = next.is_some();
                if let (Some(page), Some(_)) = (page, next) {
                    *page = PageRole::DONE;
                }
                chain.next = next.unwrap_or(0);
                chain.pages_left -= 1;
            }
            are_right &= chain.pages_left > 0 || chain.next == 0;
            chain.pages_left > 0
        });
        holds(are_right)
    }

    /// Runs the checks that need all pages, after the last page. Returns `None` if one of them
    /// fails.
    pub fn end(mut self, schema: &Schema) -> Option<()> {
        holds(self.seen == self.geometry.page_count)?;
        self.follow_chains()?;
        holds(
            self.chains.is_empty()
                && self
                    .pages
                    .iter()
                    .skip(1)
                    .all(|page| *page == PageRole::DONE),
        )?;
        let (tables, indexes) = self.trees.split_at(schema.tables.len());
        let is_as_long = |index: &Tree| {
            index.kind == TreeKind::PartialIndex
                || tables
                    .get(index.table)
                    .is_some_and(|table| table.entries == index.entries)
        };
        holds(indexes.iter().all(is_as_long))
    }

    /// Claims a page for a role. Only valid before the first call of [`Trees::page`].
    fn claim(&mut self, number: u32, role: PageRole) -> CheckResult {
        let page = self
            .pages
            .get_mut(number as usize)
            .filter(|page| number > 0 && **page == PageRole::UNCLAIMED);
        *page.ok_or(Inconclusive::Unproven)? = role;
        Ok(())
    }
}

/// Reads the pages above the leaves.
struct TreeReader<'a> {
    snapshot: &'a Snapshot,
    cancel: &'a CancelToken,
    trees: Trees,
}

impl TreeReader<'_> {
    /// Claims the pages of the freelist (<https://www.sqlite.org/fileformat2.html#the_freelist>).
    fn free_pages(&mut self, header: Header) -> CheckResult {
        let (mut trunk, mut found) = (header.freelist_head, 0);
        while trunk != 0 {
            self.trees.claim(trunk, PageRole::DONE)?;
            let page = page_of(self.snapshot, trunk, self.cancel)?;
            let count = u32_at(&page, 4).ok_or(Inconclusive::Unproven)? as usize;
            must(count <= self.trees.geometry.usable_bytes / 4 - 2)?;
            for place in 0..count {
                self.trees.claim(
                    u32_at(&page, 8 + 4 * place).ok_or(Inconclusive::Unproven)?,
                    PageRole::DONE,
                )?;
            }
            found += 1 + count as u64;
            trunk = u32_at(&page, 0).ok_or(Inconclusive::Unproven)?;
        }
        must(found == u64::from(header.freelist_count))
    }

    fn tree(&mut self, root: u32, table: usize, kind: TreeKind) -> CheckResult {
        let depth = self.depth(root)?;
        let (first_leaf, first_limit) = (self.trees.leaves + 1, self.trees.limits.len());
        self.trees.trees.push(Tree {
            table,
            kind,
            first_leaf,
            last_leaf: first_leaf,
            first_limit,
            entries: 0,
        });
        self.below(root, depth, kind, i64::MAX)?;
        let limits = &self.trees.limits[first_limit..];
        must(limits.windows(2).all(|pair| pair[0] < pair[1]))
    }

    /// Returns the number of levels above the leaves, on the path to the first leaf.
    fn depth(&self, root: u32) -> CheckResult<u32> {
        let mut number = root;
        for depth in 0..=MAX_DEPTH {
            let (page, _) = self.page(number)?;
            if !page.kind.is_interior() {
                return Ok(depth);
            }
            number = page
                .cells
                .first()
                .map_or(page.right_child, |cell| cell.child);
        }
        Err(Inconclusive::Unproven)
    }

    /// Claims the page and everything below it. `limit` is the largest key that may occur there.
    fn below(&mut self, number: u32, depth: u32, kind: TreeKind, limit: i64) -> CheckResult {
        if depth == 0 {
            return self.leaf(number, kind, limit);
        }
        self.trees.claim(number, PageRole::DONE)?;
        let (page, bytes) = self.page(number)?;
        must(page.kind == kind.of_pages(false))?;
        // Page 1 has less room than other pages, and may have no cell after the tree has grown.
        must(!page.cells.is_empty() || number == 1)?;
        if kind != TreeKind::Table {
            self.trees
                .payloads(&page.cells, &bytes)
                .ok_or(Inconclusive::Unproven)?;
            let tree = self.trees.trees.last_mut().ok_or(Inconclusive::Unproven)?;
            tree.entries += page.cells.len() as u64;
        }
        for cell in &page.cells {
            self.below(cell.child, depth - 1, kind, cell.rowid)?;
        }
        self.below(page.right_child, depth - 1, kind, limit)
    }

    fn leaf(&mut self, number: u32, kind: TreeKind, limit: i64) -> CheckResult {
        self.trees.leaves += 1;
        let leaf = self.trees.leaves;
        self.trees.claim(number, PageRole::of_leaf(leaf))?;
        if kind == TreeKind::Table {
            self.trees.limits.push(limit);
        }
        self.trees
            .trees
            .last_mut()
            .into_iter()
            .for_each(|tree| tree.last_leaf = leaf);
        Ok(())
    }

    fn page(&self, number: u32) -> CheckResult<(Page, Vec<u8>)> {
        let bytes = page_of(self.snapshot, number, self.cancel)?;
        let page =
            exact(&bytes, number, self.trees.geometry, |_| {}).ok_or(Inconclusive::Unproven)?;
        Ok((page, bytes))
    }
}

fn page_of(snapshot: &Snapshot, number: u32, cancel: &CancelToken) -> CheckResult<Vec<u8>> {
    let mut copy = Vec::new();
    snapshot.pages_of(&[number.into()], cancel, |_, page| {
        copy.extend_from_slice(page);
        Ok(())
    })?;
    Ok(copy)
}
