//! Reads an object in ranges, each a request of its own with its own repetitions. Every request
//! demands the state that the reader was opened with, so that bytes of two states never mix.

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use bytes::{Buf, Bytes};
use object_store::{GetOptions, GetRange, path::Path};

use super::{
    bucket::{Bucket, Inner},
    call::Call,
    failure::Failure,
    object::{Object, Version},
    runtime::Task,
};
use crate::{
    error::{Code, Error, Result},
    util::operation::CancelToken,
};

const RANGE_BYTES: u64 = 8 << 20;
/// The ranges under way during sequential reading. It begins with one, because many readers need
/// only the beginning.
const MOST_RANGES: usize = 4;

type Fetch = Task<Result<Bytes, Problem>>;

/// Why a range was not read.
enum Problem {
    Failed(Failure),
    Changed,
}

/// Reads from the beginning through [`Read`], and anywhere through
/// [`read_exact_at`](ObjectReader::read_exact_at).
pub struct ObjectReader {
    bucket: Bucket,
    object: Object,
    path: Path,
    cancel: CancelToken,
    current: Bytes,
    under_way: VecDeque<Fetch>,
    most_under_way: usize,
    /// Where the next range to fetch begins.
    next: u64,
}

impl ObjectReader {
    pub(super) fn new(bucket: Bucket, object: Object) -> Result<ObjectReader> {
        let path = bucket.0.path(&object.name)?;
        Ok(ObjectReader {
            bucket,
            object,
            path,
            cancel: CancelToken::current(),
            current: Bytes::new(),
            under_way: VecDeque::new(),
            most_under_way: 1,
            next: 0,
        })
    }

    pub fn size_bytes(&self) -> u64 {
        self.object.size_bytes
    }

    #[cfg(not(without_internals))]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// Fills the buffer with the bytes at that offset. Any thread may call it at any time; it does
    /// not move the position of [`Read`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.object.size_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut offset = offset;
        for part in buffer.chunks_mut(RANGE_BYTES as usize) {
            let end = offset.saturating_add(part.len() as u64);
            let fetch = self.start(offset..end).map_err(io::Error::other)?;
            let bytes = self.finish(fetch).map_err(io::Error::other)?;
            part.copy_from_slice(&bytes);
            offset = end;
        }
        Ok(())
    }

    /// Moves the position of [`Read`].
    pub fn seek_to(&mut self, offset: u64) {
        self.current = Bytes::new();
        self.under_way.clear();
        self.next = offset;
    }

    fn start(&self, range: Range<u64>) -> Result<Fetch> {
        let inner = Arc::clone(&self.bucket.0);
        let (path, version) = (self.path.clone(), self.object.version.clone());
        Task::start(async move { fetch(&inner, &path, &version, range).await })
    }

    fn finish(&self, fetch: Fetch) -> Result<Bytes> {
        match fetch.wait(&self.cancel)? {
            Ok(bytes) => Ok(bytes),
            Err(Problem::Failed(failure)) => {
                Err(self.bucket.failed("read", &self.object.name, &failure))
            }
            Err(Problem::Changed) => Err(Error::new(
                Code::StoreChanged,
                format!(
                    "{}/{} was changed or deleted while it was read",
                    self.bucket.location(),
                    self.object.name
                ),
                "Find out what changed it, and run it again",
            )),
        }
    }

    /// Keeps ranges under way, and takes the oldest one.
    fn advance(&mut self) -> Result<()> {
        let size_bytes = self.object.size_bytes;
        while self.under_way.len() < self.most_under_way && self.next < size_bytes {
            let end = self.next.saturating_add(RANGE_BYTES).min(size_bytes);
            let fetch = self.start(self.next..end)?;
            self.under_way.push_back(fetch);
            self.next = end;
        }
        if let Some(fetch) = self.under_way.pop_front() {
            self.current = self.finish(fetch)?;
            self.most_under_way = MOST_RANGES.min(self.most_under_way.saturating_mul(2));
        }
        Ok(())
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !buffer.is_empty() {
            self.advance().map_err(io::Error::other)?;
        }
        let size = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..size]);
        Ok(size)
    }
}

async fn fetch(
    inner: &Inner,
    path: &Path,
    version: &Version,
    range: Range<u64>,
) -> Result<Bytes, Problem> {
    let size_bytes = range.end.saturating_sub(range.start);
    if size_bytes == 0 {
        return Ok(Bytes::new());
    }
    let options = GetOptions {
        if_match: version.quoted(),
        range: Some(GetRange::Bounded(range.clone())),
        ..GetOptions::default()
    };
    let answer = Call::default()
        .make(async {
            let answer = inner.store.get_opts(path, options).await?;
            let (range, meta) = (answer.range.clone(), answer.meta.clone());
            Ok((answer.bytes().await?, range, meta))
        })
        .await;
    match answer {
        // Not every service respects the condition.
        Ok((_, _, meta)) if !same_state(version, &meta) => Err(Problem::Changed),
        Ok((bytes, answered, _)) if answered == range && bytes.len() as u64 == size_bytes => {
            Ok(bytes)
        }
        Ok((bytes, ..)) => Err(Problem::Failed(Failure::Unexpected(format!(
            "{} of {size_bytes} bytes",
            bytes.len()
        )))),
        Err(failure) if failure.is_conflict() || failure.is_missing() => Err(Problem::Changed),
        // The object became shorter than the range begins.
        Err(failure) if failure.is_bad_range() => Err(Problem::Changed),
        Err(failure) => Err(Problem::Failed(failure)),
    }
}

fn same_state(version: &Version, meta: &object_store::ObjectMeta) -> bool {
    let answered = Version::new(meta.e_tag.as_deref(), meta.version.as_deref());
    *version == Version::default() || version.is_same(&answered)
}
