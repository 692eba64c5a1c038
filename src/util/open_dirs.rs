//! Entries below one directory, for code that visits many of them.

use std::{
    cell::RefCell,
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::dir_handle::{DirHandle, EntryHandle};
use crate::error::Result;

/// The number of directories that are kept open. Files are visited in the order of their paths, so
/// few are enough, and a process may not have many open files.
const MOST_OPEN: usize = 4;

/// A directory, and the directories below it that were used last. Each is opened once as long as
/// it is among the last [`MOST_OPEN`], and found by its path.
#[derive(Debug)]
pub struct OpenDirs {
    top: DirHandle,
    /// The directory used last comes last.
    recent: RefCell<Vec<(PathBuf, DirHandle)>>,
    /// The directories that do not exist, while none is made.
    missing: RefCell<Option<HashSet<PathBuf>>>,
}

impl OpenDirs {
    pub fn new(top: DirHandle) -> Self {
        OpenDirs {
            top,
            recent: RefCell::default(),
            missing: RefCell::default(),
        }
    }

    /// Returns the same directory for another thread.
    pub fn share(&self) -> OpenDirs {
        OpenDirs::new(self.top.clone())
    }

    pub fn top(&self) -> &DirHandle {
        &self.top
    }

    /// Works like [`DirHandle::place`]. A directory that another process replaced meanwhile may
    /// still be the one that was opened first.
    pub fn place(&self, relative: &Path) -> Result<Option<EntryHandle>> {
        let (Some(parent), Some(name)) = (relative.parent(), relative.file_name()) else {
            return self.top.place(relative);
        };
        let mut recent = self.recent.borrow_mut();
        if let Some(at) = recent.iter().rposition(|(path, _)| path == parent) {
            let found = recent.remove(at);
            let place = found.1.name(name);
            recent.push(found);
            return Ok(Some(place));
        }
        let mut missing = self.missing.borrow_mut();
        if missing
            .as_ref()
            .is_some_and(|missing| missing.contains(parent))
        {
            return Ok(None);
        }
        let place = self.top.place(relative)?;
        match (&place, missing.as_mut()) {
            (Some(place), _) => {
                if recent.len() == MOST_OPEN {
                    recent.remove(0);
                }
                recent.push((parent.to_path_buf(), place.dir().clone()));
            }
            (None, Some(missing)) => {
                missing.insert(parent.to_path_buf());
            }
            (None, None) => {}
        }
        Ok(place)
    }

    /// Looks for a missing directory only once until [`OpenDirs::end_remembering`]. The caller makes
    /// no directory meanwhile.
    pub fn begin_remembering(&self) {
        self.missing.borrow_mut().get_or_insert_default();
    }

    pub fn end_remembering(&self) {
        *self.missing.borrow_mut() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn entries_are_found_in_more_directories_than_are_kept_open() {
        let dir = tempfile::tempdir().unwrap();
        let count = 3 * MOST_OPEN;
        for number in 0..count {
            fs::create_dir_all(dir.path().join(format!("{number}/below"))).unwrap();
        }
        let dirs = OpenDirs::new(DirHandle::open(dir.path()).unwrap());
        for number in (0..count).chain(0..count) {
            let relative = PathBuf::from(format!("{number}/below/file"));
            let place = dirs.place(&relative).unwrap().unwrap();
            let expected = dirs.top().path().join(&relative);
            assert_eq!(place.path(), expected);
            place.unlink().ok();
            place.create().unwrap();
            assert!(expected.exists());
        }
        assert_eq!(dirs.recent.borrow().len(), MOST_OPEN);
        assert!(dirs.place(Path::new("gone/file")).unwrap().is_none());
        assert!(
            dirs.place(Path::new("0"))
                .unwrap()
                .unwrap()
                .stat()
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_missing_directory_is_looked_for_again_once_directories_may_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = OpenDirs::new(DirHandle::open(dir.path()).unwrap());
        let is_there = || dirs.place(Path::new("new/file")).unwrap().is_some();
        dirs.begin_remembering();
        assert!(!is_there());
        fs::create_dir(dir.path().join("new")).unwrap();
        assert!(!is_there());
        dirs.end_remembering();
        assert!(is_there());
    }

    #[test]
    fn a_link_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let dirs = OpenDirs::new(DirHandle::open(dir.path()).unwrap());
        assert!(dirs.place(Path::new("link/passwd")).is_err());
    }
}
