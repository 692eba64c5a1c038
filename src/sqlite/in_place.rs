//! Opens a database of a live project without changing anything next to it.
//!
//! SQLite changes files even when it only reads. It creates `-wal` and `-shm`, owned by the user
//! who runs this program. It rebuilds a `-shm` that no process uses, and it deletes the WAL next to
//! a database of zero pages. As root, it gives sidecars to the owner of the database. Afterwards
//! the owner may not be able to write the database.
//!
//! Therefore [`InPlaceAccess`] makes SQLite see a read-only file system while it opens the files.
//! SQLite cannot create or remove a file, open one for writing, or change its owner or mode, even
//! if the directory changes meanwhile. In this state SQLite reads a WAL if `-wal` and `-shm` exist,
//! whether or not a process uses them (<https://sqlite.org/wal.html#read_only_databases>).
//!
//! If both are missing, no process has the database open. If this user owns the database, SQLite
//! creates them as the host would, and they are removed at the end. Any other user reads a private
//! copy ([`super::raw_copy`]).

use std::{
    fs::{self, Metadata},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::{
    database_lock,
    files::{self, JOURNAL_MAGIC, companion},
    open_read_only,
    vfs_guard::ReadOnly,
    wal_start::WalStart,
};
use crate::{
    error::{Code, Error, Result},
    sqlite::format::{
        header::Header,
        wal::{Validity, WAL_HEADER_BYTES, WAL_MAGIC, WalHeader, frame_offset},
    },
    system::{portable::MetadataExt, user},
    util::regular_file,
};

/// The smallest page size of a database.
const LEAST_PAGE_BYTES: u32 = 512;
/// The offset in a journal of the number of pages that the database had before the transaction
/// (<https://sqlite.org/fileformat2.html#the_rollback_journal>).
const JOURNAL_PAGES_AT: u64 = 16;

/// The right to open one database in place. It must outlive its connections.
pub struct InPlaceAccess {
    path: PathBuf,
    /// SQLite creates `-wal` and `-shm`, and dropping this value removes them.
    creates: bool,
}

impl InPlaceAccess {
    /// Returns `None` if the database at `path` can only be read from a copy. Returns
    /// `KG_DATABASE_UNREADABLE` if the database or one of its companion files is not a regular
    /// file. SQLite would block on a pipe.
    pub fn at(path: &Path) -> Result<Option<InPlaceAccess>> {
        files::assert_regular(path)?;
        Ok(InPlaceAccess::in_place(path))
    }

    fn in_place(path: &Path) -> Option<InPlaceAccess> {
        let exists = |suffix: &str| companion(path, suffix).symlink_metadata().is_ok();
        let (wal, shm) = (exists("-wal"), exists("-shm"));
        // If the file cannot be read, nothing is known about it, and SQLite reports the reason.
        let Ok(found) = fs::metadata(path) else {
            return Some(InPlaceAccess::new(path, false));
        };
        if (wal || exists("-journal")) && is_shorter_than_a_page(path, &found) {
            return None;
        }
        let is_wal = header(path).is_some_and(|header| header.is_wal);
        match (wal, shm) {
            // Without write permission, SQLite would try for ten seconds to use a WAL that it
            // ignores.
            (true, true) if !ignores_wal(path) => Some(InPlaceAccess::new(path, false)),
            (false, _) if !is_wal => Some(InPlaceAccess::new(path, false)),
            (false, false) if creates_as_its_host(path, &found) => {
                Some(InPlaceAccess::new(path, true))
            }
            _ => None,
        }
    }

    fn new(path: &Path, creates: bool) -> InPlaceAccess {
        InPlaceAccess {
            path: path.to_path_buf(),
            creates,
        }
    }

    /// Opens a connection and reads from it once, because SQLite opens the WAL only at the first
    /// read.
    pub fn open(&self) -> Result<Connection> {
        let _read_only = if self.creates {
            None
        } else {
            Some(ReadOnly::begin()?)
        };
        let connection = open_read_only(&self.path)?;
        let version = connection.query_row("PRAGMA schema_version", [], |_| Ok(()));
        version.map_err(|cause| Error::sqlite("read", &self.path, cause))?;
        Ok(connection)
    }
}

impl Drop for InPlaceAccess {
    /// Opens a writable connection, because only such a connection lets SQLite remove the files
    /// that it created when the last connection closes. If another process has opened the database
    /// meanwhile, the files are in use and stay.
    fn drop(&mut self) {
        let is_empty =
            || fs::metadata(companion(&self.path, "-wal")).is_ok_and(|wal| wal.len() == 0);
        if !self.creates || !is_empty() {
            return;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        if let Ok(connection) = Connection::open_with_flags(&self.path, flags) {
            // If this fails, the files stay as after a killed host, and belong to the database's
            // owner.
            let _ = connection.busy_timeout(Duration::ZERO);
            let _ = connection.query_row("PRAGMA schema_version", [], |_| Ok(()));
        }
    }
}

/// Returns whether SQLite ignores the content of the WAL next to the database because its header is
/// invalid. While a process has the database open, the header may be incomplete because it is being
/// written, so the result is `false`.
///
/// This function closes a descriptor of the database, so the database must not be open in this
/// process.
pub fn ignores_wal(path: &Path) -> bool {
    let wal = companion(path, "-wal");
    let is_ignored = WalStart::judge(&wal, |start| {
        let is_valid = start.header().is_some_and(|header| header.is_valid());
        // A host that ends after this look deletes the WAL, so the WAL changes.
        (!is_valid && !is_open(path)).then_some(true)
    });
    match is_ignored {
        Ok(is_ignored) => is_ignored.unwrap_or(false),
        Err(_) => !is_open(path),
    }
}

/// Returns whether SQLite ignores a WAL that may contain commits. A WAL that ends before its first
/// frame ends contains none: a writer was killed while it wrote the header.
pub fn ignores_commits(path: &Path) -> bool {
    const FIRST_FRAME_ENDS_AT: u64 = frame_offset(1, LEAST_PAGE_BYTES);
    let has_room =
        fs::metadata(companion(path, "-wal")).is_ok_and(|wal| wal.len() >= FIRST_FRAME_ENDS_AT);
    has_room && ignores_wal(path)
}

/// Returns whether files that this user creates next to the database equal those that its host
/// would create. They must have the same owner and group, in a writable directory. A process that
/// has the database open without a WAL next to it uses a deleted one, so the result is `false`.
fn creates_as_its_host(path: &Path, found: &Metadata) -> bool {
    const SET_GROUP: u32 = 0o2000;
    let Some(dir) = path.parent() else {
        return false;
    };
    let Ok(of_dir) = fs::metadata(dir) else {
        return false;
    };
    let group = if of_dir.mode() & SET_GROUP != 0 {
        of_dir.gid()
    } else {
        user::group()
    };
    found.uid() == user::current()
        && found.gid() == group
        && user::may_write_effectively(path)
        && user::may_write_effectively(dir)
        && !is_open(path)
}

/// Returns whether another process has the database open in WAL mode or is reading or writing it.
/// Returns `true` if this cannot be determined.
fn is_open(path: &Path) -> bool {
    let holder = regular_file::open_linked(path)
        .map(|file| database_lock::holder(&file, database_lock::LOCK_BYTES));
    !matches!(holder, Ok(Ok(None)))
}

fn header(path: &Path) -> Option<Header> {
    regular_file::open_linked(path)
        .ok()
        .and_then(|file| Header::read_at(&file, 0))
        .filter(|header| header.is_sound)
}

/// Returns `KG_DATABASE_DAMAGED` if the database at `path` is certainly damaged. It is shorter than
/// its first page, while the WAL or journal next to it has content. SQLite would treat the database
/// as empty and delete that content. `shown` is the path in messages.
pub fn cut_off(path: &Path, shown: &Path) -> Option<Error> {
    let found = fs::metadata(path).ok()?;
    if !is_shorter_than_a_page(path, &found) {
        return None;
    }
    let has_wal = fs::metadata(companion(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
    let sidecar = if has_wal {
        "-wal"
    } else if has_pages(&companion(path, "-journal")) {
        "-journal"
    } else {
        return None;
    };
    let shown = shown.display();
    Some(Error::new(
        Code::DatabaseDamaged,
        format!(
            "{shown} was truncated to {} bytes, but {shown}{sidecar} has content",
            found.len()
        ),
        "Keep both files, do not open the database, and restore the newest good backup with `kg diag restore --file latest`",
    ))
}

/// Returns whether a file without the header of a database was a database before it was truncated.
/// Its WAL or journal still exists then.
pub fn is_cut_off(path: &Path) -> bool {
    let starts = |suffix: &str, magic: &[u8]| {
        regular_file::start::<8>(&companion(path, suffix))
            .is_some_and(|start| start.starts_with(magic))
    };
    (starts("-wal", WAL_MAGIC) || starts("-journal", JOURNAL_MAGIC))
        && cut_off(path, path).is_some()
}

fn is_shorter_than_a_page(path: &Path, found: &Metadata) -> bool {
    let of_wal = || {
        wal_header(&companion(path, "-wal"))
            .filter(|header| header.validity != Validity::NotWal)
            .map(|header| u64::from(header.page_size_bytes))
            .filter(|size| *size <= 65_536)
    };
    let page = header(path)
        .map(|header| header.page_size as u64)
        .or_else(of_wal);
    found.len() < page.unwrap_or(0).max(u64::from(LEAST_PAGE_BYTES))
}

fn wal_header(wal: &Path) -> Option<WalHeader> {
    regular_file::start::<WAL_HEADER_BYTES>(wal).map(|start| WalHeader::parse(&start))
}

/// Returns whether a journal belongs to a database that had pages before the transaction.
fn has_pages(journal: &Path) -> bool {
    const UNTIL: usize = JOURNAL_PAGES_AT as usize + 4;
    regular_file::start::<UNTIL>(journal).is_some_and(|start| {
        start.starts_with(JOURNAL_MAGIC) && start[JOURNAL_PAGES_AT as usize..] != [0; 4]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a database in WAL mode and returns it open. Its WAL has content.
    fn database() -> (tempfile::TempDir, PathBuf, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let host = Connection::open(&path).unwrap();
        host.execute_batch(
            "PRAGMA journal_mode = wal; CREATE TABLE t (x); INSERT INTO t VALUES (1)",
        )
        .unwrap();
        (dir, path, host)
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Creates the files of a killed host, in a directory of their own.
    fn left_by_a_kill() -> (tempfile::TempDir, PathBuf) {
        let (dir, path, _host) = database();
        let killed = tempfile::tempdir().unwrap();
        for name in names(&dir) {
            fs::copy(dir.path().join(&name), killed.path().join(&name)).unwrap();
        }
        let name = path.file_name().unwrap();
        let path = killed.path().join(name);
        (killed, path)
    }

    #[test]
    fn what_changes_between_the_look_and_the_opening_does_no_harm() {
        // Truncated: SQLite would delete the WAL.
        let (dir, path) = left_by_a_kill();
        let look = InPlaceAccess::at(&path).unwrap().unwrap();
        fs::write(&path, "").unwrap();
        assert!(look.open().is_err());
        drop(look);
        assert_eq!(names(&dir), ["a.db", "a.db-shm", "a.db-wal"]);
        // The host closed it: SQLite would create sidecars that belong to this user.
        let (dir, path, host) = database();
        let look = InPlaceAccess::at(&path).unwrap().unwrap();
        drop(host);
        assert_eq!(look.open().unwrap_err().code, Code::DatabaseUnreadable);
        drop(look);
        assert_eq!(names(&dir), ["a.db"]);
    }

    #[test]
    fn sidecars_that_were_created_go_unless_another_connection_uses_them() {
        let (dir, path, host) = database();
        drop(host);
        let read = |look: &InPlaceAccess| {
            let count = look
                .open()
                .unwrap()
                .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u64>(0));
            assert_eq!(count, Ok(1));
        };
        let before = fs::read(&path).unwrap();
        let look = InPlaceAccess::at(&path).unwrap().unwrap();
        assert!(look.creates);
        read(&look);
        drop(look);
        assert_eq!(
            (names(&dir), fs::read(&path).unwrap()),
            (vec!["a.db".to_string()], before)
        );
        let look = InPlaceAccess::at(&path).unwrap().unwrap();
        read(&look);
        let host = Connection::open(&path).unwrap();
        host.query_row("SELECT count(*) FROM t", [], |_| Ok(()))
            .unwrap();
        drop(look);
        assert_eq!(names(&dir), ["a.db", "a.db-shm", "a.db-wal"]);
        host.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    }

    #[test]
    fn a_wal_is_read_without_a_change_of_its_index() {
        let (dir, path) = left_by_a_kill();
        let content = || {
            names(&dir)
                .iter()
                .map(|name| fs::read(dir.path().join(name)).unwrap())
                .collect::<Vec<_>>()
        };
        let before = content();
        let look = InPlaceAccess::at(&path).unwrap().unwrap();
        assert!(!look.creates);
        let count = look
            .open()
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u64>(0));
        assert_eq!(count, Ok(1));
        drop(look);
        assert!(content() == before);
    }

    #[test]
    fn a_wal_without_a_header_is_ignored_unless_it_is_empty_or_the_database_is_open() {
        let (_dir, path) = left_by_a_kill();
        let wal = companion(&path, "-wal");
        let whole = fs::read(&wal).unwrap();
        assert!(!ignores_wal(&path) && InPlaceAccess::at(&path).unwrap().is_some());
        for at in [0, 9, 31] {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            fs::write(&wal, torn).unwrap();
            assert!(
                ignores_wal(&path) && InPlaceAccess::at(&path).unwrap().is_none(),
                "{at}"
            );
        }
        fs::write(&wal, &whole[..20]).unwrap();
        assert!(ignores_wal(&path));
        fs::write(&wal, "").unwrap();
        assert!(!ignores_wal(&path));
    }

    #[test]
    fn a_database_is_cut_off_if_it_is_shorter_than_a_page_and_its_log_has_content() {
        let (_dir, path) = left_by_a_kill();
        assert!(cut_off(&path, &path).is_none());
        for size in [0, 1, 50, 99, 100, 511, 512, 4095] {
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(size)
                .unwrap();
            assert_eq!(
                cut_off(&path, &path).unwrap().code,
                Code::DatabaseDamaged,
                "{size}"
            );
            assert!(
                is_cut_off(&path) && InPlaceAccess::at(&path).unwrap().is_none(),
                "{size}"
            );
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(4096)
                .unwrap();
        }
        fs::write(&path, "").unwrap();
        fs::write(companion(&path, "-wal"), "").unwrap();
        assert!(cut_off(&path, &path).is_none() && !is_cut_off(&path));
        // The first transaction of a new database: the database was empty before it.
        fs::remove_file(companion(&path, "-wal")).unwrap();
        let journal = |pages: u32| {
            let start = [JOURNAL_MAGIC, &[0; 8], &pages.to_be_bytes(), &[0; 492]].concat();
            fs::write(companion(&path, "-journal"), start).unwrap();
        };
        journal(0);
        assert!(cut_off(&path, &path).is_none());
        journal(3);
        assert!(cut_off(&path, &path).is_some());
    }
}
