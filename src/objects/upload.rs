//! Writes an object of any size, in parts of one size.
//!
//! Nothing exists under the name before the last step, and an existing object is never replaced. A
//! nonce in the metadata proves afterwards that the object is ours: if the answer to the last step
//! is lost, its repetition only reports that the upload is unknown.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use object_store::{Attribute, Attributes, MultipartUpload, PutMultipartOptions, PutPayload};
use tokio::sync::Mutex;

use super::{
    bucket::Bucket,
    call::Call,
    connect,
    failure::Failure,
    new_object::NewObject,
    object::{Object, Version},
    runtime::Task,
};
use crate::{
    error::{Code, Error, Result},
    util::operation::CancelToken,
};

pub(super) const LEAST_PART_BYTES: u64 = 8 << 20;
pub(super) const PART_UNIT_BYTES: u64 = 1 << 20;
/// S3 takes 10,000 parts. The rest is room for an archive that grows beyond the estimate.
const PLANNED_PARTS: u64 = 9_000;
pub(super) const MOST_PARTS: u32 = 10_000;
pub(super) const PARTS_UNDER_WAY: usize = 3;
pub(super) const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

type Parts = Arc<Mutex<Box<dyn MultipartUpload>>>;

/// An object that is being written. Dropped before [`finish`](Upload::finish), it leaves nothing.
pub struct Upload {
    object: NewObject,
    /// Headers and attributes of what is created.
    headers: HeaderMap,
    attributes: Attributes,
    part_bytes: usize,
    buffer: Vec<u8>,
    /// Absent while everything fits into one part.
    parts: Option<Parts>,
    part_count: u32,
    under_way: VecDeque<Task<Result<(), Failure>>>,
    size_bytes: u64,
    /// The first error. Later calls repeat it.
    error: Option<Error>,
}

impl Upload {
    pub(super) fn new(
        bucket: Bucket,
        name: &str,
        planned_bytes: u64,
        cancel: CancelToken,
    ) -> Result<Upload> {
        let object = NewObject::new(bucket.clone(), name, cancel)?;
        let options = &bucket.0.options;
        let mut attributes = bucket.0.attributes(object.nonce());
        if let Some(class) = &options.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        let mut headers = bucket.0.encryption.clone();
        headers.extend(connect::lock_headers(options)?);
        Ok(Upload {
            object,
            headers,
            attributes,
            part_bytes: part_bytes(planned_bytes),
            buffer: Vec::new(),
            parts: None,
            part_count: 0,
            under_way: VecDeque::new(),
            size_bytes: 0,
            error: None,
        })
    }

    /// Uses parts of that size, from the first one on.
    pub fn in_parts_of(mut self, part_bytes: usize) -> Upload {
        self.part_bytes = part_bytes;
        self
    }

    /// Sends what was written so far as a part, which begins the upload, and waits for it.
    pub fn send(&mut self) -> Result<()> {
        self.send_part()?;
        match self.under_way.pop_back() {
            Some(part) => self.object.settle(part),
            None => Ok(()),
        }
    }

    /// Discards what was sent. Unlike a drop, it tells if that failed.
    pub fn abort(mut self) -> Result<()> {
        self.under_way.clear();
        let Some(parts) = self.parts.take() else {
            return Ok(());
        };
        let aborted = self.object.run(|_| async move {
            let mut parts = parts.lock().await;
            Call::default().make(parts.abort()).await
        })?;
        match aborted {
            Err(failure) if !failure.is_missing() => {
                Err(self.object.could_not("abort the upload of", &failure))
            }
            _ => Ok(()),
        }
    }

