//! Lets a service of S3 copy an object from another bucket or prefix of the same service, so that its
//! bytes do not pass through this machine.
//!
//! The source is bound to a known ETag, and a copy counts only if it has the same one: the ETag is
//! the MD5 of the content, or that of the MD5s of its parts. So the parts of the copy begin where
//! those of the source do. Of several parts, the ETag is known before the copy exists.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header::IF_NONE_MATCH};
use md5::{Digest, Md5};
use percent_encoding::utf8_percent_encode;

use super::{
    bucket::Bucket,
    call::Call,
    connect,
    endpoint::service_url,
    failure::{Failure, element},
    location::Service,
    new_object::NewObject,
    object::{Object, Version},
    runtime::Task,
    transport::COPY_SOURCE,
    unfinished::{UNRESERVED, UNRESERVED_AND_SLASH},
    upload::{ABORT_TIMEOUT, LEAST_PART_BYTES, MOST_PARTS, PART_UNIT_BYTES, PARTS_UNDER_WAY},
};
use crate::{
    error::Result,
    util::{hex::hex, operation::CancelToken},
};

/// Larger objects of one part would take too long for one request. This program writes none.
const MOST_WHOLE_BYTES: u64 = 1 << 30;
/// A part that the service still copies when its upload is aborted may stay.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
const DIGEST_BYTES: usize = 16;

/// An object that the same service can copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    /// The URL of the service, without the bucket.
    service: String,
    /// The bucket and the key, encoded.
    path: String,
    size_bytes: u64,
    version: Version,
    plan: Plan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// One request copies the object.
    Whole,
    /// The copy has parts of this size, as the object has.
    Parts { part_bytes: u64 },
}

impl Plan {
    /// Returns how an object can be copied so that its copy has the same ETag. `None` if that is not
    /// known: the ETag is no digest, or the size of the parts could be one of several.
    fn new(size_bytes: u64, e_tag: &str) -> Option<Plan> {
        let Some((digest, count)) = e_tag.split_once('-') else {
            digest_of(e_tag)?;
            return (size_bytes <= MOST_WHOLE_BYTES).then_some(Plan::Whole);
        };
        digest_of(digest)?;
        let count: u64 = count.parse().ok()?;
        if !(2..=u64::from(MOST_PARTS)).contains(&count) {
            return None;
        }
        let fits = |part_bytes: &u64| size_bytes.div_ceil(*part_bytes) == count;
        if fits(&LEAST_PART_BYTES) {
            let part_bytes = LEAST_PART_BYTES;
            return Some(Plan::Parts { part_bytes });
        }
        // An upload of more planned bytes has larger parts, whose size is a multiple of a unit.
        let least = size_bytes.div_ceil(count).div_ceil(PART_UNIT_BYTES);
        let least = least.checked_mul(PART_UNIT_BYTES)?;
        let next = least.checked_add(PART_UNIT_BYTES)?;
        let is_only = least > LEAST_PART_BYTES && fits(&least) && !fits(&next);
        is_only.then_some(Plan::Parts { part_bytes: least })
    }
}

/// Returns the digest if a text is one of MD5.
fn digest_of(text: &str) -> Option<[u8; DIGEST_BYTES]> {
    let is_digit = |letter: u8| letter.is_ascii_digit() || (b'a'..=b'f').contains(&letter);
    if text.len() != 2 * DIGEST_BYTES || !text.bytes().all(is_digit) {
        return None;
    }
    let number = u128::from_str_radix(text, 16).ok()?;
    Some(number.to_be_bytes())
}

impl Bucket {
    /// Returns what another bucket needs to copy an object in the state of its version. `None` if
    /// the service cannot copy it in a way that proves the copy.
    pub fn copy_source(&self, object: &Object) -> Option<CopySource> {
        let plan = Plan::new(object.size_bytes, object.version.e_tag.as_deref()?)?;
        let path = format!(
            "{}/{}",
            self.location().bucket(),
            self.location().key(&object.name)
        );
        Some(CopySource {
            service: self.service_url()?,
            path: utf8_percent_encode(&path, UNRESERVED_AND_SLASH).to_string(),
            size_bytes: object.size_bytes,
            version: object.version.clone(),
            plan,
        })
    }

