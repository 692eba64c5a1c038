//! Reads the pages of a snapshot many at a time.
//!
//! SQLite takes a page from the WAL where that has it, and from the database's file otherwise, each by a call of its own. For as long as a read
//! transaction lasts, a checkpoint writes no page to the file but those that the WAL has for this transaction too
//! (<https://sqlite.org/wal.html#concurrency>), for SQLite itself reads there at any time. So whatever no frame of the WAL is of is read from the
//! file at once, and only the others are asked of SQLite. More frames than the transaction sees do no harm: their pages are asked of SQLite too.
//!
//! The file is read through SQLite's own handle. To open and close another one would drop all locks that this process has on it
//! (<https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).

use std::{
    ffi::{c_int, c_void},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    ptr::null_mut,
};

use rusqlite::{Connection, ffi};

use super::{
    btree::u32_at,
    files::{COMPANIONS, WAL_MAGIC, companion},
    snapshot::Snapshot,
};
use crate::{error::Result, task::Cancel};

/// Where there is a lock page, which SQLite never stores (<https://sqlite.org/fileformat2.html#the_lock_byte_page>).
const LOCK_BYTE: u64 = 1 << 30;
const WAL_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

impl Snapshot {
    /// Calls `visit` with every page, first to last, so many together as fit in `piece_bytes` (at least one), and the number of the first of them, from 1.
    /// Their concatenation is the database file. `visit` may change or keep what it gets.
    ///
    /// The lock page comes as zeros.
    pub fn pieces(
        &self,
        piece_bytes: usize,
        cancel: &Cancel,
        mut visit: impl FnMut(u64, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let failed = |cause| self.sqlite_error(cause);
        let (page_bytes, page_count) = (self.page_size_bytes(), self.page_count());
        let logged = self.pages_in_wal();
        let file = DatabaseFile::of(self.connection()).map_err(failed)?;
        let pages_of_piece = (piece_bytes as u64 / page_bytes).max(1);
        let mut piece = Vec::new();
        let mut first = 1;
        while first <= page_count {
            cancel.check()?;
            let after = (first + pages_of_piece).min(page_count + 1);
            let start = (first - 1) * page_bytes;
            file.read(&mut piece, ((after - first) * page_bytes) as usize, start).map_err(failed)?;
            let place =
                |number: u64| ((number - first) * page_bytes) as usize..((number - first + 1) * page_bytes) as usize;
            let in_wal =
                logged.partition_point(|number| *number < first)..logged.partition_point(|number| *number < after);
            let in_wal = &logged[in_wal];
            if !in_wal.is_empty() {
                self.pages_of(in_wal, cancel, |number, page| {
                    piece[place(number)].copy_from_slice(page);
                    Ok(())
                })?;
            }
            let lock_page = LOCK_BYTE / page_bytes + 1;
            if (first..after).contains(&lock_page) {
                piece[place(lock_page)].fill(0);
            }
            visit(first, &mut piece)?;
            first = after;
        }
        Ok(())
    }

    /// Numbers of the pages that the WAL may have, in order.
    fn pages_in_wal(&self) -> Vec<u64> {
        let wal = self.connection().path().map(|path| companion(Path::new(path), COMPANIONS[0]));
        let mut numbers = match wal.map(|wal| pages_in(&wal, self.page_size_bytes())) {
            Some(Ok(numbers)) => numbers,
            // It cannot be read as SQLite reads it: then SQLite reads everything.
            _ => (1..=self.page_count()).collect(),
        };
        numbers.sort_unstable();
        numbers.dedup();
        numbers.retain(|number| (1..=self.page_count()).contains(number));
        numbers
    }
}

/// The page of each frame since the WAL last began anew, with repetitions (<https://sqlite.org/fileformat2.html#walformat>).
fn pages_in(wal: &Path, page_bytes: u64) -> io::Result<Vec<u64>> {
    let file = match File::open(wal) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let length = file.metadata()?.len();
    if length < WAL_HEADER_BYTES as u64 {
        return Ok(Vec::new());
    }
    let mut header = [0; WAL_HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    // 65536 is written as it is.
    if !header.starts_with(WAL_MAGIC) || u32_at(&header, 8).map(u64::from) != Some(page_bytes) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut numbers = Vec::new();
    let mut at = WAL_HEADER_BYTES as u64;
    while at + FRAME_HEADER_BYTES as u64 <= length {
        let mut frame = [0; FRAME_HEADER_BYTES];
        file.read_exact_at(&mut frame, at)?;
        // Left from before.
        if frame[8..16] != header[16..24] {
            break;
        }
        numbers.extend(u32_at(&frame, 0).map(u64::from));
        at += FRAME_HEADER_BYTES as u64 + page_bytes;
    }
    Ok(numbers)
}

/// The file of a connection's main database, as SQLite has it open.
struct DatabaseFile<'a> {
    file: *mut ffi::sqlite3_file,
    read: unsafe extern "C" fn(*mut ffi::sqlite3_file, *mut c_void, c_int, ffi::sqlite3_int64) -> c_int,
    _connection: &'a Connection,
}

impl<'a> DatabaseFile<'a> {
    #[allow(unsafe_code, reason = "rusqlite has no such call")]
    fn of(connection: &'a Connection) -> rusqlite::Result<Self> {
        let mut file: *mut ffi::sqlite3_file = null_mut();
        // SAFETY: the handle is open for as long as `connection` is borrowed, the name is a C string, and SQLite writes one pointer to `file`
        // (<https://sqlite.org/c3ref/c_fcntl_begin_atomic_write.html#sqlitefcntlfilepointer>).
        let code = unsafe {
            let to = (&raw mut file).cast();
            ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, to)
        };
        checked(code)?;
        // SAFETY: a file that SQLite gives stays where it is until its connection is closed. One that is not open has no methods.
        let read = unsafe { file.as_ref().and_then(|file| file.pMethods.as_ref()) }.and_then(|methods| methods.xRead);
        let read = read.ok_or_else(|| checked(ffi::SQLITE_CANTOPEN).err().unwrap_or(rusqlite::Error::InvalidQuery))?;
        Ok(DatabaseFile { file, read, _connection: connection })
    }

