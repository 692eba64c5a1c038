//! The times that a cron expression specifies in a time zone.
//!
//! The croner crate handles clock changes like Vixie cron. A fixed time of day that a clock change
//! skips happens right after the change; one that is repeated happens once. Expressions with `*` or
//! steps for the minute or hour follow the running clock.

use std::fmt;

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    error::{Error, Result},
    util::wording,
};

const FIELDS: [&str; 6] = [
    "second",
    "minute",
    "hour",
    "day of the month",
    "month",
    "day of the week",
];
const NICKNAMES: [&str; 6] = [
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@hourly",
];

/// A cron expression in a time zone.
#[derive(Clone)]
pub struct Cadence {
    cron: Cron,
    zone: TimeZone,
}

impl fmt::Debug for Cadence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {:?}", self.cron.pattern, self.zone.iana_name())
    }
}

impl Cadence {
    /// Parses an expression. `zone` is an IANA name; `None` means the time zone of the system.
    pub fn parse(expression: &str, zone: Option<&str>) -> Result<Self> {
        let cron = parse(expression).map_err(|cause| refuse(expression, &cause))?;
        let cadence = Cadence {
            cron,
            zone: time_zone(zone)?,
        };
        if cadence.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(invalid(format!(
                "The schedule `{expression}` never occurs: there is no such day"
            )));
        }
        Ok(cadence)
    }

    /// Returns the first time after `after`, or `None` at the end of the calendar.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after = after.to_zoned(self.zone.clone());
        self.cron
            .find_next_occurrence(&after, false)
            .ok()
            .map(|found| found.timestamp())
    }
}

pub fn time_zone(name: Option<&str>) -> Result<TimeZone> {
    let Some(name) = name else {
        return Ok(TimeZone::system());
    };
    TimeZone::get(name).map_err(|_| {
        Error::invalid(
            format!("`{name}` is not a time zone"),
            "Give a name from the IANA database, for example Europe/Berlin or UTC",
        )
    })
}

fn parse(expression: &str) -> std::result::Result<Cron, String> {
    let parser = CronParser::builder()
        .seconds(Seconds::Optional)
        .year(Year::Disallowed)
        .build();
    parser.parse(expression).map_err(|cause| cause.to_string())
}

/// Reports which field is wrong: the one that is still refused when all others are `*`.
fn refuse(expression: &str, cause: &str) -> Error {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    if expression.trim_start().starts_with('@') {
        return invalid(format!(
            "The schedule `{expression}` is not one of {}",
            NICKNAMES.join(", ")
        ));
    }
    if !(5..=6).contains(&fields.len()) {
        return invalid(format!(
            "The schedule `{expression}` has {} instead of five or six",
            wording::count(fields.len(), "field")
        ));
    }
    let names = &FIELDS[FIELDS.len() - fields.len()..];
    for (place, (field, name)) in fields.iter().zip(names).enumerate() {
        let mut alone = vec!["*"; fields.len()];
        alone[place] = field;
        if let Err(cause) = parse(&alone.join(" ")) {
            let ordinal = place + 1;
            return invalid(format!(
                "Field {ordinal} of the schedule `{expression}`, the {name} `{field}`: {cause}"
            ));
        }
    }
    invalid(format!(
        "The schedule `{expression}` is not a cron expression: {cause}"
    ))
}

fn invalid(message: String) -> Error {
    Error::invalid(
        message.trim_end_matches('.'),
        "Write minute, hour, day of the month, month and day of the week, for example `0 2 * * *` for daily at 2:00",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(expression: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let cadence = Cadence::parse(expression, Some(zone)).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        let mut found = Vec::new();
        for _ in 0..count {
            at = cadence.next(at).unwrap();
            found.push(at.to_string());
        }
        found
    }

    #[test]
    fn a_time_that_the_spring_skips_happens_right_after_the_change() {
        let berlin = times("30 2 * * *", "Europe/Berlin", "2024-03-29T12:00:00Z", 3);
        assert_eq!(
            berlin,
            [
                "2024-03-30T01:30:00Z",
                "2024-03-31T01:00:00Z",
                "2024-04-01T00:30:00Z"
            ]
        );
        let new_york = times("30 2 * * *", "America/New_York", "2024-03-09T12:00:00Z", 2);
        assert_eq!(new_york, ["2024-03-10T07:00:00Z", "2024-03-11T06:30:00Z"]);
    }

    #[test]
    fn a_time_that_the_autumn_repeats_happens_once() {
        let berlin = times("30 2 * * *", "Europe/Berlin", "2024-10-26T12:00:00Z", 2);
        assert_eq!(berlin, ["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"]);
        let new_york = times("30 1 * * *", "America/New_York", "2024-11-02T12:00:00Z", 2);
        assert_eq!(new_york, ["2024-11-03T05:30:00Z", "2024-11-04T06:30:00Z"]);
    }

    #[test]
    fn every_hour_means_every_hour_that_passes_whatever_clocks_do() {
        for (after, first) in [("2024-03-30T23:30:00Z", 31), ("2024-10-26T22:30:00Z", 27)] {
            let found = times("0 * * * *", "Europe/Berlin", after, 6);
            let gaps: Vec<i64> = found
                .windows(2)
                .map(|pair| {
                    let [a, b] =
                        [&pair[0], &pair[1]].map(|at| at.parse::<Timestamp>().unwrap().as_second());
                    b - a
                })
                .collect();
            assert_eq!(gaps, [3600; 5], "around the {first}th");
        }
    }

    #[test]
    fn seconds_names_last_days_and_nicknames_are_understood() {
        let after = "2024-02-27T00:00:00Z";
        assert_eq!(
            times("*/20 * * * * *", "UTC", after, 2),
            ["2024-02-27T00:00:20Z", "2024-02-27T00:00:40Z"]
        );
        assert_eq!(
            times("0 3 L * *", "UTC", after, 2),
            ["2024-02-29T03:00:00Z", "2024-03-31T03:00:00Z"]
        );
        assert_eq!(
            times("0 3 * * fri#2", "UTC", after, 1),
            ["2024-03-08T03:00:00Z"]
        );
        assert_eq!(
            times("0 3 1 JAN *", "UTC", after, 1),
            ["2025-01-01T03:00:00Z"]
        );
        assert_eq!(
            times("@daily", "Asia/Tokyo", after, 1),
            ["2024-02-27T15:00:00Z"]
        );
    }

    #[test]
    fn a_wrong_expression_is_refused_with_the_field_that_is_wrong() {
        let cases = [
            (
                "61 * * * *",
                "Field 1 of the schedule `61 * * * *`, the minute `61`",
            ),
            (
                "0 25 * * *",
                "Field 2 of the schedule `0 25 * * *`, the hour `25`",
            ),
            (
                "0 0 2 x * *",
                "Field 4 of the schedule `0 0 2 x * *`, the day of the month `x`",
            ),
            ("0 2 * *", "has 4 fields instead of five or six"),
            ("0 0 2 * * * 2030", "has 7 fields instead of five or six"),
            ("@sometimes", "is not one of @yearly"),
            ("", "has 0 fields"),
            ("0 2 30 2 *", "never occurs"),
        ];
        for (expression, said) in cases {
            let error = Cadence::parse(expression, Some("UTC")).unwrap_err();
            assert_eq!(error.code.as_str(), "KG_INVALID_OPTION");
            assert!(error.message.contains(said), "{}", error.message);
        }
        let error = Cadence::parse("0 2 * * *", Some("Europe/Nowhere")).unwrap_err();
        assert!(error.message.contains("Europe/Nowhere"));
    }
}
