//! The extension traits of the standard library, with the same methods on every system.
//!
//! Unix has the originals. Windows has no owners and only one permission, so its traits describe
//! every file as one that this user owns and others cannot write. Code that must know who can
//! write to a file asks [`super::writers`].

#[cfg_attr(unix, path = "portable/unix.rs")]
#[cfg_attr(windows, path = "portable/windows.rs")]
mod os;

#[cfg(windows)]
pub(super) use os::reopened;
pub use os::{
    FileExt, MetadataExt, OpenOptionsExt, OsStrExt, PermissionsExt, bytes_with_slashes, is_link,
    lock, open_to_read, os_string, own_stdout, set_mode, set_mode_at, sync, try_lock,
    try_lock_shared,
};
