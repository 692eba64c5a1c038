//! Metrics about the backups of a project, for Prometheus: over HTTP (`src/service/http/`), and as
//! a file for the textfile collector of node_exporter
//! (<https://github.com/prometheus/node_exporter#textfile-collector>). `docs/guide/monitor.md`
//! lists the metrics.
//!
//! A metric with an unknown value is omitted. Times are seconds since the epoch.

use std::{fmt::Write as _, io::Write as _, path::Path};

use super::status::Status;
use crate::{
    error::{Error, Result},
    project::Project,
    util::atomic_file,
};

/// The prefix of the name of each metric.
const PREFIX: &str = "kg_backup";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, version 0.0.4, which the textfile collector reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// The data for the metrics.
pub struct Facts<'a> {
    /// The root of the project.
    pub project: &'a str,
    /// `None` if the status could not be determined.
    pub status: Option<&'a Status>,
    pub is_healthy: bool,
    /// The activity of a running service.
    pub activity: Option<Activity>,
}

/// The activity of a service since its start.
#[derive(Debug, Clone, Copy)]
pub struct Activity {
    pub is_running: bool,
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MetricType {
    Gauge,
    Counter,
    Info,
}

struct Metric {
    /// The name after [`PREFIX`], without the suffix of a counter.
    name: &'static str,
    kind: MetricType,
    help: &'static str,
    /// An optional label with its value, and the value of the sample.
    samples: Vec<(Option<(&'static str, &'static str)>, f64)>,
}

/// Writes the file atomically. Every user may read it, because the collector runs as another user.
pub fn write(path: &Path, project: &Project, status: &Status) -> Result<()> {
    let root = project.root().display().to_string();
    let facts = Facts {
        project: &root,
        status: Some(status),
        is_healthy: status.health.ok,
        activity: None,
    };
    let failed = |cause| Error::io("write", path, cause);
    let path = std::path::absolute(path).map_err(failed)?;
    let mut file = atomic_file::TempFile::new(path.parent().unwrap_or(&path))?;
    file.write_all(facts.render(Format::Prometheus).as_bytes())
        .map_err(failed)?;
    file.set_mode(0o644)?;
    file.persist(&path)
}

impl Facts<'_> {
    pub fn render(&self, format: Format) -> String {
        let project = format!("project=\"{}\"", escape(self.project));
        let mut text = String::new();
        for metric in self
            .metrics()
            .iter()
            .filter(|metric| !metric.samples.is_empty())
        {
            metric.render(format, &project, &mut text);
        }
        if format == Format::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = vec![
            Metric {
                name: "",
                kind: MetricType::Info,
                help: "The release of kg.",
                samples: vec![(Some(("version", env!("CARGO_PKG_VERSION"))), 1.0)],
            },
            gauge(
                "healthy",
                "1 if no backup problem needs attention, else 0.",
                Some(flag(self.is_healthy)),
            ),
        ];
        metrics.extend(self.status.map(of_status).into_iter().flatten());
        metrics.extend(self.activity.map(of_activity).into_iter().flatten());
        metrics
    }
}

fn of_status(status: &Status) -> [Metric; 16] {
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let (newest, success) = (status.newest.as_ref(), status.last_success.as_ref());
    let kinds = &status.by_type;
    let copies = status.copies.as_ref();
    let kept = [
        ("full", kinds.full),
        ("incremental", kinds.incremental),
        ("snapshot", kinds.snapshot),
    ];
    [
        gauge(
            "last_success_timestamp_seconds",
            "When the newest backup was made.",
            status.succeeded_at().map(seconds),
        ),
        gauge(
            "last_failure_timestamp_seconds",
            "Time of the last failed attempt.",
            status.failed_at().map(seconds),
        ),
        gauge(
            "last_duration_seconds",
            "How long the last backup took.",
            success.map(|run| seconds(run.duration_ms)),
        ),
        gauge(
            "last_size_bytes",
            "Size of the newest archive and its sidecar.",
            newest.map(|newest| newest.size as f64),
        ),
        gauge(
            "last_source_size_bytes",
            "Size of the data in the newest backup before compression.",
            newest.map(|newest| newest.source_size as f64),
        ),
        gauge(
            "last_incomplete",
            "1 if the newest backup lacks part of the project, else 0.",
            newest.map(|newest| flag(newest.incomplete)),
        ),
        gauge(
            "store_emptied",
            "1 if the store lost all its backups since the last run, or had lost them at the last \
             run, else 0.",
            Some(flag(status.store_emptied)),
        ),
        Metric {
            name: "kept",
            kind: MetricType::Gauge,
            help: "Number of backups in the store.",
            samples: kept
                .map(|(kind, count)| (Some(("type", kind)), count as f64))
                .to_vec(),
        },
        gauge(
            "kept_size_bytes",
            "Size of all archives and their sidecars.",
            Some(status.total_size as f64),
        ),
        gauge(
            "chain_length",
            "Number of archives that a restore of the newest backup reads.",
            newest.map(|newest| newest.chain_length as f64),
        ),
        gauge(
            "retention_failures",
            "Number of old backups that the last backup could not remove.",
            success.map(|run| f64::from(run.retention_failures)),
        ),
        gauge(
            "copy_last_timestamp_seconds",
            "When the newest backup in the second store was made.",
            copies
                .and_then(|copies| copies.newest_timestamp)
                .map(seconds),
        ),
        gauge(
            "copy_missing",
            "Number of backups that are newer than the newest one in the second store.",
            copies.map(|copies| copies.missing as f64),
        ),
        gauge(
            "copy_lag_seconds",
            "For how long the oldest of these backups has been without a copy; 0 if there is none.",
            copies.map(|copies| seconds(copies.lag_ms)),
        ),
        gauge(
            "copy_failed",
            "1 if the last copy to the second store failed, else 0.",
            copies.map(|copies| flag(copies.last_error.is_some())),
        ),
        gauge(
            "next_run_timestamp_seconds",
            "When the next run is due.",
            status.next_run.map(seconds),
        ),
    ]
}

