//! Sends a request until there is an answer or a reason to give up.
//!
//! `object_store` makes the requests and reads the answers. It neither signs nor repeats them: this
//! module does, because a signature holds the time, a service may ask for a longer wait, and an
//! answer counts only if its last byte arrived.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_LENGTH, DATE, ETAG, IF_NONE_MATCH},
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use md5::{Digest, Md5};
use object_store::client::{
    HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use sha2::Sha256;

use super::{
    call::Call,
    failure::{self, Failure, Refusal},
    retry,
    signing::Signing,
    throttle::{Activity, Outgoing, Throttle},
};
use crate::util::hex::hex;

const MOST_ERROR_BYTES: u64 = 1 << 20;
const CONTENT_MD5: &str = "content-md5";
/// The header of a request that lets the service copy an object.
pub const COPY_SOURCE: &str = "x-amz-copy-source";

/// Cheap to clone.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    client: reqwest::Client,
    signing: Signing,
    timeout: Duration,
    upload: Option<Arc<Throttle>>,
    download: Option<Arc<Throttle>>,
    /// Set once the service refused a condition on the completion of an upload.
    completes_without_condition: AtomicBool,
    /// Set once it is known that the service supports no conditions on writes.
    is_unconditional: AtomicBool,
    /// Set once an answer named the version of an object: the bucket keeps what is deleted.
    keeps_versions: AtomicBool,
    /// Set once the service gave what was written an ETag that is not its MD5.
    has_other_e_tags: AtomicBool,
    /// The host of the last request, for messages.
    last_host: Mutex<Option<String>>,
}

/// A request that can be sent several times.
struct Prepared {
    parts: Parts,
    body: Bytes,
    digest: Vec<u8>,
}

/// An answer whose body has arrived.
struct Answer {
    parts: http::response::Parts,
    body: Bytes,
}

/// What was already tried in vain, apart from waiting.
#[derive(Default)]
struct Tried {
    renewal: bool,
    region: bool,
    clock: bool,
}

/// Returns whether an answer names the version of an object. S3 answers `null` while versioning is
/// suspended.
fn names_version(headers: &HeaderMap) -> bool {
    ["x-amz-version-id", "x-ms-version-id"]
        .iter()
        .filter_map(|name| headers.get(*name))
        .any(|version| version != "null")
}

impl Transport {
    pub fn new(
        client: reqwest::Client,
        signing: Signing,
        timeout: Duration,
        bytes_per_second: Option<u64>,
    ) -> Transport {
        let throttle = || bytes_per_second.map(|limit| Arc::new(Throttle::new(limit)));
        Transport(Arc::new(Inner {
            client,
            signing,
            timeout,
            upload: throttle(),
            download: throttle(),
            completes_without_condition: AtomicBool::new(false),
            is_unconditional: AtomicBool::new(false),
            keeps_versions: AtomicBool::new(false),
            has_other_e_tags: AtomicBool::new(false),
            last_host: Mutex::default(),
        }))
    }

    /// Returns the host that was asked last, and the region, for messages. `None` before the first
    /// request.
    pub fn tried(&self) -> Option<String> {
        let host = self.last_host()?;
        Some(match self.region() {
            Some(region) => format!("{host} (region {region})"),
            None => host,
        })
    }

    /// Returns the host that was asked last.
    pub fn last_host(&self) -> Option<String> {
        let host = self.0.last_host.lock();
        host.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the service refused a condition on the completion of an upload.
    pub fn completes_without_condition(&self) -> bool {
        self.0.completes_without_condition.load(Ordering::Relaxed)
    }

    /// Returns whether the service is known to support no conditions on writes.
    pub fn is_unconditional(&self) -> bool {
        self.0.is_unconditional.load(Ordering::Relaxed)
    }

    /// Sends no conditions on writes any more.
    pub fn drop_conditions(&self) {
        self.0.is_unconditional.store(true, Ordering::Relaxed);
    }

    /// Returns whether the bucket is known to keep versions. Google Cloud Storage does not tell.
    pub fn keeps_versions(&self) -> bool {
        self.0.keeps_versions.load(Ordering::Relaxed)
    }

    /// Returns whether the ETag of everything that was written so far is its MD5.
    pub fn e_tags_are_digests(&self) -> bool {
        !self.0.has_other_e_tags.load(Ordering::Relaxed)
    }

    /// Returns the name of the first source of credentials of S3 that has some.
    pub async fn credential_source(&self) -> Option<&'static str> {
        match &self.0.signing {
            Signing::S3(signer) => signer.credential_source().await,
            Signing::Azure(_) | Signing::Google(_) => None,
        }
    }

