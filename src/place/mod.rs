//! Where archives lie, and the files next to them.
//!
//! Everything that reads an archive names it by an [`Archive`], so it works the same wherever the
//! archive is.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

use crate::util::regular_file;

/// A place that holds archives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Directory(PathBuf),
}

impl Place {
    /// Returns the path of the directory, for messages and results.
    pub fn address(&self) -> &Path {
        match self {
            Place::Directory(dir) => dir,
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

/// An archive, or another file of a place. It need not exist.
///
/// It is serialized as its path.
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

    /// Returns the path of the file, for messages and results.
    pub fn path(&self) -> PathBuf {
        self.place.address().join(&self.name)
    }

    /// Returns the path of the file if other programs can open it.
    pub fn local_path(&self) -> Option<PathBuf> {
        match &self.place {
            Place::Directory(_) => Some(self.path()),
        }
    }

    /// Returns the file next to this one whose name ends with `suffix`.
    pub fn beside(&self, suffix: &str) -> Archive {
        self.place.archive(&format!("{}{suffix}", self.name))
    }

    /// Opens a regular file, or a link to one, for reading.
    pub fn open(&self) -> io::Result<Box<dyn Bytes>> {
        match &self.place {
            Place::Directory(_) => Ok(Box::new(regular_file::open_linked(&self.path())?)),
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
