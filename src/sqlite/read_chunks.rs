//! Reads many pages of a snapshot at a time.
//!
//! SQLite takes a page from the WAL if the WAL contains it, and from the database file otherwise,
//! with one call for each page. While a read transaction lasts, a checkpoint writes a page to the
//! file only if the WAL also has that page for this transaction
//! (<https://sqlite.org/wal.html#concurrency>). Otherwise SQLite itself could not read the file at
//! any time.
//!
//! So pages that have no frame in the WAL are read from the file in large pieces. Only the others
//! are requested from SQLite. Frames that the transaction does not see do no harm, because their
//! pages are requested from SQLite too.
//!
//! Both files are read through SQLite's own handles, because SQLite continues to read these files
//! even if they are renamed or deleted. Opening and closing the database again would drop all locks
//! of this process on it
//! (<https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).

use std::{ffi::c_int, ptr::null_mut};

use rusqlite::{Connection, ffi};

use super::{
    files::lock_page,
    format::wal::{Frames, ReadRange, Validity, WAL_HEADER_BYTES, WalHeader},
    snapshot::Snapshot,
};
use crate::{error::Result, util::operation::CancelToken};

/// The largest read that SQLite ever requests from a file.
const MOST_AT_ONCE_BYTES: usize = 65_536;

impl Snapshot {
    /// Calls `visit` with all pages in order, in pieces. Each piece holds as many pages as fit in
    /// `piece_bytes`, but at least one. `visit` also receives the number of the first page of the
    /// piece, counted from 1.
    ///
    /// The concatenation of the pieces is the database file. `visit` may change or keep a piece.
    /// The lock page is returned as zeros.
    pub fn read_chunks(
        &self,
        piece_bytes: usize,
        cancel: &CancelToken,
        mut visit: impl FnMut(u64, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let failed = |cause| self.sqlite_error(cause);
        let (page_bytes, page_count) = (self.page_size_bytes(), self.page_count());
        let logged = self.pages_in_wal()?;
        let file = SqliteFile::of(self.connection(), ffi::SQLITE_FCNTL_FILE_POINTER)
            .and_then(|file| file.ok_or_else(not_open));
        let file = file.map_err(failed)?;
        let pages_of_piece = (piece_bytes as u64 / page_bytes).max(1);
        let mut piece = Vec::new();
        let mut first = 1;
        while first <= page_count {
            cancel.check()?;
            let after = (first + pages_of_piece).min(page_count + 1);
            let start = (first - 1) * page_bytes;
            file.read_range(&mut piece, ((after - first) * page_bytes) as usize, start)
                .map_err(failed)?;
            let place = |number: u64| {
                ((number - first) * page_bytes) as usize
                    ..((number - first + 1) * page_bytes) as usize
            };
            let in_wal = logged.partition_point(|number| *number < first)
                ..logged.partition_point(|number| *number < after);
            let in_wal = &logged[in_wal];
            if !in_wal.is_empty() {
                self.pages_of(in_wal, cancel, |number, page| {
                    piece[place(number)].copy_from_slice(page);
                    Ok(())
                })?;
            }
            let lock_page = lock_page(page_bytes);
            if (first..after).contains(&lock_page) {
                piece[place(lock_page)].fill(0);
            }
            visit(first, &mut piece)?;
            first = after;
        }
        Ok(())
    }

    /// Returns the numbers of the pages that the WAL may contain, in ascending order.
    fn pages_in_wal(&self) -> Result<Vec<u64>> {
        let wal = SqliteFile::of(self.connection(), ffi::SQLITE_FCNTL_JOURNAL_POINTER);
        let mut may_have = vec![false; self.page_count() as usize];
        let read = wal.and_then(|wal| match wal {
            None => Ok(true),
            Some(wal) => frames(&wal, self.page_size_bytes(), |number| {
                may_have
                    .get_mut(number as usize - 1)
                    .into_iter()
                    .for_each(|page| *page = true);
            }),
        });
        if !read.map_err(|cause| self.sqlite_error(cause))? {
            // SQLite does not read such a file as a WAL either, so request every page from SQLite.
            may_have.fill(true);
        }
        Ok((1..)
            .zip(may_have)
            .filter_map(|(number, may_have)| may_have.then_some(number))
            .collect())
    }
}

/// Calls `visit` with the page number of each frame since the WAL was last restarted. Returns
/// `false` if the file is not a WAL of this page size.
fn frames(
    wal: &SqliteFile<'_>,
    page_bytes: u64,
    mut visit: impl FnMut(u32),
) -> rusqlite::Result<bool> {
    let wal_bytes = wal.size()?;
    if wal_bytes < WAL_HEADER_BYTES as u64 {
        return Ok(true);
    }
    let header = WalHeader::read(wal)?;
    if header.validity == Validity::NotWal || u64::from(header.page_size_bytes) != page_bytes {
        return Ok(false);
    }
    for frame in Frames::unchecked(wal, &header, wal_bytes) {
        let number = frame?.header.page_number;
        if number > 0 {
            visit(number);
        }
    }
    Ok(true)
}

/// A file that a connection has open. It is the file that SQLite reads, even if its name was
/// changed or removed.
struct SqliteFile<'a> {
    file: *mut ffi::sqlite3_file,
    methods: &'a ffi::sqlite3_io_methods,
}