    /// Returns the region in use. Only S3 has one.
    pub fn region(&self) -> Option<String> {
        match &self.0.signing {
            Signing::S3(signer) => Some(signer.region()),
            Signing::Azure(_) | Signing::Google(_) => None,
        }
    }

    fn note_host(&self, parts: &Parts) {
        let port = parts.uri.port().map(|port| format!(":{port}"));
        let host = parts
            .uri
            .host()
            .map(|host| format!("{host}{}", port.unwrap_or_default()));
        *self
            .0
            .last_host
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = host;
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let call = Call::current();
        let prepared = self.prepare(request, &call).await?;
        match self.send_until_answered(prepared, &call).await {
            Ok(answer) => {
                if names_version(&answer.parts.headers) {
                    self.0.keeps_versions.store(true, Ordering::Relaxed);
                }
                let body = Full::new(answer.body).map_err(|never| match never {});
                Ok(Response::from_parts(
                    answer.parts,
                    HttpResponseBody::new(body),
                ))
            }
            Err(failure) => {
                call.note_failure(failure.clone());
                // Any kind does: `object_store` is told to repeat nothing.
                Err(HttpError::new(HttpErrorKind::Unknown, failure))
            }
        }
    }

    async fn prepare(&self, request: HttpRequest, call: &Call) -> Result<Prepared, HttpError> {
        let (mut parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let digest = match self.0.signing {
            Signing::S3(_) => Sha256::digest(&body).to_vec(),
            Signing::Azure(_) | Signing::Google(_) => Vec::new(),
        };
        for (name, value) in &call.headers {
            parts.headers.insert(name.clone(), value.clone());
        }
        if parts.method == Method::PUT && !parts.headers.contains_key(COPY_SOURCE) {
            // Every service checks it, and a bucket with object lock refuses bodies without.
            let sum = BASE64_STANDARD.encode(Md5::digest(&body));
            if let Ok(sum) = HeaderValue::from_str(&sum) {
                parts.headers.insert(CONTENT_MD5, sum);
            }
        }
        if self.completes_without_condition() {
            drop_condition(&mut parts);
        }
        Ok(Prepared {
            parts,
            body,
            digest,
        })
    }

    async fn send_until_answered(
        &self,
        mut prepared: Prepared,
        call: &Call,
    ) -> Result<Answer, Failure> {
        let mut tried = Tried::default();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let failure = match self.attempt(&prepared, call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if self.can_correct(&failure, &mut prepared, &mut tried).await {
                continue;
            }
            let most = match failure {
                Failure::Connect(_) => retry::MOST_CONNECTS,
                _ => retry::MOST_ATTEMPTS,
            };
            if !failure.passes() || attempt >= most {
                return Err(failure);
            }
            let asked = match &failure {
                Failure::Refused(refusal) => refusal.retry_after,
                _ => None,
            };
            tokio::time::sleep(retry::wait(attempt, asked)).await;
        }
    }

    /// Returns whether the request can be sent again at once, in another way.
    async fn can_correct(
        &self,
        failure: &Failure,
        prepared: &mut Prepared,
        tried: &mut Tried,
    ) -> bool {
        let Failure::Refused(refusal) = failure else {
            return false;
        };
        if refusal.status == StatusCode::NOT_IMPLEMENTED && drop_condition(&mut prepared.parts) {
            let refused = &self.0.completes_without_condition;
            refused.store(true, Ordering::Relaxed);
            return true;
        }
        let Signing::S3(signer) = &self.0.signing else {
            return false;
        };
        if refusal.is_expired() && !tried.renewal {
            tried.renewal = true;
            return signer.renew().await;
        }
        if refusal.is_skewed() && !tried.clock {
            // The machine may have slept between the signature and the answer.
            tried.clock = true;
            return true;
        }
        if let Some(region) = &refusal.region
            && refusal.is_of_other_region()
            && !tried.region
        {
            tried.region = true;
            return signer.correct_region(region);
        }
        false
    }

    async fn attempt(&self, prepared: &Prepared, call: &Call) -> Result<Answer, Failure> {
        let parts = self.signed(prepared).await?;
        self.note_host(&parts);
        let activity = Activity::new();
        let exchange = self.exchange(parts, prepared.body.clone(), call, &activity);
        let answer = until_stalled(exchange, &activity, self.0.timeout).await?;
        let (status, headers) = (answer.parts.status, &answer.parts.headers);
        let status = match takes_long(&prepared.parts) {
            true => late_status(status, &answer.body),
            false => status,
        };
        match status.is_success() {
            true => {
                self.note_e_tag(&prepared.parts, headers);
                Ok(answer)
            }
            false => Err(Failure::Refused(Refusal::read(
                status,
                headers,
                &answer.body,
            ))),
        }
    }

    fn note_e_tag(&self, sent: &Parts, answered: &HeaderMap) {
        let text = |headers: &HeaderMap, name| Some(headers.get(name)?.to_str().ok()?.to_string());
        let digest =
            text(&sent.headers, CONTENT_MD5).and_then(|sum| BASE64_STANDARD.decode(sum).ok());
        let e_tag = text(answered, ETAG.as_str());
        if let (Some(digest), Some(e_tag)) = (digest, e_tag)
            && e_tag.trim_matches('"') != hex(&digest)
        {
            self.0.has_other_e_tags.store(true, Ordering::Relaxed);
        }
    }

    async fn signed(&self, prepared: &Prepared) -> Result<Parts, Failure> {
        let parts = prepared.parts.clone();
        // Signatures cover the length or the digest of a body, but not the body itself.
        let mut request = HttpRequest::from_parts(parts, HttpRequestBody::empty());
        match &self.0.signing {
            Signing::S3(signer) => signer.sign(&mut request, &prepared.digest).await?,
            Signing::Azure(signer) => signer.sign(&mut request).await?,
            Signing::Google(signer) => signer.sign(&mut request).await?,
        }
        Ok(request.into_parts().0)
    }

    async fn exchange(
        &self,
        parts: Parts,
        body: Bytes,
        call: &Call,
        activity: &Arc<Activity>,
    ) -> Result<Answer, Failure> {
        let url = reqwest::Url::parse(&parts.uri.to_string());
        let url = url.map_err(|_| Failure::Unexpected("no valid URL".into()))?;
        let is_head = parts.method == Method::HEAD;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        if !body.is_empty() {
            let body = Outgoing::new(body, Arc::clone(activity), self.0.upload.clone());
            *request.body_mut() = Some(reqwest::Body::wrap(body));
        }
        let answer = self.0.client.execute(request).await;
        let answer: Response<reqwest::Body> = answer.map_err(Failure::of_connection)?.into();
        activity.note();
        let (parts, body) = answer.into_parts();
        if let Some(time) = parts.headers.get(DATE).and_then(|date| date.to_str().ok())
            && let Some(time) = retry::http_date(time)
        {
            call.note_time(time);
        }
        let body = match is_head {
            true => Bytes::new(),
            false => self.receive(&parts, body, call, activity).await?,
        };
        Ok(Answer { parts, body })
    }

    async fn receive(
        &self,
        parts: &http::response::Parts,
        mut body: reqwest::Body,
        call: &Call,
        activity: &Activity,
    ) -> Result<Bytes, Failure> {
        let length = parts.headers.get(CONTENT_LENGTH);
        let announced = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let most_bytes = match parts.status.is_success() {
            true => call.most_bytes,
            false => MOST_ERROR_BYTES,
        };
        if let Some(size) = announced.filter(|size| *size > most_bytes) {
            return Err(Failure::TooLarge(size));
        }
        let mut received = BytesMut::with_capacity(announced.unwrap_or_default() as usize);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(Failure::of_connection)?;
            activity.note();
            let Ok(data) = frame.into_data() else {
                continue;
            };
            received.extend_from_slice(&data);
            let size = received.len() as u64;
            if size > most_bytes {
                return Err(Failure::TooLarge(size));
            }
            if let Some(throttle) = &self.0.download {
                let wait = throttle.reserve(data.len());
                activity.note_at(Instant::now() + wait);
                tokio::time::sleep(wait).await;
            }
        }
        match announced {
            Some(size) if size != received.len() as u64 => Err(Failure::Interrupted(format!(
                "{} of {size} bytes",
                received.len()
            ))),
            _ => Ok(received.freeze()),
        }
    }

