//! The rollback journal next to a database: finds the pages as they were before an uncommitted
//! transaction (<https://www.sqlite.org/fileformat2.html#the_rollback_journal>).
//!
//! As in SQLite, records count up to the first one with a wrong checksum, and only the first record
//! of each page counts. A header that was never completed has no records.
//!
//! Nothing is written: the pages of the journal overlay those of the file. SQLite would need a
//! private copy of both files, and it does nothing if the header of the database is damaged.

use std::{
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::overlay::Overlay;
use crate::{
    error::{Error, Result},
    sqlite::{
        files::{JOURNAL_MAGIC, companion, names_super_journal},
        format::btree::u32_at,
    },
    system::portable::{FileExt, os_string},
    util::{operation::CancelToken, regular_file},
};

const HEADER_BYTES: usize = 28;
const RECORDS_PER_CANCEL_CHECK: u64 = 256;
/// Distance in bytes between the bytes that the checksum adds, counted from the end of the page.
const CHECKSUM_STRIDE: usize = 200;
/// Maximum length of the name of a super-journal.
const MAX_NAME_BYTES: u64 = 4096;

struct Header {
    /// Number of records; `None` means as many as the file holds.
    records: Option<u64>,
    nonce: u32,
    page_count: u32,
    sector_bytes: u64,
    page_size: usize,
}

/// Reads the rollback journal of a database. Returns `Ok(Err(why))` if the journal cannot be used,
/// and `Ok(Ok(None))` if there is none or there is nothing to roll back.
pub fn read(
    database: &Path,
    cancel: &CancelToken,
) -> Result<std::result::Result<Option<Overlay>, String>> {
    let path = companion(database, "-journal");
    let file = match regular_file::open_linked(&path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Ok(None)),
        Err(cause) => return Ok(Err(format!("it could not be opened: {cause}"))),
        Ok(file) => file,
    };
    let failed = |cause| Error::io("read", &path, cause);
    let length = file.metadata().map_err(failed)?.len();
    // A commit leaves zeros in place of the header in PERSIST mode, and an empty file in TRUNCATE
    // mode.
    let mut first = [0];
    if length == 0 || (file.read_exact_at(&mut first, 0).is_ok() && first == [0]) {
        return Ok(Ok(None));
    }
    let Some(header) = header_at(&file, 0) else {
        return Ok(Err("its header is not that of a journal".to_string()));
    };
    if names_super_journal(&file).map_err(failed)?
        && !super_journal(&file, length).is_some_and(|path| path.exists())
    {
        // The super-journal is gone, so the transaction over several databases was committed.
        return Ok(Ok(None));
    }
    let page_size = header.page_size;
    let mut overlay = Overlay::new(file, page_size, header.page_count);
    let (mut at, mut next) = (0, Some(header));
    while let Some(header) = next {
        let (end, is_complete) = records(
            &mut overlay,
            &header,
            at + header.sector_bytes,
            length,
            cancel,
        )?;
        at = end.next_multiple_of(header.sector_bytes);
        next =
            header_at(&overlay.file, at).filter(|next| is_complete && next.page_size == page_size);
        if !is_complete {
            overlay.lacks = Some(
                "is damaged: pages that it contains after the damage are as the transaction left \
                 them",
            );
        }
    }
    if overlay.offsets.is_empty() && overlay.lacks.is_some() {
        return Ok(Err(
            "it is damaged where its first page should be".to_string()
        ));
    }
    Ok(Ok(
        Some(overlay).filter(|overlay| !overlay.offsets.is_empty())
    ))
}

fn header_at(file: &File, at: u64) -> Option<Header> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, at).ok()?;
    let word = |at| u32_at(&bytes, at).unwrap_or(0);
    let (sector_bytes, page_size) = (word(20), word(24) as usize);
    let is_sound = bytes.starts_with(JOURNAL_MAGIC)
        && sector_bytes.is_power_of_two()
        && (32..=65_536).contains(&sector_bytes)
        && page_size.is_power_of_two()
        && (512..=65_536).contains(&page_size);
    is_sound.then(|| Header {
        records: Some(word(8))
            .filter(|records| *records != u32::MAX)
            .map(u64::from),
        nonce: word(12),
        page_count: word(16),
        sector_bytes: u64::from(sector_bytes),
        page_size,
    })
}

/// Adds the records that follow a header to `overlay`. Returns where they end and whether all of
/// them were valid.
fn records(
    overlay: &mut Overlay,
    header: &Header,
    mut at: u64,
    length: u64,
    cancel: &CancelToken,
) -> Result<(u64, bool)> {
    let mut record = vec![0; header.page_size + 8];
    let size = record.len() as u64;
    let count = header
        .records
        .unwrap_or_else(|| length.saturating_sub(at) / size);
    for index in 0..count {
        if index % RECORDS_PER_CANCEL_CHECK == 0 {
            cancel.check()?;
        }
        if overlay.file.read_exact_at(&mut record, at).is_err() {
            return Ok((at, false));
        }
        let page = &record[4..4 + header.page_size];
        let number = u32_at(&record, 0).unwrap_or(0);
        if number == 0
            || u32_at(&record, 4 + header.page_size) != Some(checksum(header.nonce, page))
        {
            return Ok((at, false));
        }
        if number <= overlay.page_count {
            overlay.offsets.entry(number).or_insert(at + 4);
        }
        at += size;
    }
    Ok((at, true))
}

fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let places = (1..).map(|stretch| page.len().checked_sub(stretch * CHECKSUM_STRIDE));
    let places = places.map_while(|place| place.filter(|place| *place > 0));
    places.fold(nonce, |sum, place| sum.wrapping_add(u32::from(page[place])))
}

/// Reads the name of the super-journal. It precedes its length, its checksum and the magic number
/// at the end of the file.
fn super_journal(file: &File, length: u64) -> Option<PathBuf> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, length.checked_sub(16)?)
        .ok()?;
    let name_bytes = u64::from(u32::from_be_bytes(bytes));
    let mut name = vec![
        0;
        usize::try_from(name_bytes)
            .ok()
            .filter(|_| name_bytes <= MAX_NAME_BYTES)?
    ];
    file.read_exact_at(&mut name, length.checked_sub(16 + name_bytes)?)
        .ok()?;
    os_string(name).map(PathBuf::from)
}
