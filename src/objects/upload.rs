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
use object_store::{
    Attribute, Attributes, MultipartUpload, PutMode, PutMultipartOptions, PutPayload, path::Path,
};
use tokio::sync::Mutex;

use super::{
    bucket::{self, Bucket, Inner, Target},
    call::Call,
    connect,
    failure::Failure,
    object::{Head, Object, Version},
    runtime::Task,
};
use crate::{
    error::{Code, Error, Result},
    util::operation::CancelToken,
};

const LEAST_PART_BYTES: u64 = 8 << 20;
const PART_UNIT_BYTES: u64 = 1 << 20;
/// S3 takes 10,000 parts. The rest is room for an archive that grows beyond the estimate.
const PLANNED_PARTS: u64 = 9_000;
const MOST_PARTS: u32 = 10_000;
const PARTS_UNDER_WAY: usize = 3;
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

type Parts = Arc<Mutex<Box<dyn MultipartUpload>>>;

/// An object that is being written. Dropped before [`finish`](Upload::finish), it leaves nothing.
pub struct Upload {
    bucket: Bucket,
    name: String,
    path: Path,
    nonce: String,
    /// Headers and attributes of what is created.
    headers: HeaderMap,
    attributes: Attributes,
    cancel: CancelToken,
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
        let path = bucket.0.path(name)?;
        let nonce = bucket::new_nonce()?;
        let options = &bucket.0.options;
        let mut attributes = bucket.0.attributes(&nonce);
        if let Some(class) = &options.storage_class {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
        let mut headers = bucket.0.encryption.clone();
        headers.extend(connect::lock_headers(options)?);
        Ok(Upload {
            name: name.to_string(),
            path,
            nonce,
            headers,
            attributes,
            cancel,
            part_bytes: part_bytes(planned_bytes),
            buffer: Vec::new(),
            parts: None,
            part_count: 0,
            under_way: VecDeque::new(),
            size_bytes: 0,
            error: None,
            bucket,
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
            Some(part) => self.settle(part),
            None => Ok(()),
        }
    }

    /// Discards what was sent. Unlike a drop, it tells if that failed.
    pub fn abort(mut self) -> Result<()> {
        self.under_way.clear();
        let Some(parts) = self.parts.take() else {
            return Ok(());
        };
        let aborted = self.run(|_| async move {
            let mut parts = parts.lock().await;
            Call::default().make(parts.abort()).await
        })?;
        match aborted {
            Err(failure) if !failure.is_missing() => {
                let action = "abort the upload of";
                Err(self.bucket.failed(action, &self.name, &failure))
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
                    self.settle(part)?;
                }
                self.complete(parts)?
            }
        };
        let object = self.verify(completed.as_ref())?;
        // There is nothing to abort any more.
        self.parts = None;
        Ok(object)
    }

    fn put_whole(&mut self) -> Result<Option<Version>> {
        let (path, name, nonce) = (self.path.clone(), self.name.clone(), self.nonce.clone());
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let (headers, attributes) = (self.headers.clone(), self.attributes.clone());
        let put = self.run(|bucket| async move {
            let target = Target {
                path: &path,
                name: &name,
                nonce: &nonce,
                attributes,
            };
            bucket.create(target, bytes, PutMode::Create, headers).await
        })?;
        match put {
            Ok(Some(version)) => Ok(Some(version)),
            Ok(None) => Err(self.taken()),
            Err(failure) => Err(self.failed(&failure)),
        }
    }

    /// Returns the version, unless only a look at the object can tell whether it was completed.
    fn complete(&self, parts: Parts) -> Result<Option<Version>> {
        let call = match self.bucket.0.completion_condition() {
            Some((name, value)) => Call::default().with_header(name, value),
            // Only the lock of the caller closes the gap between this look and the completion.
            None if self.head()?.is_some() => return Err(self.taken()),
            None => Call::default(),
        };
        let completed = self.run(|_| async move {
            let mut parts = parts.lock().await;
            call.make(parts.complete()).await
        })?;
        match completed {
            Ok(answer) => Ok(Some(answer.into())),
            Err(failure)
                if failure.is_conflict() || failure.is_missing() || failure.is_unclear() =>
            {
                match self.head()? {
                    Some(head) if self.is_own(&head) => Ok(None),
                    Some(_) => Err(self.taken()),
                    None => Err(self.failed(&failure)),
                }
            }
            Err(failure) => Err(self.failed(&failure)),
        }
    }

