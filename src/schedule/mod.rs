//! When backups are made.
//!
//! ```text
//! cron ─▶ plan   the times that a cron expression names, what has been done, the time now ─▶ run, or wait until
//!         kind   the backups that exist, the time now ─▶ a full or an incremental backup
//! ```
//!
//! Nothing here reads a clock: the time comes in as an argument, so a year passes in a test within milliseconds. The
//! `BackupScheduler` of JavaScript and `kg serve` both follow this plan.

pub mod backup_type;
pub mod cron;
pub mod plan;