    /// Sends a request that `object_store` does not know.
    pub async fn request(&self, method: Method, url: &str, call: Call) -> Result<Bytes, Failure> {
        self.request_with(method, url, Bytes::new(), call).await
    }

    /// Sends a request with a body that `object_store` does not know.
    pub async fn request_with(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
        call: Call,
    ) -> Result<Bytes, Failure> {
        let request = http::Request::builder()
            .method(method)
            .uri(url)
            .body(HttpRequestBody::from(body))
            .map_err(|_| Failure::Unexpected("no valid URL".into()))?;
        call.make(async {
            let answer = self.send(request).await;
            let body = match answer {
                Ok(answer) => answer.into_body().bytes().await,
                Err(error) => Err(error),
            };
            body.map_err(|error| object_store::Error::Generic {
                store: "S3",
                source: Box::new(error),
            })
        })
        .await
    }
}

/// Returns whether the request completes an upload of parts.
fn is_completion(parts: &Parts) -> bool {
    let query = parts.uri.query().unwrap_or_default();
    parts.method == Method::POST && query.contains("uploadId=")
}

/// Returns whether the service may work so long that it sends a success first and an error after it:
/// it completes an upload, or copies an object.
fn takes_long(parts: &Parts) -> bool {
    is_completion(parts) || parts.headers.contains_key(COPY_SOURCE)
}

