//! The container: what a backup is as bytes.
//!
//! An archive is a tar of entries, then `manifest.json`, then `checksums.sha256`, as a gzip or zstd stream of independent
//! blocks (or plain), closed by a seal: the digest of everything before it, where every unpacker skips it.
//! `docs/format.md` has it to the byte.
//!
//! ```text
//! write   entries ─▶ tar ─▶ blocks, all cores ─▶ in order, hashed ─▶ file             [`write`], [`database`], [`encoder`], [`block`], [`earlier`]
//! read    file ─▶ blocks, hashed ─▶ unpacked, all cores ─▶ tar ─▶ entries, hashed     [`read`], [`decoder`], [`block`], [`unpack`], [`sparse`]
//! ```
//!
//! Nothing here knows where archives are kept or what a project is made of, beyond the names of its components.

pub mod as_written;
pub mod block;
mod check;
pub mod decoder;
mod deflate;
pub mod delta;
pub mod earlier;
pub mod encoder;
pub mod encryption;
mod entries;
pub mod manifest;
pub mod pick;
pub mod read;
pub mod report;
pub mod seal;
pub mod sparse;
pub mod unpack;
pub mod write;
