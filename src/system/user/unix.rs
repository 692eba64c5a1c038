use std::{
    fs::File,
    io,
    os::unix::fs::{chown, fchown},
    path::Path,
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, access, faccessat, getegid, geteuid, gethostname},
};

pub fn current() -> u32 {
    geteuid().as_raw()
}

pub fn group() -> u32 {
    getegid().as_raw()
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

pub fn may_write(path: &Path) -> bool {
    access(path, AccessFlags::W_OK).is_ok()
}

pub fn may_read(path: &Path) -> bool {
    access(path, AccessFlags::R_OK).is_ok()
}

pub fn may_write_effectively(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}

pub fn host_name() -> Option<String> {
    gethostname().ok()?.into_string().ok()
}

pub fn give(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    chown(path, user, group)
}

pub fn give_open(file: &File, (user, group): (u32, u32)) -> io::Result<()> {
    fchown(file, Some(user), Some(group))
}

pub fn may_change(path: &Path) -> io::Result<()> {
    Ok(access(path, AccessFlags::R_OK | AccessFlags::W_OK)?)
}

pub fn may_execute(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}
