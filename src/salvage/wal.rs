//! The write-ahead log (WAL) next to a database: finds the pages that it holds in a newer version.
//!
//! As in SQLite, frames count up to the last commit. The log alone does not show whether it belongs
//! to this database and its current state. [`super::open`] compares the two.

use std::{io, path::Path};

use super::overlay::Overlay;
use crate::{
    error::{Error, Result},
    sqlite::{
        files::companion,
        format::{
            header::Header,
            wal::{Frames, WAL_HEADER_BYTES, WalHeader},
        },
    },
    system::portable::FileExt,
    util::{operation::CancelToken, regular_file},
};

const FRAMES_PER_CANCEL_CHECK: usize = 256;
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
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(cause) => return Ok(Err(format!("it could not be opened: {cause}"))),
        Ok(file) => file,
    };
    let length = file
        .metadata()
        .map_err(|cause| Error::io("read", &path, cause))?
        .len();
    if length == 0 {
        return Ok(Ok(None));
    }
    let header = match WalHeader::read(&file) {
        Ok(header) if header.is_magic_whole => header,
        _ => return Ok(Err("its header is not that of a WAL".to_string())),
    };
    if !header.is_valid() || !header.is_page_size_possible() {
        return Ok(Err("the checksum of its header is wrong".to_string()));
    }
    let mut wal = Overlay::new(file, header.page_size_bytes as usize, 0);
    let mut pending: Vec<(u32, u64)> = Vec::new();
    let frames = Frames::checked(&wal.file, &header, length).map_while(io::Result::ok);
    for (number, frame) in frames.enumerate() {
        if number % FRAMES_PER_CANCEL_CHECK == 0 {
            cancel.check()?;
        }
        pending.push((frame.header.page_number, frame.page_at));
        if frame.header.committed_size > 0 {
            let header = pending
                .iter()
                .find(|(number, _)| *number == 1)
                .map(|(_, at)| *at);
            wal.oldest_header = wal.oldest_header.or(header);
            wal.offsets.extend(pending.drain(..));
            wal.page_count = frame.header.committed_size;
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
