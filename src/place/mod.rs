//! Where archives lie, and the files next to them: a directory, or an object store.
//!
//! Everything that reads an archive names it by an [`Archive`], so it works the same wherever the
//! archive is.

mod bucket;
mod object_place;

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Serialize, Serializer};

pub use self::{
    bucket::{connect, install},
    object_place::{Client, ObjectPlace, Upload},
};
use crate::{
    objects::Version, project::file_state::FoundFile, system::portable::FileExt, util::regular_file,
};

/// A place that holds archives.
#[derive(Debug, Clone)]
pub enum Place {
    Directory(PathBuf),
    Objects(ObjectPlace),
}

impl Place {
    /// Returns the path of the directory or the URL, for messages and results.
    pub fn address(&self) -> &Path {
        match self {
            Place::Directory(dir) => dir,
            Place::Objects(objects) => objects.url(),
        }
    }

    /// Returns the directory, unless the place is in an object store.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Place::Directory(dir) => Some(dir),
            Place::Objects(_) => None,
        }
    }

    /// Returns the archive of that name, which need not exist.
    pub fn archive(&self, name: &str) -> Archive {
        Archive {
            place: self.clone(),
            name: name.to_string(),
        }
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for Place {}

/// An archive, or another file of a place. It need not exist.
///
/// It is serialized as its path or its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    place: Place,
    name: String,
}

impl Archive {
    /// Returns the archive at the path of a file, whose name is UTF-8.
    pub fn at(path: &Path) -> Self {
        let (dir, name) = match (path.parent(), path.file_name()) {
            (Some(dir), Some(name)) => (dir, name.to_string_lossy().into_owned()),
            _ => (path, String::new()),
        };
        Archive {
            place: Place::Directory(dir.to_path_buf()),
            name,
        }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path or the URL of the file, for messages and results.
    pub fn path(&self) -> PathBuf {
        self.place.address().join(&self.name)
    }

    /// Returns the path of the file if other programs can open it.
    pub fn local_path(&self) -> Option<PathBuf> {
        self.place.directory().map(|dir| dir.join(&self.name))
    }

    /// Returns the file next to this one whose name ends with `suffix`.
    pub fn beside(&self, suffix: &str) -> Archive {
        self.place.archive(&format!("{}{suffix}", self.name))
    }

    /// Opens a regular file, or a link to one, for reading.
    pub fn open(&self) -> io::Result<Box<dyn Bytes>> {
        match &self.place {
            Place::Directory(_) => Ok(Box::new(regular_file::open_linked(&self.path())?)),
            Place::Objects(objects) => {
                let found = objects.find(&self.name).map_err(io::Error::other)?;
                let object = found.ok_or(io::ErrorKind::NotFound)?;
                objects.client().open(object).map_err(io::Error::other)
            }
        }
    }

    /// Returns the size of the file in bytes, or `None` if it does not exist.
    pub fn size_bytes(&self) -> io::Result<Option<u64>> {
        match &self.place {
            Place::Directory(_) => match fs::metadata(self.path()) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
                found => found.map(|found| Some(found.len())),
            },
            Place::Objects(objects) => {
                let found = objects.find(&self.name).map_err(io::Error::other)?;
                Ok(found.map(|object| object.size_bytes))
            }
        }
    }

    /// Returns what changes whenever the content of the file does, as far as that is known without
    /// reading it.
    pub fn state(&self) -> Option<FileState> {
        match &self.place {
            Place::Directory(_) => {
                let found = fs::metadata(self.path()).ok()?;
                Some(FileState::Local(FoundFile::new(&found)))
            }
            Place::Objects(objects) => {
                let found = objects.find(&self.name).ok()??;
                Some(FileState::Object(found.version))
            }
        }
    }
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

impl Serialize for Archive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path().serialize(serializer)
    }
}

/// Tells two contents of a file apart without reading them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    Local(FoundFile),
    Object(Version),
}

impl FileState {
    /// Returns whether a later change is sure to give the file another state. `read_at` is when
    /// reading its content began.
    pub fn is_settled(&self, read_at: SystemTime) -> bool {
        match self {
            FileState::Local(found) => found.settled(read_at).is_some(),
            FileState::Object(_) => true,
        }
    }
}

/// The bytes of an open file. Reading begins at the start.
pub trait Bytes: Read + Send {
    fn size_bytes(&self) -> io::Result<u64>;

    /// Fills the buffer from an offset, independently of the sequential position. `UnexpectedEof`
    /// if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Continues to read from an offset.
    fn seek_to(&mut self, offset: u64) -> io::Result<()>;
}

impl Bytes for File {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn seek_to(&mut self, offset: u64) -> io::Result<()> {
        self.seek(SeekFrom::Start(offset)).map(drop)
    }
}
