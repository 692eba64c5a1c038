//! The container: the format of a backup in bytes.
//!
//! An archive is a tar of entries, then `files.jsonl`, `manifest.json` and `checksums.sha256`. The
//! tar is stored as a gzip or zstd stream of independent blocks, or plain. A seal ends the archive:
//! the digest of everything before it, placed so that every unpacker skips it.
//! `docs/reference/format.md` defines the format to the byte.
//!
//! ```text
//! write   entries ─▶ tar ─▶ blocks, all cores ─▶ in order, hashed ─▶ file
//! read    file ─▶ blocks, hashed ─▶ unpacked, all cores ─▶ tar ─▶ entries, hashed
//! ```
//!
//! * Writing: [`writer`], [`block_writer`], [`block`], [`reuse`].
//! * Reading: [`reader`], [`block_reader`], [`block`], [`extract`], [`sparse`], [`look_ahead`].
//!   `verify` compares everything, and `tally` does so for a full archive in little memory.
//! * Describing: [`manifest`] and [`file_list`], which consists of [`file_record`]s;
//!   [`first_format`] reads older ones.
//!
//! This module does not know where archives are stored. Of a project, it knows only the names of
//! the components.

pub mod block;
pub mod block_digest;
pub mod block_reader;
pub mod block_writer;
pub mod deflate;
pub mod delta;
pub mod encryption;
pub mod errors;
pub mod extract;
pub mod file_list;
pub mod file_record;
pub mod filter;
pub mod first_format;
pub mod look_ahead;
pub mod manifest;
pub mod reader;
pub mod report;
pub mod reuse;
pub mod seal;
pub mod sparse;
mod tally;
mod tar_entries;
mod verify;
pub mod writer;
