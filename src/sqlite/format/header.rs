//! The header of a database (<https://www.sqlite.org/fileformat2.html#the_database_header>).

use std::fs::File;

use super::btree::{u16_at, u32_at};
use crate::{sqlite::files::MAGIC, system::portable::FileExt};

pub const HEADER_BYTES: usize = 100;

/// The content of the first 100 bytes. Use it only if [`Header::is_sound`] is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub is_sound: bool,
    pub page_size: usize,
    pub reserved: usize,
    pub is_wal: bool,
    pub change_counter: u32,
    /// The number of pages, or 0 if the stored number is not valid
    /// (<https://www.sqlite.org/fileformat2.html#in_header_database_size>).
    pub page_count: u32,
    pub freelist_head: u32,
    pub freelist_count: u32,
    pub largest_root: u32,
    pub encoding: u32,
    pub user_version: i32,
    pub is_incremental: bool,
    pub application_id: i32,
}

impl Header {
    /// Reads the header of a page 1 at offset `at` of a file. Returns `None` if the file is too
    /// short or cannot be read.
    pub fn read_at(file: &File, at: u64) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(Header::read(&bytes))
    }

    /// Reads the header from `bytes`, which begin as page 1 does. Missing bytes count as zeros.
    pub fn read(bytes: &[u8]) -> Header {
        let at = |offset| u32_at(bytes, offset).unwrap_or(0);
        let byte = |offset: usize| bytes.get(offset).copied().unwrap_or(0);
        let page_size = match u16_at(bytes, 16).unwrap_or(0) {
            1 => 65_536,
            other => usize::from(other),
        };
        let is_sound =
            bytes.starts_with(MAGIC) && bytes.get(21..24) == Some(&[64, 32, 32]) && byte(18) <= 2;
        Header {
            is_sound,
            page_size,
            reserved: usize::from(byte(20)),
            is_wal: byte(18) == 2 && byte(19) == 2,
            change_counter: at(24),
            page_count: if at(24) == at(92) { at(28) } else { 0 },
            freelist_head: at(32),
            freelist_count: at(36),
            largest_root: at(52),
            encoding: at(56),
            user_version: at(60) as i32,
            is_incremental: at(64) != 0,
            application_id: at(68) as i32,
        }
    }
}
