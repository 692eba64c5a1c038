//! One block of an archive: a piece of the tar that is compressed by itself.
//!
//! A block is a gzip member (RFC 1952, 2.2) or a zstd frame (RFC 8878). Any gzip or zstd tool reads
//! the stream of blocks. Each block begins with its size and a hash of its content, in a field that
//! those tools skip. The size lets this crate find the next block and work on all cores. The hash
//! lets a later archive reuse the block (see [`super::reuse`]).

use libdeflater::{CompressionLvl, Compressor, Decompressor, crc32};

use super::{deflate::Deflater, seal::Container};
use crate::{
    error::{Code, Error, Result},
    util::content_hash::{ContentHash, HASH_BYTES, content_hash},
};

/// Largest content of a block. The limit bounds the memory that a forged block can make us
/// allocate.
pub const MAX_BLOCK_BYTES: u32 = 16 * 1024 * 1024;
/// Length of the start of a block that contains its size.
pub const HEAD_BYTES: usize = 20;
/// Length of the start of a block that contains its size and content hash.
pub const WHOLE_HEAD_BYTES: usize = HEAD_BYTES + HASH_BYTES;
/// CRC and length of the content.
const GZIP_TRAILER_BYTES: usize = 8;
/// A gzip header with an extra field (RFC 1952, 2.3.1.1). The length of the extra field follows.
const GZIP_MAGIC: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
/// The start of the extra field, which holds the size and the hash. The oldest archives hold only
/// the size.
const GZIP_SIZE_AND_HASH: [u8; 4] = *b"KG\x14\0";
const GZIP_SIZE: [u8; 4] = *b"KG\x04\0";
/// A skippable frame (RFC 8878, 3.1.2). Its length follows, and the frame with the data comes after
/// it.
const ZSTD_MAGIC: [u8; 4] = *b"\x50\x2a\x4d\x18";
const ZSTD_SIZE_AND_HASH: [u8; 8] = *b"kg-block";

/// libdeflate level for each gzip level from 1 on, as measured on text
/// (`docs/internals/benchmarks.md`). Each is the fastest level whose output is not larger than that
/// of gzip.
const LIBDEFLATE_LEVELS: [i32; 9] = [1, 2, 3, 4, 5, 6, 6, 7, 9];
/// libdeflate level for database pages, for each gzip level from 1 on. `None` stands for the
/// crate's own deflate. Each level is smaller and slower than the one before
/// (`docs/internals/benchmarks.md`).
const LIBDEFLATE_LEVELS_OF_PAGES: [Option<i32>; 9] = [
    None,
    Some(1),
    Some(2),
    Some(3),
    Some(4),
    Some(5),
    Some(6),
    Some(8),
    Some(10),
];

/// Kind of content in a block, which decides how it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Database pages without data that the database no longer uses (see [`crate::sqlite::scrub`]).
    Pages,
    /// Database pages that differ from the base.
    Changes,
    Other,
}

/// Compression format and level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    /// Level 1 (fast) to 9 (small), with gzip's meaning.
    Gzip(u8),
    /// Level 1 (fast) to 9 (small), with zstd's meaning.
    Zstd(u8),
}

impl Compression {
    /// gzip's own default level.
    pub const GZIP: Compression = Compression::Gzip(6);
    /// zstd's own default level.
    pub const ZSTD: Compression = Compression::Zstd(3);

    /// Returns the same format at another level, from 1 to 9.
    pub fn at(self, level: u8) -> Self {
        match self {
            Compression::None => Compression::None,
            Compression::Gzip(_) => Compression::Gzip(level),
            Compression::Zstd(_) => Compression::Zstd(level),
        }
    }

    /// Returns the content size of a block. Smaller blocks compress worse, and larger blocks leave
    /// less to reuse: `docs/internals/benchmarks.md` has figures.
    pub fn block_bytes(self) -> usize {
        match self {
            Compression::None | Compression::Gzip(_) => 64 * 1024,
            Compression::Zstd(_) => 1024 * 1024,
        }
    }

    /// Returns the content size of a block of this kind. Blocks of changed pages can be larger,
    /// because they differ in each backup and cannot be reused.
    pub fn block_bytes_of(self, content: Content) -> usize {
        match content {
            Content::Changes => self.block_bytes().max(256 * 1024),
            Content::Pages | Content::Other => self.block_bytes(),
        }
    }

