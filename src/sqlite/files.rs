//! Names and signatures of SQLite's files.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{
    error::{Code, Error, Result},
    system::file_id::FileId,
};

/// The first bytes of every database (<https://sqlite.org/fileformat2.html#the_database_header>).
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The first bytes of the index of a WAL (<https://sqlite.org/walformat.html#walidxfmt>).
pub const INDEX_MAGIC: &[u8] = &3_007_000_u32.to_ne_bytes();
/// Suffixes of the files that SQLite keeps next to a database
/// (<https://sqlite.org/tempfiles.html>).
pub const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The first bytes of a journal. A journal that names a super-journal also ends with them
/// (<https://sqlite.org/fileformat2.html#the_rollback_journal>).
pub const JOURNAL_MAGIC: &[u8] = &[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The offset of SQLite's locks in a database file. The page that contains this byte holds no data
/// (<https://sqlite.org/fileformat2.html#the_lock_byte_page>).
pub const LOCK_BYTE: u64 = 0x4000_0000;

/// Returns the number of the page that contains [`LOCK_BYTE`]. Pages count from 1.
pub fn lock_page(page_size_bytes: u64) -> u64 {
    LOCK_BYTE / page_size_bytes + 1
}

/// Returns whether a journal names a super-journal, which SQLite removes after it has rolled back
/// the journal.
pub fn names_super_journal(mut journal: &File) -> io::Result<bool> {
    let mut end = [0; 8];
    if journal.metadata()?.len() < 2 * end.len() as u64 {
        return Ok(false);
    }
    journal.seek(SeekFrom::End(-(end.len() as i64)))?;
    journal.read_exact(&mut end)?;
    Ok(end == JOURNAL_MAGIC)
}

/// Returns `KG_DATABASE_UNREADABLE` if the database or one of its [`COMPANIONS`] exists but is not
/// a regular file.
pub fn assert_regular(database: &Path) -> Result<()> {
    let all = COMPANIONS
        .iter()
        .map(|suffix| companion(database, suffix))
        .chain([database.to_path_buf()]);
    for path in all {
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            let message = format!("{} is not a regular file", path.display());
            return Err(Error::new(
                Code::DatabaseUnreadable,
                message,
                "Find out which program created it, and remove it",
            ));
        }
    }
    Ok(())
}

/// Returns whether one of the [`COMPANIONS`] of the database, to which SQLite writes, has other
/// names (hard links).
pub fn has_shared_companion(database: &Path) -> bool {
    let is_shared = |path: PathBuf| FileId::at(&path).is_ok_and(|found| found.names > 1);
    COMPANIONS
        .iter()
        .map(|suffix| companion(database, suffix))
        .any(is_shared)
}

/// Returns the path of the file with one of the [`COMPANIONS`] suffixes next to `database`.
pub fn companion(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_os_string();
    path.push(suffix);
    path.into()
}
