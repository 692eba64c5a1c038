//! Why a request failed, and the error that a user reads. No text here comes from a header, a query
//! or a key: the service's code is kept, its message is not.

use std::{error::Error as StdError, fmt, time::Duration};

use http::{HeaderMap, StatusCode};
use jiff::{Timestamp, Unit};

use super::retry;
use crate::error::{Code, Error};

const CHECK_CREDENTIALS: &str = "Check the credentials, and that they are of this service";
const CHECK_PERMISSIONS: &str = "Let the user of these credentials list, read, write and delete \
                                 objects there; `kg diag store --check` tells what is refused";
const CHECK_NETWORK: &str = "Check `endpoint` in `storageOptions` or AWS_ENDPOINT_URL, the network \
                             and the proxy, then run it again";
const LATER: &str = "Run it again later; the service's status page may say more";

/// Codes of services with which the same request may succeed a little later.
const PASSING_CODES: [&str; 9] = [
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "ServerBusy",
    "OperationTimedOut",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "XMinioServerNotInitialized",
];
const EXPIRED_CODES: [&str; 4] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "InvalidToken",
];
const UNKNOWN_CREDENTIALS: [&str; 4] = [
    "InvalidAccessKeyId",
    "InvalidAuthenticationInfo",
    "SignatureDoesNotMatch",
    "AuthenticationFailed",
];
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];
const FULL_CODES: [&str; 4] = [
    "QuotaExceeded",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "AccountQuotaExceeded",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No connection, for example because the name is unknown.
    Connect(String),
    /// The certificate of the service is not trusted.
    Certificate(String),
    /// No byte passed for so long.
    Timeout(Duration),
    /// The connection ended before the answer did.
    Interrupted(String),
    /// The service refused.
    Refused(Refusal),
    /// No credentials were found there.
    NoCredentials(String),
    /// The answer is larger than the caller accepts.
    TooLarge(u64),
    /// A listed object has a name that `object_store` does not take, such as `a//b`.
    ForeignName(String),
    /// Something that a service should never answer.
    Unexpected(String),
}

/// An answer that is not a success.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    /// The service's word for it. Empty if the answer has no body, as that to HEAD.
    pub code: String,
    /// The region that the answer names.
    pub region: Option<String>,
    pub service_time: Option<Timestamp>,
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Refusal {
        let now = Timestamp::now();
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let code = element(body, "Code").or_else(|| header("x-ms-error-code").map(str::to_string));
        let time = element(body, "ServerTime").and_then(|text| text.parse().ok());
        let region = element(body, "Region");
        Refusal {
            status,
            code: code.map(|code| word(&code)).unwrap_or_default(),
            region: region
                .or_else(|| header("x-amz-bucket-region").map(str::to_string))
                .map(|region| word(&region))
                .filter(|region| !region.is_empty()),
            service_time: time.or_else(|| header("date").and_then(retry::http_date)),
            retry_after: header("retry-after").and_then(|value| retry::retry_after(value, now)),
        }
    }

    fn is(&self, codes: &[&str]) -> bool {
        codes.contains(&self.code.as_str())
    }

    pub fn is_expired(&self) -> bool {
        self.is(&EXPIRED_CODES)
    }

    pub fn is_skewed(&self) -> bool {
        self.is(&["RequestTimeTooSkewed"])
    }

    /// Returns whether the bucket lies in another region than the request went to.
    pub fn is_of_other_region(&self) -> bool {
        self.status.is_redirection()
            || self.is(&[
                "AuthorizationHeaderMalformed",
                "PermanentRedirect",
                "IllegalLocationConstraintException",
            ])
    }

    /// Returns whether the service knows the credentials and refuses this request to them.
    fn is_forbidden(&self) -> bool {
        matches!(self.status.as_u16(), 401 | 403)
            && !self.is_expired()
            && !self.is_skewed()
            && !self.is(&UNKNOWN_CREDENTIALS)
    }

    /// Returns whether the answer is about the address, the credentials or their permissions.
    fn is_of_access(&self) -> bool {
        matches!(self.status.as_u16(), 401 | 403)
            || self.is_expired()
            || self.is_of_other_region()
            || self.is(&UNKNOWN_CREDENTIALS)
            || self.is(&NO_BUCKET)
    }

    fn passes(&self) -> bool {
        matches!(self.status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) || self.is(&PASSING_CODES)
    }
}

impl Failure {
    /// Classifies what `object_store` found in an answer that arrived. One answer of Azure may hold
    /// those of several requests.
    pub fn unexpected(error: &object_store::Error) -> Failure {
        use object_store::Error::*;
        let status = match error {
            InvalidPath { .. } => return Failure::ForeignName(innermost(error)),
            NotFound { .. } => StatusCode::NOT_FOUND,
            PermissionDenied { .. } => StatusCode::FORBIDDEN,
            Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
            Precondition { .. } | AlreadyExists { .. } => StatusCode::PRECONDITION_FAILED,
            _ => return Failure::Unexpected(innermost(error)),
        };
        Failure::Refused(Refusal {
            status,
            ..Refusal::default()
        })
    }