    /// Lets the service copy an object to a name that is free. Returns `None` if the service cannot
    /// do so or its copy cannot be proven. Then nothing is left, and the caller must send the bytes.
    /// `progress` receives the number of bytes that were copied since its last call.
    ///
    /// `KG_STORE_CHANGED` if the name is taken.
    pub fn copy_from(
        &self,
        name: &str,
        source: &CopySource,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Option<Object>> {
        if self.service_url().as_ref() != Some(&source.service) || !self.may_prove(source.plan) {
            return Ok(None);
        }
        let object = NewObject::new(self.clone(), name, CancelToken::current())?;
        let key = self.location().key(name);
        let key = utf8_percent_encode(&key, UNRESERVED_AND_SLASH);
        let url = self.0.bucket_url.as_ref().map(|url| format!("{url}/{key}"));
        let copy = Copy {
            bucket: self,
            url: url.unwrap_or_default(),
            headers: self.copy_headers(object.nonce())?,
            object,
            source,
        };
        // Not every service respects the condition of a copy. The lock of the caller closes the gap.
        if copy.object.head()?.is_some() {
            return Err(copy.object.taken());
        }
        let copied = match source.plan {
            Plan::Whole => copy.whole()?,
            Plan::Parts { part_bytes } => copy.in_parts(part_bytes, progress)?,
        };
        let Some(made) = copied else {
            return Ok(None);
        };
        let proven = copy.prove(&made)?;
        if proven.is_some() && source.plan == Plan::Whole {
            progress(source.size_bytes)?;
        }
        Ok(proven)
    }

    fn service_url(&self) -> Option<String> {
        if self.location().service() != Service::S3 {
            return None;
        }
        service_url(self.0.bucket_url.as_deref()?, self.location().bucket())
    }

    /// Returns whether copies can be proven here, as far as it is known. The ETag of what is encrypted
    /// with a key of KMS is no digest.
    fn may_prove(&self, plan: Plan) -> bool {
        let bucket = &self.0;
        let encryption = bucket.options.server_side_encryption.as_deref();
        encryption.is_none_or(|encryption| encryption == "AES256")
            && bucket.options.kms_key_id.is_none()
            && bucket.transport.e_tags_are_digests()
            && !self.refused(plan).load(Ordering::Relaxed)
    }

    fn refused(&self, plan: Plan) -> &AtomicBool {
        match plan {
            Plan::Whole => &self.0.refused_copies.whole,
            Plan::Parts { .. } => &self.0.refused_copies.in_parts,
        }
    }

    /// Returns the headers that create an object as an upload does. The properties of the source do
    /// not matter.
    fn copy_headers(&self, nonce: &str) -> Result<HeaderMap> {
        let options = &self.0.options;
        let mut headers = self.0.encryption.clone();
        headers.extend(connect::lock_headers(options)?);
        let tags = self.0.tags();
        let texts = [
            ("x-amz-meta-kg-nonce", Some(nonce)),
            ("x-amz-storage-class", options.storage_class.as_deref()),
            (
                "x-amz-tagging",
                Some(tags.encoded()).filter(|tags| !tags.is_empty()),
            ),
        ];
        for (name, text) in texts {
            if let Some(value) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        Ok(headers)
    }
}

/// A copy that exists.
struct Made {
    /// Absent if the answer was lost.
    e_tag: Option<String>,
}

/// A copy that is being made.
struct Copy<'a> {
    bucket: &'a Bucket,
    object: NewObject,
    source: &'a CopySource,
    /// The URL of the copy.
    url: String,
    /// Headers of what is created.
    headers: HeaderMap,
}

impl Copy<'_> {
    fn whole(&self) -> Result<Option<Made>> {
        let replace = HeaderValue::from_static("REPLACE");
        let call = self
            .call_for_source()
            .with_headers(self.headers.clone())
            .with_header(
                HeaderName::from_static("x-amz-metadata-directive"),
                replace.clone(),
            )
            .with_header(HeaderName::from_static("x-amz-tagging-directive"), replace)
            .with_header(IF_NONE_MATCH, HeaderValue::from_static("*"));
        let answer = self.request(Method::PUT, "", Bytes::new(), call)?;
        self.made_by(answer)
    }