impl<'a> SqliteFile<'a> {
    /// Returns the file of the main database that `which` selects, or `None` if it is not open.
    #[allow(unsafe_code, reason = "rusqlite has no such call")]
    fn of(connection: &'a Connection, which: c_int) -> rusqlite::Result<Option<Self>> {
        let mut file: *mut ffi::sqlite3_file = null_mut();
        // SAFETY: the handle is open for as long as `connection` is borrowed and the name is a C
        // string. SQLite writes one pointer to `file`
        // (<https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html>).
        let code = unsafe {
            ffi::sqlite3_file_control(
                connection.handle(),
                c"main".as_ptr(),
                which,
                (&raw mut file).cast(),
            )
        };
        checked(code)?;
        // SAFETY: a file that SQLite returns stays in place until its connection is closed. A file
        // that is not open has no methods, and methods are constant.
        let methods = unsafe { file.as_ref().and_then(|file| file.pMethods.as_ref()) };
        Ok(methods.map(|methods| SqliteFile { file, methods }))
    }

    #[allow(unsafe_code, reason = "rusqlite has no such call")]
    fn size(&self) -> rusqlite::Result<u64> {
        let mut size = 0;
        let ask = self.methods.xFileSize.ok_or_else(not_open)?;
        // SAFETY: the file is open while the connection is borrowed, and the connection belongs to
        // this thread alone.
        checked(unsafe { ask(self.file, &mut size) })?;
        Ok(size as u64)
    }
}

impl ReadRange for SqliteFile<'_> {
    type Error = rusqlite::Error;

    /// Bytes beyond the end of the file are zeros.
    #[allow(unsafe_code, reason = "rusqlite has no such call")]
    fn read_range(&self, into: &mut Vec<u8>, bytes: usize, at: u64) -> rusqlite::Result<()> {
        let read = self.methods.xRead.ok_or_else(not_open)?;
        into.clear();
        into.reserve(bytes);
        while into.len() < bytes {
            let (had, count) = (into.len(), (bytes - into.len()).min(MOST_AT_ONCE_BYTES));
            let from = at as ffi::sqlite3_int64 + had as ffi::sqlite3_int64;
            // SAFETY: the file is open while the connection is borrowed, and the connection belongs
            // to this thread alone. There is room for the `count` bytes that the method writes. It
            // writes all of them in both cases in which the length is set, with zeros beyond the
            // end of the file (<https://sqlite.org/c3ref/io_methods.html>).
            unsafe {
                match read(
                    self.file,
                    into.as_mut_ptr().add(had).cast(),
                    count as c_int,
                    from,
                ) {
                    ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ => into.set_len(had + count),
                    // The disk cannot read this range. SQLite itself also reports this code as
                    // SQLITE_CORRUPT.
                    ffi::SQLITE_IOERR_CORRUPTFS => return checked(ffi::SQLITE_CORRUPT),
                    code => return checked(code),
                }
            }
        }
        Ok(())
    }
}

fn not_open() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), None)
}

