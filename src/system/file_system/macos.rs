//! APFS shares blocks of whole files only (`clonefile`), not of ranges. No call syncs one file
//! system and reports its errors, so each file is synced (`F_FULLFSYNC`).

use std::path::Path;

pub use super::{
    by_file::{copy_range, reports_every_error, shares_blocks, sync},
    unix::space,
};
use crate::system::mounts;

pub fn network_name(path: &Path) -> Option<String> {
    let found = rustix::fs::statfs(path).ok()?;
    let is_local = found.f_flags & nix::libc::MNT_LOCAL as u32 != 0;
    (!is_local).then(|| mounts::of(path).map_or_else(|| "unknown".into(), |(_, kind)| kind))
}