fn of_activity(activity: Activity) -> [Metric; 2] {
    let result = |result| Some(("result", result));
    [
        gauge(
            "running",
            "1 while the service makes a backup, else 0.",
            Some(flag(activity.is_running)),
        ),
        Metric {
            name: "runs",
            kind: MetricType::Counter,
            help: "Number of runs of the service since its start.",
            samples: vec![
                (result("success"), activity.succeeded as f64),
                (result("failure"), activity.failed as f64),
            ],
        },
    ]
}

fn gauge(name: &'static str, help: &'static str, value: Option<f64>) -> Metric {
    Metric {
        name,
        kind: MetricType::Gauge,
        help,
        samples: value.map(|value| (None, value)).into_iter().collect(),
    }
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

impl Metric {
    fn render(&self, format: Format, project: &str, text: &mut String) {
        let family = if self.name.is_empty() {
            PREFIX.to_string()
        } else {
            format!("{PREFIX}_{}", self.name)
        };
        let (kind, suffix) = match self.kind {
            MetricType::Gauge => ("gauge", ""),
            MetricType::Counter => ("counter", "_total"),
            MetricType::Info => ("info", "_info"),
        };
        let sample = format!("{family}{suffix}");
        // OpenMetrics describes the metric family and knows units and infos. The older format
        // describes the name of the samples and has no infos.
        let (described, kind) = match format {
            Format::OpenMetrics => (&family, kind),
            Format::Prometheus => (
                &sample,
                if self.kind == MetricType::Info {
                    "gauge"
                } else {
                    kind
                },
            ),
        };
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| described.ends_with(&format!("_{unit}")));
        // Writing to a `String` does not fail.
        let _ = writeln!(
            text,
            "# HELP {described} {}\n# TYPE {described} {kind}",
            self.help
        );
        if let Some(unit) = unit.filter(|_| format == Format::OpenMetrics) {
            let _ = writeln!(text, "# UNIT {described} {unit}");
        }
        for (label, value) in &self.samples {
            let label = label
                .map(|(name, value)| format!(",{name}=\"{value}\""))
                .unwrap_or_default();
            let _ = writeln!(text, "{sample}{{{project}{label}}} {value}");
        }
    }
}

/// Escapes the value of a label.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(project: &str) -> Facts<'_> {
        let activity = Activity {
            is_running: true,
            succeeded: 2,
            failed: 1,
        };
        Facts {
            project,
            status: None,
            is_healthy: false,
            activity: Some(activity),
        }
    }

    #[test]
    fn each_format_describes_infos_and_counters_in_its_own_way_and_names_the_samples_alike() {
        let version = env!("CARGO_PKG_VERSION");
        let older = facts("/p").render(Format::Prometheus);
        let open = facts("/p").render(Format::OpenMetrics);
        assert!(
            older.contains("# TYPE kg_backup_info gauge\n")
                && open.contains("# TYPE kg_backup info\n")
        );
        assert!(
            older.contains("# TYPE kg_backup_runs_total counter\n")
                && open.contains("# TYPE kg_backup_runs counter\n")
        );
        assert!(!older.contains("EOF") && open.ends_with("\n# EOF\n"));
        let samples = |text: &str| {
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(samples(&older), samples(&open));
        assert_eq!(
            samples(&open),
            [
                format!("kg_backup_info{{project=\"/p\",version=\"{version}\"}} 1"),
                "kg_backup_healthy{project=\"/p\"} 0".into(),
                "kg_backup_running{project=\"/p\"} 1".into(),
                "kg_backup_runs_total{project=\"/p\",result=\"success\"} 2".into(),
                "kg_backup_runs_total{project=\"/p\",result=\"failure\"} 1".into(),
            ]
        );
    }

    #[test]
    fn a_path_of_any_characters_is_one_label() {
        let text = facts("/a \"b\"\\\nc").render(Format::OpenMetrics);
        assert!(
            text.contains("kg_backup_healthy{project=\"/a \\\"b\\\"\\\\\\nc\"} 0\n"),
            "{text}"
        );
    }
}
