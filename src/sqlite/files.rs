//! How SQLite's files are recognised and named.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// The first bytes of every database (<https://sqlite.org/fileformat2.html#the_database_header>).
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// What the index of a WAL begins with (<https://sqlite.org/walformat.html#walidxfmt>).
pub const INDEX_MAGIC: &[u8] = &3_007_000_u32.to_ne_bytes();
/// Suffixes of what SQLite keeps beside a database (<https://sqlite.org/tempfiles.html>).
pub const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What a journal begins with, and what one ends with that names a super-journal
/// (<https://sqlite.org/fileformat2.html#the_rollback_journal>).
pub const JOURNAL_MAGIC: &[u8] = &[0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// What a WAL begins with, but for the last bit of its fourth byte (<https://sqlite.org/fileformat2.html#walformat>).
pub const WAL_MAGIC: &[u8] = &[0x37, 0x7f, 0x06];
/// Of a WAL, and of each of its frames, before the page.
pub const WAL_HEADER_BYTES: usize = 32;
pub const WAL_FRAME_HEADER_BYTES: usize = 24;

/// How much of a WAL's header its checksum covers.
const WAL_CHECKED_BYTES: usize = 24;

/// Whether a WAL's header has the checksum that it names, in the byte order that its first word gives.
pub fn is_wal_header_whole(header: &[u8; WAL_HEADER_BYTES]) -> bool {
    let word = |number: usize| {
        let at = number * 4;
        header.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_be_bytes)
    };
    let is_big_endian = word(0) & 1 == 1;
    let read = |number| if is_big_endian { word(number) } else { word(number).swap_bytes() };
    let (mut first, mut second) = (0_u32, 0_u32);
    for pair in (0..WAL_CHECKED_BYTES / 4).step_by(2) {
        first = first.wrapping_add(read(pair)).wrapping_add(second);
        second = second.wrapping_add(read(pair + 1)).wrapping_add(first);
    }
    (first, second) == (word(6), word(7))
}

/// Where SQLite's locks are on a database file: no data is kept in the page that this byte is in
/// (<https://sqlite.org/fileformat2.html#the_lock_byte_page>).
pub const LOCK_BYTE: u64 = 0x4000_0000;

/// The number of that page, which counts from 1.
pub fn lock_page(page_size_bytes: u64) -> u64 {
    LOCK_BYTE / page_size_bytes + 1
}

/// Whether a journal names a file that SQLite removes once the journal was rolled back.
pub fn names_super_journal(mut journal: &File) -> io::Result<bool> {
    let mut end = [0; 8];
    if journal.metadata()?.len() < 2 * end.len() as u64 {
        return Ok(false);
    }
    journal.seek(SeekFrom::End(-(end.len() as i64)))?;
    journal.read_exact(&mut end)?;
    Ok(end == JOURNAL_MAGIC)
}

/// The path of what SQLite keeps beside `database`, for one of [`COMPANIONS`].
pub fn companion(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_os_string();
    path.push(suffix);
    path.into()
}
