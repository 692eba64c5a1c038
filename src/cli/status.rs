//! `kg diag status`: the state of the backups of a project.

use std::path::Path;

use clap::Args;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::{
    args::{Common, StoreDir},
    list,
    option_flags::translate,
    output::{Output, code_of, integrity, size},
};
use crate::{
    config::Settings,
    error::{Result, Warning},
    project::Project,
    schedule::cron::time_zone,
    service::{
        Holder,
        copies::Copies,
        history::HookFailure,
        status::{self, Status},
    },
    store::Store,
    util::{age::age, wording},
};

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    store: StoreDir,
}

pub fn run(args: &StatusArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let mut unusable = Vec::new();
    let settings = Settings::read(&root, &mut unusable);
    let store = args.store.open(&root, &settings)?;
    assert_meant(&args.common, &root, &store, args.store.is_named())?;
    status(&root, &store, &settings, &unusable, output)
}

/// Fails if the project or the store that the user names does not exist, or if the user names no
/// store and there is no project. A missing store that the settings name, or that had backups at the
/// last run, is a part of the status.
pub fn assert_meant(
    common: &Common,
    root: &Path,
    store: &Store,
    is_store_named: bool,
) -> Result<()> {
    if common.named_project().is_some() || !is_store_named {
        Project::open(root)?;
    }
    if is_store_named
        && let Err(missing) = list::assert_exists(store, root)
        && list::emptied(store, &[]).is_empty()
    {
        return Err(missing);
    }
    Ok(())
}

/// Prints the status and returns the exit status. `warnings` are those of the settings.
pub fn status(
    root: &Path,
    store: &Store,
    settings: &Settings,
    warnings: &[Warning],
    output: &Output,
) -> Result<u8> {
    let project = Project::open(root).ok();
    let mut status = status::status(project.as_ref(), store, settings, Timestamp::now())?;
    let found = project.as_ref().map(Holder::find).transpose();
    if let Err(error) = &found {
        status.health.ok = false;
        status.health.messages.push(format!(
            "whether a service is running cannot be determined: {}",
            error.message
        ));
    }
    let service = found.unwrap_or_default().flatten();
    // The store is in use: by the scheduled run, or by the writer that it waits for.
    let is_in_progress = service.is_some() && store.is_in_use();
    if is_in_progress {
        status.health = status.health_when(false);
    }
    // An unusable setting may be one that backups depend on.
    status.health.ok &= warnings.is_empty();
    status
        .health
        .messages
        .extend(warnings.iter().map(|warning| warning.message.clone()));
    for message in &mut status.health.messages {
        *message = translate(message);
    }
    let mut result = serde_json::to_value(&status).unwrap_or_default();
    result["service"] = json!(service);
    result["inProgress"] = json!(is_in_progress);
    result["warnings"] = json!(warnings);
    output.result(&result);
    output.warnings(warnings);
    let shown = project
        .as_ref()
        .zip(service.as_ref())
        .map(|(project, service)| service.shown(project));
    let schedule = match settings.are_unusable() {
        true => "unknown: the configuration cannot be used".into(),
        false => schedule(&status, shown.as_deref()),
    };
    print_status(&status, schedule, is_in_progress, output);
    Ok(0)
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

fn print_status(status: &Status, schedule: String, is_in_progress: bool, output: &Output) {
    output.line(format!("Backups in {}", status.backup_dir.display()));
    let mut rows = vec![("schedule", schedule)];
    rows.extend(newest_rows(status));
    if is_in_progress {
        rows.push((
            "now",
            "a backup is being made, or waits for another writer".into(),
        ));
    }
    rows.extend(next_run(status).map(|next| ("next", next)));
    rows.extend(store_rows(status));
    rows.extend(status.copies.as_ref().map(copies_row));
    rows.extend(problem_rows(status));
    rows.push(("health", health(status)));
    for (name, text) in rows {
        output.line(format!("  {name:9} {text}"));
    }
}

/// A row of the status: a name and a text.
type Row = (&'static str, String);

/// Returns the rows about the newest backup.
fn newest_rows(status: &Status) -> Vec<Row> {
    let Some(latest) = &status.latest else {
        let text = if status.unread > 0 {
            "unknown, because some backups cannot be read"
        } else {
            "none yet: make one with `kg diag backup`"
        };
        return vec![("last", text.into())];
    };
    let took = status
        .last_run
        .as_ref()
        .filter(|run| run.backup.as_ref() == Some(&latest.id))
        .map(|run| format!(", took {:.1} s", run.duration_ms as f64 / 1000.0))
        .unwrap_or_default();
    let made = date(latest.timestamp, &TimeZone::UTC);
    let last = format!(
        "{made} UTC, {} ({}, {}{took})",
        ago(latest.timestamp),
        latest.id,
        code_of(&latest.kind)
    );
    vec![("last", last), ("database", integrity(latest))]
}

/// Returns the rows about all backups in the store.
fn store_rows(status: &Status) -> Vec<Row> {
    let mut rows = Vec::new();
    if status.count > 0 {
        let (count, total) = (status.count, size(status.total_size));
        let kept = format!(
            "{}, {total}: {}",
            wording::count(count, "backup"),
            types(status)
        );
        let newest = size(*status.sizes.last().unwrap_or(&0));
        let sizes = format!("{}  newest {newest}", bars(&status.sizes));
        rows.extend([("kept", kept), ("sizes", sizes)]);
    }
    if status.others > 0 {
        let count = status.others;
        let others = format!(
            "{count} of these {} to other projects, or to this project before it was moved; \
             retention does not remove them",
            wording::agree(count, "belongs", "belong")
        );
        rows.push(("others", others));
    }
    if status.chains.count > 0 {
        let length = status.chains.newest_length;
        let chains = format!(
            "{}; a restore of the newest backup reads {length}",
            status.chains.count
        );
        rows.push(("chains", chains));
    }
    rows
}

/// Returns the row about the second store.
fn copies_row(copies: &Copies) -> Row {
    let target = copies.target.display();
    let newest = match &copies.newest {
        Some(newest) => format!("newest {newest}"),
        None => "none yet".into(),
    };
    let missing = match copies.missing {
        0 => "nothing is missing".into(),
        1 => "the newest backup of this store is missing there".into(),
        missing => format!("the newest {missing} of this store are missing there"),
    };
    ("copies", format!("in {target}: {newest}; {missing}"))
}

/// Returns the number of backups of each type, such as `2 full, 1 snapshot`.
fn types(status: &Status) -> String {
    let counts = &status.by_type;
    let counts = [
        (counts.full, "full"),
        (counts.incremental, "incremental"),
        (counts.snapshot, "snapshot"),
    ];
    let present: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    present.join(", ")
}

/// Returns the rows about the warnings of the last run and about hooks that failed.
fn problem_rows(status: &Status) -> Vec<Row> {
    let warnings = status.last_run.iter().flat_map(|run| &run.warnings);
    let warnings = warnings.map(|warning| {
        let text = format!(
            "of the last run: {} [{}]",
            translate(&warning.message),
            code_of(&warning.code)
        );
        ("warning", text)
    });
    let failures = status.hook_failures.iter();
    let failures = failures.map(|failure| ("hook", hook_failure(failure)));
    let hook_warnings = status.hook_warnings.iter();
    let hook_warnings = hook_warnings.map(|warning| ("hooks", warning.clone()));
    warnings.chain(failures).chain(hook_warnings).collect()
}

fn health(status: &Status) -> String {
    if status.health.ok {
        "ok".into()
    } else {
        status.health.messages.join("; ")
    }
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
