//! The freelist: pages whose old content must not come back
//! (<https://www.sqlite.org/fileformat2.html#the_freelist>).

use super::file::Source;
use crate::{error::Result, sqlite::format::btree::u32_at, util::operation::CancelToken};

pub struct Freelist {
    pub is_free: Vec<bool>,
    /// Whether the list contains as many pages as the header says, each of them once.
    pub is_sound: bool,
}

/// Reads the freelist, starting from the header.
pub fn read(source: &Source, cancel: &CancelToken) -> Result<Freelist> {
    let mut list = Freelist {
        is_free: vec![false; source.present as usize + 1],
        is_sound: false,
    };
    let header = &source.header;
    if !header.is_sound {
        return Ok(list);
    }
    let (mut next, mut count) = (header.freelist_head, 0_u64);
    while next != 0 {
        cancel.check()?;
        let Some((following, pages)) = source.page(next).and_then(|bytes| trunk(source, &bytes))
        else {
            return Ok(list);
        };
        for page in pages.into_iter().chain([next]) {
            count += 1;
            if let Some(is_free) = list.is_free.get_mut(page as usize)
                && std::mem::replace(is_free, true)
            {
                return Ok(list);
            }
        }
        if count > u64::from(header.freelist_count) {
            return Ok(list);
        }
        next = following;
    }
    list.is_sound = count == u64::from(header.freelist_count);
    Ok(list)
}

/// Returns the next trunk page and the leaves of this page, or `None` if it does not look like a
/// trunk page.
pub fn trunk(source: &Source, bytes: &[u8]) -> Option<(u32, Vec<u32>)> {
    let next = u32_at(bytes, 0)?;
    let count = u32_at(bytes, 4)? as usize;
    if count > source.geometry.usable_bytes / 4 - 2
        || next > source.geometry.page_count
        || next == 1
    {
        return None;
    }
    let pages: Vec<u32> = (0..count)
        .filter_map(|index| u32_at(bytes, 8 + 4 * index))
        .collect();
    let mut sorted = pages.clone();
    sorted.sort_unstable();
    let in_range =
        |page: &u32| (2..=source.geometry.page_count).contains(page) && !source.is_reserved(*page);
    let are_pages = pages.iter().all(in_range) && sorted.windows(2).all(|pair| pair[0] < pair[1]);
    are_pages.then_some((next, pages))
}
