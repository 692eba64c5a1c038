use std::{
    ffi::{CStr, OsStr, c_char, c_int},
    io, mem,
    os::{fd::IntoRawFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{errno::Errno, fcntl::OFlag, libc};

use super::{Call, is_read_only};
use crate::util::dir_handle::DirHandle;

/// Returns the calls that are replaced, by their names in `os_unix.c`.
#[allow(unsafe_code, reason = "rusqlite has no such call")]
pub fn calls() -> Vec<(&'static CStr, Call)> {
    type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;
    type Unlink = unsafe extern "C" fn(*const c_char) -> c_int;
    type ReadLink = unsafe extern "C" fn(*const c_char, *mut c_char, libc::size_t) -> libc::ssize_t;
    type Chown = unsafe extern "C" fn(c_int, libc::uid_t, libc::gid_t) -> c_int;
    type Chmod = unsafe extern "C" fn(c_int, libc::mode_t) -> c_int;
    // SAFETY: SQLite casts each pointer back to the type that it has here. That is the type of the
    // function of this name in `os_unix.c`.
    unsafe {
        vec![
            (c"open", mem::transmute::<Open, Call>(open)),
            (c"unlink", mem::transmute::<Unlink, Call>(unlink)),
            (c"readlink", mem::transmute::<ReadLink, Call>(readlink)),
            (c"fchown", mem::transmute::<Chown, Call>(fchown)),
            (c"fchmod", mem::transmute::<Chmod, Call>(fchmod)),
        ]
    }
}

/// Sets `errno` and returns the value of a failed call. A link that must not be followed has no
/// error number and gives EACCES.
fn failed(cause: &io::Error) -> c_int {
    Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EACCES)).set();
    -1
}

/// Returns the value of a failed call if this thread may not change files.
fn refuse() -> Option<c_int> {
    is_read_only().then(|| failed(&io::Error::from_raw_os_error(libc::EACCES)))
}

/// Opens a file without following links. SQLite retries with `O_RDONLY` if it may not write. SQLite
/// has resolved links before this call, so the name is not a link.
#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let changes =
        flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    if let Some(refused) = changes.then(refuse).flatten() {
        return refused;
    }
    // SAFETY: SQLite passes a C string that outlives the call.
    let path = unsafe { path_of(path) };
    let opened = DirHandle::around(path)
        .and_then(|place| place.open_with(OFlag::from_bits_retain(flags), mode as u32));
    opened.map_or_else(|cause| failed(&cause), IntoRawFd::into_raw_fd)
}

#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    if let Some(refused) = refuse() {
        return refused;
    }
    // SAFETY: as in `open`.
    let path = unsafe { path_of(path) };
    DirHandle::around(path)
        .and_then(|place| place.unlink())
        .map_or_else(|cause| failed(&cause), |()| 0)
}

#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "C" fn readlink(
    path: *const c_char,
    buffer: *mut c_char,
    length: libc::size_t,
) -> libc::ssize_t {
    // SAFETY: as in `open`.
    let target = match DirHandle::around(unsafe { path_of(path) }).and_then(|link| link.read_link())
    {
        Ok(target) => target,
        Err(cause) => return failed(&cause) as libc::ssize_t,
    };
    let bytes = target.as_os_str().as_bytes();
    let fits = bytes.len().min(length);
    // SAFETY: SQLite guarantees that `length` bytes may be written there, and `bytes` contains at
    // least `fits` bytes.
    unsafe {
        buffer
            .cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), fits)
    };
    fits as libc::ssize_t
}

/// Refuses to change the owner while this thread may not change files. SQLite ignores the failure,
/// as it does for a user other than root.
#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "C" fn fchown(file: c_int, owner: libc::uid_t, group: libc::gid_t) -> c_int {
    // SAFETY: this is the call that SQLite would make itself.
    refuse().unwrap_or_else(|| unsafe { libc::fchown(file, owner, group) })
}

#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "C" fn fchmod(file: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: as in `fchown`.
    refuse().unwrap_or_else(|| unsafe { libc::fchmod(file, mode) })
}

/// # Safety
///
/// `path` must be a C string that outlives the returned path.
#[allow(unsafe_code, reason = "SQLite gives pointers")]
unsafe fn path_of<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: the caller guarantees it.
    Path::new(OsStr::from_bytes(
        unsafe { CStr::from_ptr(path) }.to_bytes(),
    ))
}
