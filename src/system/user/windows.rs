//! Access depends on lists of users and groups. Opening a file is the only certain question.

use std::{
    fs::{File, OpenOptions},
    io,
    os::windows::fs::OpenOptionsExt,
    path::Path,
};

use windows_sys::Win32::Storage::FileSystem::{
    FILE_ADD_FILE, FILE_EXECUTE, FILE_FLAG_BACKUP_SEMANTICS, FILE_GENERIC_READ, FILE_GENERIC_WRITE,
    FILE_WRITE_DATA,
};

pub fn current() -> u32 {
    0
}

pub fn group() -> u32 {
    0
}

pub fn is_root() -> bool {
    false
}

pub fn may_write(path: &Path) -> bool {
    let right = if path.is_dir() {
        FILE_ADD_FILE
    } else {
        FILE_WRITE_DATA
    };
    may(path, right)
}

pub fn may_read(path: &Path) -> bool {
    may(path, FILE_GENERIC_READ)
}

pub fn may_write_effectively(path: &Path) -> bool {
    may_write(path)
}

pub fn host_name() -> Option<String> {
    std::env::var("COMPUTERNAME").ok()
}

pub fn may_change(path: &Path) -> io::Result<()> {
    opened(path, FILE_GENERIC_READ | FILE_GENERIC_WRITE)
}

pub fn may_execute(path: &Path) -> bool {
    may(path, FILE_EXECUTE)
}

fn may(path: &Path, right: u32) -> bool {
    opened(path, right).is_ok()
}

fn opened(path: &Path, right: u32) -> io::Result<()> {
    OpenOptions::new()
        .access_mode(right)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS)
        .open(path)
        .map(drop)
}

pub fn give(_path: &Path, _user: Option<u32>, _group: Option<u32>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub fn give_open(_file: &File, _owner: (u32, u32)) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
