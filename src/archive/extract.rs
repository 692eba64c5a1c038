//! Unpacks an archive into a directory. Each selected file gets its number as its name, so that a
//! name from an archive is never used as a path.
//!
//! An archive may be forged to fill the disk. The sidecar, if there is one, states the size of all
//! files. No entry is written unless there is enough room for it, with a reserve for other
//! processes.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

use super::{
    errors::checksum_mismatch, file_record::Owner, look_ahead::Hints, manifest::Manifest,
    reader::Unpack, sparse::SparseFile,
};
use crate::{
    error::{Code, Error, Result},
    system::{
        file_system,
        portable::{MetadataExt, OpenOptionsExt, set_mode},
    },
    util::sync_many::EarlySync,
};

/// The reserve that stays free: 1/64 of the file system, but at most this number of bytes.
const MAX_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
const RESERVE_SHARE: u64 = 64;
/// Small entries share a look at the free space.
const BYTES_BETWEEN_LOOKS: u64 = 1024 * 1024;

/// Unpacks the entries of an archive. It does not sync: the worker syncs the files that it moves
/// into place.
pub struct Unpacking<'a> {
    /// `None` if the archive is only checked.
    dir: Option<&'a Path>,
    /// Entries to unpack; `None` for all.
    wanted: Option<&'a HashSet<String>>,
    /// The bytes that the following entries may have according to the sidecar; `None` if it does
    /// not say.
    expected_bytes: Option<u64>,
    /// The file that is written, and the time of its last change.
    current: Option<(PromisedFile, Option<Timestamp>)>,
    promises: Promises,
    hints: Option<Hints>,
    early_sync: Option<EarlySync<'a>>,
    owners: Option<Vec<Owner>>,
    /// The bytes that may still be written before the free space is looked up again.
    room_bytes: u64,
}

impl<'a> Unpacking<'a> {
    /// Creates an unpacker. `beside` is the sidecar. It is used only to reject entries: its content
    /// is verified at the end.
    pub fn new(
        dir: Option<&'a Path>,
        wanted: Option<&'a HashSet<String>>,
        beside: Option<&Manifest>,
    ) -> Self {
        Unpacking {
            dir,
            wanted,
            // An entry of changed pages is smaller than its file.
            expected_bytes: beside.map(|manifest| manifest.stats.total_size),
            current: None,
            promises: Promises::default(),
            hints: None,
            early_sync: None,
            owners: Some(Vec::new()),
            room_bytes: 0,
        }
    }

    /// Returns the same unpacker, which gives files the attributes that `hints` has. They are not
    /// verified yet: the worker compares them once the archive is verified.
    pub fn with_hints(self, hints: Option<Hints>) -> Self {
        Unpacking { hints, ..self }
    }

    /// Returns the same unpacker, which has files synced while it writes others.
    pub fn with_early_sync(self, early_sync: Option<EarlySync<'a>>) -> Self {
        Unpacking { early_sync, ..self }
    }

    /// Returns the same unpacker, which shares the free space with others that work meanwhile.
    pub fn with_promises(self, promises: Promises) -> Self {
        Unpacking { promises, ..self }
    }

    /// Ends the file that was written last.
    fn end_file(&mut self) {
        if let Some((file, Some(modified))) = self.current.take() {
            file.sparse.set_modified(modified);
        }
    }

    /// Ends the work. Fails if a file could not be synced.
    pub fn end(&mut self) -> Result<()> {
        self.end_file();
        self.early_sync.take().map_or(Ok(()), EarlySync::end)
    }

    /// Returns the same unpacker, which does not note the owners of entries.
    pub fn without_owners(self) -> Self {
        Unpacking {
            owners: None,
            ..self
        }
    }

    /// Returns the owners of all entries, in their order.
    pub fn into_owners(self) -> Vec<Owner> {
        self.owners.unwrap_or_default()
    }
}

impl Unpack for Unpacking<'_> {
    fn entry(
        &mut self,
        number: usize,
        name: &str,
        size_bytes: u64,
    ) -> Result<Option<&mut dyn Write>> {
        self.end_file();
        if let Some(expected) = &mut self.expected_bytes {
            *expected = expected.checked_sub(size_bytes).ok_or_else(|| {
                checksum_mismatch(format_args!(
                    "{name} has {size_bytes} bytes, which is more than the manifest next to the \
                     archive says"
                ))
            })?;
        }
        let Some(dir) = self
            .dir
            .filter(|_| self.wanted.is_none_or(|wanted| wanted.contains(name)))
        else {
            return Ok(None);
        };
        let promise = self.promises.make(size_bytes);
        if size_bytes > self.room_bytes {
            let others_bytes = self.promises.bytes().saturating_sub(size_bytes);
            self.room_bytes = room(dir, name, size_bytes, others_bytes)?;
        }
        self.room_bytes = self.room_bytes.saturating_sub(size_bytes);
        if let Some(early_sync) = &mut self.early_sync {
            early_sync.wrote(size_bytes);
        }
        let path = dir.join(number.to_string());
        let hint = self.hints.as_mut().and_then(|hints| hints.of_entry(number));
        let file = create(&path, hint.map(|hint| hint.mode));
        let file = file.and_then(|file| SparseFile::new(file, size_bytes));
        let file = file.map_err(|cause| Error::io("write", &path, cause))?;
        let modified = hint.map(|hint| hint.modified);
        let file = PromisedFile {
            sparse: file,
            promise,
        };
        let (file, _) = self.current.insert((file, modified));
        Ok(Some(file))
    }

    fn owner(&mut self, owner: Owner) {
        if let Some(owners) = &mut self.owners {
            owners.push(owner);
        }
    }

    fn wants_whole(&self) -> bool {
        true
    }
}

