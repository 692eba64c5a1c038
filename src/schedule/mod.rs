//! Decides when backups are made.
//!
//! ```text
//! cron ─▶ plan    scheduled times, completed runs, the current time ─▶ run, or wait until a time
//! backup_type     the existing backups, the current time ─▶ a full or an incremental backup
//! ```
//!
//! Nothing in this module reads a clock: the time is an argument, so a test can simulate a year
//! within milliseconds. Both the `BackupScheduler` of JavaScript and `kg serve` follow this plan.

pub mod backup_type;
pub mod cron;
pub mod plan;
