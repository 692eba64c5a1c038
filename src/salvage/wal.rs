//! The write-ahead log (WAL) next to a database: finds the pages that it holds in a newer version
//! (<https://www.sqlite.org/fileformat2.html#walformat>).
//!
//! As in SQLite, frames count up to the last commit before the first frame with wrong salts or a
//! wrong checksum. The log alone does not show whether it belongs to this database and its current
//! state. [`super::open`] compares the two.

use std::{os::unix::fs::FileExt, path::Path};

use super::overlay::Overlay;
use crate::{
    error::{Error, Result},
    sqlite::{
        files::{
            WAL_FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WAL_MAGIC, companion, is_wal_header_whole,
            wal_checksum,
        },
        format::{btree::u32_at, header::Header},
    },
    util::{operation::CancelToken, regular_file},
};

const FRAMES_PER_CANCEL_CHECK: u64 = 256;
/// Attempts to read a consistent state of a database that is checkpointed meanwhile.
const ATTEMPTS: u32 = 3;

/// Reads the WAL of a database. Returns `Ok(Err(why))` if the WAL cannot be used, and
/// `Ok(Ok(None))` if there is none or it is empty.
pub fn read(
    database: &Path,
    cancel: &CancelToken,
) -> Result<std::result::Result<Option<Overlay>, String>> {
    let path = companion(database, "-wal");
    let file = match regular_file::open_linked(&path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(cause) => return Ok(Err(format!("it could not be opened: {cause}"))),
        Ok(file) => file,
    };
    let length = file
        .metadata()
        .map_err(|cause| Error::io("read", &path, cause))?
        .len();
    let mut header = [0; WAL_HEADER_BYTES];
    if length == 0 {
        return Ok(Ok(None));
    }
    if file.read_exact_at(&mut header, 0).is_err()
        || !header.starts_with(WAL_MAGIC)
        || header[3] & 0xfe != 0x82
    {
        return Ok(Err("its header is not that of a WAL".to_string()));
    }
    let is_big_endian = header[3] & 1 == 1;
    let page_size = u32_at(&header, 8).unwrap_or(0) as usize;
    let mut sum = wal_checksum((0, 0), &header[..24], is_big_endian);
    if !is_wal_header_whole(&header)
        || !page_size.is_power_of_two()
        || !(512..=65_536).contains(&page_size)
    {
        return Ok(Err("the checksum of its header is wrong".to_string()));
    }
    let mut wal = Overlay::new(file, page_size, 0);
    let mut pending: Vec<(u32, u64)> = Vec::new();
    let mut frame = vec![0; WAL_FRAME_HEADER_BYTES + page_size];
    let frames = (length - WAL_HEADER_BYTES as u64) / frame.len() as u64;
    for index in 0..frames {
        if index % FRAMES_PER_CANCEL_CHECK == 0 {
            cancel.check()?;
        }
        let at = WAL_HEADER_BYTES as u64 + index * frame.len() as u64;
        if wal.file.read_exact_at(&mut frame, at).is_err() || frame[8..16] != header[16..24] {
            break;
        }
        sum = wal_checksum(sum, &frame[..8], is_big_endian);
        sum = wal_checksum(sum, &frame[WAL_FRAME_HEADER_BYTES..], is_big_endian);
        let number = u32_at(&frame, 0).unwrap_or(0);
        if (Some(sum.0), Some(sum.1)) != (u32_at(&frame, 16), u32_at(&frame, 20)) || number == 0 {
            break;
        }
        pending.push((number, at + WAL_FRAME_HEADER_BYTES as u64));
        let committed_size = u32_at(&frame, 4).unwrap_or(0);
        if committed_size > 0 {
            let header = pending
                .iter()
                .find(|(number, _)| *number == 1)
                .map(|(_, at)| *at);
            wal.oldest_header = wal.oldest_header.or(header);
            wal.offsets.extend(pending.drain(..));
            wal.page_count = committed_size;
        }
    }
    let page_count = wal.page_count;
    wal.offsets.retain(|number, _| *number <= page_count);
    Ok(Ok(Some(wal).filter(|wal| !wal.offsets.is_empty())))
}

/// Returns why a WAL cannot continue the state of the database file, or `None` if it can. Only the
/// header of the file, which has `pages_in_file` pages, is considered.
///
/// When page 1 is written to a WAL, its change counter equals that of the previous state or is one
/// higher. Every change of the database size writes page 1. Therefore the file must not be newer
/// than the last page 1 in the WAL. It must also be at most one change behind the first page 1.
pub fn of_another_state(
    header: &Header,
    pages_in_file: u32,
    wal: &Overlay,
) -> Option<&'static str> {
    // An unsound header is damaged and proves nothing.
    if !header.is_sound || !(1..=pages_in_file).contains(&header.page_count) {
        return None;
    }
    let counter = |at: u64| {
        Header::read_at(&wal.file, at)
            .filter(|header| header.is_sound)
            .map(|it| it.change_counter)
    };
    let oldest = wal.oldest_header.and_then(counter);
    let newest = wal.offsets.get(&1).copied().and_then(counter);
    match header.change_counter {
        counter if newest.is_some_and(|newest| newest < counter) => {
            Some("it is older than the database")
        }
        counter if oldest.is_some_and(|oldest| oldest.saturating_sub(1) > counter) => {
            Some("it is newer than the database, and neither contains the changes in between")
        }
        _ if wal.oldest_header.is_none() && header.page_count != wal.page_count => {
            Some("its database has another size")
        }
        _ => None,
    }
}

/// Applies [`of_another_state`] to a live database.
///
/// An objection counts only if the headers of database and WAL are equal before and after the WAL
/// was read. Otherwise a WAL that was restarted meanwhile would be read partly in its old state.
/// Returns `None` if no attempt is consistent.
pub fn beside_another_state(database: &Path, cancel: &CancelToken) -> Result<Option<&'static str>> {
    let headers = || {
        let file = regular_file::open_linked(database).ok()?;
        let header = Header::read_at(&file, 0)?;
        let pages = file.metadata().ok()?.len() / header.page_size.max(1) as u64;
        let mut wal = [0; WAL_HEADER_BYTES];
        regular_file::open_linked(&companion(database, "-wal"))
            .ok()?
            .read_exact_at(&mut wal, 0)
            .ok()?;
        Some((header, wal, u32::try_from(pages).ok()?))
    };
    for _ in 0..ATTEMPTS {
        let Some((before, wal_before, pages)) = headers() else {
            return Ok(None);
        };
        let Ok(Some(wal)) = read(database, cancel)? else {
            return Ok(None);
        };
        let reason = of_another_state(&before, pages, &wal);
        if reason.is_none()
            || headers().is_some_and(|(after, wal, _)| after == before && wal == wal_before)
        {
            return Ok(reason);
        }
    }
    Ok(None)
}