    /// Copies part after part, several at a time.
    fn in_parts(
        &self,
        part_bytes: u64,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Option<Made>> {
        let Some(mut parts) = self.begin()? else {
            return Ok(None);
        };
        let size_bytes = self.source.size_bytes;
        let (mut offset, mut digests) = (0, Vec::new());
        loop {
            while parts.under_way.len() < PARTS_UNDER_WAY && offset < size_bytes {
                let end = size_bytes.min(offset.saturating_add(part_bytes));
                parts.start(self, offset, end)?;
                offset = end;
            }
            let Some((task, copied_bytes)) = parts.under_way.pop_front() else {
                break;
            };
            let answer = match task.wait(self.object.cancel())? {
                Ok(answer) => answer,
                Err(failure) => return self.refused(&failure),
            };
            let e_tag = e_tag_in(&answer);
            let Some(digest) = e_tag.as_deref().and_then(digest_of) else {
                return Ok(self.unproven());
            };
            digests.push(digest);
            progress(copied_bytes)?;
        }
        if self.source.version.e_tag.as_ref() != Some(&e_tag_of(&digests)) {
            return Ok(self.unproven());
        }
        let condition = HeaderValue::from_static("*");
        let call = Call::default().with_header(IF_NONE_MATCH, condition);
        let query = parts.query("");
        let answer = self.request(Method::POST, &query, completion(&digests).into(), call)?;
        let made = self.made_by(answer)?;
        if made.is_some() {
            // There is nothing to abort any more.
            parts.id = None;
        }
        Ok(made)
    }

    /// Begins an upload of parts.
    fn begin(&self) -> Result<Option<Parts>> {
        let call = Call::default().with_headers(self.headers.clone());
        let answer = self.request(Method::POST, "?uploads=", Bytes::new(), call)?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.refused(&failure),
        };
        Ok(element(&answer, "UploadId").map(|id| Parts {
            bucket: self.bucket.clone(),
            url: self.url.clone(),
            id: Some(id),
            begun: 0,
            under_way: VecDeque::new(),
        }))
    }

    fn call_for_source(&self) -> Call {
        let headers = [
            (COPY_SOURCE, Some(self.source.path.clone())),
            ("x-amz-copy-source-if-match", self.source.version.quoted()),
        ];
        headers
            .into_iter()
            .fold(Call::default(), |call, (name, value)| {
                match value.and_then(|value| HeaderValue::from_str(&value).ok()) {
                    Some(value) => call.with_header(HeaderName::from_static(name), value),
                    None => call,
                }
            })
    }

    fn request(
        &self,
        method: Method,
        query: &str,
        body: Bytes,
        call: Call,
    ) -> Result<Result<Bytes, Failure>> {
        let url = format!("{}{query}", self.url);
        self.object.run(|bucket| async move {
            let request = bucket.transport.request_with(method, &url, body, call);
            request.await
        })
    }

    /// Judges the answer to the request that makes the copy exist. Returns `None` if it does not.
    fn made_by(&self, answer: Result<Bytes, Failure>) -> Result<Option<Made>> {
        let version = answer.map(|answer| Version::new(e_tag_in(&answer).as_deref(), None));
        match self.object.completed(version)? {
            Ok(version) => Ok(Some(Made {
                e_tag: version.and_then(|version| version.e_tag),
            })),
            Err(failure) => self.refused(&failure),
        }
    }

    /// Returns the copy if its bytes are those of the source. Removes it otherwise.
    fn prove(&self, made: &Made) -> Result<Option<Object>> {
        let object = self.object.created()?;
        let known = self.source.version.e_tag.as_ref();
        let answered = made.e_tag.as_ref();
        if object.size_bytes == self.source.size_bytes
            && object.version.e_tag.as_ref() == known
            && (answered.is_none() || answered == known)
        {
            return Ok(Some(object));
        }
        let removed = self.bucket.remove(std::slice::from_ref(&object.name));
        removed.into_iter().try_for_each(|(_, removed)| removed)?;
        Ok(self.unproven())
    }

    /// Notes that this bucket cannot prove such copies, so that none is tried again.
    fn unproven<T>(&self) -> Option<T> {
        let refused = self.bucket.refused(self.source.plan);
        refused.store(true, Ordering::Relaxed);
        None
    }

    /// Decides what follows a refusal. A service that cannot be reached is an error.
    fn refused<T>(&self, failure: &Failure) -> Result<Option<T>> {
        match failure {
            Failure::Connect(_) => Err(self.object.failed(failure)),
            // The source has changed or is gone. Others may be as they were.
            _ if failure.is_conflict() || failure.is_missing() => Ok(None),
            _ => Ok(self.unproven()),
        }
    }
}

/// An upload of copied parts. Dropped before it is completed, it leaves nothing.
struct Parts {
    bucket: Bucket,
    url: String,
    /// Absent once the upload is completed.
    id: Option<String>,
    begun: u32,
    /// The requests, and how many bytes each one copies.
    under_way: VecDeque<(Task<Result<Bytes, Failure>>, u64)>,
}

