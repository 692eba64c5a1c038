//! Turns a request and the published state of the loop into a response. Reads nothing else and
//! changes nothing.

use std::{net::IpAddr, sync::Arc, time::Instant};

use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Bytes,
    header::{self, HeaderValue},
    http::uri::Authority,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::service::{
    metrics::{Facts, Format},
    state::{Seen, ServiceState},
    status::Health,
};

const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub struct Answerer {
    pub board: Arc<ServiceState>,
    /// Only clients on this machine may send requests.
    pub is_private: bool,
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Answerer {
    pub fn answer<Body>(&self, request: &Request<Body>) -> Response<Full<Bytes>> {
        let answer = self.choose(request);
        let is_refused = answer.status == StatusCode::METHOD_NOT_ALLOWED;
        let mut response = Response::new(Full::new(answer.body.into()));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(answer.content_type),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if is_refused {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    fn choose<Body>(&self, request: &Request<Body>) -> Answer {
        if self.is_private && !is_for_this_machine(request) {
            return refusal(
                StatusCode::FORBIDDEN,
                "the service listens for this machine only: use localhost or an IP address in the \
                 URL",
            );
        }
        let path = request.uri().path();
        if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
            return refusal(
                StatusCode::NOT_FOUND,
                "not found; use /healthz, /readyz or /metrics",
            );
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD");
        }
        let seen = self.board.seen();
        match path {
            "/healthz" => judged(
                &seen.liveness(Instant::now()),
                json!({ "pid": std::process::id() }),
            ),
            "/readyz" => self.readiness(&seen),
            _ => self.metrics(&seen, request.headers()),
        }
    }

    fn readiness(&self, seen: &Seen) -> Answer {
        let status = seen.status.as_ref().as_ref().ok();
        let about = json!({
            "project": self.board.project,
            "runningSince": seen.running_since,
            "nextRun": status.and_then(|status| status.next_run),
            "lastSuccess": status.and_then(|status| status.succeeded_at()),
            "lastFailure": status.and_then(|status| status.failed_at()),
        });
        judged(&seen.health(now()), about)
    }

    fn metrics(&self, seen: &Seen, headers: &HeaderMap) -> Answer {
        let facts = Facts {
            project: &self.board.project,
            status: seen.status.as_ref().as_ref().ok(),
            is_healthy: seen.health(now()).ok,
            activity: Some(seen.activity()),
        };
        let (format, content_type) = match accepts_open_metrics(headers) {
            true => (Format::OpenMetrics, OPEN_METRICS),
            false => (Format::Prometheus, PROMETHEUS),
        };
        Answer {
            status: StatusCode::OK,
            content_type,
            body: facts.render(format),
        }
    }
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Builds the response. The health comes first in the body, so that a person sees problems at once.
fn judged(health: &Health, about: Value) -> Answer {
    let mut body = json!(health);
    if let (Value::Object(body), Value::Object(about)) = (&mut body, about) {
        body.extend(about);
    }
    let status = if health.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Answer {
        status,
        content_type: JSON,
        body: format!("{body:#}\n"),
    }
}

fn refusal(status: StatusCode, what_to_do: &str) -> Answer {
    Answer {
        status,
        content_type: JSON,
        body: format!("{:#}\n", json!({ "error": what_to_do })),
    }
}

/// Returns whether the request addresses this machine by one of its own names.
///
/// A web page can resolve its own name to 127.0.0.1 ("DNS rebinding"). A browser on this machine
/// then sends requests under that name, and the page would learn the path of the project. An IP
/// address cannot be rebound.
fn is_for_this_machine<Body>(request: &Request<Body>) -> bool {
    let host = request
        .headers()
        .get(header::HOST)
        .map(|host| host.as_bytes().try_into().ok());
    let asked = [host, request.uri().authority().cloned().map(Some)];
    asked
        .into_iter()
        .flatten()
        .all(|name: Option<Authority>| name.is_some_and(|name| is_own_name(name.host())))
}

fn is_own_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Returns whether the client prefers OpenMetrics 1.0 to the older text format, or accepts both
/// equally.
fn accepts_open_metrics(headers: &HeaderMap) -> bool {
    let accept = headers
        .get_all(header::ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = accept
        .flat_map(|value| value.split(','))
        .map(range)
        .collect();
    let quality = |wanted: &str| {
        let fits = ranges.iter().filter(|(kind, version, _)| {
            kind.eq_ignore_ascii_case(wanted)
                && version.is_none_or(|version| matches!(version, "1.0.0" | "0.0.4"))
        });
        fits.map(|(.., quality)| *quality).fold(0.0, f32::max)
    };
    let open = quality("application/openmetrics-text");
    open > 0.0 && open >= quality("text/plain")
}

/// Splits a media range such as `text/plain;version=0.0.4;q=0.5` into type, version and quality.
fn range(text: &str) -> (&str, Option<&str>, f32) {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let (mut version, mut quality) = (None, 1.0);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.trim().to_ascii_lowercase().as_str() {
            "version" => version = Some(value.trim().trim_matches('"')),
            "q" => quality = value.trim().parse().unwrap_or(0.0),
            _ => {}
        }
    }
    (kind, version, quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(
        is_private: bool,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Response<Full<Bytes>> {
        let board = Arc::new(ServiceState::new("/p".into()));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answerer { board, is_private }.answer(&request.body(()).unwrap())
    }

    #[test]
    fn a_private_address_answers_to_names_of_this_machine_only() {
        let status = |is_private, host| {
            ask(is_private, "GET", "/healthz", &[("host", host)])
                .status()
                .as_u16()
        };
        for host in [
            "localhost",
            "LocalHost:9821",
            "127.0.0.1:9821",
            "[::1]:9821",
            "10.1.2.3",
        ] {
            assert_eq!(status(true, host), 200, "{host}");
        }
        for host in [
            "rebound.example",
            "localhost.rebound.example:9821",
            "127.0.0.1.rebound.example",
            "",
            "a b",
        ] {
            assert_eq!(status(true, host), 403, "{host}");
        }
        assert_eq!(status(false, "kg-backup.monitoring.svc:9821"), 200);
        assert_eq!(
            ask(
                true,
                "GET",
                "http://rebound.example/metrics",
                &[("host", "localhost")]
            )
            .status(),
            403
        );
        // HTTP/1.0 has no such header; browsers always send it.
        assert_eq!(ask(true, "GET", "/healthz", &[]).status(), 200);
    }

    #[test]
    fn only_get_and_head_of_three_paths_are_answered_and_nothing_is_kept_by_caches() {
        for (method, uri, status) in [
            ("GET", "/healthz?a=b", 200),
            ("HEAD", "/metrics", 200),
            ("POST", "/readyz", 405),
            ("OPTIONS", "/metrics", 405),
            ("GET", "/", 404),
            ("GET", "/metrics/", 404),
            ("DELETE", "/.kg/config.json", 404),
        ] {
            let response = ask(false, method, uri, &[]);
            assert_eq!(response.status().as_u16(), status, "{method} {uri}");
            assert_eq!(response.headers()["cache-control"], "no-store");
            assert_eq!(response.headers().contains_key("allow"), status == 405);
        }
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let is_open = |accept| {
            let response = ask(false, "GET", "/metrics", &[("accept", accept)]);
            let kind = response.headers()["content-type"].to_str().unwrap();
            assert!(kind == OPEN_METRICS || kind == PROMETHEUS);
            kind == OPEN_METRICS
        };
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [
            prometheus_2,
            prometheus_3,
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; version=\"1.0.0\"",
        ] {
            assert!(is_open(accept), "{accept}");
        }
        for accept in [
            "*/*",
            "",
            "text/plain",
            "text/html,application/xhtml+xml",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=0.0.1,text/plain;q=0.5",
            "application/openmetrics-text;q=0.2,text/plain;version=0.0.4;q=0.9",
            "application/openmetrics-text;q=many",
        ] {
            assert!(!is_open(accept), "{accept}");
        }
    }
}
