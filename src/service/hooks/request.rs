//! Calls the URL of a hook. A webhook is a POST of the event, signed if there is a secret. A
//! heartbeat is a GET.
//!
//! If a receiver is unreachable, too busy or broken (429, 5xx), the call is retried after a pause
//! with the same `KG-Delivery`. If a receiver refuses (any other 4xx), the call is not retried.
//! Redirects are not followed, because a redirect could lead an event to another party.
//!
//! Certificates are checked against the Mozilla roots that this executable contains, as in Node,
//! because a slim container has none. `SSL_CERT_FILE` names other roots, for the certificate
//! authority of a company.

use std::{
    env, fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use sha2::Sha256;
use ureq::{
    Agent,
    http::{Request, Uri},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::event::Event;
use crate::util::{hex::hex, operation::CancelToken};

const USER_AGENT: &str = concat!("kg/", env!("CARGO_PKG_VERSION"));
const CERTIFICATES_VARIABLE: &str = "SSL_CERT_FILE";
/// The pause before the first retry. It doubles before each further retry.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// The kind of request.
pub enum Call<'a> {
    Webhook { secret: Option<&'a [u8]> },
    Heartbeat,
}

/// The limits of a call.
pub struct Patience<'a> {
    /// The time limit for the whole call, including retries and pauses.
    pub limit: Duration,
    pub retries: u32,
    pub cancel: &'a CancelToken,
}

/// The result of one attempt.
enum Answer {
    Good(u16),
    /// A retry may succeed.
    Later(String),
    Refused(String),
}

/// Calls the URL. Returns the answer, or why the call failed.
pub fn call(url: &str, call: &Call, event: &Event, patience: &Patience) -> Result<String, String> {
    let deadline = Instant::now() + patience.limit;
    let certificates = certificates()?;
    let body = event.json();
    let mut pause = FIRST_PAUSE;
    for attempt in 0..=patience.retries {
        let left = deadline.saturating_duration_since(Instant::now());
        let said = match attempt_once(url, call, event, &body, certificates.clone(), left) {
            Answer::Good(status) => return Ok(format!("answered {status}")),
            Answer::Refused(said) => return Err(said),
            Answer::Later(said) => said,
        };
        let tries = if attempt == 0 {
            String::new()
        } else {
            format!(", {} times", attempt + 1)
        };
        if attempt == patience.retries
            || Instant::now() + pause >= deadline
            || !sleep(pause, patience.cancel)
        {
            return Err(format!("{said}{tries}"));
        }
        pause *= 2;
    }
    Err("was not called".into())
}

fn attempt_once(
    url: &str,
    call: &Call,
    event: &Event,
    body: &str,
    roots: RootCerts,
    limit: Duration,
) -> Answer {
    let config = Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(USER_AGENT)
        .tls_config(TlsConfig::builder().root_certs(roots).build());
    let agent = Agent::new_with_config(config.build());
    let mut request = Request::builder().uri(url);
    if let Some(credentials) = credentials(url) {
        request = request.header("Authorization", credentials);
    }
    let answered = match call {
        Call::Heartbeat => request
            .method("GET")
            .body(())
            .map(|request| agent.run(request)),
        Call::Webhook { secret } => {
            request = request
                .method("POST")
                .header("Content-Type", "application/json")
                .header("KG-Event", event.event.name())
                .header("KG-Delivery", &event.id);
            if let Some(secret) = secret {
                request = request.header(
                    "KG-Signature",
                    signature(secret, Timestamp::now().as_second(), body),
                );
            }
            request.body(body).map(|request| agent.run(request))
        }
    };
    match answered {
        Err(_) => Answer::Refused("is not a URL that can be called".into()),
        Ok(Ok(response)) => match response.status().as_u16() {
            status @ 200..=299 => Answer::Good(status),
            status @ 300..=399 => {
                Answer::Refused(format!("answered {status}: redirects are not followed"))
            }
            status @ (429 | 500..=599) => Answer::Later(format!("answered {status}")),
            status => Answer::Refused(format!("answered {status}")),
        },
        Ok(Err(ureq::Error::Timeout(_))) => Answer::Later("did not answer in time".into()),
        // The message of this error would reveal the URL.
        Ok(Err(ureq::Error::BadUri(_))) => {
            Answer::Refused("is not a URL that can be called".into())
        }
        Ok(Err(error)) => Answer::Later(format!("could not be called: {error}")),
    }
}

/// Returns `t=<unix seconds>,v1=<HMAC-SHA256 of "t.body">`. A receiver that knows the secret can
/// verify the sender and the age of the event.
fn signature(secret: &[u8], at: i64, body: &str) -> String {
    // An HMAC key may have any length.
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret)
        .unwrap_or_else(|_| unreachable!("any length will do"));
    mac.update(format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex(&mac.finalize().into_bytes()))
}

/// Returns the `Authorization` header for the credentials in `https://user:password@host`.
fn credentials(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    let (credentials, _) = url.authority()?.as_str().rsplit_once('@')?;
    let decoded: Vec<u8> = percent_decode_str(credentials).collect();
    Some(format!("Basic {}", BASE64_STANDARD.encode(decoded)))
}

fn certificates() -> Result<RootCerts, String> {
    let Some(file) = env::var_os(CERTIFICATES_VARIABLE).filter(|file| !file.is_empty()) else {
        return Ok(RootCerts::WebPki);
    };
    let file = Path::new(&file);
    let failed = |what: String| {
        format!(
            "cannot be called: {CERTIFICATES_VARIABLE}, {}: {what}",
            file.display()
        )
    };
    let text = fs::read(file).map_err(|cause| failed(cause.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|cause| failed(cause.to_string()))?
        {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(failed("it contains no certificate".into()));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// Waits for `pause`. Returns `false` if `cancel` cut it short.
fn sleep(pause: Duration, cancel: &CancelToken) -> bool {
    let until = Instant::now() + pause;
    while Instant::now() < until && !cancel.is_cancelled() {
        thread::sleep(POLL);
    }
    !cancel.is_cancelled()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_hmac_of_time_and_body() {
        // The expected value comes from `printf '1700000000.{}' | openssl dgst -sha256 -hmac key`.
        let expected =
            "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae";
        assert_eq!(signature(b"key", 1_700_000_000, "{}"), expected);
    }

    #[test]
    fn credentials_of_a_url_are_a_header() {
        assert_eq!(
            credentials("https://me:p%40ss@host/x").as_deref(),
            Some("Basic bWU6cEBzcw==")
        );
        assert_eq!(credentials("https://host/x@y"), None);
    }
}
