//! How SQLite's files are recognised and named.

use std::path::{Path, PathBuf};

/// The first bytes of every database (<https://sqlite.org/fileformat2.html#the_database_header>).
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Suffixes of what SQLite keeps beside a database (<https://sqlite.org/tempfiles.html>).
pub const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The path of what SQLite keeps beside `database`, for one of [`COMPANIONS`].
pub fn companion(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_os_string();
    path.push(suffix);
    path.into()
}
