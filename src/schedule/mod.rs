//! When backups happen by themselves.
//!
//! ```text
//! cron      an expression and a time zone ─▶ the times that they name
//! plan      those times, what has been done, the time now ─▶ run, or wait until
//! kind      the backups that exist, the time now ─▶ a full or an incremental backup
//! ```
//!
//! None of it reads a clock: the time comes in as an argument, so a year passes in a test within milliseconds. The
//! `BackupScheduler` of JavaScript and `kg serve` are two drivers of the same plan.

pub mod cron;
pub mod kind;
pub mod plan;