    fn verify(&self, completed: Option<&Version>) -> Result<Object> {
        let head = self
            .head()?
            .ok_or_else(|| self.changed("was deleted right after it was written"))?;
        if !self.is_own(&head) {
            return Err(self.changed("was replaced right after it was written"));
        }
        let object = head.object;
        if object.size_bytes != self.size_bytes {
            return Err(Error::new(
                Code::ChecksumMismatch,
                format!(
                    "The service keeps {} of the {} bytes of {}",
                    object.size_bytes,
                    self.size_bytes,
                    self.place()
                ),
                "Delete the object, and report this to the operator of the service",
            ));
        }
        let e_tag = completed.and_then(|version| version.e_tag.as_ref());
        if e_tag.is_some() && e_tag != object.version.e_tag.as_ref() {
            return Err(self.changed("was replaced right after it was written"));
        }
        Ok(object)
    }

    fn is_own(&self, head: &Head) -> bool {
        head.nonce.as_deref() == Some(self.nonce.as_str())
    }

    /// Sends the buffer as the next part. The writer waits for the oldest part, so that memory stays
    /// bounded.
    fn send_part(&mut self) -> Result<()> {
        if self.part_count == MOST_PARTS {
            return Err(Error::new(
                Code::Limit,
                format!(
                    "{} has more than {MOST_PARTS} parts of {} bytes",
                    self.place(),
                    self.part_bytes
                ),
                "Back up less at once: exclude files, or split the project",
            ));
        }
        while self.under_way.len() >= PARTS_UNDER_WAY {
            if let Some(oldest) = self.under_way.pop_front() {
                self.settle(oldest)?;
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
        let path = self.path.clone();
        let call = Call::default().with_headers(self.headers.clone());
        let options = PutMultipartOptions {
            tags: self.bucket.0.tags(),
            attributes: self.attributes.clone(),
            ..PutMultipartOptions::default()
        };
        // Tells before gigabytes are sent what would fail at the end.
        if self.head()?.is_some() {
            return Err(self.taken());
        }
        let begun = self.run(|bucket| async move {
            call.make(bucket.store.put_multipart_opts(&path, options))
                .await
        })?;
        let parts = begun.map_err(|failure| self.failed(&failure))?;
        let parts = Arc::new(Mutex::new(parts));
        self.parts = Some(Arc::clone(&parts));
        Ok(parts)
    }

    fn settle(&self, part: Task<Result<(), Failure>>) -> Result<()> {
        part.wait(&self.cancel)?
            .map_err(|failure| self.failed(&failure))
    }

    fn head(&self) -> Result<Option<Head>> {
        let (path, name) = (self.path.clone(), self.name.clone());
        let head = self.run(|bucket| async move { bucket.head(&path, &name).await })?;
        head.map_err(|failure| self.bucket.failed("look at", &self.name, &failure))
    }

    fn run<T, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        Task::start(work(Arc::clone(&self.bucket.0)))?.wait(&self.cancel)
    }

    fn write_some(&mut self, bytes: &[u8]) -> Result<usize> {
        self.cancel.check()?;
        if self.buffer.len() == self.part_bytes {
            self.send_part()?;
        }
        let free = self.part_bytes.saturating_sub(self.buffer.len());
        let (bytes, _) = bytes.split_at(bytes.len().min(free));
        self.buffer.extend_from_slice(bytes);
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn place(&self) -> String {
        format!("{}/{}", self.bucket.location(), self.name)
    }

    fn failed(&self, failure: &Failure) -> Error {
        self.bucket.failed("write", &self.name, failure)
    }

    fn taken(&self) -> Error {
        Error::new(
            Code::StoreChanged,
            format!("{} exists already", self.place()),
            "Nothing was replaced; run it again",
        )
    }

    fn changed(&self, what: &str) -> Error {
        Error::new(
            Code::StoreChanged,
            format!("{} {what}", self.place()),
            "Find out what else writes there, and run it again",
        )
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
