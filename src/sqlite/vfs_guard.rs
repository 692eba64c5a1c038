//! Restricts what SQLite may do to files. These functions stand between SQLite and the operating
//! system.
//!
//! - While a database is only read in place ([`ReadOnly`]), SQLite sees a read-only file system.
//! - A link that belongs to another user and leads to a file that is not that user's is never
//!   followed ([`crate::util::dir_handle`]). SQLite itself resolves links, then opens and removes
//!   files by the resolved names.

use std::{
    cell::Cell,
    ffi::{CStr, OsStr, c_char, c_int},
    io, mem,
    os::{fd::IntoRawFd, unix::ffi::OsStrExt},
    path::Path,
    ptr::null,
    sync::OnceLock,
};

use nix::{errno::Errno, fcntl::OFlag, libc};
use rusqlite::ffi;

use crate::{
    error::{Error, Result},
    util::dir_handle::DirHandle,
};

thread_local! {
    static IS_READ_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Prevents SQLite from changing files on this thread while this value exists.
pub struct ReadOnly;

impl ReadOnly {
    pub fn begin() -> Result<ReadOnly> {
        watch()?;
        IS_READ_ONLY.set(true);
        Ok(ReadOnly)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        IS_READ_ONLY.set(false);
    }
}

/// Installs these functions between SQLite and the operating system for the rest of the process.
/// Returns `KG_INTERNAL` if that fails.
pub fn watch() -> Result<()> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    if *INSTALLED.get_or_init(install) {
        return Ok(());
    }
    let message = "This build cannot watch the system calls of SQLite";
    Err(Error::internal(message))
}

/// Replaces system calls of SQLite's default VFS with `xSetSystemCall`
/// (<https://sqlite.org/c3ref/vfs.html>).
#[allow(unsafe_code, reason = "rusqlite has no such call")]
fn install() -> bool {
    type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;
    type Unlink = unsafe extern "C" fn(*const c_char) -> c_int;
    type ReadLink = unsafe extern "C" fn(*const c_char, *mut c_char, libc::size_t) -> libc::ssize_t;
    type Chown = unsafe extern "C" fn(c_int, libc::uid_t, libc::gid_t) -> c_int;
    type Chmod = unsafe extern "C" fn(c_int, libc::mode_t) -> c_int;
    type Call = unsafe extern "C" fn();
    // SAFETY: before SQLite calls a pointer, it casts it back to the type that it has here. That is
    // the type of the function of this name in `os_unix.c`.
    let calls: [(&CStr, Call); 5] = unsafe {
        [
            (c"open", mem::transmute::<Open, Call>(open)),
            (c"unlink", mem::transmute::<Unlink, Call>(unlink)),
            (c"readlink", mem::transmute::<ReadLink, Call>(readlink)),
            (c"fchown", mem::transmute::<Chown, Call>(fchown)),
            (c"fchmod", mem::transmute::<Chmod, Call>(fchmod)),
        ]
    };
    // SAFETY: SQLite initialises itself and returns its default VFS, which lives as long as the
    // process.
    let vfs = unsafe {
        ffi::sqlite3_initialize();
        ffi::sqlite3_vfs_find(null())
    };
    // SAFETY: the pointer is null or that VFS, and the field exists from version 3 on.
    let set = unsafe { vfs.as_ref() }
        .filter(|vfs| vfs.iVersion >= 3)
        .and_then(|vfs| vfs.xSetSystemCall);
    // SAFETY: the names are C strings, and the functions live as long as the process.
    set.is_some_and(|set| {
        calls
            .iter()
            .all(|(name, call)| unsafe { set(vfs, name.as_ptr(), Some(*call)) } == 0)
    })
}

/// Sets `errno` and returns the value of a failed call. A link that must not be followed has no
/// error number and gives EACCES.
fn failed(cause: &io::Error) -> c_int {
    Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EACCES)).set();
    -1
}

/// Returns the value of a failed call if this thread may not change files.
fn refuse() -> Option<c_int> {
    IS_READ_ONLY
        .get()
        .then(|| failed(&io::Error::from_raw_os_error(libc::EACCES)))
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
        .and_then(|place| place.open(OFlag::from_bits_retain(flags), mode as u32));
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
