//! The project that a restore writes into. Its files are reached without following a link.
//!
//! A *location* is the text of a path relative to the root of the project ([`names`]). It is an
//! absolute path for a graph database that the configuration of the project places outside the
//! project.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Code, Error, Result},
    project::{STATE_DIR, names},
    sqlite::files::{COMPANIONS, companion},
    system::user,
    util::{
        dir_handle::{DirHandle, EntryHandle},
        entry_stat::EntryStat,
        open_dirs::OpenDirs,
        sync_many,
    },
};

pub struct Target {
    /// `None` if there is no project yet, as in a dry run.
    root: Option<OpenDirs>,
    /// The directory `.kg`, which may be a link that the user made.
    state: Option<OpenDirs>,
    path: PathBuf,
    /// The only path outside the project that may be written.
    outside: Option<PathBuf>,
    /// The path, relative to the root, and the handle of the directory in `.kg` that a backup was
    /// unpacked into.
    staging: Option<(PathBuf, OpenDirs)>,
    /// The location of the directory used last, and the directory. Most locations follow another
    /// one of their directory.
    last: RefCell<Option<(String, DirHandle)>>,
    /// The location of the missing directory looked for last, while no directory is made.
    missing: RefCell<Option<String>>,
}

impl Target {
    pub fn open(path: &Path) -> Result<Self> {
        let open = |path: &Path| match DirHandle::open(path) {
            Ok(dir) => Ok(Some(OpenDirs::new(dir))),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::io("open", path, cause)),
        };
        let (root, state) = (open(path)?, open(&path.join(STATE_DIR))?);
        Ok(Target {
            root,
            state,
            path: path.to_path_buf(),
            outside: None,
            staging: None,
            last: RefCell::default(),
            missing: RefCell::default(),
        })
    }

    /// Runs `work`, which makes no directory in the target, with fewer looks for missing ones.
    pub fn while_no_directory_is_made<T>(&self, work: impl FnOnce() -> T) -> T {
        let dirs = || [&self.root, &self.state].into_iter().flatten();
        dirs().for_each(OpenDirs::begin_remembering);
        self.missing.replace(Some(String::new()));
        let done = work();
        self.missing.take();
        dirs().for_each(OpenDirs::end_remembering);
        done
    }

    /// Returns the same target for another thread.
    pub fn share(&self) -> Target {
        Target {
            root: self.root.as_ref().map(OpenDirs::share),
            state: self.state.as_ref().map(OpenDirs::share),
            path: self.path.clone(),
            outside: self.outside.clone(),
            staging: self
                .staging
                .as_ref()
                .map(|(path, dir)| (path.clone(), dir.share())),
            last: RefCell::default(),
            missing: RefCell::default(),
        }
    }

    /// Allows writing the database at `outside`, an absolute path.
    pub fn allow(&mut self, outside: Option<PathBuf>) {
        self.outside = outside;
    }

    /// Opens the staging directory `name` in `.kg` and keeps it open, so that no other directory
    /// can take its place. Returns a path that leads to it. `KG_UNSAFE_FILE` if it belongs to
    /// another user.
    pub fn hold(&mut self, name: &OsStr) -> Result<PathBuf> {
        let place = self.existing(&format!("{STATE_DIR}/{}", name.to_string_lossy()))?;
        let dir = place
            .enter()
            .map_err(|cause| Error::io("open", &place.path(), cause))?;
        let (owner, _) = dir.owner()?;
        if owner != user::current() {
            let message = format!(
                "{} is not the directory that was unpacked: it belongs to user {owner}",
                dir.path().display()
            );
            return Err(Error::new(
                Code::UnsafeFile,
                message,
                "Nothing was changed; find out who changed the project during the restore",
            ));
        }
        let path = dir.held_path();
        self.last.take();
        self.staging = Some((Path::new(STATE_DIR).join(name), OpenDirs::new(dir)));
        Ok(path)
    }

    /// Returns the root without links; `None` if there is no project yet.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_ref().map(|root| root.top().path())
    }

    pub fn outside(&self) -> Option<&Path> {
        self.outside.as_deref()
    }

    /// Returns the entry at a location; `None` if a directory on the way does not exist.
    pub fn place(&self, location: &str) -> Result<Option<EntryHandle>> {
        let Some((dir, name)) = location.rsplit_once('/').filter(|(_, name)| is_plain(name)) else {
            return self.find(location);
        };
        if let Some((last, handle)) = &*self.last.borrow()
            && last == dir
        {
            return Ok(Some(handle.name(name)));
        }
        let mut missing = self.missing.borrow_mut();
        if missing.as_ref().is_some_and(|missing| missing == dir) {
            return Ok(None);
        }
        let found = self.find(location)?;
        match &found {
            _ if location.starts_with('/') => {}
            Some(found) => {
                self.last
                    .replace(Some((dir.to_string(), found.dir().clone())));
            }
            None => {
                if let Some(missing) = missing.as_mut() {
                    *missing = dir.to_string();
                }
            }
        }
        Ok(found)
    }

    fn find(&self, location: &str) -> Result<Option<EntryHandle>> {
        let path = names::decode(location)
            .ok_or_else(|| not_ours(location, "is not written as a path"))?;
        if path.is_absolute() {
            return self.place_outside(&path);
        }
        if !names::stays_below(&path) {
            return Err(not_ours(location, "does not stay inside the project"));
        }
        if let Some((name, dir)) = &self.staging
            && let Ok(below) = path.strip_prefix(name)
            && !below.as_os_str().is_empty()
        {
            return dir.place(below);
        }
        let (dir, below) = match path.strip_prefix(STATE_DIR) {
            Ok(below) if !below.as_os_str().is_empty() => (&self.state, below),
            _ => (&self.root, path.as_path()),
        };
        dir.as_ref().map_or(Ok(None), |dir| dir.place(below))
    }

    /// Like [`Target::place`], but fails if a directory on the way does not exist.
    pub fn existing(&self, location: &str) -> Result<EntryHandle> {
        self.place(location)?.ok_or_else(|| {
            let path = self.path.join(location);
            Error::io("find", &path, io::ErrorKind::NotFound.into())
        })
    }

    /// Returns the attributes of the entry at a location; `None` if there is none.
    pub fn stat(&self, location: &str) -> Result<Option<EntryStat>> {
        self.place(location)?.map_or(Ok(None), |place| place.stat())
    }

    pub fn is_taken(&self, location: &str) -> Result<bool> {
        Ok(self.stat(location)?.is_some())
    }

    /// Returns user and group of the entry at a location, or else of the nearest existing directory
    /// above it.
    pub fn owner_of(&self, location: &str) -> Result<Option<(u32, u32)>> {
        let mut location = location;
        loop {
            let dir = match location {
                "" => Some(&self.root),
                STATE_DIR => Some(&self.state),
                _ => None,
            };
            if let Some(dir) = dir {
                return dir.as_ref().map(|dir| dir.top().owner()).transpose();
            }
            if let Some(place) = self.place(location)? {
                match place.stat()? {
                    Some(found) => return Ok(Some(found.owner())),
                    None => return place.dir().owner().map(Some),
                }
            }
            if location.starts_with('/') {
                // The directory of a database outside the project is missing, so the restore fails
                // there.
                return Ok(None);
            }
            location = parent(location);
        }
    }

    /// Returns the absolute path of a location, for messages.
    pub fn absolute(&self, location: &str) -> PathBuf {
        self.path.join(names::decode(location).unwrap_or_default())
    }

    /// Makes the changes at these locations durable, with one sync per directory, or one sync for
    /// many directories.
    pub fn sync<'a>(&self, locations: impl IntoIterator<Item = &'a str>) -> Result<()> {
        // One location stands for its directory.
        let dirs: BTreeMap<&str, &str> = locations
            .into_iter()
            .map(|location| (parent(location), location))
            .collect();
        let state = self
            .state
            .as_ref()
            .map(|state| state.top().as_file())
            .transpose()?;
        let at_once = state
            .as_ref()
            .and_then(|state| sync_many::begin(state, &self.path, dirs.len()));
        for location in dirs.into_values() {
            let Some(place) = self.place(location)? else {
                continue;
            };
            if !at_once
                .as_ref()
                .map_or(Ok(false), |batch| batch.covers(place.dir()))?
            {
                place.dir().sync()?;
            }
        }
        at_once.map_or(Ok(()), |batch| batch.sync())
    }

    /// Returns the path of the project.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the staging directory, once [`Target::hold`] has opened it.
    pub fn staging(&self) -> Option<&DirHandle> {
        self.staging.as_ref().map(|(_, dir)| dir.top())
    }

    /// Returns the unpacked file of that number, once [`Target::hold`] has opened the staging
    /// directory.
    pub fn unpacked(&self, number: Option<u32>) -> Option<EntryHandle> {
        Some(self.staging()?.name(number?.to_string()))
    }

    fn place_outside(&self, path: &Path) -> Result<Option<EntryHandle>> {
        let names_it = |outside: &Path| {
            path == outside
                || COMPANIONS
                    .iter()
                    .any(|suffix| path == companion(outside, suffix))
        };
        let (true, Some(parent), Some(name)) = (
            self.outside.as_deref().is_some_and(names_it),
            path.parent(),
            path.file_name(),
        ) else {
            return Err(not_ours(
                &path.to_string_lossy(),
                "does not stay inside the project",
            ));
        };
        match DirHandle::open(parent) {
            Ok(dir) => {
                let place = dir.place(Path::new(name))?;
                place
                    .as_ref()
                    .map_or(Ok(()), |place| self.assert_of_project(&dir, place))?;
                Ok(place)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(Error::io("open", parent, cause)),
        }
    }

    /// Refuses a path outside the project that does not belong to the owner of the project, unless
    /// this user is the owner. Otherwise, the configuration of one user would direct the writes of
    /// another.
    fn assert_of_project(&self, dir: &DirHandle, place: &EntryHandle) -> Result<()> {
        let Some((owner, _)) = self
            .state
            .as_ref()
            .map(|state| state.top().owner())
            .transpose()?
        else {
            return Ok(());
        };
        let is_theirs = owner == user::current()
            || dir.owner()?.0 == owner
            || place.stat()?.is_some_and(|found| found.user == owner);
        if is_theirs {
            return Ok(());
        }
        let message = format!(
            "{} is outside the project, and neither it nor its directory belongs to the owner of \
             the project, user {owner}",
            place.path().display()
        );
        Err(Error::new(
            Code::TargetInvalid,
            message,
            "Restore as the owner of the project",
        ))
    }
}