    /// Classifies an error of the connection.
    pub fn of_connection(error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let text = innermost(&error);
        match () {
            () if text.contains("certificate") || text.contains("UnknownIssuer") => {
                Failure::Certificate(text)
            }
            () if error.is_connect() => Failure::Connect(text),
            () => Failure::Interrupted(text),
        }
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            Failure::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Returns the service's word for its refusal, which may be empty.
    pub fn code(&self) -> &str {
        self.refusal().map_or("", |refusal| &refusal.code)
    }

    /// Returns whether the same request may succeed a little later.
    pub fn passes(&self) -> bool {
        match self {
            Failure::Connect(_) | Failure::Timeout(_) | Failure::Interrupted(_) => true,
            Failure::Refused(refusal) => refusal.passes(),
            _ => false,
        }
    }

    /// Returns whether the request may have been carried out all the same.
    pub fn is_unclear(&self) -> bool {
        match self {
            Failure::Timeout(_) | Failure::Interrupted(_) | Failure::Unexpected(_) => true,
            Failure::Refused(refusal) => refusal.passes(),
            _ => false,
        }
    }

    /// Returns whether the service knows the credentials and refuses this request to them. A service
    /// tells that only to a request that it could read.
    pub fn is_forbidden(&self) -> bool {
        self.refusal().is_some_and(Refusal::is_forbidden)
    }

    /// Returns whether the address, the credentials or their permissions are the reason, so that a
    /// message should tell what was tried.
    pub fn is_of_access(&self) -> bool {
        match self {
            Failure::Connect(_)
            | Failure::Certificate(_)
            | Failure::Timeout(_)
            | Failure::Interrupted(_) => true,
            Failure::Refused(refusal) => refusal.is_of_access(),
            _ => false,
        }
    }

    /// Returns whether the service does not support a part of the request, such as a condition.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Failure::Refused(refusal) if refusal.status == StatusCode::NOT_IMPLEMENTED)
    }

    /// Returns whether there is no such object, or no such upload.
    pub fn is_missing(&self) -> bool {
        self.refusal().is_some_and(|refusal| {
            refusal.status == StatusCode::NOT_FOUND && !refusal.is(&NO_BUCKET)
        })
    }

    /// Returns whether a condition of the request did not hold.
    pub fn is_conflict(&self) -> bool {
        self.refusal().is_some_and(|refusal| {
            matches!(
                refusal.status,
                StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT | StatusCode::NOT_MODIFIED
            )
        })
    }

    /// Returns whether the object ends before the range begins.
    pub fn is_bad_range(&self) -> bool {
        self.refusal()
            .is_some_and(|refusal| refusal.status == StatusCode::RANGE_NOT_SATISFIABLE)
    }

    /// Describes the failure. `action` completes "Could not …", for example "read s3://bucket/name".
    pub fn error(&self, action: &str) -> Error {
        let (code, reason, remedy) = match self {
            Failure::Connect(reason) => (
                Code::StoreUnreachable,
                format!("no connection ({reason})"),
                CHECK_NETWORK.to_string(),
            ),
            Failure::Certificate(reason) => (
                Code::StoreUnreachable,
                format!("the certificate of the service is not trusted ({reason})"),
                "If the service has a certificate of its own, name the file of its authority in \
                 `caFile`"
                    .to_string(),
            ),
            Failure::Timeout(limit) => (
                Code::StoreUnreachable,
                format!("the service did not answer for {limit:?}"),
                format!("{CHECK_NETWORK}, or raise `timeout`"),
            ),
            Failure::Interrupted(reason) => (
                Code::StoreUnreachable,
                format!("the connection ended too early ({reason})"),
                CHECK_NETWORK.to_string(),
            ),
            Failure::NoCredentials(places) => (
                Code::StoreDenied,
                format!("no credentials; looked at {places}"),
                "Give the credentials in one of these places".to_string(),
            ),
            Failure::TooLarge(size_bytes) => (
                Code::NotABackup,
                format!("it has {size_bytes} bytes, which is more than such an object can have"),
                "Find out what wrote it, and delete it or use another prefix".to_string(),
            ),
            Failure::ForeignName(reason) => (
                Code::BackupDirInvalid,
                format!("another program left an object there with an unusual name ({reason})"),
                "Delete or rename it with the tools of the service, or use another prefix"
                    .to_string(),
            ),
            Failure::Unexpected(reason) => (
                Code::StoreUnreachable,
                format!("the answer of the service makes no sense ({reason})"),
                "Check that `endpoint` in `storageOptions` is the right service".to_string(),
            ),
            Failure::Refused(refusal) => refusal.described(),
        };
        Error::new(code, format!("Could not {action}: {reason}"), remedy)
    }
}

