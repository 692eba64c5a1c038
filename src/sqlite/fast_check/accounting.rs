//! Accounts for the use of every page. Each page of a database belongs to exactly one tree, one
//! overflow chain or the freelist. The only exceptions are pointer map pages and the lock page.
//!
//! `PRAGMA quick_check` and `PRAGMA integrity_check` compare this only if the first table of
//! SQLite's own list has a root page. If the first one is a view or a virtual table, SQLite treats
//! the check as one of a single table. Then it checks neither the freelist nor whether two trees
//! share a page. If a function or collation is missing, SQLite checks nothing at all. This module
//! has neither restriction: it reads root pages from the rows of `sqlite_schema`, and pages byte by
//! byte.
//!
//! Everything that this module reports is damage, because nothing here is stricter than SQLite's
//! complete check. It does not check the values in records or the order of keys in indexes. SQLite
//! compares these with the collations of the schema.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::{
    error::{Error, Result},
    sqlite::{
        check::{Findings, NotChecked, is_damage, reason},
        files::lock_page,
        format::{
            btree::{Cell, Geometry, Page, exact, u32_at},
            header::Header,
        },
    },
    util::operation::CancelToken,
};

/// SQLite does not read trees with more levels.
const MAX_DEPTH: usize = 20;
const MAX_MESSAGES: usize = 100;
const PAGES_PER_CANCEL_CHECK: u64 = 256;
/// Types of entries in a pointer map
/// (<https://www.sqlite.org/fileformat2.html#pointer_map_or_ptrmap_pages>).
const ROOT: u8 = 1;
const FREE: u8 = 2;
const OVERFLOW_FIRST: u8 = 3;
const OVERFLOW_NEXT: u8 = 4;
const CHILD: u8 = 5;

/// Returns what contradicts a sound database, in the words of SQLite's check. Returns no findings
/// if every page is accounted for.
pub fn account(connection: &Connection, cancel: &CancelToken) -> Result<Findings> {
    let failed = |cause| unreadable(cause, cancel);
    let size = "SELECT page_size, page_count FROM pragma_page_size, pragma_page_count";
    let (page_bytes, page_count): (usize, u64) =
        match connection.query_row(size, [], |row| Ok((row.get(0)?, row.get(1)?))) {
            Ok(size) => size,
            Err(cause) => return failed(cause),
        };
    let Ok(page_count) = u32::try_from(page_count) else {
        return Ok(Findings::default());
    };
    if page_count == 0 {
        return Ok(Findings::default());
    }
    let mut accounts = match Accounts::new(connection, page_bytes, page_count, cancel) {
        Ok(accounts) => accounts,
        Err(cause) => return failed(cause),
    };
    let stopped = accounts.run();
    let mut found = Findings {
        damage: accounts.messages,
        ..Findings::default()
    };
    match stopped {
        Ok(()) | Err(Stop::Full) => {}
        Err(Stop::Aborted(error)) => return Err(error),
        Err(Stop::Sqlite(cause)) => found.add(failed(cause)?),
    }
    Ok(found)
}

/// Converts an error of SQLite into findings. The error is proof of damage if SQLite says so. After
/// any other error the pages count as not checked.
fn unreadable(cause: rusqlite::Error, cancel: &CancelToken) -> Result<Findings> {
    cancel.check()?;
    if is_damage(&cause) {
        return Ok(Findings {
            damage: vec![format!("The pages could not be read: {cause}")],
            ..Findings::default()
        });
    }
    let what = "which pages are in use".to_string();
    let not_checked = vec![NotChecked {
        table: String::new(),
        what,
        reason: reason(&cause),
    }];
    Ok(Findings {
        not_checked,
        ..Findings::default()
    })
}

enum Stop {
    /// The number of messages has reached the limit.
    Full,
    Aborted(Error),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(cause: rusqlite::Error) -> Self {
        Stop::Sqlite(cause)
    }
}

type Step<T = ()> = std::result::Result<T, Stop>;

