//! Fuzzes cron expressions and time zones. Each time must be later than the one before it.
#![no_main]

use jiff::Timestamp;
use kg_backup::internals::schedule::cron::Cadence;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (expression, zone) = match text.split_once('\n') {
        Some((expression, zone)) => (expression, Some(zone)),
        None => (text, Some("UTC")),
    };
    let Ok(cadence) = Cadence::parse(expression, zone) else {
        return;
    };
    let mut at: Timestamp = "2026-03-28T12:00:00Z".parse().expect("a time");
    for _ in 0..5 {
        let Some(next) = cadence.next(at) else { return };
        assert!(next > at, "{next} is not after {at}");
        at = next;
    }
});