impl Parts {
    /// Begins to copy the bytes from `offset` to `end` into the next part.
    fn start(&mut self, copy: &Copy, offset: u64, end: u64) -> Result<()> {
        self.begun = self.begun.saturating_add(1);
        let range = format!("bytes={offset}-{}", end.saturating_sub(1));
        let mut call = copy.call_for_source();
        if let Ok(range) = HeaderValue::from_str(&range) {
            call = call.with_header(HeaderName::from_static("x-amz-copy-source-range"), range);
        }
        let part = format!("partNumber={}&", self.begun);
        let url = format!("{}{}", self.url, self.query(&part));
        let transport = self.bucket.0.transport.clone();
        let task = Task::start(async move {
            let request = transport.request_with(Method::PUT, &url, Bytes::new(), call);
            request.await
        })?;
        self.under_way.push_back((task, end.saturating_sub(offset)));
        Ok(())
    }

    fn query(&self, more: &str) -> String {
        let id = self.id.as_deref().unwrap_or_default();
        format!("?{more}uploadId={}", utf8_percent_encode(id, UNRESERVED))
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if self.id.is_none() {
            return;
        }
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        for (task, _) in self.under_way.drain(..) {
            task.wait_at_most(deadline.saturating_duration_since(Instant::now()));
        }
        let url = format!("{}{}", self.url, self.query(""));
        let transport = self.bucket.0.transport.clone();
        let abort = Task::start(async move {
            let request = transport.request(Method::DELETE, &url, Call::default());
            request.await
        });
        // The process may end right after. What fails here is found by a later sweep.
        if let Ok(abort) = abort {
            abort.wait_at_most(ABORT_TIMEOUT);
        }
    }
}

/// Returns the ETag in the body of an answer, without its quotes.
fn e_tag_in(answer: &[u8]) -> Option<String> {
    Version::new(element(answer, "ETag").as_deref(), None).e_tag
}

/// Returns the ETag of an object of several parts.
fn e_tag_of(digests: &[[u8; DIGEST_BYTES]]) -> String {
    let digest = Md5::digest(digests.concat());
    format!("{}-{}", hex(&digest), digests.len())
}

/// Returns the body of the request that completes an upload.
fn completion(digests: &[[u8; DIGEST_BYTES]]) -> String {
    let parts = digests.iter().zip(1_u32..).map(|(digest, number)| {
        format!(
            "<Part><PartNumber>{number}</PartNumber><ETag>\"{}\"</ETag></Part>",
            hex(digest)
        )
    });
    format!(
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{}\
         </CompleteMultipartUpload>",
        parts.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef";

    fn plan(size_bytes: u64, suffix: &str) -> Option<Plan> {
        Plan::new(size_bytes, &format!("{DIGEST}{suffix}"))
    }

    #[test]
    fn the_size_of_the_parts_follows_from_their_number() {
        let mib = |count: u64| count << 20;
        let parts = |size_mib: u64| {
            let part_bytes = mib(size_mib);
            Some(Plan::Parts { part_bytes })
        };
        assert_eq!(plan(5, ""), Some(Plan::Whole));
        assert_eq!(plan(mib(20), "-3"), parts(8));
        assert_eq!(plan(mib(16), "-2"), parts(8));
        assert_eq!(plan(mib(20_480), "-1707"), parts(12));
        assert_eq!(plan(mib(1_000_000), "-8929"), parts(112));
    }

    #[test]
    fn an_e_tag_that_proves_nothing_has_no_plan() {
        let mib = |count: u64| count << 20;
        // Parts of 10 to 19 MiB, of less than 8 MiB, one part, too many, and no number.
        for (size_bytes, suffix) in [
            (mib(20), "-2"),
            (mib(20), "-4"),
            (mib(20), "-1"),
            (mib(20), "-0"),
            (mib(200_000), "-25000"),
            (mib(20), "-x"),
            (mib(20), "-3-1"),
            (mib(2_000), ""),
            (u64::MAX, "-2"),
        ] {
            assert_eq!(plan(size_bytes, suffix), None, "{size_bytes} {suffix}");
        }
        for e_tag in [
            "",
            "0x8D",
            "W/\"1\"",
            &DIGEST.to_uppercase(),
            "+123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(Plan::new(5, e_tag), None, "{e_tag}");
        }
    }

    #[test]
    fn the_e_tag_of_parts_is_the_digest_of_their_digests() {
        let digests = [Md5::digest(b"one").into(), Md5::digest(b"two").into()];
        assert_eq!(e_tag_of(&digests), "1397b7ee3222e3980d0d20f23a871b02-2");
    }
}
