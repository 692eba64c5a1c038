//! Clears the bytes of pages that are no longer in use.
//!
//! SQLite does not wipe pages. The gap between the cell pointers and the cells of a b-tree page,
//! and its free blocks, keep their old content. This includes rows that were deleted or moved to
//! another page (<https://www.sqlite.org/fileformat2.html#b_tree_pages>). SQLite never reads these
//! bytes.
//!
//! A backup contains zeros instead, as the file does after `VACUUM` or with `PRAGMA secure_delete`.
//! The backup is smaller and faster, and keeps less of the data that a user deleted.
//!
//! Bytes that may have a meaning are never changed. A page is changed only if it must be a b-tree
//! page and every byte of it is accounted for (see [`btree::exact`]). Therefore these pages stay
//! unchanged:
//!
//! * A page that begins with a page number, as overflow and freelist pages do. A b-tree page could
//!   begin with one only in a database of more than 33 million pages.
//! * A b-tree page without cells, because too few of its bytes are checked to exclude a match by
//!   chance.
//! * Pages of databases with a pointer map (`auto_vacuum`), because pointer map pages have no mark
//!   of their own.
//! * Pages of databases that reserve bytes at the end of pages. An extension may have stored a
//!   checksum of the page there.

use std::ops::Range;

use super::snapshot::Snapshot;
use crate::{
    error::Result,
    sqlite::format::{
        btree::{
            Geometry, Page, u32_at, {self},
        },
        header::Header,
    },
    util::operation::CancelToken,
};

/// Calls `visit` with the pages that [`Snapshot::pages_of`] reads, after clearing their unused
/// bytes.
pub fn pages_of(
    snapshot: &Snapshot,
    numbers: &[u64],
    cancel: &CancelToken,
    mut visit: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut eraser = Scrubber::new(snapshot, cancel)?;
    let mut erased = Vec::new();
    snapshot.pages_of(numbers, cancel, |number, page| {
        erased.clear();
        erased.extend_from_slice(page);
        eraser.scrub_unused(number, &mut erased);
        visit(number, &erased)
    })
}

/// Clears the unused bytes in pages of one database.
pub struct Scrubber {
    /// `None` if the pages of this database stay unchanged.
    geometry: Option<Geometry>,
    parts: Vec<Range<usize>>,
}

impl Scrubber {
    pub fn new(snapshot: &Snapshot, cancel: &CancelToken) -> Result<Self> {
        let mut eraser = Scrubber {
            geometry: None,
            parts: Vec::new(),
        };
        let page_count = snapshot.page_count();
        // An empty file is a valid database without pages.
        let first: &[u64] = if page_count == 0 { &[] } else { &[1] };
        snapshot.pages_of(first, cancel, |_, first| {
            eraser.geometry = geometry(first, page_count);
            Ok(())
        })?;
        Ok(eraser)
    }

    /// Clears the unused bytes of a page. Returns the content of the page if this function parsed
    /// it, else `None`.
    pub fn scrub_unused(&mut self, number: u64, page: &mut [u8]) -> Option<Page> {
        let geometry = self.geometry?;
        let may_be_of_a_chain = u32_at(page, 0).is_none_or(|first| first <= geometry.page_count);
        if may_be_of_a_chain {
            return None;
        }
        self.parts.clear();
        // A geometry exists only if every page number fits in 32 bits.
        let read = btree::exact(page, number as u32, geometry, |part| self.parts.push(part))?;
        if !read.cells.is_empty() {
            self.parts
                .iter()
                .for_each(|part| page[part.clone()].fill(0));
        }
        Some(read)
    }
}