    pub fn container(self) -> Container {
        match self {
            Compression::None => Container::Plain,
            Compression::Gzip(_) => Container::Gzip,
            Compression::Zstd(_) => Container::Zstd,
        }
    }

    /// Returns the name that the manifest uses, such as `gzip -6`.
    pub fn name(self) -> Option<String> {
        match self {
            Compression::None => None,
            Compression::Gzip(level) => Some(format!("gzip -{level}")),
            Compression::Zstd(level) => Some(format!("zstd -{level}")),
        }
    }
}

/// The parsed start of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Size of the whole block in bytes, checked to be plausible.
    pub size: usize,
    has_hash: bool,
    content_start: usize,
}

impl Head {
    /// Parses the start of a block. Returns `None` if it is not the start of a block, and an error
    /// if its size is impossible.
    pub fn parse(start: &[u8], container: Container) -> Result<Option<Self>, &'static str> {
        let Some(start) = start.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let number = |at: usize| {
            u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]])
        };
        let (has_hash, content_start) = match container {
            Container::Gzip if start.starts_with(&GZIP_MAGIC) => {
                let extra = usize::from(u16::from_le_bytes([start[10], start[11]]));
                let has_hash = start[12..16] == GZIP_SIZE_AND_HASH;
                if !has_hash && start[12..16] != GZIP_SIZE {
                    return Ok(None);
                }
                (has_hash, 12 + extra)
            }
            Container::Zstd
                if start.starts_with(&ZSTD_MAGIC) && start[8..16] == ZSTD_SIZE_AND_HASH =>
            {
                (true, 8 + number(4) as usize)
            }
            _ => return Ok(None),
        };
        let size = number(16);
        let head = Head {
            size: size as usize,
            has_hash,
            content_start,
        };
        let least = if has_hash {
            WHOLE_HEAD_BYTES
        } else {
            HEAD_BYTES
        };
        // Incompressible data grows by far less than an eighth.
        let most = MAX_BLOCK_BYTES + MAX_BLOCK_BYTES / 8;
        if content_start < least
            || head.size < content_start.saturating_add(GZIP_TRAILER_BYTES)
            || size > most
        {
            return Err("a block has an impossible size");
        }
        Ok(Some(head))
    }

    /// Returns the content hash that `block` states. `block` must begin with this head.
    pub fn hash(self, block: &[u8]) -> Option<ContentHash> {
        if self.has_hash {
            block.get(HEAD_BYTES..)?.first_chunk().copied()
        } else {
            None
        }
    }
}

/// A compressor that writes the deflate stream of a block.
pub enum Deflate {
    Own(Deflater),
    Libdeflate(Compressor),
}

impl Deflate {
    fn libdeflate(level: i32) -> Self {
        Deflate::Libdeflate(Compressor::new(
            CompressionLvl::new(level).unwrap_or_default(),
        ))
    }

    /// Appends the deflate stream of `bytes` to `block`.
    fn append(&mut self, bytes: &[u8], block: &mut Vec<u8>) -> Result<()> {
        match self {
            Deflate::Own(deflater) => deflater.deflate(bytes, block),
            Deflate::Libdeflate(compressor) => {
                let start = block.len();
                block.resize(start + compressor.deflate_compress_bound(bytes.len()), 0);
                let deflated = compressor.deflate_compress(bytes, &mut block[start..]);
                block.truncate(
                    start + deflated.map_err(|cause| refused(std::io::Error::other(cause)))?,
                );
            }
        }
        Ok(())
    }
}

