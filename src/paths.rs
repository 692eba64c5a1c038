//! Paths as people give them.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// The directory of a project's state, below its root.
pub const STATE_DIR: &str = ".kg";

/// Where a restore unpacks before it touches anything, below the state directory; a random suffix follows.
pub const STAGING_PREFIX: &str = "restore-staging-";

/// Absolute, and without `..`: a path that is compared with another must not have two names. What `..` means the file system decides, as
/// for every other program.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if path.components().any(|part| part == Component::ParentDir) {
        return Ok(normalize(&resolve(&path)));
    }
    Ok(path)
}

/// Without symbolic links, as far as the path exists.
pub fn resolve(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(resolved) = ancestor.canonicalize() {
            return match path.strip_prefix(ancestor) {
                Ok(rest) if rest.as_os_str().is_empty() => resolved,
                Ok(rest) => resolved.join(rest),
                Err(_) => resolved,
            };
        }
    }
    path.to_path_buf()
}

/// Removes `.` and `..` by their names alone, as Node's `path.resolve` does for the host.
pub fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn the_parent_of_a_link_is_that_of_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real/inner")).unwrap();
        symlink("real/inner", root.join("link")).unwrap();
        let of = |path: &str| absolute(&root.join(path)).unwrap();
        assert_eq!(of("link/../new/file"), root.join("real/new/file"));
        assert_eq!(of("missing/../new"), root.join("new"));
        assert_eq!(of("link/new"), root.join("link/new"));
        assert!(absolute(Path::new("a/../b")).unwrap().ends_with("b"));
    }
}