/// Returns the geometry of a database from its first page. Returns `None` if the pages of the
/// database must stay unchanged.
pub(super) fn geometry(first: &[u8], page_count: u64) -> Option<Geometry> {
    let page_count = u32::try_from(page_count).ok()?;
    let header = Header::read(first);
    // A database has a pointer map if its header names the largest root page.
    (header.reserved == 0 && header.largest_root == 0).then_some(Geometry {
        usable_bytes: first.len(),
        page_count,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;
    use crate::sqlite::open_read_only;

    /// Creates a database with `sql` and closes it.
    fn made(file: &Path, sql: &str) {
        Connection::open(file).unwrap().execute_batch(sql).unwrap();
    }

    fn erased(file: &Path) -> Vec<u8> {
        let snapshot = Snapshot::pin(open_read_only(file).unwrap(), file).unwrap();
        let mut whole = Vec::new();
        let mut eraser = Scrubber::new(&snapshot, &CancelToken::default()).unwrap();
        let size = snapshot.page_size_bytes() as usize;
        snapshot
            .read_chunks(20_000, &CancelToken::default(), |first, piece| {
                piece
                    .chunks_mut(size)
                    .zip(first..)
                    .for_each(|(page, number)| drop(eraser.scrub_unused(number, page)));
                whole.append(piece);
                Ok(())
            })
            .unwrap();
        let numbers: Vec<u64> = (1..=snapshot.page_count()).collect();
        pages_of(
            &snapshot,
            &numbers,
            &CancelToken::default(),
            |number, page| {
                assert!(
                    page == &whole[(number as usize - 1) * size..][..size],
                    "page {number} is the same alone"
                );
                Ok(())
            },
        )
        .unwrap();
        whole
    }

    /// Returns the result of SQLite's integrity check and all rows of the database.
    fn content(file: &Path) -> Vec<String> {
        let connection = Connection::open(file).unwrap();
        let all = |sql: &str| -> Vec<String> {
            let mut statement = connection.prepare(sql).unwrap();
            let columns = statement.column_count();
            let row = |row: &rusqlite::Row<'_>| {
                (0..columns)
                    .map(|at| row.get_ref(at).map(|value| format!("{value:?} ")))
                    .collect()
            };
            statement
                .query_map([], row)
                .unwrap()
                .map(Result::unwrap)
                .collect()
        };
        let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
        let mut tables = connection.prepare(tables).unwrap();
        let tables = tables
            .query_map([], |row| row.get::<_, String>(0))
            .unwrap()
            .map(Result::unwrap);
        all("PRAGMA integrity_check")
            .into_iter()
            .chain(tables.flat_map(|table| all(&format!("SELECT * FROM {table}"))))
            .collect()
    }

    fn holds(bytes: &[u8], text: &str) -> bool {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    }

    const NOTES: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
        INSERT INTO notes SELECT i, iif(i % 10 = 5, 'password', 'note') || ' ' || hex(zeroblob(100)) || i FROM n;
        DELETE FROM notes WHERE id % 10 = 5;";

    #[test]
    fn deleted_rows_are_not_in_the_pages_and_all_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let (file, copy) = (dir.path().join("a.db"), dir.path().join("b.db"));
        made(&file, NOTES);
        assert!(
            holds(&fs::read(&file).unwrap(), "password"),
            "SQLite leaves it there"
        );
        let bytes = erased(&file);
        assert!(!holds(&bytes, "password"));
        fs::write(&copy, &bytes).unwrap();
        assert_eq!(content(&copy), content(&file));
        assert!(erased(&copy) == bytes, "there is nothing left to erase");
    }

    #[test]
    fn an_empty_database_has_no_pages() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(erased(file.path()).is_empty());
    }

    #[test]
    fn a_database_whose_pages_may_hold_more_than_sqlite_says_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let with_pointer_map = dir.path().join("a.db");
        made(
            &with_pointer_map,
            &format!("PRAGMA auto_vacuum = incremental; {NOTES}"),
        );
        assert!(erased(&with_pointer_map) == fs::read(&with_pointer_map).unwrap());

        let with_reserved_bytes = dir.path().join("b.db");
        let connection = Connection::open(&with_reserved_bytes).unwrap();
        let mut bytes = 8;
        // SAFETY: the handle is open, and the opcode takes a pointer to an int that outlives the
        // call.
        #[allow(unsafe_code, reason = "rusqlite has no such call")]
        unsafe {
            rusqlite::ffi::sqlite3_file_control(
                connection.handle(),
                c"main".as_ptr(),
                rusqlite::ffi::SQLITE_FCNTL_RESERVE_BYTES,
                (&raw mut bytes).cast(),
            );
        }
        connection.execute_batch(NOTES).unwrap();
        drop(connection);
        let file = fs::read(&with_reserved_bytes).unwrap();
        assert_eq!(Header::read(&file).reserved, 8);
        assert!(erased(&with_reserved_bytes) == file);
    }

    #[test]
    fn of_a_page_with_any_bit_changed_nothing_is_erased_that_was_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.db");
        made(
            &file,
            &format!(
                "PRAGMA page_size = 512; {NOTES} CREATE INDEX by_text ON notes(text, id); DELETE FROM notes WHERE id % 7 = 0"
            ),
        );
        let bytes = fs::read(&file).unwrap();
        let geometry = geometry(&bytes[..512], bytes.len() as u64 / 512).unwrap();
        let mut eraser = Scrubber {
            geometry: Some(geometry),
            parts: Vec::new(),
        };
        let mut tried = 0;
        for (index, page) in bytes.chunks(512).enumerate() {
            let mut unused = vec![false; 512];
            let number = index as u32 + 1;
            let read = btree::exact(page, number, geometry, |part| unused[part].fill(true));
            if read.is_none_or(|read| read.cells.is_empty()) || !unused.contains(&true) {
                continue;
            }
            for bit in 0..512 * 8 {
                let mut changed = page.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                let mut erased = changed.clone();
                eraser.scrub_unused(number.into(), &mut erased);
                let lost = (0..512).find(|at| !unused[*at] && erased[*at] != changed[*at]);
                assert_eq!(lost, None, "page {number}, bit {bit}");
                tried += 1;
            }
        }
        assert!(tried > 50_000, "{tried}");
    }

    /// Returns a statement that changes the database, derived from a small number.
    fn change(number: u32) -> String {
        let id = number / 8 % 50;
        let length = [3, 40, 400, 9000][number as usize / 400 % 4];
        match number % 8 {
            0..4 => {
                format!(
                    "INSERT OR REPLACE INTO notes VALUES ({id}, '{}', hex(zeroblob({length} / 2)))",
                    number * 7919 % 997
                )
            }
            4 => format!("UPDATE notes SET data = hex(zeroblob({length} / 2)) WHERE id > {id}"),
            5 => format!("DELETE FROM notes WHERE id = {id}"),
            6 => format!(
                "INSERT OR REPLACE INTO tags VALUES ({id} % 7, 'tag {id}', hex(zeroblob({length} / 2)))"
            ),
            _ => format!("DELETE FROM tags WHERE a = {id} % 7"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_erased_database_is_the_same_to_sqlite_and_goes_on_as_the_original_does(
            page_size in prop::sample::select(vec![512_u32, 1024, 4096, 65_536]),
            before in prop::collection::vec(0_u32..1600, 1..60),
            after in prop::collection::vec(0_u32..1600, 0..30),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (file, copy) = (dir.path().join("a.db"), dir.path().join("b.db"));
            let changes = |numbers: &[u32]| numbers.iter().map(|number| change(*number) + ";").collect::<String>();
            made(&file, &format!("PRAGMA page_size = {page_size}; CREATE TABLE notes (id INTEGER PRIMARY KEY, name, data);
                CREATE INDEX by_name ON notes(name, data); CREATE TABLE tags (a, b, c, PRIMARY KEY (a, b)) WITHOUT ROWID; {}", changes(&before)));
            fs::write(&copy, erased(&file)).unwrap();
            prop_assert_eq!(content(&copy), content(&file));
            let after = changes(&after);
            made(&file, &after);
            made(&copy, &after);
            prop_assert_eq!(content(&copy), content(&file));
        }
    }
}