    /// Fills `into` with so many bytes. What is beyond the end of the file comes as zeros.
    #[allow(unsafe_code, reason = "rusqlite has no such call")]
    fn read(&self, into: &mut Vec<u8>, bytes: usize, at: u64) -> rusqlite::Result<()> {
        into.clear();
        into.reserve(bytes);
        let count = c_int::try_from(bytes).map_err(|_| too_big())?;
        let at = ffi::sqlite3_int64::try_from(at).map_err(|_| too_big())?;
        // SAFETY: the file is open while the connection is borrowed, which belongs to this thread alone, and there is room for what its method
        // writes. That is `count` bytes, in both cases in which the length is set: zeros where the file has none
        // (<https://sqlite.org/c3ref/io_methods.html>).
        unsafe {
            match (self.read)(self.file, into.as_mut_ptr().cast(), count, at) {
                ffi::SQLITE_OK | ffi::SQLITE_IOERR_SHORT_READ => into.set_len(bytes),
                code => return checked(code),
            }
        }
        Ok(())
    }
}

fn too_big() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_TOOBIG), None)
}

fn checked(code: c_int) -> rusqlite::Result<()> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::sqlite::open_harmless;

    /// What a writer may do beside a reader.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Write(u8),
        Shrink,
        Checkpoint(&'static str),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let checkpoint =
            prop::sample::select(vec!["PASSIVE", "FULL", "RESTART", "TRUNCATE"]).prop_map(Step::Checkpoint);
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
            Step::Shrink => "DELETE FROM t WHERE id > (SELECT max(id) / 2 FROM t); VACUUM".to_string(),
            // Refused or cut short where a reader is in the way.
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
            let snapshot = Snapshot::pin(open_harmless(&path).unwrap(), &path).unwrap();
            let (mut read, mut meanwhile) = (Vec::new(), meanwhile.into_iter());
            snapshot
                .pieces(piece_bytes, &Cancel::default(), |first, piece| {
                    meanwhile.next().into_iter().for_each(|step| take(step, &writer));
                    assert_eq!(read.len() as u64, (first - 1) * snapshot.page_size_bytes());
                    read.append(piece);
                    Ok(())
                })
                .unwrap();
            let numbers: Vec<u64> = (1..=snapshot.page_count()).collect();
            let mut expected = Vec::new();
            snapshot
                .pages_of(&numbers, &Cancel::default(), |_, page| {
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
        let pages = || Snapshot::pin(open_harmless(&path).unwrap(), &path).unwrap().pages_in_wal().len();
        assert!(pages() > 90);
        writer.execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES (1)").unwrap();
        assert!((1..5).contains(&pages()), "{}", pages());
        writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        assert_eq!(pages(), 0);
    }

    #[test]
    fn where_the_log_cannot_be_read_as_one_sqlite_reads_every_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        let snapshot = Snapshot::pin(open_harmless(&path).unwrap(), &path).unwrap();
        fs::write(companion(&path, "-wal"), [7; 100]).unwrap();
        assert_eq!(snapshot.pages_in_wal(), [1, 2]);
    }
}
