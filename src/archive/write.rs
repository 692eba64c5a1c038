//! Writes an archive: entries as they come, then what they were, then the seal.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::{
    gzip::{BLOCK_BYTES, Compression, Encoder, Sink, Written},
    manifest::{CHECKSUMS_ENTRY, DIGEST_PREFIX, FileRecord, MANIFEST_ENTRY, Manifest, Owner, checksums_text, hex},
};
use crate::error::{Code, Error, Result};

/// An archive being written. Without [`ArchiveWriter::finish`] it is none.
pub struct ArchiveWriter {
    tar: tar::Builder<Encoder>,
    files: Vec<FileRecord>,
    /// In the order of the archive, in hexadecimal.
    digests: Vec<String>,
}

/// What [`ArchiveWriter::finish`] fills into the manifest.
#[derive(Debug)]
pub struct Totals {
    pub files: Vec<FileRecord>,
    pub digests: Vec<String>,
    pub bytes: u64,
    pub compressed_bytes: u64,
}

impl ArchiveWriter {
    pub fn new(sink: Sink, compression: Compression) -> Result<Self> {
        let tar = tar::Builder::new(Encoder::new(sink, compression)?);
        Ok(ArchiveWriter { tar, files: Vec::new(), digests: Vec::new() })
    }

    /// Adds a file of `record.size` bytes. An error of `data` that carries an [`Error`] is returned as that.
    pub fn add(&mut self, record: FileRecord, owner: Owner, data: impl Read) -> Result<()> {
        let mut content = Hashed { data, hasher: Sha256::new(), bytes: 0 };
        let added = self.append(&record, owner, &mut content);
        self.explain(added)?;
        if content.bytes != record.size {
            return Err(Error::new(
                Code::Internal,
                format!("{} has {} bytes where {} were announced", record.entry, content.bytes, record.size),
                "Please report this",
            ));
        }
        self.digests.push(hex(&content.hasher.finalize()));
        self.files.push(record);
        Ok(())
    }

    /// Adds the manifest that `describe` makes of the totals, and the checksums, and seals the archive.
    pub fn finish(mut self, describe: impl FnOnce(Totals) -> Manifest) -> Result<(Manifest, Written)> {
        let so_far = self.tar.get_mut().size_so_far();
        let totals = Totals {
            bytes: self.files.iter().map(|record| record.size).sum(),
            compressed_bytes: self.explain(so_far)?,
            files: std::mem::take(&mut self.files),
            digests: std::mem::take(&mut self.digests),
        };
        let mut checksums: Vec<(String, String)> =
            totals.files.iter().map(|record| record.entry.clone()).zip(totals.digests.iter().cloned()).collect();
        let manifest = describe(totals);
        let json = manifest.to_json();
        checksums.push((MANIFEST_ENTRY.into(), hex(&Sha256::digest(&json))));
        let text = checksums_text(checksums.iter().map(|(entry, digest)| (entry.as_str(), digest.as_str())));
        for (entry, content) in [(MANIFEST_ENTRY, json.as_slice()), (CHECKSUMS_ENTRY, text.as_bytes())] {
            let mut header = header(content.len() as u64, 0o644, manifest.timestamp.as_second(), (0, 0));
            let added = self.tar.append_data(&mut header, entry, content);
            self.explain(added)?;
        }
        let ended = self.tar.finish();
        self.explain(ended)?;
        let written = self.tar.get_mut().finish()?;
        Ok((manifest, written))
    }

    fn append(&mut self, record: &FileRecord, owner: Owner, content: &mut impl Read) -> io::Result<()> {
        if record.size >= BLOCK_BYTES as u64 {
            // A large file begins a block, so that equal content makes equal blocks in every archive.
            self.tar.get_mut().end_block()?;
        }
        let mut header = header(record.size, record.mode, record.mtime.as_second(), owner);
        self.tar.append_data(&mut header, &record.entry, content)
    }

    /// The cause behind a failed write is the output's, behind a failed read the source's.
    fn explain<T>(&mut self, result: io::Result<T>) -> Result<T> {
        result.map_err(|cause| match cause.downcast::<Error>() {
            Ok(error) => error,
            Err(cause) => match self.tar.get_mut().finish() {
                Err(error) => error,
                Ok(_) => Error::io("write", "the archive".as_ref(), cause),
            },
        })
    }
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

struct Hashed<R> {
    data: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// `sha256:` and the digest, for each entry: the manifest's `checksums`.
pub fn checksums(totals: &Totals) -> std::collections::BTreeMap<String, String> {
    let prefixed = totals.digests.iter().map(|digest| format!("{DIGEST_PREFIX}{digest}"));
    totals.files.iter().map(|record| record.entry.clone()).zip(prefixed).collect()
}
