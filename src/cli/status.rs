//! `kg diag backup --status` as text.

use jiff::{Timestamp, tz::TimeZone};

use super::output::{Output, code_of, size};
use crate::{
    schedule::cron::time_zone,
    service::{history::HookFailure, status::Status},
    util::age::age,
};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub fn tell(status: &Status, service: Option<&str>, is_in_progress: bool, output: &Output) {
    let row = |name: &str, text: String| output.line(format!("  {name:9} {text}"));
    output.line(format!("Backups in {}", status.backup_dir.display()));
    row("schedule", schedule(status, service));
    match &status.latest {
        None if status.unread > 0 => {
            row(
                "last",
                "unknown, because some backups cannot be read".into(),
            );
        }
        None => row("last", "none yet: make one with `kg diag backup`".into()),
        Some(latest) => {
            let took = status
                .last_run
                .as_ref()
                .filter(|run| run.backup.as_ref() == Some(&latest.id));
            let took = took
                .map(|run| format!(", took {:.1} s", run.duration_ms as f64 / 1000.0))
                .unwrap_or_default();
            let made = date(latest.timestamp, &TimeZone::UTC);
            row(
                "last",
                format!(
                    "{made} UTC, {} ({}, {}{took})",
                    ago(latest.timestamp),
                    latest.id,
                    code_of(&latest.kind)
                ),
            );
            row("database", crate::cli::output::integrity(latest));
        }
    }
    if is_in_progress {
        row(
            "now",
            "a backup is being made, or waits for another writer".into(),
        );
    }
    if let Some(next) = next_run(status) {
        row("next", next);
    }
    if status.count > 0 {
        let kinds = &status.by_type;
        let kinds = [
            (kinds.full, "full"),
            (kinds.incremental, "incremental"),
            (kinds.snapshot, "snapshot"),
        ];
        let kinds: Vec<String> = kinds
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, kind)| format!("{count} {kind}"))
            .collect();
        row(
            "kept",
            format!(
                "{} backups, {}: {}",
                status.count,
                size(status.total_size),
                kinds.join(", ")
            ),
        );
        row(
            "sizes",
            format!(
                "{}  newest {}",
                bars(&status.sizes),
                size(*status.sizes.last().unwrap_or(&0))
            ),
        );
    }
    if status.others > 0 {
        let count = status.others;
        row(
            "others",
            format!(
                "{count} of these belong to other projects, or to this project before it was \
                 moved; retention does not remove them"
            ),
        );
    }
    if status.chains.count > 0 {
        let length = status.chains.newest_length;
        row(
            "chains",
            format!(
                "{}; a restore of the newest backup reads {length}",
                status.chains.count
            ),
        );
    }
    for warning in status.last_run.iter().flat_map(|run| &run.warnings) {
        row(
            "warning",
            format!(
                "of the last run: {} [{}]",
                warning.message,
                code_of(&warning.code)
            ),
        );
    }
    for failure in &status.hook_failures {
        row("hook", hook_failure(failure));
    }
    for warning in &status.hook_warnings {
        row("hooks", warning.clone());
    }
    row(
        "health",
        if status.health.ok {
            "ok".into()
        } else {
            status.health.messages.join("; ")
        },
    );
}

/// Formats the time of the next run in the time zone of the schedule.
pub fn next_run(status: &Status) -> Option<String> {
    let next = status.next_run?;
    let zone = time_zone(status.timezone.as_deref()).unwrap_or(TimeZone::UTC);
    Some(format!(
        "{} {}",
        date(next, &zone),
        zone.iana_name().unwrap_or("local time")
    ))
}

pub fn hook_failure(failure: &HookFailure) -> String {
    format!(
        "{} failed {}: {}",
        failure.hook,
        ago(failure.at),
        failure.message
    )
}

fn schedule(status: &Status, service: Option<&str>) -> String {
    let Some(schedule) = &status.schedule else {
        return "none: set one with `kg config set backup.schedule \"0 2 * * *\"`".into();
    };
    let zone = status
        .timezone
        .as_ref()
        .map(|zone| format!(" in {zone}"))
        .unwrap_or_default();
    let schedule = format!("{schedule}{zone}, {}", code_of(&status.kind));
    match (status.enabled, service) {
        (false, _) => format!("{schedule}; not enabled: `kg config set backup.enabled true`"),
        (true, Some(process)) => format!("{schedule}; the service runs as {process}"),
        (true, None) => format!("{schedule}; no service runs: `kg serve --all`"),
    }
}

/// Draws one bar for each size. The largest size has the highest bar.
fn bars(sizes: &[u64]) -> String {
    let most = sizes.iter().copied().max().unwrap_or(0).max(1);
    sizes
        .iter()
        .map(|size| BARS[(size * (BARS.len() as u64 - 1)).div_ceil(most) as usize % BARS.len()])
        .collect()
}

pub fn date(timestamp: i64, zone: &TimeZone) -> String {
    let at = Timestamp::from_millisecond(timestamp).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(zone.clone())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Formats the time since `timestamp`, such as `3 h ago`.
pub fn ago(timestamp: i64) -> String {
    let past =
        u64::try_from(Timestamp::now().as_millisecond().saturating_sub(timestamp)).unwrap_or(0);
    format!("{} ago", age(past))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_has_the_highest_bar_and_nothing_the_lowest() {
        assert_eq!(bars(&[0, 1, 50, 100]), "▁▂▅█");
        assert_eq!(bars(&[7]), "█");
        assert_eq!(bars(&[]), "");
        assert_eq!(bars(&[0]), "▁");
    }
}
