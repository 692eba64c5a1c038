//! Pages that a log beside the database holds, and that count instead of the file's: those of a WAL are newer, those of a
//! rollback journal are what the file held before a transaction that was never committed.

use std::{collections::HashMap, fs::File};

pub struct Overlay {
    pub file: File,
    pub page_size_bytes: usize,
    /// Where the page that counts lies in the log.
    pub offsets: HashMap<u32, u64>,
    /// The size of the database with the log.
    pub page_count: u32,
    /// Where a WAL holds page 1 as it was committed to it first, if it was.
    pub oldest_header: Option<u64>,
    /// What it does not give, though it should.
    pub lacks: Option<&'static str>,
}

impl Overlay {
    /// Without pages yet.
    pub fn new(file: File, page_size_bytes: usize, page_count: u32) -> Self {
        Overlay {
            file,
            page_size_bytes,
            offsets: HashMap::new(),
            page_count,
            oldest_header: None,
            lacks: None,
        }
    }
}
