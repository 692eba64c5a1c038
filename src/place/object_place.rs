//! A place in an object store: the objects below a prefix of a bucket.

use std::{
    collections::BTreeMap,
    fmt,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;

use super::Bytes;
use crate::{
    error::Result,
    objects::{Conditions, CopySource, Created, Object, Replaced, UnfinishedUpload, Version},
    util::operation::CancelToken,
};

/// What a place needs of the client of a service.
///
/// The addon contains no client, because a host forwards such calls to `kg`. So a place holds its
/// client behind this trait.
pub trait Client: Send + Sync {
    /// Returns the objects directly below the prefix.
    fn list(&self) -> Result<Vec<Object>>;
    fn find(&self, name: &str) -> Result<Option<Object>>;
    /// Returns a small object. Fails if it is larger than `most_bytes`.
    fn read(&self, name: &str, most_bytes: u64) -> Result<Option<(Vec<u8>, Object)>>;
    /// Opens an object of a listing.
    fn open(&self, object: Object) -> Result<Box<dyn Bytes>>;
    /// Writes an object that must not exist yet.
    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created>;
    /// Writes an object if it is still in the known state.
    fn replace(&self, name: &str, bytes: Vec<u8>, known: &Version) -> Result<Replaced>;
    /// Removes an object, which need not exist.
    fn remove(&self, name: &str) -> Result<()>;
    /// Starts to write a large object that must not exist yet. `planned_bytes` is about its size.
    fn upload(
        &self,
        name: &str,
        planned_bytes: u64,
        cancel: CancelToken,
    ) -> Result<Box<dyn Upload>>;
    /// Returns what another client of the same service needs to copy an object. `None` if a copy
    /// would not be proven.
    fn copy_source(&self, object: &Object) -> Option<CopySource>;
    /// Lets the service copy an object to a name that must be free. Returns `None` if it cannot, so
    /// that the bytes must go through this machine. `progress` counts the bytes that were copied.
    fn copy_from(
        &self,
        name: &str,
        source: &CopySource,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Option<Object>>;
    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>>;
    fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<()>;
    /// Finds out which conditions on writes the service respects.
    fn conditions(&self) -> Result<Conditions>;
    /// Returns whether the service is known to support no conditions on writes.
    fn is_unconditional(&self) -> bool;
    /// Sends no conditions on writes any more, because the service does not support them.
    fn drop_conditions(&self);
    /// Returns whether the service is known to keep what is removed, as versions.
    fn keeps_versions(&self) -> bool;
    /// Returns the time according to the service.
    fn server_time(&self) -> Result<Timestamp>;
}

/// A large object that is being written. Dropping it discards what was sent.
pub trait Upload: Write + Send {
    /// Completes the object. It does not exist before.
    fn finish(self: Box<Self>) -> Result<Object>;
}

/// The objects below one prefix. All clones share one listing, which the first use reads and which
/// the writes of this process keep up to date.
#[derive(Clone)]
pub struct ObjectPlace {
    url: PathBuf,
    client: Arc<dyn Client>,
    freezes: bool,
    listing: Arc<Mutex<Option<BTreeMap<String, Object>>>>,
    /// Whether this process has looked for what it knew before.
    has_recalled: Arc<AtomicBool>,
    /// The time that the service once told, and when.
    told: Arc<Mutex<Option<(Timestamp, Instant)>>>,
}

impl ObjectPlace {
    /// `freezes` says that archives cannot be read for hours after they were written.
    pub fn new(url: String, client: Arc<dyn Client>, freezes: bool) -> Self {
        ObjectPlace {
            url: url.into(),
            client,
            freezes,
            listing: Arc::default(),
            has_recalled: Arc::default(),
            told: Arc::default(),
        }
    }

    pub fn url(&self) -> &Path {
        &self.url
    }

    /// Returns whether archives cannot be read for hours after they were written.
    pub fn freezes(&self) -> bool {
        self.freezes
    }

    pub fn client(&self) -> &dyn Client {
        &*self.client
    }

    /// Returns `true` once: the caller then recalls what it knew about the objects.
    pub fn recalls(&self) -> bool {
        !self.has_recalled.swap(true, Ordering::Relaxed)
    }

    /// Returns the time according to the service, which is asked once. If this machine is suspended
    /// later, the time is too early: then a lease ends early, and one of others seems to last.
    pub fn server_time(&self) -> Result<Timestamp> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (time, at) = match *told {
            Some(told) => told,
            None => *told.insert((self.client.server_time()?, Instant::now())),
        };
        Ok(time.saturating_add(at.elapsed()).unwrap_or(time))
    }

    /// Returns the names of all objects directly below the prefix, in order.
    pub fn names(&self) -> Result<Vec<String>> {
        self.with_listing(|listing| listing.keys().cloned().collect())
    }

    /// Returns an object as the listing describes it.
    pub fn find(&self, name: &str) -> Result<Option<Object>> {
        self.with_listing(|listing| listing.get(name).cloned())
    }

    /// Makes the next use read the listing again, because others may have written.
    pub fn forget_listing(&self) {
        *self.listing() = None;
    }

    /// Returns the content of a small object of the listing.
    pub fn read(&self, name: &str, most_bytes: u64) -> Result<Option<Vec<u8>>> {
        if self.find(name)?.is_none() {
            return Ok(None);
        }
        let read = self.client.read(name, most_bytes)?;
        Ok(read.map(|(bytes, _)| bytes))
    }

    /// Writes a small object that must not exist yet. Returns whether it did not.
    pub fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let size_bytes = bytes.len() as u64;
        Ok(match self.client.create(name, bytes)? {
            Created::New(version) => {
                self.wrote(name, size_bytes, version);
                true
            }
            Created::Exists => {
                self.forget_listing();
                false
            }
        })
    }

    /// Writes a small object, whether it exists or not.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        loop {
            let Some(found) = self.client.find(name)? else {
                if self.create(name, bytes.to_vec())? {
                    return Ok(());
                }
                continue;
            };
            if let Replaced::Done(version) =
                self.client.replace(name, bytes.to_vec(), &found.version)?
            {
                self.wrote(name, bytes.len() as u64, version);
                return Ok(());
            }
        }
    }

    /// Removes an object, which need not exist.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.client.remove(name)?;
        if let Some(listing) = self.listing().as_mut() {
            listing.remove(name);
        }
        Ok(())
    }

    /// Adds an object that this process wrote to the listing.
    pub fn add(&self, object: Object) {
        if let Some(listing) = self.listing().as_mut() {
            listing.insert(object.name.clone(), object);
        }
    }

    fn wrote(&self, name: &str, size_bytes: u64, version: Version) {
        self.add(Object {
            name: name.to_string(),
            size_bytes,
            modified: Timestamp::now(),
            version,
        });
    }

    fn with_listing<T>(&self, ask: impl FnOnce(&BTreeMap<String, Object>) -> T) -> Result<T> {
        let mut listing = self.listing();
        let listing = match &mut *listing {
            Some(listing) => listing,
            unread => {
                let objects = self.client.list()?;
                let by_name = objects
                    .into_iter()
                    .map(|object| (object.name.clone(), object));
                unread.insert(by_name.collect())
            }
        };
        Ok(ask(listing))
    }

    fn listing(&self) -> MutexGuard<'_, Option<BTreeMap<String, Object>>> {
        self.listing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ObjectPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectPlace").field(&self.url).finish()
    }
}