/// The bytes that unpackers will still write into files that they have begun. Clones share them. The
/// free space does not show these bytes yet.
#[derive(Clone, Default)]
pub struct Promises {
    bytes: Arc<AtomicU64>,
}

impl Promises {
    fn make(&self, bytes: u64) -> Promise {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        Promise {
            all: self.clone(),
            left: bytes,
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

/// What is left of a promise is taken back when it is dropped.
struct Promise {
    all: Promises,
    left: u64,
}

impl Promise {
    fn keep(&mut self, bytes: u64) {
        let kept = bytes.min(self.left);
        self.left -= kept;
        self.all.bytes.fetch_sub(kept, Ordering::SeqCst);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.keep(self.left);
    }
}

struct PromisedFile {
    sparse: SparseFile,
    promise: Promise,
}

impl Write for PromisedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sparse.write(bytes)?;
        self.promise.keep(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sparse.flush()
    }
}

/// A file that is written as long as there is enough room for it.
pub struct FileWithRoom<'a> {
    file: File,
    dir: &'a Path,
    name: &'a str,
    room_bytes: u64,
    failed: Option<Error>,
}

impl<'a> FileWithRoom<'a> {
    /// Creates the file `name` in `dir`.
    pub fn create(dir: &'a Path, name: &'a str) -> io::Result<Self> {
        Ok(FileWithRoom {
            file: File::create(dir.join(name))?,
            dir,
            name,
            room_bytes: 0,
            failed: None,
        })
    }

    /// Returns the error of the file system if there was not enough room.
    pub fn failed(self) -> Option<Error> {
        self.failed
    }
}

impl Write for FileWithRoom<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size_bytes = bytes.len() as u64;
        if size_bytes > self.room_bytes {
            let room = room(self.dir, self.name, size_bytes, 0);
            self.room_bytes = room.map_err(|error| {
                self.failed = Some(error);
                io::Error::from(io::ErrorKind::StorageFull)
            })?;
        }
        let written = self.file.write(bytes)?;
        self.room_bytes = self.room_bytes.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Creates a file that this user can read and write, with these permissions if possible.
fn create(path: &Path, mode: Option<u32>) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    let Some(mode) = mode.map(|mode| mode & 0o777 | 0o600) else {
        return options.open(path);
    };
    let file = options.mode(mode).open(path)?;
    // The umask may have removed permissions.
    if file.metadata()?.mode() & 0o7777 != mode {
        let _ = set_mode(&file, mode);
    }
    Ok(file)
}

/// Returns how many bytes may be written before the next look at the free space. `KG_NO_SPACE` if
/// there is no room for the entry, beside `others_bytes` that will be written meanwhile.
fn room(dir: &Path, name: &str, size_bytes: u64, others_bytes: u64) -> Result<u64> {
    let space = file_system::space(dir)
        .map_err(|cause| Error::io("determine the free space of", dir, cause))?;
    let usable = space
        .free_bytes
        .saturating_sub(MAX_RESERVE_BYTES.min(space.total_bytes / RESERVE_SHARE))
        .saturating_sub(others_bytes);
    if size_bytes <= usable {
        return Ok(usable.min(size_bytes.max(BYTES_BETWEEN_LOOKS)));
    }
    Err(Error::new(
        Code::NoSpace,
        format!(
            "{name} has {size_bytes} bytes, but only {usable} can be used in {}",
            dir.display()
        ),
        "Nothing was changed; free some space there, or restore into another directory (`targetDir`), and run it again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpackers_that_share_the_free_space_promise_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let promises = Promises::default();
        let unpacker = |name| {
            let own = dir.path().join(name);
            std::fs::create_dir(&own).unwrap();
            own
        };
        let (first, second) = (unpacker("first"), unpacker("second"));
        let unpacking = |dir| Unpacking::new(Some(dir), None, None).with_promises(promises.clone());
        let (mut first, mut second) = (unpacking(&first), unpacking(&second));
        room(dir.path(), "all", 0, 0).unwrap();
        let most = file_system::space(dir.path()).unwrap().free_bytes / 5 * 3;
        // The file has no content yet, so only the promise shows that it will need room.
        first.entry(0, "large", most).unwrap().unwrap();
        let refused = second.entry(0, "other", most).err().unwrap();
        assert_eq!(refused.code, Code::NoSpace);
        let file = second.entry(1, "small", 1000).unwrap().unwrap();
        file.write_all(&[1; 400]).unwrap();
        assert_eq!(promises.bytes(), most + 600);
        second.end().unwrap();
        assert_eq!(promises.bytes(), most);
        first.end().unwrap();
        assert_eq!(promises.bytes(), 0);
    }
}
