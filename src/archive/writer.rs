//! Writes an archive: the entries as they arrive, then the manifest and checksums, then the seal.

use std::{
    io::{self, BufRead, Read, Write},
    os::unix::ffi::OsStrExt,
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    block::{Compression, Content},
    block_writer::{Encoder, Sink, Written},
    manifest::{
        Blocks, CHECKSUMS_ENTRY, DIGEST_PREFIX, EntryKind, FileRecord, MANIFEST_ENTRY, Manifest,
        Owner, Storage, checksums_text,
    },
    reader::MAX_ENTRIES,
    reuse::ReuseSource,
};
use crate::{
    error::{Code, Error, Result},
    project::names,
    util::{content_hash::ContentHash, hex::hex},
};

const TAR_BLOCK_BYTES: u64 = 512;

/// An archive that is being written. Without [`ArchiveWriter::finish`] it is not valid.
pub struct ArchiveWriter {
    tar: tar::Builder<Encoder>,
    files: Vec<FileRecord>,
    /// Entry name and hexadecimal digest of each file, in the order of the archive.
    digests: Vec<(String, String)>,
}

/// The values that the caller of [`ArchiveWriter::finish`] puts into the manifest.
#[derive(Debug)]
pub struct Totals {
    pub files: Vec<FileRecord>,
    /// Entry name and hexadecimal digest of each file.
    pub digests: Vec<(String, String)>,
    pub compressed_bytes: u64,
}

impl ArchiveWriter {
    /// Creates a writer. It reuses the blocks that `earlier` contains.
    pub fn new(
        sink: Box<dyn Sink>,
        compression: Compression,
        earlier: Option<Arc<ReuseSource>>,
    ) -> Result<Self> {
        let tar = tar::Builder::new(Encoder::new(sink, compression, earlier)?);
        Ok(ArchiveWriter {
            tar,
            files: Vec::new(),
            digests: Vec::new(),
        })
    }

    /// Adds a file of `record.size` bytes, or a directory or link without content. If reading
    /// `data` fails with a cause that contains an [`Error`], that error is returned.
    pub fn add(&mut self, record: FileRecord, owner: Owner, data: impl BufRead) -> Result<()> {
        self.assert_room()?;
        let Some(size) = record.entry_size() else {
            return Err(size_mismatch(&record, 0));
        };
        let mut content = Hashed {
            data,
            hasher: Sha256::new(),
            bytes: 0,
        };
        let added = self.append(&record, size, owner, &mut content);
        self.explain(added)?;
        if content.bytes != size {
            return Err(size_mismatch(&record, content.bytes));
        }
        if record.kind.is_file() {
            self.added(record, hex(&content.hasher.finalize()));
        } else {
            self.files.push(record);
        }
        Ok(())
    }

    /// Begins a database. The returned entry receives its content and digest.
    pub fn begin_database(
        &mut self,
        record: FileRecord,
        owner: Owner,
    ) -> Result<DatabaseEntry<'_>> {
        self.assert_room()?;
        let mut header = header(record.size, record.mode, record.mtime.as_second(), owner);
        let begun = self
            .tar
            .append_data(&mut header, &record.entry, io::empty());
        self.explain(begun)?;
        DatabaseEntry::begin(self, record)
    }

    /// Adds the record of a file that has not changed since the base.
    pub fn add_unchanged(&mut self, record: FileRecord) -> Result<()> {
        self.assert_room()?;
        self.files.push(record);
        Ok(())
    }

    /// Adds the manifest that `describe` creates from the totals, adds the checksums, and seals the
    /// archive.
    pub fn finish(
        mut self,
        describe: impl FnOnce(Totals) -> Manifest,
    ) -> Result<(Manifest, Written)> {
        let so_far = self.tar.get_mut().size_so_far();
        let totals = Totals {
            compressed_bytes: self.explain(so_far)?,
            files: std::mem::take(&mut self.files),
            digests: std::mem::take(&mut self.digests),
        };
        let mut checksums = totals.digests.clone();
        let manifest = describe(totals);
        let json = manifest.to_json();
        checksums.push((MANIFEST_ENTRY.into(), hex(&Sha256::digest(&json))));
        let text = checksums_text(
            checksums
                .iter()
                .map(|(entry, digest)| (entry.as_str(), digest.as_str())),
        );
        for (entry, content) in [
            (MANIFEST_ENTRY, json.as_slice()),
            (CHECKSUMS_ENTRY, text.as_bytes()),
        ] {
            let mut header = header(
                content.len() as u64,
                0o644,
                manifest.timestamp.as_second(),
                (0, 0),
            );
            let added = self.tar.append_data(&mut header, entry, content);
            self.explain(added)?;
        }
        let ended = self.tar.finish();
        self.explain(ended)?;
        let written = self.tar.get_mut().finish()?;
        Ok((manifest, written))
    }

    /// Records a file that is now in the archive.
    pub(super) fn added(&mut self, record: FileRecord, sha256: String) {
        self.digests.push((record.entry.clone(), sha256));
        self.files.push(record);
    }

    pub(super) fn encoder(&mut self) -> &mut Encoder {
        self.tar.get_mut()
    }

    fn assert_room(&self) -> Result<()> {
        if self.files.len() < MAX_ENTRIES {
            return Ok(());
        }
        Err(Error::new(
            Code::Unsupported,
            format!(
                "The project has more than {MAX_ENTRIES} files and directories, which is more than \
                 an archive can contain"
            ),
            "Exclude directories of generated files with `excludePatterns`",
        ))
    }

    fn append(
        &mut self,
        record: &FileRecord,
        size: u64,
        owner: Owner,
        content: &mut Hashed<impl BufRead>,
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
        content: &mut Hashed<impl BufRead>,
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

struct Hashed<R> {
    data: R,
    hasher: Sha256,
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
        self.hasher.update(piece);
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

/// Returns the `checksums` of the manifest: `sha256:` and the digest for each file.
pub fn checksums(totals: &Totals) -> std::collections::BTreeMap<String, String> {
    totals
        .digests
        .iter()
        .map(|(entry, digest)| (entry.clone(), format!("{DIGEST_PREFIX}{digest}")))
        .collect()
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

    /// Ends the entry. `sha256` is the hexadecimal digest of the whole database.
    pub fn finish(mut self, sha256: String, blocks: Blocks) -> Result<()> {
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
        self.record.blocks = Some(blocks);
        self.archive.added(self.record, sha256);
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes).filter(|_| bytes > 0);
        self.bytes_left = left.ok_or_else(|| {
            size_mismatch(&self.record, self.record.size - self.bytes_left + bytes)
        })?;
        Ok(())
    }
}
