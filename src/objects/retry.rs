//! How often a request is sent, and how long to wait in between.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};

/// With the waits below, a request is tried for about twelve seconds.
pub const MOST_ATTEMPTS: u32 = 6;
/// A host that refuses connections or does not exist rarely recovers at once.
pub const MOST_CONNECTS: u32 = 4;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Returns the wait after that attempt, counted from 1. `retry_after` is what the service asked for.
pub fn wait(attempt: u32, retry_after: Option<Duration>) -> Duration {
    if let Some(asked) = retry_after {
        return asked.min(LONGEST_RETRY_AFTER);
    }
    let factor = 3_u32.saturating_pow(attempt.saturating_sub(1));
    let longest = FIRST_WAIT.saturating_mul(factor).min(LONGEST_WAIT);
    // Clients that failed together must not come back together.
    longest.mul_f64(0.5 + 0.5 * random_fraction())
}

/// Reads `Retry-After`: seconds, or a date.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = http_date(value)?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// Reads a date of HTTP, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn http_date(value: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(value).ok()
}

fn random_fraction() -> f64 {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let total: Duration = (1..MOST_ATTEMPTS).map(|attempt| wait(attempt, None)).sum();
        assert!(total >= Duration::from_secs(5) && total < Duration::from_secs(14));
        assert_eq!(
            wait(1, Some(Duration::from_secs(3_600))),
            LONGEST_RETRY_AFTER
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(now.to_string(), "1994-11-06T08:49:37Z");
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        let later = "Sun, 06 Nov 1994 08:49:40 GMT";
        assert_eq!(retry_after(later, now), Some(Duration::from_secs(3)));
        let earlier = "Sun, 06 Nov 1994 08:49:30 GMT";
        assert_eq!(retry_after(earlier, now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }
}
