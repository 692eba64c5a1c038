//! The seal at the end of every archive: the SHA-256 of all bytes before it.
//!
//! The checksums of entries and the CRC of gzip leave some bytes uncovered. Examples are header
//! fields, the bits that pad a deflate stream to a byte, and whole members cut off at the end. With
//! the seal, an archive without a sidecar still reveals any change.
//!
//! The seal is placed so that unpackers skip it:
//!
//! * in a gzip archive, an empty member with the digest in an extra field (RFC 1952, 2.3.1.1);
//! * in a zstd archive, a skippable frame (RFC 8878, 3.1.2);
//! * in a plain tar, a block after the two blocks that end it.

use std::io::{self, Cursor, Read};

use sha2::{Digest, Sha256};

use super::encryption::{
    Keys,
    read::{Closed, Decrypting, is_encrypted},
};
use crate::place::Bytes;

pub const DIGEST_BYTES: usize = 32;
const REST_PIECE_BYTES: usize = 256 * 1024;

/// The format in which an archive stores its tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    Gzip,
    Zstd,
    Plain,
}

impl Container {
    /// Determines the container from the first bytes, whatever the name of the file is.
    pub fn of(start: &[u8]) -> Self {
        if start.starts_with(&GZIP_SEAL_START[..2]) {
            Container::Gzip
        } else if start.starts_with(&ZSTD_SEAL_START[..4]) {
            Container::Zstd
        } else {
            Container::Plain
        }
    }

    pub fn seal_bytes(self) -> usize {
        match self {
            Container::Gzip => GZIP_SEAL_START.len() + DIGEST_BYTES + GZIP_SEAL_END.len(),
            Container::Zstd => ZSTD_SEAL_START.len() + DIGEST_BYTES,
            Container::Plain => 512,
        }
    }

    /// Returns the seal for content with this digest.
    pub fn seal(self, digest: &[u8; DIGEST_BYTES]) -> Vec<u8> {
        match self {
            Container::Gzip => [&GZIP_SEAL_START[..], digest, &GZIP_SEAL_END].concat(),
            Container::Zstd => [&ZSTD_SEAL_START[..], digest].concat(),
            Container::Plain => {
                let mut block = [PLAIN_SEAL_START, digest].concat();
                block.resize(self.seal_bytes(), 0);
                block
            }
        }
    }
}

/// Header of a gzip member with one extra field `KS` of 32 bytes.
const GZIP_SEAL_START: [u8; 16] = [
    0x1f,
    0x8b,
    8,
    4,
    0,
    0,
    0,
    0,
    0,
    255,
    36,
    0,
    b'K',
    b'S',
    DIGEST_BYTES as u8,
    0,
];
/// An empty deflate stream, and the CRC and the length of empty content.
const GZIP_SEAL_END: [u8; 10] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Header of a skippable frame of 40 bytes, and the first 8 of these bytes.
const ZSTD_SEAL_START: [u8; 16] = *b"\x50\x2a\x4d\x18\x28\0\0\0kg-seal1";
const PLAIN_SEAL_START: &[u8] = b"kg-backup seal 1";

/// Reads the content of an archive, which is everything except the seal, and hashes every byte.
pub struct SealedFile {
    /// The archive. The first bytes, which were read to determine the container, come from memory.
    archive: io::Chain<Cursor<Vec<u8>>, Source>,
    container: Container,
    /// Size of the file.
    size_bytes: u64,
    content_left: u64,
    hasher: Sha256,
}

enum Source {
    Plain(Box<dyn Bytes>),
    Encrypted(Box<Decrypting>),
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Plain(file) => file.read(buffer),
            Source::Encrypted(decrypting) => decrypting.read(buffer),
        }
    }
}

/// The facts that [`SealedFile`] found about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    pub size_bytes: u64,
    pub sha256: [u8; DIGEST_BYTES],
    /// The seal is present and matches the content.
    pub sealed: bool,
    pub encrypted: bool,
    /// Offset at which decryption of an encrypted file failed.
    pub cut_at: Option<u64>,
}

impl SealedFile {
    /// Reads `file` without decryption. It must be at its beginning. For an encrypted file, only
    /// the size and the digest are meaningful.
    pub fn new(file: Box<dyn Bytes>) -> io::Result<Self> {
        let size_bytes = file.size_bytes()?;
        SealedFile::of(Source::Plain(file), size_bytes, size_bytes)
    }

