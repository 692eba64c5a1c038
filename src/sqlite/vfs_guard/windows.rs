//! Windows has no owners, so that links are not judged here. SQLite opens and removes files only
//! with these two calls, and retries to open a file for reading alone if it may not write.

use std::{
    ffi::{CStr, c_void},
    mem,
};

use windows_sys::{
    Win32::{
        Foundation::{
            ERROR_ACCESS_DENIED, GENERIC_WRITE, HANDLE, INVALID_HANDLE_VALUE, SetLastError,
        },
        Security::SECURITY_ATTRIBUTES,
        Storage::FileSystem::{CreateFileW, DeleteFileW, OPEN_EXISTING},
    },
    core::{BOOL, PCWSTR},
};

use super::{Call, is_read_only};

/// Returns the calls that are replaced, by their names in `os_win.c`.
#[allow(unsafe_code, reason = "rusqlite has no such call")]
pub fn calls() -> Vec<(&'static CStr, Call)> {
    type Create = unsafe extern "system" fn(
        PCWSTR,
        u32,
        u32,
        *const SECURITY_ATTRIBUTES,
        u32,
        u32,
        HANDLE,
    ) -> HANDLE;
    type Delete = unsafe extern "system" fn(PCWSTR) -> BOOL;
    // SAFETY: SQLite casts each pointer back to the type that it has here. That is the type of the
    // function of this name in `os_win.c`.
    unsafe {
        vec![
            (c"CreateFileW", mem::transmute::<Create, Call>(create_file)),
            (c"DeleteFileW", mem::transmute::<Delete, Call>(delete_file)),
        ]
    }
}

#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "system" fn create_file(
    path: PCWSTR,
    access: u32,
    share: u32,
    security: *const SECURITY_ATTRIBUTES,
    disposition: u32,
    flags: u32,
    template: *mut c_void,
) -> HANDLE {
    let changes = access & GENERIC_WRITE != 0 || disposition != OPEN_EXISTING;
    if changes && is_read_only() {
        // SAFETY: the call takes any number.
        unsafe { SetLastError(ERROR_ACCESS_DENIED) };
        return INVALID_HANDLE_VALUE;
    }
    // SAFETY: this is the call that SQLite would make itself.
    unsafe { CreateFileW(path, access, share, security, disposition, flags, template) }
}

#[allow(unsafe_code, reason = "SQLite calls it")]
unsafe extern "system" fn delete_file(path: PCWSTR) -> BOOL {
    if is_read_only() {
        // SAFETY: the call takes any number.
        unsafe { SetLastError(ERROR_ACCESS_DENIED) };
        return 0;
    }
    // SAFETY: this is the call that SQLite would make itself.
    unsafe { DeleteFileW(path) }
}