fn checked(code: c_int) -> rusqlite::Result<()> {
    if code == ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::sqlite::open_read_only;

    /// An action of a writer while a snapshot is read.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Write(u8),
        Shrink,
        Checkpoint(&'static str),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let checkpoint = prop::sample::select(vec!["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
            .prop_map(Step::Checkpoint);
        prop::collection::vec(
            prop_oneof![3 => any::<u8>().prop_map(Step::Write), 1 => Just(Step::Shrink), 3 => checkpoint],
            0..8,
        )
    }

    fn take(step: Step, writer: &Connection) {
        let sql = match step {
            Step::Write(seed) => format!(
                "UPDATE t SET x = randomblob(300) WHERE id % 7 = {}; INSERT INTO t (x) SELECT randomblob(900) FROM t LIMIT {seed}",
                seed % 7
            ),
            Step::Shrink => {
                "DELETE FROM t WHERE id > (SELECT max(id) / 2 FROM t); VACUUM".to_string()
            }
            // SQLite refuses this or does only part of it if a reader is in the way.
            Step::Checkpoint(how) => format!("PRAGMA wal_checkpoint({how})"),
        };
        let _ = writer.execute_batch(&sql);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_are_what_sqlite_reads_whatever_a_writer_does_meanwhile(
            page_bytes in prop::sample::select(vec![512, 1024, 4096, 65536]),
            mode in prop::sample::select(vec!["wal", "delete"]),
            before in steps(),
            meanwhile in steps(),
            piece_bytes in prop::sample::select(vec![1_usize, 4096, 20_000, 1 << 20]),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.db");
            let writer = Connection::open(&path).unwrap();
            writer.busy_timeout(std::time::Duration::ZERO).unwrap();
            writer
                .execute_batch(&format!(
                    "PRAGMA page_size = {page_bytes}; PRAGMA journal_mode = {mode}; PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF;
                    CREATE TABLE t (id INTEGER PRIMARY KEY, x);
                    WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO t (x) SELECT randomblob(700) FROM n"
                ))
                .unwrap();
            before.into_iter().for_each(|step| take(step, &writer));
            let snapshot = Snapshot::pin(open_read_only(&path).unwrap(), &path).unwrap();
            let (mut read, mut meanwhile) = (Vec::new(), meanwhile.into_iter());
            snapshot
                .read_chunks(piece_bytes, &CancelToken::default(), |first, piece| {
                    meanwhile.next().into_iter().for_each(|step| take(step, &writer));
                    assert_eq!(read.len() as u64, (first - 1) * snapshot.page_size_bytes());
                    read.append(piece);
                    Ok(())
                })
                .unwrap();
            let numbers: Vec<u64> = (1..=snapshot.page_count()).collect();
            let mut expected = Vec::new();
            snapshot
                .pages_of(&numbers, &CancelToken::default(), |_, page| {
                    expected.extend_from_slice(page);
                    Ok(())
                })
                .unwrap();
            prop_assert!(read == expected);
        }
    }

    #[test]
    fn of_a_log_that_began_anew_only_the_frames_since_then_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let writer = Connection::open(&path).unwrap();
        let made = "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(400000))";
        writer.execute_batch(made).unwrap();
        let pages = || {
            Snapshot::pin(open_read_only(&path).unwrap(), &path)
                .unwrap()
                .pages_in_wal()
                .unwrap()
                .len()
        };
        assert!(pages() > 90);
        writer
            .execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES (1)")
            .unwrap();
        assert!((1..5).contains(&pages()), "{}", pages());
        writer
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        assert_eq!(pages(), 0);
    }

    #[test]
    fn files_that_lost_their_names_are_read_on_as_sqlite_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let made = "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(400000))";
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch(made).unwrap();
        let snapshot = Snapshot::pin(open_read_only(&path).unwrap(), &path).unwrap();
        for file in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE other (x)")
            .unwrap();
        let (mut read, mut expected) = (Vec::new(), Vec::new());
        let mut add = |_, piece: &mut Vec<u8>| {
            read.append(piece);
            Ok(())
        };
        snapshot
            .read_chunks(1 << 16, &CancelToken::default(), &mut add)
            .unwrap();
        let numbers: Vec<u64> = (1..=snapshot.page_count()).collect();
        let add = |_, page: &[u8]| {
            expected.extend_from_slice(page);
            Ok(())
        };
        snapshot
            .pages_of(&numbers, &CancelToken::default(), add)
            .unwrap();
        assert!(numbers.len() > 90 && read == expected);
    }
}
