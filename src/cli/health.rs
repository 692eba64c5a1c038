//! `kg diag health`: the state of the project and its backups, once or repeatedly.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use jiff::Timestamp;

use super::{
    args::{Common, StoreDir, Waiting, parse_count},
    integrity::{print_issues, status_of},
    interrupt::Watched,
    output::{Output, size},
};
use crate::{
    config::Settings,
    error::{Error, Result},
    service::health::{Health, HealthOptions, Service, health},
    util::{age::age as age_of, operation::CancelToken, wording},
    worker::client::WorkerMode,
};

/// How often a wait checks for an interrupt.
const TICK: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kg diag health                            a quick look at database, files, backups and disk
  kg diag health --check-db                 check the whole database, as after a restore
  kg diag health --project ./test-restore   the health of a restored copy
  kg diag health --max-age 26h              fail if the newest good backup is older
  kg diag health --watch --interval 60      repeat every minute until Ctrl-C

Exit status: 0 healthy, 3 problems in the database, 4 in files, the disk or the directory of
the backups, or no backup younger than --max-age, 5 backups that cannot be restored.
With --watch --json, each line is one object.")]
pub struct HealthArgs {
    #[command(flatten)]
    pub common: Common,
    /// Check the whole database: its structure, full-text indexes and rows
    #[arg(long)]
    check_db: bool,
    #[command(flatten)]
    store: StoreDir,
    /// Fail if the newest good backup is older than this, such as 90s, 30m, 24h or 7d, or if there
    /// is none [default: a warning after 8d]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// Repeat the report until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Seconds between two reports
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "watch", value_parser = parse_count::<u64>)]
    interval: u64,
    #[command(flatten)]
    waiting: Waiting,
}

/// Parses a whole number and a unit, such as `24h`.
pub(super) fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let at = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let seconds = match &text[at..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("write a number and s, m, h or d, such as 24h".into()),
    };
    let number: u64 = text[..at]
        .parse()
        .map_err(|_| "write a number and s, m, h or d, such as 24h")?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(|| "that is too long".into())
}

pub fn run(args: &HealthArgs, output: &Output) -> Result<u8> {
    let root = args.common.root()?;
    let settings = Settings::read(&root, &mut Vec::new());
    let store = args.store.open(&root, &settings)?;
    let options = HealthOptions {
        root,
        settings,
        check_database: args.check_db,
        max_age: args.max_age,
        lock_timeout: args.waiting.timeout(),
    };
    let watched = Watched::new(output);
    loop {
        let began = Instant::now();
        let found = health(&store, &options, &WorkerMode::InProcess, &watched.context);
        if !args.watch {
            let found = found?;
            drop(watched);
            output.result(&found);
            print_health(&found, output);
            return Ok(status_of(&found.issues));
        }
        match found {
            Ok(found) if output.is_json() => output.stream(&found, status_of(&found.issues)),
            Ok(found) => {
                output.line(format!(
                    "── {}",
                    Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC")
                ));
                print_health(&found, output);
            }
            // The watch continues after an error: a locked database or a project that is missing
            // for a moment is exactly what a watch should report.
            Err(error) if !watched.context.cancel.is_cancelled() => output.stream_error(&error),
            Err(error) => return Err(error),
        }
        wait(
            began + Duration::from_secs(args.interval),
            &watched.context.cancel,
        )?;
    }
}

fn wait(until: Instant, cancel: &CancelToken) -> Result<()> {
    while Instant::now() < until {
        cancel.check().map_err(|error| Error {
            message: "The watch was stopped".into(),
            ..error
        })?;
        thread::sleep(TICK);
    }
    Ok(())
}

fn print_health(health: &Health, output: &Output) {
    let (checked, backups) = (&health.checked, &health.backups);
    let of_database = format!(
        "{}, {}",
        wording::count(checked.nodes, "node"),
        wording::count(checked.edges, "edge")
    );
    output.line(format!(
        "Database  {} ({}; {of_database})",
        checked.database.display(),
        size(checked.database_size)
    ));
    let newest = match (&backups.newest_good, backups.age_ms) {
        (Some(id), Some(age)) => format!("newest good one {id}, {} old", age_of(age)),
        _ if backups.unread > 0 => "cannot determine whether one is good".to_string(),
        _ => "no good one".to_string(),
    };
    output.line(format!(
        "Backups   {} in {}; {newest}",
        backups.count,
        backups.backup_dir.display()
    ));
    if let Some(free) = backups.free_bytes {
        output.line(format!(
            "Disk      {} free; the next backup is likely to take {}",
            size(free),
            size(backups.next_bytes)
        ));
    }
    output.line(match &health.service {
        Service {
            shown: Some(process),
            ..
        } => format!("Service   runs as {process}"),
        Service {
            is_enabled: true, ..
        } => "Service   does not run".to_string(),
        Service { .. } => "Service   none: automated backups are not enabled".to_string(),
    });
    print_issues(&health.issues, output);
    output.line(if health.healthy {
        "Healthy"
    } else {
        "NOT HEALTHY"
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        let seconds = |text: &str| parse_duration(text).map(|time| time.as_secs());
        assert_eq!(
            ["90s", "30m", "24h", "7d"].map(seconds),
            [Ok(90), Ok(1_800), Ok(86_400), Ok(604_800)]
        );
        for text in ["", "h", "24", "1.5h", "-1h", "24 h", "99999999999999999d"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
    }
}
