//! The container: what a backup is as bytes.
//!
//! An archive is a tar of entries, then `manifest.json`, then `checksums.sha256`, as a gzip or zstd stream of independent
//! blocks (or plain), closed by a seal: the digest of everything before it, where every unpacker skips it.
//! `docs/reference/format.md` has it to the byte.
//!
//! ```text
//! write   entries ─▶ tar ─▶ blocks, all cores ─▶ in order, hashed ─▶ file             [`writer`], [`database`], [`block_writer`], [`block`], [`reuse`]
//! read    file ─▶ blocks, hashed ─▶ unpacked, all cores ─▶ tar ─▶ entries, hashed     [`reader`], [`block_reader`], [`block`], [`extract`], [`sparse`]
//! ```
//!
//! Nothing here knows where archives are kept or what a project is made of, beyond the names of its components.

pub mod block;
pub mod block_digest;
pub mod block_reader;
pub mod block_writer;
mod deflate;
pub mod delta;
pub mod encryption;
pub mod extract;
pub mod filter;
pub mod manifest;
pub mod reader;
pub mod report;
pub mod reuse;
pub mod seal;
pub mod sparse;
mod tar_entries;
mod verify;
pub mod writer;
