//! Reads the list of files of an archive without the rest of it.
//!
//! The list begins a block, and the sidecar tells where. What is read here is not verified: it only
//! decides what is unpacked while the whole archive is read and verified.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use super::{
    file_list::{FILE_LIST_ENTRY, FileList, ListParser},
    first_format,
    manifest::Manifest,
    tar_entries::{Entries, TarItem},
};
use crate::util::regular_file;

const READ_BYTES: usize = 128 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

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
    let mut file = regular_file::open_linked(archive).ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    read_list(decompressed(file)?)
}

fn decompressed(mut file: File) -> Option<Box<dyn Read>> {
    let mut magic = [0; 4];
    let start = file.stream_position().ok()?;
    file.read_exact(&mut magic).ok()?;
    file.seek(SeekFrom::Start(start)).ok()?;
    Some(if magic.starts_with(&GZIP_MAGIC) {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else if magic == ZSTD_MAGIC || magic == ZSTD_SKIPPABLE {
        Box::new(zstd::Decoder::new(file).ok()?)
    } else {
        Box::new(file)
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
