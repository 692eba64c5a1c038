//! Mount points, for messages: a file that is itself a mount point cannot be replaced by a rename.

use std::path::{Path, PathBuf};

use crate::system::paths;

#[cfg_attr(target_os = "linux", path = "mounts/linux.rs")]
#[cfg_attr(target_os = "macos", path = "mounts/macos.rs")]
#[cfg_attr(windows, path = "mounts/windows.rs")]
mod os;

/// Returns the mount point and the file-system type for `path`, or `None` if the system does not
/// report them.
pub fn of(path: &Path) -> Option<(PathBuf, String)> {
    os::of(&paths::resolve(path))
}

/// Returns whether exactly this path is a mount point. Docker and Kubernetes mount single files in
/// this way.
pub fn is_point(path: &Path) -> bool {
    of(path).is_some_and(|(point, _)| point == paths::resolve(path))
}

/// Describes the file system of `path` for messages.
pub fn file_system(path: &Path) -> String {
    of(path).map_or_else(
        || "this file system".into(),
        |(point, kind)| format!("{kind} at {}", point.display()),
    )
}
