//! Fuzzes the pages of an incremental backup. The database must get the size that the manifest
//! states. The page hashes must match its content, whatever the chunks in which the bytes arrive.
#![no_main]

use std::{fs::File, os::unix::fs::FileExt};

use kg_backup::internals::{
    archive::delta::{self, Collected, PageCollector},
    util::content_hash::content_hash,
};
use libfuzzer_sys::fuzz_target;

const PAGES: u64 = 8;

fn collect(bytes: &[u8], step: usize) -> Option<Collected> {
    let mut collector = PageCollector::default();
    bytes.chunks(step).for_each(|piece| collector.push(piece));
    collector.finish()
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0) + 1, input.1);
    let collected = collect(bytes, step);
    assert_eq!(collected, collect(bytes, bytes.len().max(1)));
    let page_size = match &collected {
        Some(Collected::Delta {
            page_size_bytes, ..
        }) => *page_size_bytes,
        _ => 512,
    };
    let database: File = tempfile::tempfile().expect("a file");
    let size = page_size * PAGES;
    if delta::apply(bytes, &database, size).is_err() {
        return;
    }
    assert_eq!(database.metadata().expect("its size").len(), size);
    let Some(Collected::Delta { pages, .. }) = collected else {
        panic!("what can be applied can be hashed")
    };
    // If a page number occurs more than once, the last page counts.
    for (at, (number, hash)) in pages
        .iter()
        .enumerate()
        .filter(|(at, page)| !pages[at + 1..].iter().any(|(number, _)| *number == page.0))
    {
        let mut page = vec![0; page_size as usize];
        database
            .read_exact_at(&mut page, (number - 1) * page_size)
            .expect("a page");
        assert_eq!(*hash, content_hash(&page), "page {at}");
    }
});