impl Refusal {
    fn described(&self) -> (Code, String, String) {
        let said = match self.code.as_str() {
            "" => self.status.as_u16().to_string(),
            code => code.to_string(),
        };
        let (code, reason, remedy) = match self.code.as_str() {
            _ if self.is_skewed() => return self.skewed(),
            _ if self.is_expired() => (
                Code::StoreDenied,
                format!("the session token of the credentials has expired or is invalid ({said})"),
                "Log in again, or give new credentials",
            ),
            "InvalidAccessKeyId" | "InvalidAuthenticationInfo" => (
                Code::StoreDenied,
                format!("the service does not know the access key ({said})"),
                CHECK_CREDENTIALS,
            ),
            "SignatureDoesNotMatch" | "AuthenticationFailed" => (
                Code::StoreDenied,
                format!("the secret does not belong to the access key ({said})"),
                CHECK_CREDENTIALS,
            ),
            "NoSuchBucket" | "ContainerNotFound" => (
                Code::BackupDirInvalid,
                format!("the bucket does not exist ({said})"),
                "Create the bucket, or correct its name",
            ),
            "InvalidObjectState" | "BlobArchived" => (
                Code::Unsupported,
                format!("it is in a storage class that has to be thawed before reading ({said})"),
                "Restore the object with the tools of the service, then run it again",
            ),
            _ if self.is_of_other_region() => return self.of_other_region(said),
            _ if self.is(&FULL_CODES) || self.status == StatusCode::INSUFFICIENT_STORAGE => (
                Code::NoSpace,
                format!("the store is full ({said})"),
                "Delete old backups, or raise the quota",
            ),
            _ => match self.status.as_u16() {
                401 | 403 => (
                    Code::StoreDenied,
                    format!("access denied ({said})"),
                    CHECK_PERMISSIONS,
                ),
                404 => (
                    Code::StoreChanged,
                    format!("it does not exist ({said})"),
                    "Find out what deleted it, and run it again",
                ),
                409 | 412 => (
                    Code::StoreChanged,
                    format!("another process changed it at the same time ({said})"),
                    "Run it again",
                ),
                501 => (
                    Code::Unsupported,
                    format!("the service does not support the request ({said})"),
                    "Use another service, or leave out the option that needs it",
                ),
                429 | 503 => (
                    Code::StoreUnreachable,
                    format!("the service is too busy ({said})"),
                    LATER,
                ),
                status if status >= 500 || self.passes() => (
                    Code::StoreUnreachable,
                    format!("the service failed ({said})"),
                    LATER,
                ),
                _ => (
                    Code::Unsupported,
                    format!("the service refused the request ({said})"),
                    "Check `storageOptions`: the service may not support one of them",
                ),
            },
        };
        (code, reason, remedy.to_string())
    }

    fn skewed(&self) -> (Code, String, String) {
        let seconds = |time: Timestamp| {
            let whole = time.round(Unit::Second).unwrap_or(time);
            whole.to_string()
        };
        let ours = seconds(Timestamp::now());
        let theirs = self
            .service_time
            .map_or_else(|| "another time".to_string(), seconds);
        let reason = format!("the clocks differ too much: it is {ours} here, and {theirs} there");
        let remedy = "Set the clock of this machine, for example with NTP, and run it again";
        (Code::StoreDenied, reason, remedy.to_string())
    }

    fn of_other_region(&self, said: String) -> (Code, String, String) {
        let (reason, remedy) = match &self.region {
            Some(region) => (
                format!("the bucket lies in the region {region} ({said})"),
                format!(
                    "Set `region` in `storageOptions` to `{region}`, or AWS_REGION, and check \
                     `endpoint`"
                ),
            ),
            None => (
                format!("the bucket lies in another region or at another address ({said})"),
                "Correct `region` and `endpoint` in `storageOptions`, or AWS_REGION and \
                 AWS_ENDPOINT_URL"
                    .to_string(),
            ),
        };
        (Code::InvalidOption, reason, remedy)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error("reach the service").message)
    }
}

impl StdError for Failure {}

/// Returns the text of an element of XML without children. The errors of all services are that flat.
pub fn element(xml: &[u8], name: &str) -> Option<String> {
    elements(std::str::from_utf8(xml).ok()?, name)
        .next()
        .map(unescaped)
}

/// Returns what stands between the tags of each element of that name.
pub fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let start = rest.find(&open)?.checked_add(open.len())?;
        let inner = rest.get(start..)?;
        let (text, after) = inner.split_once(&close)?;
        rest = after;
        Some(text)
    })
}

pub fn unescaped(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">");
    let text = text.replace("&quot;", "\"").replace("&#34;", "\"");
    let text = text.replace("&apos;", "'").replace("&#39;", "'");
    text.replace("&amp;", "&")
}

/// Returns a text only if it is a single word, because it becomes part of a message.
fn word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    match text.len() <= 64 && text.chars().all(is_plain) {
        true => text.to_string(),
        false => String::new(),
    }
}

/// Returns the text of the innermost cause, without Rust's "(os error N)".
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    // A URL may contain a signature.
    match text.contains("://") || text.contains("X-Amz-") {
        true => "details withheld".to_string(),
        false => text.chars().take(200).collect(),
    }
}
