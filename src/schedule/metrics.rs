//! How the backups of a project stand, for Prometheus: a text that OpenMetrics and the older format have in common, as a file for the
//! textfile collector of node_exporter (<https://github.com/prometheus/node_exporter#textfile-collector>).

use std::{fmt::Write as _, fs, io::Write as _, os::unix::fs::PermissionsExt, path::Path};

use jiff::Timestamp;

use super::{
    history::History,
    status::{Status, status},
};
use crate::{
    durable,
    error::{Error, Result},
    project::Project,
    settings::Settings,
    store::Store,
};

/// Writes the file, whole or not at all. Everybody may read it: the collector is another user.
pub fn write(path: &Path, project: &Project, store: &Store, settings: &Settings) -> Result<()> {
    let status = status(Some(project), store, settings, Timestamp::now())?;
    let text = render(&status, &History::read(project), &project.root().display().to_string());
    let failed = |cause| Error::io("write", path, cause);
    let path = std::path::absolute(path).map_err(failed)?;
    let mut file = durable::partial(path.parent().unwrap_or(&path))?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).map_err(failed)?;
    durable::publish(file, &path)
}

/// Metrics that are not known are left out. Times are seconds since the epoch.
fn render(status: &Status, history: &History, project: &str) -> String {
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let succeeded = history.runs.iter().rev().find(|run| run.backup.is_some());
    let failed = history.runs.iter().rev().find(|run| run.error.is_some());
    let last_success = succeeded
        .map(|run| run.started_at + run.duration_ms)
        .max(status.latest.as_ref().map(|latest| latest.timestamp));
    let latest = status.latest.as_ref();
    let kinds = &status.by_type;
    let one = |value: Option<f64>| value.into_iter().map(|value| (String::new(), value)).collect::<Vec<_>>();
    let by_type = [("full", kinds.full), ("incremental", kinds.incremental), ("snapshot", kinds.snapshot)];
    let by_type = by_type.map(|(kind, count)| (format!(",type=\"{kind}\""), count as f64)).to_vec();
    let metrics = [
        ("last_success_timestamp_seconds", "When the last backup was made.", one(last_success.map(seconds))),
        (
            "last_failure_timestamp_seconds",
            "When the last attempt failed.",
            one(failed.map(|run| seconds(run.started_at + run.duration_ms))),
        ),
        ("last_duration_seconds", "How long the last backup took.", one(succeeded.map(|run| seconds(run.duration_ms)))),
        ("last_size_bytes", "Size of the newest archive.", one(latest.map(|latest| latest.size as f64))),
        (
            "last_source_size_bytes",
            "Size of what the newest backup saved, before compression.",
            one(latest.map(|latest| latest.stats.total_size as f64)),
        ),
        ("kept", "Backups that are kept.", by_type),
        ("kept_size_bytes", "Size of all archives.", one(Some(status.total_size as f64))),
        (
            "chain_length",
            "Archives that a restore of the newest backup reads.",
            one(latest.map(|_| status.chains.newest_length as f64)),
        ),
        (
            "retention_failures",
            "Old backups that the last backup could not remove.",
            one(succeeded.map(|run| f64::from(run.retention_failures))),
        ),
        ("next_run_timestamp_seconds", "When the next run is due.", one(status.next_run.map(seconds))),
        (
            "healthy",
            "1 where `kg diag backup --status` finds nothing to see to.",
            one(Some(f64::from(u8::from(status.health.ok)))),
        ),
    ];
    let project = project.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut text = String::new();
    for (name, help, values) in metrics {
        if values.is_empty() {
            continue;
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, "# HELP kg_backup_{name} {help}\n# TYPE kg_backup_{name} gauge");
        for (labels, value) in values {
            let _ = writeln!(text, "kg_backup_{name}{{project=\"{project}\"{labels}}} {value}");
        }
    }
    text.push_str("# EOF\n");
    text
}