    /// Completes the object. Returns it as the store sees it, after a comparison with what was
    /// written.
    pub fn finish(mut self) -> Result<Object> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let completed = match self.parts.clone() {
            None => self.put_whole()?,
            Some(parts) => {
                if !self.buffer.is_empty() {
                    self.send_part()?;
                }
                while let Some(part) = self.under_way.pop_front() {
                    self.object.settle(part)?;
                }
                self.complete(parts)?
            }
        };
        let object = self.object.verify(self.size_bytes, completed.as_ref())?;
        // There is nothing to abort any more.
        self.parts = None;
        Ok(object)
    }

    fn put_whole(&mut self) -> Result<Option<Version>> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let (headers, attributes) = (self.headers.clone(), self.attributes.clone());
        match self.object.put(bytes, headers, attributes)? {
            Ok(Some(version)) => Ok(Some(version)),
            Ok(None) => Err(self.object.taken()),
            Err(failure) => Err(self.object.failed(&failure)),
        }
    }

    /// Returns the version, unless only a look at the object can tell whether it was completed.
    fn complete(&self, parts: Parts) -> Result<Option<Version>> {
        let call = match self.object.completion_condition() {
            Some((name, value)) => Call::default().with_header(name, value),
            // Only the lock of the caller closes the gap between this look and the completion.
            None if self.object.head()?.is_some() => return Err(self.object.taken()),
            None => Call::default(),
        };
        let completed = self.object.run(|_| async move {
            let mut parts = parts.lock().await;
            call.make(parts.complete()).await
        })?;
        let completed = self.object.completed(completed.map(Version::from))?;
        completed.map_err(|failure| self.object.failed(&failure))
    }

    /// Sends the buffer as the next part. The writer waits for the oldest part, so that memory stays
    /// bounded.
    fn send_part(&mut self) -> Result<()> {
        if self.part_count == MOST_PARTS {
            return Err(Error::new(
                Code::Limit,
                format!(
                    "{} has more than {MOST_PARTS} parts of {} bytes",
                    self.object.place(),
                    self.part_bytes
                ),
                "Back up less at once: exclude files, or split the project",
            ));
        }
        while self.under_way.len() >= PARTS_UNDER_WAY {
            if let Some(oldest) = self.under_way.pop_front() {
                self.object.settle(oldest)?;
            }
        }
        let parts = self.begun()?;
        let part = PutPayload::from(std::mem::take(&mut self.buffer));
        let sent = {
            let lock = parts.try_lock();
            let lock = lock.map_err(|_| Error::internal("Two threads write one upload"));
            lock?.put_part(part)
        };
        let task = Task::start(Call::default().make(sent))?;
        self.under_way.push_back(task);
        self.part_count += 1;
        Ok(())
    }

    /// Returns the upload of parts, which begins with the first one.
    fn begun(&mut self) -> Result<Parts> {
        if let Some(parts) = &self.parts {
            return Ok(Arc::clone(parts));
        }
        let path = self.object.path().clone();
        let call = Call::default().with_headers(self.headers.clone());
        let options = PutMultipartOptions {
            tags: self.object.tags(),
            attributes: self.attributes.clone(),
            ..PutMultipartOptions::default()
        };
        // Tells before gigabytes are sent what would fail at the end.
        if self.object.head()?.is_some() {
            return Err(self.object.taken());
        }
        let begun = self.object.run(|bucket| async move {
            call.make(bucket.store.put_multipart_opts(&path, options))
                .await
        })?;
        let parts = begun.map_err(|failure| self.object.failed(&failure))?;
        let parts = Arc::new(Mutex::new(parts));
        self.parts = Some(Arc::clone(&parts));
        Ok(parts)
    }

    fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        self.object.cancel().check()?;
        if self.buffer.len() == self.part_bytes {
            self.send_part()?;
        }
        let free = self.part_bytes.saturating_sub(self.buffer.len());
        let (bytes, _) = bytes.split_at(bytes.len().min(free));
        self.buffer.extend_from_slice(bytes);
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(error) = &self.error {
            return Err(io::Error::other(error.clone()));
        }
        self.write_some(bytes).map_err(|error| {
            self.error = Some(error.clone());
            io::Error::other(error)
        })
    }

    /// Does nothing: parts have one size, and nothing is visible before the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else {
            return;
        };
        // A part that arrives after the end of the upload would stay.
        self.under_way.clear();
        let abort = Task::start(async move {
            let mut parts = parts.lock().await;
            Call::default().make(parts.abort()).await
        });
        // The process may end right after. What fails here is found by a later sweep.
        if let Ok(abort) = abort {
            abort.wait_at_most(ABORT_TIMEOUT);
        }
    }
}

/// Returns the size of a part, so that the planned bytes fit into the allowed number of parts.
fn part_bytes(planned_bytes: u64) -> usize {
    let needed = planned_bytes.div_ceil(PLANNED_PARTS);
    let needed = needed
        .div_ceil(PART_UNIT_BYTES)
        .saturating_mul(PART_UNIT_BYTES);
    usize::try_from(needed.max(LEAST_PART_BYTES)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_large_as_the_planned_bytes_need() {
        let mib = |count: u64| count << 20;
        assert_eq!(part_bytes(0), 8 << 20);
        assert_eq!(part_bytes(mib(70_000)), 8 << 20);
        assert_eq!(part_bytes(mib(1_000_000)), 112 << 20);
        assert!(part_bytes(mib(5_000_000)) as u64 * 10_000 > mib(5_000_000));
    }
}
