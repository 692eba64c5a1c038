//! Writes an archive: the entries as they arrive, then the list of files, the manifest and the
//! checksums, then the seal.
//!
//! The list and the checksums grow with the number of files, so they wait in unnamed files of the
//! scratch directory.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufWriter, Read, Seek, Write},
    path::Path,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    block::{Compression, Content},
    block_writer::{Encoder, Sink, Written},
    file_list::{FILE_LIST_ENTRY, FileListSummary, ListWriter, MAX_NAMES_BYTES, MAX_RECORDS},
    file_record::{Blocks, EntryKind, FileRecord, Owner, Storage},
    manifest::{CHECKSUMMED, CHECKSUMS_ENTRY, MANIFEST_ENTRY, Manifest, checksum, checksums_line},
    reuse::ReuseSource,
    tar_entries::MAX_NAME_BYTES,
};
use crate::{
    error::{Code, Error, Result},
    project::names,
    system::portable::OsStrExt,
    util::{content_hash::ContentHash, digest::Sha256Digest},
};

const TAR_BLOCK_BYTES: u64 = 512;

/// An archive that is being written. Without [`ArchiveWriter::finish`] it is not valid.
pub struct ArchiveWriter {
    tar: tar::Builder<Encoder>,
    list: ListWriter<BufWriter<File>>,
    checksums: BufWriter<File>,
    /// The digests of [`CHECKSUMMED`].
    digests: BTreeMap<String, String>,
    /// The total length of the names and link targets of the entries.
    names_bytes: usize,
}

/// The values that the caller of [`ArchiveWriter::finish`] puts into the manifest.
#[derive(Debug)]
pub struct Totals {
    /// The list of this archive, which is the whole list in a full backup.
    pub file_list: FileListSummary,
    pub checksums: BTreeMap<String, String>,
    pub compressed_bytes: u64,
}

/// The content of an entry.
pub trait EntryContent: BufRead {
    /// Returns the digest of everything that was read, if the source knows it.
    fn sha256(&mut self) -> Result<Option<Sha256Digest>> {
        Ok(None)
    }

    /// Returns whether the source knows the digest, so that it need not be computed.
    fn knows_sha256(&self) -> bool {
        false
    }
}

impl EntryContent for &[u8] {}
impl EntryContent for io::Empty {}

impl ArchiveWriter {
    /// Creates a writer. It reuses the blocks that `earlier` contains. `scratch` is a directory for
    /// the list of files.
    pub fn new(
        sink: Box<dyn Sink>,
        compression: Compression,
        earlier: Option<Arc<ReuseSource>>,
        scratch: &Path,
    ) -> Result<Self> {
        let spool = || {
            let file = tempfile::tempfile_in(scratch);
            file.map(BufWriter::new).map_err(spool_failed)
        };
        Ok(ArchiveWriter {
            list: ListWriter::new(spool()?),
            checksums: spool()?,
            tar: tar::Builder::new(Encoder::new(sink, compression, earlier)?),
            digests: BTreeMap::new(),
            names_bytes: 0,
        })
    }

    /// Adds a file of `record.size` bytes, or a directory or link without content. If reading
    /// `data` fails with a cause that contains an [`Error`], that error is returned.
    ///
    /// Sets the digest in the record of a file that is stored in full.
    pub fn add(
        &mut self,
        mut record: FileRecord,
        owner: Owner,
        data: impl EntryContent,
    ) -> Result<()> {
        self.assert_room(&record)?;
        let Some(size) = record.entry_size() else {
            return Err(size_mismatch(&record, 0));
        };
        let mut content = Hashed {
            hasher: (!data.knows_sha256()).then(Sha256::new),
            data,
            bytes: 0,
        };
        let added = self.append(&record, size, owner, &mut content);
        self.explain(added)?;
        if content.bytes != size {
            return Err(size_mismatch(&record, content.bytes));
        }
        if !record.kind.is_file() {
            return self.list.push(&record).map_err(spool_failed);
        }
        let digest = match content.hasher {
            Some(hasher) => Some(hasher.finalize().into()),
            None => content.data.sha256()?,
        };
        let digest = digest.ok_or_else(|| no_digest(&record))?;
        if record.stored == Storage::Full {
            record.sha256 = Some(digest);
        }
        self.added(&record, digest)
    }

