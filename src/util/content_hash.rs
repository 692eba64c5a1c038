//! The hash that identifies pages of databases and blocks of archives: the first 16 bytes of their
//! BLAKE3 hash.

pub const HASH_BYTES: usize = 16;
pub type ContentHash = [u8; HASH_BYTES];

pub fn content_hash(content: &[u8]) -> ContentHash {
    first_bytes(&blake3::hash(content))
}

fn first_bytes(hash: &blake3::Hash) -> ContentHash {
    let mut first = ContentHash::default();
    first.copy_from_slice(&hash.as_bytes()[..HASH_BYTES]);
    first
}

/// Computes the hash of content that arrives in pieces.
#[derive(Default)]
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub fn finish(&self) -> ContentHash {
        first_bytes(&self.0.finalize())
    }
}
