//! ReFS shares blocks of ranges too, but that is not used. No call syncs one file system and reports
//! its errors for users without administrator rights, so each file is synced.

use std::{
    io,
    os::windows::ffi::OsStrExt,
    path::{Component, Path, Prefix},
    ptr::null_mut,
};

use windows_sys::Win32::{
    Storage::FileSystem::{GetDiskFreeSpaceExW, GetDriveTypeW},
    System::WindowsProgramming::DRIVE_REMOTE,
};

use super::Space;
pub use super::by_file::{copy_range, reports_every_error, shares_blocks, sync};
use crate::system::mounts;

#[allow(unsafe_code, reason = "std has no such call")]
pub fn space(path: &Path) -> io::Result<Space> {
    let path: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let (mut free_bytes, mut total_bytes) = (0, 0);
    // SAFETY: the path ends with a zero, and both places are valid.
    let answered = unsafe {
        GetDiskFreeSpaceExW(path.as_ptr(), &mut free_bytes, &mut total_bytes, null_mut())
    };
    if answered == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Space {
        free_bytes,
        total_bytes,
    })
}

#[allow(unsafe_code, reason = "std has no such call")]
pub fn network_name(path: &Path) -> Option<String> {
    let (point, _) = mounts::of(path)?;
    let is_share = point.components().next().is_some_and(|first| {
        matches!(
            first,
            Component::Prefix(prefix)
                if matches!(prefix.kind(), Prefix::UNC(..) | Prefix::VerbatimUNC(..))
        )
    });
    let root: Vec<u16> = point.as_os_str().encode_wide().chain([0]).collect();
    // SAFETY: the path ends with a zero.
    (is_share || unsafe { GetDriveTypeW(root.as_ptr()) } == DRIVE_REMOTE)
        .then(|| "a share of another machine".into())
}
