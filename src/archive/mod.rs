//! The container: what a backup is as bytes.
//!
//! An archive is a tar of entries, then `manifest.json`, then `checksums.sha256`, as a gzip stream of independent
//! members (or plain), closed by a seal: the digest of everything before it, where every unpacker skips it.
//! `docs/format.md` has it to the byte.
//!
//! ```text
//! write   entries ─▶ tar ─▶ blocks ─▶ gzip members, all cores ─▶ in order, hashed ─▶ file      [`write`], [`gzip`]
//! read    file ─▶ members, hashed ─▶ gunzip, all cores ─▶ in order ─▶ tar ─▶ entries, hashed   [`read`], [`gunzip`], [`unpack`]
//! ```
//!
//! Nothing here knows where archives are kept or what a project is made of, beyond the names of its components.

mod check;
pub mod delta;
mod entries;
pub mod gunzip;
pub mod gzip;
pub mod manifest;
pub mod pick;
pub mod read;
pub mod seal;
pub mod unpack;
pub mod write;
