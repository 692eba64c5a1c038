//! When backups happen by themselves.
//!
//! ```text
//! plan      the times that a cron expression names, what has been done, the time now ─▶ run, or wait until
//! kind      the backups that exist, the time now ─▶ a full or an incremental backup
//! history   the last runs of `kg`;   status: how the backups of a project stand;   metrics: that, for Prometheus
//! automatic the settings of a project ─▶ its plan, and how its backups are made
//! ```
//!
//! None of it reads a clock: the time comes in as an argument, so a year passes in a test within milliseconds. The
//! `BackupScheduler` of JavaScript and `kg serve` are two drivers of the same plan.

pub mod automatic;
pub mod history;
pub mod kind;
pub mod metrics;
pub mod plan;
pub mod started;
pub mod status;