    /// Opens an archive and decrypts it if it is encrypted.
    pub fn open(file: Box<dyn Bytes>, keys: &Keys) -> Result<Self, Closed> {
        if !is_encrypted(&*file).map_err(Closed::Io)? {
            keys.accept_plain().map_err(Closed::Key)?;
            return SealedFile::new(file).map_err(Closed::Io);
        }
        let size_bytes = file.size_bytes().map_err(Closed::Io)?;
        let decrypting = Decrypting::new(file, size_bytes, keys)?;
        let archive_bytes = decrypting.content_bytes();
        SealedFile::of(
            Source::Encrypted(Box::new(decrypting)),
            size_bytes,
            archive_bytes,
        )
        .map_err(Closed::Io)
    }

    fn of(mut source: Source, size_bytes: u64, archive_bytes: u64) -> io::Result<Self> {
        let mut start = Vec::new();
        source.by_ref().take(4).read_to_end(&mut start)?;
        let container = Container::of(&start);
        let content_left = archive_bytes.saturating_sub(container.seal_bytes() as u64);
        let archive = Cursor::new(start).chain(source);
        Ok(SealedFile {
            archive,
            container,
            size_bytes,
            content_left,
            hasher: Sha256::new(),
        })
    }

    pub fn container(&self) -> Container {
        self.container
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads the rest and compares the seal, unless `stop` says that the result is no longer
    /// needed.
    pub fn finish(mut self, stop: impl Fn() -> bool) -> io::Result<FileFacts> {
        let mut rest = vec![0; REST_PIECE_BYTES];
        while self.read(&mut rest)? > 0 {
            if stop() {
                return Err(io::Error::other("the rest of the file is no longer needed"));
            }
        }
        let expected = self.container.seal(&self.hasher.clone().finalize().into());
        let mut end = Vec::new();
        self.archive
            .by_ref()
            .take(2 * expected.len() as u64)
            .read_to_end(&mut end)?;
        self.hasher.update(&end);
        let facts = |sha256| FileFacts {
            size_bytes: self.size_bytes,
            sha256,
            sealed: end == expected,
            encrypted: false,
            cut_at: None,
        };
        match self.archive.into_inner() {
            (_, Source::Plain(_)) => Ok(facts(self.hasher.finalize().into())),
            (_, Source::Encrypted(decrypting)) => {
                let (cut_at, sha256) = decrypting.finish(stop)?;
                let facts = facts(sha256);
                Ok(FileFacts {
                    encrypted: true,
                    sealed: facts.sealed && cut_at.is_none(),
                    cut_at,
                    ..facts
                })
            }
        }
    }
}

impl Read for SealedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content_left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.archive.read(&mut buffer[..most])?;
        self.content_left -= read as u64;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn facts(bytes: &[u8]) -> FileFacts {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        SealedFile::new(Box::new(file))
            .unwrap()
            .finish(|| false)
            .unwrap()
    }

    #[test]
    fn every_changed_bit_and_every_cut_or_added_byte_breaks_the_seal() {
        for (container, content) in [
            (Container::Gzip, &b"\x1f\x8bmembers"[..]),
            (Container::Zstd, b"\x50\x2a\x4d\x18frames"),
            (Container::Plain, b"a tar"),
        ] {
            let seal = container.seal(&Sha256::digest(content).into());
            assert_eq!(seal.len(), container.seal_bytes());
            let whole = [content, &seal].concat();
            assert!(facts(&whole).sealed);
            for bit in 0..whole.len() * 8 {
                let mut changed = whole.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!facts(&changed).sealed, "{container:?}, bit {bit}");
            }
            for length in 0..whole.len() {
                assert!(
                    !facts(&whole[..length]).sealed,
                    "{container:?}, cut to {length}"
                );
            }
            assert!(!facts(&[&whole[..], b"x"].concat()).sealed);
        }
    }

    #[test]
    fn the_gzip_seal_is_an_empty_member() {
        let seal = Container::Gzip.seal(&[7; DIGEST_BYTES]);
        let mut content = Vec::new();
        flate2::read::GzDecoder::new(seal.as_slice())
            .read_to_end(&mut content)
            .unwrap();
        assert!(content.is_empty());
    }
}
