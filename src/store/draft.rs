//! The archive of a backup that is being written. It appears in the store only when it is
//! published, and is discarded if it is dropped before.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Store, archive_file::ArchiveFile};
use crate::{
    archive::{block_writer::Sink, encryption::write::Encrypting},
    error::{Error, Result},
    objects::{Object, Version},
    place::{Archive, ObjectPlace, Place, Upload},
    util::{atomic_file::TempFile, operation::CancelToken},
};

pub(super) enum Draft {
    /// A file with a temporary name in the directory.
    File(TempFile),
    Upload(SharedUpload),
    /// The service made the object itself. It exists already.
    Copied(Object),
}

/// An upload, shared by the thread that writes the archive and the one that publishes it.
#[derive(Clone)]
pub(super) struct SharedUpload(Arc<Mutex<Stage>>);

enum Stage {
    /// Nothing was written yet.
    Planned {
        objects: ObjectPlace,
        name: String,
        bytes: u64,
        cancel: CancelToken,
    },
    Begun(Box<dyn Upload>),
    Ended,
}

impl Draft {
    pub fn begin(store: &Store, archive: &Archive) -> Result<Self> {
        match archive.place() {
            Place::Directory(dir) => Ok(Draft::File(TempFile::in_store(dir, store.mode)?)),
            Place::Objects(objects) => {
                let planned = Stage::Planned {
                    objects: objects.clone(),
                    name: archive.name().to_string(),
                    bytes: 0,
                    cancel: CancelToken::current(),
                };
                Ok(Draft::Upload(SharedUpload(Arc::new(Mutex::new(planned)))))
            }
        }
    }

    /// Announces about how many bytes will be written.
    pub fn plan(&self, planned: u64) {
        if let Draft::Upload(upload) = self
            && let Stage::Planned { bytes, .. } = &mut *upload.stage()
        {
            *bytes = planned;
        }
    }

    /// Opens the sink for the archive's bytes, which encrypts them if asked to.
    pub fn sink(&self, store: &Store, archive: &Archive, encrypted: bool) -> Result<Box<dyn Sink>> {
        match self {
            Draft::File(file) => {
                let file = file.file().try_clone();
                let file = file.map_err(|cause| Error::io("write", &archive.path(), cause))?;
                with_keys(ArchiveFile::new(file), store, encrypted)
            }
            Draft::Upload(upload) => with_keys(upload.clone(), store, encrypted),
            Draft::Copied(_) => Err(Error::internal("The archive is complete")),
        }
    }

    /// Makes the archive exist. It is on the disk, or acknowledged by the service, when this
    /// returns. Returns the version of the object.
    pub fn publish(self, archive: &Archive) -> Result<Option<Version>> {
        match self {
            Draft::File(file) => file.persist(&archive.path()).map(|()| None),
            Draft::Upload(upload) => {
                let object = upload.take()?.finish()?;
                Ok(Some(listed(archive, object)))
            }
            Draft::Copied(object) => Ok(Some(listed(archive, object))),
        }
    }
}

/// Adds a new object to the listing. Returns its version.
fn listed(archive: &Archive, object: Object) -> Version {
    let version = object.version.clone();
    if let Place::Objects(objects) = archive.place() {
        objects.add(object);
    }
    version
}

fn with_keys<S: Sink + 'static>(sink: S, store: &Store, encrypted: bool) -> Result<Box<dyn Sink>> {
    Ok(if encrypted {
        Box::new(Encrypting::new(sink, store.keys())?)
    } else {
        Box::new(sink)
    })
}

impl SharedUpload {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self) -> Result<Box<dyn Upload>> {
        match std::mem::replace(&mut *self.stage(), Stage::Ended) {
            Stage::Begun(upload) => Ok(upload),
            Stage::Planned { .. } | Stage::Ended => {
                Err(Error::internal("Nothing was written to the archive"))
            }
        }
    }
}

impl Stage {
    fn begun(&mut self) -> Result<&mut dyn Upload> {
        if let Stage::Planned {
            objects,
            name,
            bytes,
            cancel,
        } = self
        {
            let upload = objects.client().upload(name, *bytes, cancel.clone())?;
            *self = Stage::Begun(upload);
        }
        match self {
            Stage::Begun(upload) => Ok(&mut **upload),
            Stage::Planned { .. } | Stage::Ended => Err(Error::internal("The upload has ended")),
        }
    }
}

impl Sink for SharedUpload {}

impl Write for SharedUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stage = self.stage();
        stage.begun().map_err(io::Error::other)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
