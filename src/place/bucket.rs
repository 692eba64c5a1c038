//! Connects a place with the client of its service.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use jiff::Timestamp;

use super::{Bytes, Client, ObjectPlace, Upload};
use crate::{
    error::{Error, Result},
    objects::{
        self, Bucket, Conditions, CopySource, Created, Location, Object, ObjectReader, Replaced,
        StorageOptions, UnfinishedUpload, Version,
    },
    util::operation::CancelToken,
};

type Connect = fn(&Location, &StorageOptions) -> Result<Arc<dyn Client>>;

/// Set in `kg` alone, so that the addon need not contain a client.
static CONNECT: OnceLock<Connect> = OnceLock::new();

/// Lets this process connect to object stores.
pub fn install() {
    let connect: Connect = |location, options| Ok(Arc::new(Bucket::open(location, options)?));
    // A second call changes nothing.
    let _ = CONNECT.set(connect);
}

/// Returns the place at a URL. Sends no request.
pub fn connect(location: &Location, options: &StorageOptions) -> Result<ObjectPlace> {
    let Some(connect) = CONNECT.get() else {
        return Err(Error::internal(
            "A host does not connect to an object store itself",
        ));
    };
    let client = connect(location, options)?;
    Ok(ObjectPlace::new(
        location.to_string(),
        client,
        options.freezes_uploads(),
    ))
}

impl Client for Bucket {
    fn is_unconditional(&self) -> bool {
        Bucket::is_unconditional(self)
    }

    fn drop_conditions(&self) {
        Bucket::drop_conditions(self);
    }

    fn keeps_versions(&self) -> bool {
        Bucket::keeps_versions(self)
    }

    fn list(&self) -> Result<Vec<Object>> {
        Bucket::list(self)
    }

    fn find(&self, name: &str) -> Result<Option<Object>> {
        Bucket::find(self, name)
    }

    fn read(&self, name: &str, most_bytes: u64) -> Result<Option<(Vec<u8>, Object)>> {
        Bucket::read(self, name, most_bytes)
    }

    fn open(&self, object: Object) -> Result<Box<dyn Bytes>> {
        Ok(Box::new(Bucket::reader_of(self, object)?))
    }

    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        Bucket::create(self, name, bytes)
    }

    fn replace(&self, name: &str, bytes: Vec<u8>, known: &Version) -> Result<Replaced> {
        Bucket::replace(self, name, bytes, known)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let results = Bucket::remove(self, &[name.to_string()]);
        results.into_iter().try_for_each(|(_, result)| result)
    }

    fn upload(
        &self,
        name: &str,
        planned_bytes: u64,
        cancel: CancelToken,
    ) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Bucket::upload(self, name, planned_bytes, cancel)?))
    }

    fn copy_source(&self, object: &Object) -> Option<CopySource> {
        Bucket::copy_source(self, object)
    }

    fn copy_from(
        &self,
        name: &str,
        source: &CopySource,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Option<Object>> {
        Bucket::copy_from(self, name, source, progress)
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        Bucket::unfinished_uploads(self)
    }

    fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<()> {
        Bucket::abort_unfinished(self, upload)
    }

    fn conditions(&self) -> Result<Conditions> {
        Bucket::probe(self)
    }

    fn server_time(&self) -> Result<Timestamp> {
        Bucket::server_time(self)
    }
}

impl Bytes for ObjectReader {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(ObjectReader::size_bytes(self))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        ObjectReader::read_exact_at(self, buffer, offset)
    }

    fn seek_to(&mut self, offset: u64) -> io::Result<()> {
        ObjectReader::seek_to(self, offset);
        Ok(())
    }
}

impl Upload for objects::Upload {
    fn finish(self: Box<Self>) -> Result<Object> {
        objects::Upload::finish(*self)
    }
}
