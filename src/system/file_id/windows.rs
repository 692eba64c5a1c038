use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::windows::{fs::OpenOptionsExt, io::AsRawHandle},
    path::Path,
};

use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT,
    FILE_READ_ATTRIBUTES, GetFileInformationByHandle,
};

use super::FileId;

#[allow(
    unsafe_code,
    reason = "std has these numbers only in its unstable part"
)]
pub fn of(file: &File) -> io::Result<FileId> {
    let handle = file.as_raw_handle();
    let mut found = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open, and `found` is a valid place for the answer.
    if unsafe { GetFileInformationByHandle(handle, &mut found) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(FileId {
        identity: (
            found.dwVolumeSerialNumber.into(),
            u64::from(found.nFileIndexHigh) << 32 | u64::from(found.nFileIndexLow),
        ),
        names: found.nNumberOfLinks.into(),
    })
}

pub fn at(path: &Path) -> io::Result<FileId> {
    of(&opened(path, 0)?)
}

pub fn of_link(path: &Path) -> io::Result<FileId> {
    of(&opened(path, FILE_FLAG_OPEN_REPARSE_POINT)?)
}

/// Only an open file tells.
pub fn state_of(_found: &Metadata) -> Option<(u64, (i64, u32))> {
    None
}

fn opened(path: &Path, flags: u32) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(FILE_READ_ATTRIBUTES)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | flags)
        .open(path)
}
