//! Writes an archive: entries as they come, then what they were, then the seal.

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

/// An archive being written. Without [`ArchiveWriter::finish`] it is none.
pub struct ArchiveWriter {
    tar: tar::Builder<Encoder>,
    files: Vec<FileRecord>,
    /// Entry and hexadecimal digest of each file, in the order of the archive.
    digests: Vec<(String, String)>,
}

/// What [`ArchiveWriter::finish`] fills into the manifest.
#[derive(Debug)]
pub struct Totals {
    pub files: Vec<FileRecord>,
    /// Entry and hexadecimal digest of each file.
    pub digests: Vec<(String, String)>,
    pub compressed_bytes: u64,
}

impl ArchiveWriter {
    /// Blocks that `earlier` has are taken over from there.
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

    /// Adds a file of `record.size` bytes, or a directory or link of none. An error of `data` that carries an [`Error`] is
    /// returned as that.
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

    /// Begins a database, whose content and digest are told as they come.
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

    /// Adds a record of a file that is as it is in the backup that this one is based on.
    pub fn add_unchanged(&mut self, record: FileRecord) -> Result<()> {
        self.assert_room()?;
        self.files.push(record);
        Ok(())
    }

    /// Adds the manifest that `describe` makes of the totals, and the checksums, and seals the archive.
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

    /// A file is in the archive.
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
                "The project has more than {MAX_ENTRIES} files and directories, which no archive takes"
            ),
            "Leave directories of by-products out with `excludePatterns` (`--exclude`)",
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
                // Byte by byte: the crate's own way leaves out what it finds redundant.
                if header.set_link_name_literal(target).is_err() {
                    self.tar
                        .append(&long_link(target.len()), target.chain(&[0][..]))?;
                }
                self.tar.append_data(&mut header, &record.entry, content)
            }
        }
    }

    /// The content of a large file begins and ends blocks of its own, so that equal content makes equal blocks in every
    /// archive, whatever is around it.
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

    /// The cause behind a failed write is the output's, behind a failed read the source's.
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
        "{} has {bytes} bytes where {:?} were announced",
        record.entry,
        record.entry_size()
    );
    Error::new(Code::Internal, what, "Please report this")
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

/// What stands before an entry whose link is too long for its header, as GNU tar writes it.
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
    /// Hands on what is there next, at most so many bytes. How many these were: none at the end.
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

/// `sha256:` and the digest, for each file: the manifest's `checksums`.
pub fn checksums(totals: &Totals) -> std::collections::BTreeMap<String, String> {
    totals
        .digests
        .iter()
        .map(|(entry, digest)| (entry.clone(), format!("{DIGEST_PREFIX}{digest}")))
        .collect()
}

/// The entry that is being written. Without [`DatabaseEntry::finish`] the archive is none.
pub struct DatabaseEntry<'a> {
    archive: &'a mut ArchiveWriter,
    record: FileRecord,
    /// Smaller ones share a block with other files.
    has_own_blocks: bool,
    bytes_left: u64,
}

impl<'a> DatabaseEntry<'a> {
    /// The header was written.
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

    /// Adds the next block, which has this hash; how many bytes these are.
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

    /// Adds the blocks that hold what has these hashes, as the earlier archive has them; how many bytes they hold. An archive that lacks one fails with
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

    /// `sha256` is of the whole, hexadecimal.
    pub fn finish(mut self, sha256: String, blocks: Blocks) -> Result<()> {
        if self.bytes_left > 0 {
            return Err(size_mismatch(
                &self.record,
                self.record.size - self.bytes_left,
            ));
        }
        // No page is smaller than a block of the tar, so nothing is to be filled up.
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