/// Returns the status that counts, also if the service sent a success before an error.
fn late_status(status: StatusCode, body: &[u8]) -> StatusCode {
    let is_error = status.is_success() && body.windows(7).any(|part| part == b"<Error>");
    match failure::element(body, "Code").filter(|_| is_error) {
        Some(code) if code == "PreconditionFailed" => StatusCode::PRECONDITION_FAILED,
        Some(code) if code == "NoSuchUpload" => StatusCode::NOT_FOUND,
        Some(_) => StatusCode::INTERNAL_SERVER_ERROR,
        None => status,
    }
}

/// Removes the condition from the completion of an upload, if the request is that.
fn drop_condition(parts: &mut Parts) -> bool {
    is_completion(parts) && parts.headers.remove(IF_NONE_MATCH).is_some()
}

/// Waits for an exchange, unless no byte passes for so long.
async fn until_stalled<T>(
    exchange: impl Future<Output = Result<T, Failure>>,
    activity: &Activity,
    limit: Duration,
) -> Result<T, Failure> {
    let mut exchange = std::pin::pin!(exchange);
    loop {
        let wait = (activity.last() + limit).saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Err(Failure::Timeout(limit));
        }
        if let Ok(result) = tokio::time::timeout(wait, &mut exchange).await {
            return result;
        }
    }
}

impl HttpService for Transport {
    fn call<'service, 'answer>(
        &'service self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'answer>>
    where
        'service: 'answer,
        Self: 'answer,
    {
        Box::pin(self.send(request))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}
