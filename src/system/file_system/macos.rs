//! APFS shares blocks of whole files only (`clonefile`), not of ranges. No call syncs one file
//! system and reports its errors, so each file is synced (`F_FULLFSYNC`).

use std::{fs::File, io, path::Path};

pub use super::unix::space;
use crate::system::mounts;

pub fn network_name(path: &Path) -> Option<String> {
    let found = rustix::fs::statfs(path).ok()?;
    let is_local = found.f_flags & nix::libc::MNT_LOCAL as u32 != 0;
    (!is_local).then(|| mounts::of(path).map_or_else(|| "unknown".into(), |(_, kind)| kind))
}

pub fn shares_blocks(_file: &File) -> bool {
    false
}

pub fn copy_range(
    _from: (&File, u64),
    _to: (&File, u64),
    _most: usize,
) -> io::Result<Option<usize>> {
    Ok(None)
}

pub fn reports_every_error(_file: &File) -> bool {
    false
}

pub fn sync(_dir: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