/// Returns whether a name is written as it is and leads to no other directory, so that it may
/// follow any valid location of a directory.
fn is_plain(name: &str) -> bool {
    const MOST_BYTES: usize = 64;
    let bytes = name.as_bytes();
    let is_odd = |byte: &u8| matches!(byte, b'%' | b'\\' | b':' | 0);
    !bytes.is_empty()
        && bytes.len() <= MOST_BYTES
        && !matches!(name, "." | "..")
        && !bytes.iter().any(is_odd)
}

/// Returns the location of the directory that contains `location`; empty for the root.
pub fn parent(location: &str) -> &str {
    location.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub fn not_ours(path: &str, what: &str) -> Error {
    Error::new(
        Code::NotABackup,
        format!("The archive was not made by this tool: the path {path:?} {what}"),
        "Nothing was changed; do not use this archive",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_after_that_of_a_known_directory_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".kg/a")).unwrap();
        let target = Target::open(dir.path()).unwrap();
        let place = |location: &str| {
            target
                .place(location)
                .map(|place| place.map(|at| at.path()))
        };
        let inside = |name: &str| Some(target.root().unwrap().join(".kg/a").join(name));
        assert_eq!(place(".kg/a/x").unwrap(), inside("x"));
        assert_eq!(place(".kg/a/50%25").unwrap(), inside("50%"));
        for odd in ["..", ".", "", "x\\..", "%2e%2e", "%"] {
            assert!(place(&format!(".kg/a/{odd}")).is_err(), "{odd}");
        }
        assert!(place(".kg/a/../../../x").is_err());
        assert!(place("/etc/passwd").is_err());
    }

    #[test]
    fn a_missing_directory_is_looked_for_again_once_directories_may_be_made() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".kg")).unwrap();
        let target = Target::open(dir.path()).unwrap();
        let is_there = |location| target.place(location).unwrap().is_some();
        target.while_no_directory_is_made(|| {
            assert!(!is_there(".kg/a/x") && !is_there(".kg/a/y") && is_there(".kg/x"));
        });
        std::fs::create_dir(dir.path().join(".kg/a")).unwrap();
        assert!(is_there(".kg/a/x") && is_there(".kg/a/y"));
    }
}