    /// Begins a database. The returned entry receives its content and digest.
    pub fn begin_database(
        &mut self,
        record: FileRecord,
        owner: Owner,
    ) -> Result<DatabaseEntry<'_>> {
        self.assert_room(&record)?;
        let mut header = header(record.size, record.mode, record.mtime.as_second(), owner);
        let begun = self
            .tar
            .append_data(&mut header, &record.entry, io::empty());
        self.explain(begun)?;
        DatabaseEntry::begin(self, record)
    }

    /// Adds a record for which the archive has no entry.
    pub fn add_unstored(&mut self, record: &FileRecord) -> Result<()> {
        self.assert_room(record)?;
        self.list.push(record).map_err(spool_failed)
    }

    /// Adds the list of files, the manifest that `describe` creates from the totals, and the
    /// checksums, and seals the archive.
    pub fn finish(
        mut self,
        describe: impl FnOnce(Totals) -> Manifest,
    ) -> Result<(Manifest, Written)> {
        // This also ends the block, so the list begins the next one.
        let compressed_bytes = self.tar.get_mut().size_so_far();
        let compressed_bytes = self.explain(compressed_bytes)?;
        let file_list = self.list.summary();
        let manifest = describe(Totals {
            file_list,
            checksums: std::mem::take(&mut self.digests),
            compressed_bytes,
        });
        let at = manifest.timestamp.as_second();
        let list = written(self.list.out())?;
        self.append_text(FILE_LIST_ENTRY, at, list)?;
        self.checksum(FILE_LIST_ENTRY, file_list.sha256)?;
        let json = manifest.to_json();
        self.append_text(MANIFEST_ENTRY, at, (json.len() as u64, json.as_slice()))?;
        self.checksum(MANIFEST_ENTRY, Sha256Digest::of(&json))?;
        let checksums = written(&mut self.checksums)?;
        self.append_text(CHECKSUMS_ENTRY, at, checksums)?;
        let ended = self.tar.finish();
        self.explain(ended)?;
        let written = self.tar.get_mut().finish()?;
        Ok((manifest, written))
    }

    fn append_text(&mut self, entry: &str, at: i64, (bytes, text): (u64, impl Read)) -> Result<()> {
        let mut header = header(bytes, 0o644, at, (0, 0));
        let added = self.tar.append_data(&mut header, entry, text);
        self.explain(added)
    }

    /// Records a file that is now in the archive. `digest` is that of its entry.
    pub(super) fn added(&mut self, record: &FileRecord, digest: Sha256Digest) -> Result<()> {
        self.checksum(&record.entry, digest)?;
        if CHECKSUMMED.contains(&record.entry.as_str()) {
            self.digests.insert(record.entry.clone(), checksum(digest));
        }
        self.list.push(record).map_err(spool_failed)
    }

    fn checksum(&mut self, entry: &str, digest: Sha256Digest) -> Result<()> {
        let line = checksums_line(entry, digest);
        self.checksums
            .write_all(line.as_bytes())
            .map_err(spool_failed)
    }

    pub(super) fn encoder(&mut self) -> &mut Encoder {
        self.tar.get_mut()
    }

    /// Counts a record, and fails if no reader would accept it or the archive.
    fn assert_room(&mut self, record: &FileRecord) -> Result<()> {
        let target = record.target.as_deref().unwrap_or_default();
        let longest = record.entry.len().max(target.len());
        if longest as u64 > MAX_NAME_BYTES {
            return Err(too_large(
                format!(
                    "{} has a name or target of {longest} bytes, which is more than the \
                     {MAX_NAME_BYTES} bytes that an archive can contain",
                    record.path
                ),
                "Exclude it with `excludePatterns`, or give it a shorter name",
            ));
        }
        self.names_bytes += record.entry.len() + target.len();
        if self.list.records() == MAX_RECORDS as u64 || self.names_bytes > MAX_NAMES_BYTES {
            return Err(too_large(
                format!(
                    "The project has more than {MAX_RECORDS} files and directories, or their names \
                     together more than {MAX_NAMES_BYTES} bytes, which is more than an archive can \
                     contain"
                ),
                "Exclude directories of generated files with `excludePatterns`",
            ));
        }
        Ok(())
    }

    fn append(
        &mut self,
        record: &FileRecord,
        size: u64,
        owner: Owner,
        content: &mut Hashed<impl EntryContent>,
    ) -> io::Result<()> {
        let mut header = header(size, record.mode, record.mtime.as_second(), owner);
        match record.kind {
            EntryKind::File if size >= self.tar.get_mut().block_bytes() as u64 => {
                self.append_large(&mut header, record, content)
            }
            EntryKind::File => self.tar.append_data(&mut header, &record.entry, content),
            EntryKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                self.tar.append_data(&mut header, &record.entry, content)
            }
            EntryKind::Link => {
                header.set_entry_type(tar::EntryType::Symlink);
                let target = record
                    .target
                    .as_deref()
                    .and_then(names::decode)
                    .unwrap_or_default();
                let target = target.as_os_str().as_bytes();
                // The target is written byte by byte, because the crate's own function drops parts
                // that it considers redundant.
                if header.set_link_name_literal(target).is_err() {
                    self.tar
                        .append(&long_link(target.len()), target.chain(&[0][..]))?;
                }
                self.tar.append_data(&mut header, &record.entry, content)
            }
        }
    }

    /// Adds a large file. Its content begins and ends at block boundaries, so that equal content
    /// gives equal blocks in every archive, whatever surrounds it.
    fn append_large(
        &mut self,
        header: &mut tar::Header,
        record: &FileRecord,
        content: &mut Hashed<impl EntryContent>,
    ) -> io::Result<()> {
        self.tar.append_data(header, &record.entry, io::empty())?;
        let encoder = self.tar.get_mut();
        encoder.begin(match record.stored {
            Storage::Full if record.database => Content::Pages,
            Storage::Delta => Content::Changes,
            _ => Content::Other,
        })?;
        while content.next(usize::MAX, |piece| encoder.write_all(piece))? > 0 {}
        let padding = content.bytes.next_multiple_of(TAR_BLOCK_BYTES) - content.bytes;
        encoder.write_all(&[0; TAR_BLOCK_BYTES as usize][..padding as usize])?;
        encoder.begin(Content::Other)
    }

    /// Returns the cause of a failed read or write. A failed write was caused by the output thread,
    /// a failed read by the source.
    pub(super) fn explain<T>(&mut self, result: io::Result<T>) -> Result<T> {
        result.map_err(|cause| match cause.downcast::<Error>() {
            Ok(error) => error,
            Err(cause) => match self.tar.get_mut().finish() {
                Err(error) => error,
                Ok(_) => Error::io("write", "the archive".as_ref(), cause),
            },
        })
    }
}