/// Compresses blocks, one after the other.
pub enum Packer {
    Gzip { pages: Deflate, other: Deflate },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    /// Returns `None` if `compression` is [`Compression::None`].
    pub fn new(compression: Compression) -> Result<Option<Self>> {
        match compression {
            Compression::None => Ok(None),
            Compression::Gzip(level) => {
                let index = usize::from(level.clamp(1, 9)) - 1;
                let own = || Deflate::Own(Deflater::default());
                let pages = LIBDEFLATE_LEVELS_OF_PAGES[index].map_or_else(own, Deflate::libdeflate);
                let other = Deflate::libdeflate(LIBDEFLATE_LEVELS[index]);
                Ok(Some(Packer::Gzip { pages, other }))
            }
            Compression::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level.into()).map_err(refused)?;
                compressor.include_checksum(true).map_err(refused)?;
                Ok(Some(Packer::Zstd(compressor)))
            }
        }
    }

    /// Returns the block that holds `bytes`, whose hash is `hash`.
    pub fn pack(&mut self, bytes: &[u8], content: Content, hash: &ContentHash) -> Result<Vec<u8>> {
        self.pack_after(0, bytes, content, hash)
    }

    /// Returns a block of `size` bytes without content. The block is larger if `size` is less than
    /// an empty block needs.
    pub fn filler(&mut self, size: usize) -> Result<Vec<u8>> {
        let nothing = content_hash(&[]);
        let least = self.pack(&[], Content::Other, &nothing)?.len();
        self.pack_after(size.saturating_sub(least), &[], Content::Other, &nothing)
    }

    /// Packs a block with this number of zeros between its head and the compressed data.
    fn pack_after(
        &mut self,
        zeros: usize,
        bytes: &[u8],
        content: Content,
        hash: &ContentHash,
    ) -> Result<Vec<u8>> {
        let start = WHOLE_HEAD_BYTES + zeros;
        let mut block = match self {
            Packer::Gzip { pages, other } => {
                let mut block = vec![0; start];
                let deflate = match content {
                    Content::Pages | Content::Changes => pages,
                    Content::Other => other,
                };
                deflate.append(bytes, &mut block)?;
                block.extend(crc32(bytes).to_le_bytes());
                block.extend((bytes.len() as u32).to_le_bytes());
                block[..10].copy_from_slice(&GZIP_MAGIC);
                block[10..12].copy_from_slice(&((start - 12) as u16).to_le_bytes());
                block[12..16].copy_from_slice(&GZIP_SIZE_AND_HASH);
                block
            }
            Packer::Zstd(compressor) => {
                let mut block = vec![0; start + zstd::zstd_safe::compress_bound(bytes.len())];
                let compressed = compressor
                    .compress_to_buffer(bytes, &mut block[start..])
                    .map_err(refused)?;
                block.truncate(start + compressed);
                block[..4].copy_from_slice(&ZSTD_MAGIC);
                block[4..8].copy_from_slice(&((start - 8) as u32).to_le_bytes());
                block[8..16].copy_from_slice(&ZSTD_SIZE_AND_HASH);
                block
            }
        };
        let size = (block.len() as u32).to_le_bytes();
        block[16..HEAD_BYTES].copy_from_slice(&size);
        block[HEAD_BYTES..WHOLE_HEAD_BYTES].copy_from_slice(hash);
        Ok(block)
    }
}

fn refused(cause: std::io::Error) -> Error {
    Error::new(Code::Internal, "The compressor failed", "Run it again").with_cause(cause)
}

/// A block that differs from what was written.
#[derive(Debug, PartialEq, Eq)]
pub struct BadBlock {
    pub what: &'static str,
    /// The content length that the block states, or 0 if that is unknown.
    pub tar_bytes: u32,
}

/// Decompresses blocks, one after the other.
#[derive(Default)]
pub struct Unpacker {
    inflate: Option<Decompressor>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unpacker {
    /// Returns the content of `block`, which must be as long as its `head` says.
    pub fn unpack(
        &mut self,
        block: &[u8],
        head: Head,
        container: Container,
    ) -> Result<Vec<u8>, BadBlock> {
        let packed = &block[head.content_start..];
        if container == Container::Zstd {
            self.unzstd(packed)
        } else {
            self.inflate(packed)
        }
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, BadBlock> {
        let Some((deflated, trailer)) = packed.split_last_chunk::<GZIP_TRAILER_BYTES>() else {
            return Err(BadBlock {
                what: "a block has no end",
                tar_bytes: 0,
            });
        };
        let [a, b, c, d, length @ ..] = *trailer;
        let (crc, tar_bytes) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(length));
        let mut content = room(tar_bytes.into())?;
        let decompressor = self.inflate.get_or_insert_with(Decompressor::new);
        match decompressor.deflate_decompress(deflated, &mut content) {
            Ok(length) if length == content.len() && crc32(&content) == crc => Ok(content),
            _ => Err(BadBlock {
                what: DAMAGED,
                tar_bytes,
            }),
        }
    }

    fn unzstd(&mut self, packed: &[u8]) -> Result<Vec<u8>, BadBlock> {
        let length = zstd::zstd_safe::get_frame_content_size(packed)
            .ok()
            .flatten();
        let mut content = room(length.unwrap_or(u64::MAX))?;
        let tar_bytes = content.len() as u32;
        let bad = BadBlock {
            what: DAMAGED,
            tar_bytes,
        };
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Decompressor::new().ok();
        }
        match self
            .zstd
            .as_mut()
            .map(|zstd| zstd.decompress_to_buffer(packed, &mut content[..]))
        {
            Some(Ok(length)) if length == content.len() => Ok(content),
            _ => Err(bad),
        }
    }
}

