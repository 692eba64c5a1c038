//! Paths that users give.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::system::{portable::MetadataExt, user};

/// The directory of a project's state, below its root.
pub const STATE_DIR: &str = ".kg";

/// The write permissions of group and others.
pub const OTHERS_WRITE: u32 = 0o022;
const GROUP_WRITE: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// The prefix of the staging directory of a restore, below the state directory; a random suffix
/// follows.
pub const STAGING_PREFIX: &str = "restore-staging-";

/// Returns an absolute path without `..`, so that two paths can be compared. The file system
/// resolves `..`, as it does for every other program.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if path.components().any(|part| part == Component::ParentDir) {
        return Ok(normalize(&resolve(&path)));
    }
    Ok(path)
}

/// Resolves symbolic links for the part of the path that exists.
pub fn resolve(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(resolved) = dunce::canonicalize(ancestor) {
            return match path.strip_prefix(ancestor) {
                Ok(rest) if rest.as_os_str().is_empty() => resolved,
                Ok(rest) => resolved.join(rest),
                Err(_) => resolved,
            };
        }
    }
    path.to_path_buf()
}

/// Removes `.` and `..` lexically, like Node's `path.resolve` in the host.
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

/// Returns why other users can replace this file or directory, if they can. They can if they own a
/// directory on the path to it, or may rename entries there. The path to a link to it counts too.
pub fn replaceable(path: &Path) -> Option<String> {
    let me = user::current();
    let named = std::path::absolute(path).ok()?;
    let resolved = resolve(&named);
    resolved
        .ancestors()
        .skip(1)
        .chain(named.ancestors().skip(1))
        .find_map(|dir| {
            let found = fs::metadata(dir).ok()?;
            let (owner, mode, name) = (found.uid(), found.mode(), dir.display());
            if owner != me && owner != 0 {
                let who =
                    format!("user {owner} can replace it, because {name} belongs to that user");
                return Some(format!("{who}: move it to a directory of your own"));
            }
            // By convention, the group with the number of a user has no other member.
            let others = if found.gid() == owner {
                OTHERS_WRITE & !GROUP_WRITE
            } else {
                OTHERS_WRITE
            };
            let is_open = mode & others != 0 && mode & STICKY == 0;
            is_open.then(|| {
                format!(
                    "users other than its owner can replace it, because they can write to {name} \
                     (chmod go-w '{name}')"
                )
            })
        })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn the_parent_of_a_link_is_that_of_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dunce::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("real/inner")).unwrap();
        symlink("real/inner", root.join("link")).unwrap();
        let of = |path: &str| absolute(&root.join(path)).unwrap();
        assert_eq!(of("link/../new/file"), root.join("real/new/file"));
        assert_eq!(of("missing/../new"), root.join("new"));
        assert_eq!(of("link/new"), root.join("link/new"));
        assert!(absolute(Path::new("a/../b")).unwrap().ends_with("b"));
    }
}
