use std::{
    ffi::OsString,
    os::windows::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    ptr::null_mut,
};

use windows_sys::Win32::Storage::FileSystem::{GetVolumeInformationW, GetVolumePathNameW};

#[allow(unsafe_code, reason = "std has no such calls")]
pub fn of(path: &Path) -> Option<(PathBuf, String)> {
    let path: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let mut point = vec![0_u16; path.len() + 1];
    // SAFETY: the path ends with a zero, and `point` has the length that is given.
    let found =
        unsafe { GetVolumePathNameW(path.as_ptr(), point.as_mut_ptr(), point.len() as u32) };
    if found == 0 {
        return None;
    }
    let mut kind = [0_u16; 64];
    // SAFETY: the path ends with a zero, and `kind` has the length that is given.
    let named = unsafe {
        GetVolumeInformationW(
            point.as_ptr(),
            null_mut(),
            0,
            null_mut(),
            null_mut(),
            null_mut(),
            kind.as_mut_ptr(),
            kind.len() as u32,
        )
    };
    if named == 0 {
        return None;
    }
    Some((
        text(&point).into(),
        text(&kind).to_string_lossy().into_owned(),
    ))
}

/// Returns the text before the first zero.
fn text(field: &[u16]) -> OsString {
    let end = field.iter().position(|unit| *unit == 0);
    OsString::from_wide(&field[..end.unwrap_or(field.len())])
}
