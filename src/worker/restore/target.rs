//! The project that a restore writes into. Its files are reached without following a link.
//!
//! A *location* is the text of a path relative to the root of the project ([`names`]). It is an
//! absolute path for a graph database that the configuration of the project places outside the
//! project.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

use crate::{
    error::{Code, Error, Result},
    project::{STATE_DIR, names},
    sqlite::files::{COMPANIONS, companion},
    util::dir_handle::{DirHandle, EntryHandle},
};

pub struct Target {
    /// `None` if there is no project yet, as in a dry run.
    root: Option<DirHandle>,
    /// The directory `.kg`, which may be a link that the user made.
    state: Option<DirHandle>,
    path: PathBuf,
    /// The only path outside the project that may be written.
    outside: Option<PathBuf>,
    /// The path, relative to the root, and the handle of the directory in `.kg` that a backup was
    /// unpacked into.
    staging: Option<(PathBuf, DirHandle)>,
}

impl Target {
    pub fn open(path: &Path) -> Result<Self> {
        let open = |path: &Path| match DirHandle::open(path) {
            Ok(dir) => Ok(Some(dir)),
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
        })
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
        if owner != geteuid().as_raw() {
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
        self.staging = Some((Path::new(STATE_DIR).join(name), dir));
        Ok(path)
    }

    /// Returns the root without links; `None` if there is no project yet.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_ref().map(DirHandle::path)
    }

    pub fn outside(&self) -> Option<&Path> {
        self.outside.as_deref()
    }

    /// Returns the entry at a location; `None` if a directory on the way does not exist.
    pub fn place(&self, location: &str) -> Result<Option<EntryHandle>> {
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

    pub fn is_taken(&self, location: &str) -> Result<bool> {
        Ok(match self.place(location)? {
            Some(place) => place.occupant()?.is_some(),
            None => false,
        })
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
                return dir.as_ref().map(DirHandle::owner).transpose();
            }
            if let Some(place) = self.place(location)? {
                match place.stat()? {
                    Some(found) => return Ok(Some((found.st_uid, found.st_gid))),
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

    /// Makes the changes at these locations durable, with one sync per directory.
    pub fn sync<'a>(&self, locations: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut synced = BTreeSet::new();
        for location in locations {
            if synced.insert(parent(location))
                && let Some(place) = self.place(location)?
            {
                place.dir().sync()?;
            }
        }
        Ok(())
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
        let Some((owner, _)) = self.state.as_ref().map(DirHandle::owner).transpose()? else {
            return Ok(());
        };
        let is_theirs = owner == geteuid().as_raw()
            || dir.owner()?.0 == owner
            || place.stat()?.is_some_and(|found| found.st_uid == owner);
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
