//! Reads the list of files of an archive without the rest of it.
//!
//! The list begins a block, and the sidecar tells where. What is read here is not verified: it only
//! decides what is unpacked while the whole archive is read and verified.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use flate2::read::MultiGzDecoder;

use super::{
    file_list::{FILE_LIST_ENTRY, FileList, ListParser},
    first_format,
    manifest::Manifest,
    seal::Container,
    tar_entries::{Entries, TarItem},
};
use crate::util::regular_file;

const READ_BYTES: usize = 128 * 1024;

/// Returns the list of an archive. `json` is the text of its sidecar, and `beside` the manifest in
/// it. `None` if the sidecar does not tell where the list is, or if there is none.
pub fn file_list(archive: &Path, json: &[u8], beside: &Manifest) -> Option<FileList> {
    if beside.encrypted {
        return None;
    }
    if let Some(files) = first_format::file_list(json, beside) {
        return Some(files);
    }
    let offset = beside.archive.as_ref()?.list_offset?;
    let file = regular_file::open_linked(archive).ok()?;
    read_list(decompressed(file, offset)?)
}

/// Decompresses a file from the block at `offset` on.
fn decompressed(mut file: File, offset: u64) -> Option<Box<dyn Read>> {
    let mut start = [0; 4];
    file.read_exact_at(&mut start, offset).ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    Some(match Container::of(&start) {
        Container::Gzip => Box::new(MultiGzDecoder::new(file)),
        Container::Zstd => Box::new(zstd::Decoder::new(file).ok()?),
        Container::Plain => Box::new(file),
    })
}

fn read_list(tar: impl Read) -> Option<FileList> {
    let mut tar = tar::Archive::new(tar);
    let (item, mut content) = Entries::new(&mut tar).ok()?.next().ok()??;
    if !matches!(item, TarItem::Entry(head) if head.name == FILE_LIST_ENTRY) {
        return None;
    }
    let (mut list, mut buffer) = (ListParser::default(), vec![0; READ_BYTES]);
    loop {
        match content.read(&mut buffer).ok()? {
            0 => return list.finish().ok(),
            read => list.push(&buffer[..read]),
        }
    }
}