struct Accounts<'a> {
    cancel: &'a CancelToken,
    pages: rusqlite::Statement<'a>,
    connection: &'a Connection,
    page_bytes: usize,
    geometry: Geometry,
    header: Header,
    /// Indexed by page number, from 1.
    is_claimed: Vec<bool>,
    /// The type and parent that the pointer map must contain for each page. Empty if there is no
    /// pointer map.
    pointers: Vec<(u8, u32)>,
    /// The root of the current tree, for messages. 0 for the freelist.
    root: u32,
    read: u64,
    messages: Vec<String>,
}

/// A page of a tree that has not been read yet.
struct Visit {
    page: u32,
    depth: usize,
    /// All keys of the page are larger than this.
    after: Option<i64>,
    /// No key of the page is larger than this.
    upto: Option<i64>,
}

impl<'a> Accounts<'a> {
    fn new(
        connection: &'a Connection,
        page_bytes: usize,
        page_count: u32,
        cancel: &'a CancelToken,
    ) -> rusqlite::Result<Accounts<'a>> {
        let places = page_count as usize + 1;
        let mut accounts = Accounts {
            cancel,
            pages: connection.prepare("SELECT data FROM sqlite_dbpage('main') WHERE pgno = ?1")?,
            connection,
            page_bytes,
            geometry: Geometry {
                usable_bytes: page_bytes,
                page_count,
            },
            header: Header::default(),
            is_claimed: vec![false; places],
            pointers: Vec::new(),
            root: 0,
            read: 0,
            messages: Vec::new(),
        };
        let first: Vec<u8> = accounts.pages.query_row([1], |row| row.get(0))?;
        accounts.header = Header::read(&first);
        accounts.geometry.usable_bytes = page_bytes.saturating_sub(accounts.header.reserved);
        if accounts.header.largest_root != 0 {
            accounts.pointers = vec![(0, 0); places];
        }
        Ok(accounts)
    }

    fn run(&mut self) -> Step {
        for reserved in self.reserved_pages() {
            if let Some(is_claimed) = self.is_claimed.get_mut(reserved as usize) {
                *is_claimed = true;
            }
        }
        for root in self.roots()? {
            self.root = root;
            self.tree(root)?;
        }
        self.root = 0;
        self.freelist()?;
        let count = self.geometry.page_count;
        for page in 1..=count {
            if !self.is_claimed.get(page as usize).copied().unwrap_or(true) {
                self.note(format!("Page {page}: never used"))?;
            }
        }
        self.pointer_map()
    }

    /// Returns the root pages in ascending order, including page 1 of the schema.
    fn roots(&mut self) -> Step<BTreeSet<u32>> {
        let sql = "SELECT name, rootpage FROM sqlite_schema WHERE type IN ('table', 'index') AND rootpage <> 0";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut roots = BTreeSet::from([1]);
        while let Some(row) = rows.next()? {
            let name: String = row.get(0).unwrap_or_default();
            let root: i64 = row.get(1).unwrap_or(0);
            match u32::try_from(root)
                .ok()
                .filter(|root| (2..=self.geometry.page_count).contains(root))
            {
                Some(root) if roots.insert(root) => {}
                Some(root) => self.note(format!(
                    "{name} has the root page {root}, which another object also has"
                ))?,
                None => self.note(format!(
                    "{name} has the root page {root}, which does not exist"
                ))?,
            }
        }
        if !self.pointers.is_empty() {
            let last = roots.last().copied().unwrap_or(1);
            if last != self.header.largest_root {
                let said = self.header.largest_root;
                self.note(format!(
                    "max rootpage ({last}) disagrees with header ({said})"
                ))?;
            }
        }
        Ok(roots)
    }

    fn tree(&mut self, root: u32) -> Step {
        if !self.claim(root, if root == 1 { 0 } else { ROOT }, 0)? {
            return Ok(());
        }
        let mut kind = None;
        let mut leaf_depth = None;
        let mut visits = vec![Visit {
            page: root,
            depth: 0,
            after: None,
            upto: None,
        }];
        while let Some(visit) = visits.pop() {
            let bytes = self.page(visit.page)?;
            let Some(page) = exact(&bytes, visit.page, self.geometry, |_| {}) else {
                self.note(format!(
                    "Tree {root} page {}: its bytes are not those of a b-tree page",
                    visit.page
                ))?;
                continue;
            };
            if *kind.get_or_insert(page.kind.is_table()) != page.kind.is_table() {
                self.note(format!(
                    "Tree {root} page {}: it is a page of another kind of tree",
                    visit.page
                ))?;
                continue;
            }
            if page.kind.is_table() && !is_in_range(&page, &visit) {
                self.note(format!(
                    "Tree {root} page {}: Rowid out of order",
                    visit.page
                ))?;
            }
            if !page.kind.is_interior() {
                if *leaf_depth.get_or_insert(visit.depth) != visit.depth {
                    self.note(format!(
                        "Tree {root} page {}: Child page depth differs",
                        visit.page
                    ))?;
                }
            } else if visit.depth >= MAX_DEPTH {
                self.note(format!(
                    "Tree {root} page {}: the tree is too deep",
                    visit.page
                ))?;
                continue;
            }
            for cell in &page.cells {
                self.chain(visit.page, cell)?;
            }
            self.children(&page, &visit, &mut visits)?;
        }
        Ok(())
    }

    /// Adds the children of an interior page in reverse order, so that the first one is read first.
    fn children(&mut self, page: &Page, visit: &Visit, visits: &mut Vec<Visit>) -> Step {
        if !page.kind.is_interior() {
            return Ok(());
        }
        let first = visits.len();
        let mut after = visit.after;
        let by_key = page.kind.is_table();
        let cells = page
            .cells
            .iter()
            .map(|cell| (cell.child, by_key.then_some(cell.rowid)));
        for (child, upto) in cells.chain([(page.right_child, visit.upto)]) {
            if self.claim(child, CHILD, visit.page)? {
                visits.push(Visit {
                    page: child,
                    depth: visit.depth + 1,
                    after,
                    upto,
                });
            }
            after = upto.or(after);
        }
        visits[first..].reverse();
        Ok(())
    }

    /// Claims the overflow pages of a cell.
    fn chain(&mut self, page: u32, cell: &Cell) -> Step {
        if cell.overflow == 0 {
            return Ok(());
        }
        let rest = cell.payload_bytes.saturating_sub(cell.local_bytes as u64);
        let length = rest.div_ceil((self.geometry.usable_bytes as u64).saturating_sub(4).max(1));
        let (mut before, mut next, mut kind) = (page, cell.overflow, OVERFLOW_FIRST);
        for followed in 0..length {
            if next == 0 {
                let root = self.root;
                let what = format!("overflow list length is {followed} but should be {length}");
                return self.note(format!("Tree {root} page {page}: {what}"));
            }
            if !self.claim(next, kind, before)? {
                return Ok(());
            }
            let following = u32_at(&self.page(next)?, 0).unwrap_or(0);
            (before, next, kind) = (next, following, OVERFLOW_NEXT);
        }
        if next != 0 {
            let root = self.root;
            return self.note(format!(
                "Tree {root} page {page}: overflow list is longer than {length} pages"
            ));
        }
        Ok(())
    }

    /// Claims the pages of the freelist (<https://www.sqlite.org/fileformat2.html#the_freelist>).
    fn freelist(&mut self) -> Step {
        let (mut trunk, mut found) = (self.header.freelist_head, 0_u64);
        while trunk != 0 {
            if !self.claim(trunk, FREE, 0)? {
                return Ok(());
            }
            found += 1;
            let bytes = self.page(trunk)?;
            let count = u32_at(&bytes, 4).unwrap_or(0) as usize;
            if count > (self.geometry.usable_bytes / 4).saturating_sub(2) {
                return self.note(format!(
                    "Freelist: freelist leaf count too big on page {trunk}"
                ));
            }
            for place in 0..count {
                let leaf = u32_at(&bytes, 8 + 4 * place).unwrap_or(0);
                self.claim(leaf, FREE, 0)?;
                found += 1;
            }
            trunk = u32_at(&bytes, 0).unwrap_or(0);
        }
        let should = u64::from(self.header.freelist_count);
        if found != should {
            return self.note(format!("Freelist: size is {found} but should be {should}"));
        }
        Ok(())
    }

    /// Compares the entries of the pointer map with the pages that were found.
    fn pointer_map(&mut self) -> Step {
        if self.pointers.is_empty() {
            return Ok(());
        }
        let pointers = std::mem::take(&mut self.pointers);
        let lock_page = self.lock_page();
        let mut map = (0, Vec::new());
        for number in 3..=self.geometry.page_count {
            let of_page = self.map_of(number);
            let Some((kind, parent)) = pointers
                .get(number as usize)
                .copied()
                .filter(|(kind, _)| *kind != 0)
            else {
                continue;
            };
            if of_page == number || number == lock_page {
                continue;
            }
            if map.0 != of_page {
                map = (of_page, self.page(of_page)?);
            }
            let at = 5 * (number.saturating_sub(of_page + 1)) as usize;
            let found = (
                map.1.get(at).copied().unwrap_or(0),
                u32_at(&map.1, at + 1).unwrap_or(0),
            );
            if found != (kind, parent) {
                let text = format!(
                    "Bad ptr map entry key={number} expected=({kind},{parent}) got=({},{})",
                    found.0, found.1
                );
                self.note(text)?;
            }
        }
        Ok(())
    }

    /// Returns the pages that contain no data because of their position: the lock page and the
    /// pointer map pages.
    fn reserved_pages(&self) -> Vec<u32> {
        let mut reserved = vec![self.lock_page()];
        if !self.pointers.is_empty() {
            let group = (self.geometry.usable_bytes / 5) + 1;
            let first_of_groups = (2..=self.geometry.page_count).step_by(group);
            reserved.extend(first_of_groups.map(|number| self.map_of(number)));
        }
        reserved
    }

    fn lock_page(&self) -> u32 {
        u32::try_from(lock_page(self.page_bytes as u64)).unwrap_or(0)
    }

    fn map_of(&self, number: u32) -> u32 {
        let group = (self.geometry.usable_bytes / 5) as u32 + 1;
        let map = (number.saturating_sub(2)) / group * group + 2;
        if map == self.lock_page() {
            map + 1
        } else {
            map
        }
    }

    /// Claims a page. Returns whether the page exists and was not claimed before, and reports it
    /// otherwise.
    fn claim(&mut self, page: u32, kind: u8, parent: u32) -> Step<bool> {
        let of = if self.root == 0 {
            "Freelist".to_string()
        } else {
            format!("Tree {} page {parent}", self.root)
        };
        let place = self.is_claimed.get_mut(page as usize).filter(|_| page > 0);
        match place {
            None => self.note(format!("{of}: invalid page number {page}"))?,
            Some(true) => self.note(format!("{of}: 2nd reference to page {page}"))?,
            Some(is_claimed) => {
                *is_claimed = true;
                if let Some(pointer) = self.pointers.get_mut(page as usize) {
                    *pointer = (kind, parent);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn page(&mut self, number: u32) -> Step<Vec<u8>> {
        self.read += 1;
        if self.read.is_multiple_of(PAGES_PER_CANCEL_CHECK) {
            self.cancel.check().map_err(Stop::Aborted)?;
        }
        match self.pages.query_row([number], |row| row.get(0)) {
            // A missing page is returned without bytes. Its owner then reports that it is not a
            // page of the expected type.
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(Vec::new()),
            read => Ok(read?),
        }
    }

    fn note(&mut self, message: String) -> Step {
        self.messages.push(message);
        if self.messages.len() < MAX_MESSAGES {
            Ok(())
        } else {
            Err(Stop::Full)
        }
    }
}

fn is_in_range(page: &Page, visit: &Visit) -> bool {
    let (first, last) = (page.cells.first(), page.cells.last());
    first.is_none_or(|cell| visit.after.is_none_or(|after| after < cell.rowid))
        && last.is_none_or(|cell| visit.upto.is_none_or(|upto| cell.rowid <= upto))
}

#[cfg(test)]
mod tests;