const DAMAGED: &str = "a block is damaged";

fn room(tar_bytes: u64) -> Result<Vec<u8>, BadBlock> {
    if tar_bytes > MAX_BLOCK_BYTES.into() {
        return Err(BadBlock {
            what: "a block claims an impossible length",
            tar_bytes: 0,
        });
    }
    Ok(vec![0; tar_bytes as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns text in which most words follow one of a few others.
    fn sentences(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut below = |limit: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        let mut text = Vec::new();
        let mut word = 0;
        while text.len() < bytes {
            word = if below(3) == 0 {
                below(2000)
            } else {
                word * 7 % 2003 + below(3)
            };
            let end = if below(9) == 0 { ". " } else { " " };
            text.extend(format!("{:x}{end}", word * word * 977).bytes());
        }
        text.truncate(bytes);
        text
    }

    #[test]
    fn pages_become_smaller_with_each_level_of_gzip() {
        let text = sentences(4 * Compression::GZIP.block_bytes());
        let sizes: Vec<usize> = (1..=9)
            .map(|level| {
                let mut packer = Packer::new(Compression::Gzip(level)).unwrap().unwrap();
                text.chunks(Compression::GZIP.block_bytes())
                    .map(|bytes| packer.pack(bytes, Content::Pages, &content_hash(bytes)))
                    .map(|block| block.unwrap().len())
                    .sum()
            })
            .collect();
        assert!(sizes.is_sorted_by(|size, next| size > next), "{sizes:?}");
    }

    #[test]
    fn a_block_holds_what_was_packed_and_says_its_size_and_hash() {
        let content: Vec<u8> = (0..200_000_usize).map(|n| (n * n % 251) as u8).collect();
        let gzip = (1..=9).map(Compression::Gzip);
        for compression in gzip.chain([Compression::Zstd(3)]) {
            let contents = [&content[..], b"", b"x"];
            for (content, kind) in contents.into_iter().flat_map(|content| {
                [Content::Pages, Content::Changes, Content::Other].map(|kind| (content, kind))
            }) {
                let mut packer = Packer::new(compression).unwrap().unwrap();
                let block = packer.pack(content, kind, &content_hash(content)).unwrap();
                let container = compression.container();
                let head = Head::parse(&block, container).unwrap().unwrap();
                assert_eq!(
                    (head.size, head.hash(&block)),
                    (block.len(), Some(content_hash(content)))
                );
                assert_eq!(
                    Unpacker::default().unpack(&block, head, container).unwrap(),
                    content
                );
                assert_eq!(Head::parse(&block, Container::Plain), Ok(None));
            }
        }
    }

    #[test]
    fn a_filler_has_the_size_that_was_asked_for_and_holds_nothing() {
        for compression in [Compression::Gzip(6), Compression::Zstd(3)] {
            for size in [100, 4095, 4096, 5000] {
                let filler = Packer::new(compression)
                    .unwrap()
                    .unwrap()
                    .filler(size)
                    .unwrap();
                let head = Head::parse(&filler, compression.container())
                    .unwrap()
                    .unwrap();
                assert_eq!((filler.len(), head.size), (size, size));
                assert_eq!(
                    Unpacker::default().unpack(&filler, head, compression.container()),
                    Ok(Vec::new())
                );
            }
        }
    }
}