fn too_large(what: String, remedy: &str) -> Error {
    Error::new(Code::Unsupported, what, remedy)
}

pub(super) fn size_mismatch(record: &FileRecord, bytes: u64) -> Error {
    let what = format!(
        "{} has {bytes} bytes, but {:?} were announced",
        record.entry,
        record.entry_size()
    );
    Error::internal(what)
}

fn header(size: u64, mode: u32, mtime: i64, (uid, gid): Owner) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(mtime.max(0) as u64);
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    header
}

/// Returns the header that GNU tar writes before an entry whose link target is too long for the
/// entry's own header.
fn long_link(bytes: usize) -> tar::Header {
    let mut long = header(bytes as u64 + 1, 0o644, 0, (0, 0));
    long.set_entry_type(tar::EntryType::GNULongLink);
    let name = b"././@LongLink";
    long.as_old_mut().name[..name.len()].copy_from_slice(name);
    long.set_cksum();
    long
}

fn no_digest(record: &FileRecord) -> Error {
    Error::internal(format!("{} has no digest", record.entry))
}

fn spool_failed(cause: io::Error) -> Error {
    Error::io("write", "the list of files".as_ref(), cause)
}

/// Returns the length of a written file and its content.
fn written(spool: &mut BufWriter<File>) -> Result<(u64, File)> {
    let mut read = || {
        spool.rewind()?;
        let file = spool.get_ref().try_clone()?;
        Ok((file.metadata()?.len(), file))
    };
    read().map_err(spool_failed)
}

struct Hashed<R> {
    data: R,
    /// `None` if the source knows the digest.
    hasher: Option<Sha256>,
    bytes: u64,
}

impl<R: BufRead> Hashed<R> {
    /// Passes on the next piece of at most `most` bytes. Returns its length, which is 0 at the end.
    fn next(
        &mut self,
        most: usize,
        take: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        let piece = self.data.fill_buf()?;
        let piece = &piece[..most.min(piece.len())];
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        }
        take(piece)?;
        let bytes = piece.len();
        self.data.consume(bytes);
        self.bytes += bytes as u64;
        Ok(bytes)
    }
}

impl<R: BufRead> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer.len(), |piece| {
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(())
        })
    }
}

