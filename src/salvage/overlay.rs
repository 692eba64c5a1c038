//! Pages of a log next to the database, which replace those of the file. The pages of a WAL are
//! newer than those of the file. The pages of a rollback journal hold the content before an
//! uncommitted transaction.

use std::{collections::HashMap, fs::File};

pub struct Overlay {
    pub file: File,
    pub page_size_bytes: usize,
    /// Offset in the log of the version of each page that counts.
    pub offsets: HashMap<u32, u64>,
    /// Size of the database in pages, with the log applied.
    pub page_count: u32,
    /// Offset of the earliest committed version of page 1 in a WAL, if any.
    pub oldest_header: Option<u64>,
    /// Which content the log should provide but does not.
    pub lacks: Option<&'static str>,
}

impl Overlay {
    /// Creates an overlay without pages.
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
