//! The hash that identifies pages of databases and blocks of archives: the first 16 bytes of their
//! BLAKE3 hash.

pub const HASH_BYTES: usize = 16;
pub type ContentHash = [u8; HASH_BYTES];

pub fn content_hash(content: &[u8]) -> ContentHash {
    let mut hash = ContentHash::default();
    hash.copy_from_slice(&blake3::hash(content).as_bytes()[..HASH_BYTES]);
    hash
}