/// A database entry that is being written. Without [`DatabaseEntry::finish`] the archive is not
/// valid.
pub struct DatabaseEntry<'a> {
    archive: &'a mut ArchiveWriter,
    record: FileRecord,
    /// False for a small database, which shares a block with other files.
    has_own_blocks: bool,
    bytes_left: u64,
}

impl<'a> DatabaseEntry<'a> {
    /// Begins the content. The header must have been written.
    pub(super) fn begin(archive: &'a mut ArchiveWriter, record: FileRecord) -> Result<Self> {
        let encoder = archive.encoder();
        let has_own_blocks = record.size >= encoder.block_bytes() as u64;
        if has_own_blocks {
            let begun = encoder.begin(Content::Pages);
            archive.explain(begun)?;
        }
        Ok(DatabaseEntry {
            bytes_left: record.size,
            archive,
            record,
            has_own_blocks,
        })
    }

    /// Adds the next block, whose hash is `hash`. Returns the number of bytes added.
    pub fn write(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<u64> {
        let bytes = block.len() as u64;
        self.take(bytes)?;
        let (encoder, has_own_blocks) = (self.archive.encoder(), self.has_own_blocks);
        let written = if has_own_blocks {
            encoder.block(block, hash)
        } else {
            encoder.write_all(&block)
        };
        self.archive.explain(written)?;
        Ok(bytes)
    }

    /// Adds the blocks of the earlier archive whose content has these hashes. Returns the number of
    /// bytes that they hold. If the earlier archive lacks one, the archive fails with
    /// `KG_BASE_UNUSABLE`.
    pub fn take_over(&mut self, blocks: &[ContentHash]) -> Result<u64> {
        let before = self.bytes_left;
        for hash in blocks {
            let block_bytes = self.archive.encoder().block_bytes() as u64;
            self.take(self.bytes_left.min(block_bytes))?;
            let taken = self.archive.encoder().reuse_block(*hash);
            self.archive.explain(taken)?;
        }
        Ok(before - self.bytes_left)
    }

    /// Ends the entry. `sha256` is the digest of the whole database.
    pub fn finish(mut self, sha256: Sha256Digest, blocks: Blocks) -> Result<()> {
        if self.bytes_left > 0 {
            return Err(size_mismatch(
                &self.record,
                self.record.size - self.bytes_left,
            ));
        }
        // A page is at least as large as a tar block, so no padding is needed.
        if self.has_own_blocks {
            let ended = self.archive.encoder().begin(Content::Other);
            self.archive.explain(ended)?;
        }
        self.record.blocks = Some(Box::new(blocks));
        self.record.sha256 = Some(sha256);
        self.archive.added(&self.record, sha256)
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes).filter(|_| bytes > 0);
        self.bytes_left = left.ok_or_else(|| {
            size_mismatch(&self.record, self.record.size - self.bytes_left + bytes)
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn directory(entry: &str) -> FileRecord {
        let record = json!({ "path": format!(".kg/{entry}"), "entry": entry, "component": "files",
            "type": "directory", "size": 0, "mode": 0o755, "mtime": "2024-01-15T02:00:00Z" });
        serde_json::from_value(record).unwrap()
    }

    /// Takes everything and keeps nothing.
    struct Nowhere;

    impl Sink for Nowhere {}

    impl Write for Nowhere {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Adds directories with these names and returns how many an archive takes, and the error.
    fn fill(names: impl Iterator<Item = String>) -> (usize, Error) {
        let dir = tempfile::tempdir().unwrap();
        let mut archive =
            ArchiveWriter::new(Box::new(Nowhere), Compression::None, None, dir.path()).unwrap();
        for (count, name) in names.enumerate() {
            if let Err(error) = archive.add(directory(&name), (0, 0), io::empty()) {
                return (count, error);
            }
        }
        unreachable!("an archive takes everything");
    }

    #[test]
    fn names_that_no_reader_would_accept_together_are_refused() {
        let length = MAX_NAME_BYTES as usize;
        let (count, error) = fill((0..).map(|number| format!("{number:0length$}")));
        assert_eq!(count, MAX_NAMES_BYTES / length);
        assert_eq!(error.code, Code::Unsupported);
    }

    #[test]
    fn a_name_that_no_reader_would_accept_is_refused() {
        let length = MAX_NAME_BYTES as usize;
        let (count, error) = fill(
            [length, length + 1]
                .map(|length| "n".repeat(length))
                .into_iter(),
        );
        assert_eq!((count, error.code), (1, Code::Unsupported));
    }
}
