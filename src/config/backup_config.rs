//! How backups are made and kept, and the default of every option.
//!
//! A [`BackupConfig`] holds what one level sets. There are three levels. The caller's options
//! (arguments of `kg`, or options of a call and its manager) take precedence over the settings of
//! the project, and these over the defaults:
//!
//! ```text
//! caller.over(file).resolve() ─▶ BackupOptions, in which every option has a value
//! ```

use std::time::Duration;

use jiff::tz::TimeZone;

use super::Settings;
use crate::{
    archive::{block::Compression, manifest::BackupType},
    error::{Error, Result},
    store::retention::{Keep, Policy},
};

/// The default of `undoRetentionDays`.
pub const DEFAULT_UNDO_RETENTION_DAYS: u32 = 7;
/// The default of `lockTimeout`.
pub const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// The options that one level sets. `None` leaves the option to the next level.
#[derive(Debug, Clone, Default)]
pub struct BackupConfig {
    pub backup_type: Option<BackupType>,
    /// The age of a chain, in days, at which a scheduled incremental backup becomes a full one.
    pub full_backup_interval_days: Option<u32>,
    pub max_chain_length: Option<u32>,
    pub include_vectors: Option<bool>,
    pub include_plugin_data: Option<bool>,
    pub exclude_patterns: Option<Vec<String>>,
    /// The format. [`compression_level`](Self::compression_level) sets its level.
    pub compression: Option<Compression>,
    pub compression_level: Option<u8>,
    pub check_source: Option<bool>,
    pub strict: Option<bool>,
    pub force_read: Option<bool>,
    pub lock_timeout: Option<Duration>,
    pub undo_retention_days: Option<u32>,
    pub retention_days: Option<u32>,
    pub max_backups: Option<u32>,
    /// All rules together: the rules of a level replace those of the next one. The flags of `kg`
    /// change single rules, so its level contains the other rules of the settings.
    pub keep: Option<Keep>,
    /// The time zone of the schedule and of the rules in `keep`.
    pub zone: Option<TimeZone>,
    /// Why the intended limits are unknown. Then nothing is removed, whatever the other level says.
    pub retention_doubt: Option<Error>,
}

/// What to save, and how.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    pub kind: BackupType,
    /// The id of the base of an incremental backup. Default: the newest good backup.
    pub based_on: Option<String>,
    /// The most members that a chain may have. A longer one begins anew with a full backup, unless
    /// `based_on` names the base. A restore and each further backup read all members of a chain,
    /// and none can be removed before the last one.
    pub max_chain_length: u32,
    pub description: Option<String>,
    /// Marks the backup that a repair makes first. It may hold damage, so it is never the latest.
    pub is_safety_backup: bool,
    pub include_vectors: bool,
    pub include_plugin_data: bool,
    /// Patterns as in `.gitignore`, relative to the root of the project.
    pub exclude_patterns: Vec<String>,
    pub compression: Compression,
    /// Checks each snapshot as `PRAGMA quick_check` does. The manifest holds the result.
    pub check_source: bool,
    /// How long to wait for another writer of the store and for the lock of a database.
    pub lock_timeout: Duration,
    /// Which backups to keep after this one.
    pub retention: Policy,
    /// Fails with `KG_INCOMPLETE` if the backup would lack a part of the project.
    pub strict: bool,
    /// Makes an incremental backup read every file, also those whose size, times and inode are as in
    /// its base.
    pub force_read: bool,
    /// How many days the files that a restore replaced are kept for an undo.
    pub undo_retention_days: u32,
}

/// The defaults.
impl Default for BackupOptions {
    fn default() -> Self {
        BackupOptions {
            kind: BackupType::Full,
            based_on: None,
            max_chain_length: 64,
            description: None,
            is_safety_backup: false,
            include_vectors: true,
            include_plugin_data: true,
            exclude_patterns: Vec::new(),
            compression: Compression::GZIP,
            check_source: true,
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
            retention: Policy::default(),
            strict: false,
            force_read: false,
            undo_retention_days: DEFAULT_UNDO_RETENTION_DAYS,
        }
    }
}

impl BackupConfig {
    /// Returns the options that the settings of a project set.
    pub fn of(settings: &Settings) -> Self {
        BackupConfig {
            backup_type: settings.kind(),
            full_backup_interval_days: settings.whole("backup.fullBackupInterval"),
            max_chain_length: settings.whole("backup.maxChainLength"),
            include_vectors: settings.bool("backup.includeVectors"),
            include_plugin_data: settings.bool("backup.includePluginData"),
            exclude_patterns: settings.list("backup.excludePatterns"),
            compression: settings
                .get("backup.compression")
                .and_then(super::compression),
            compression_level: settings
                .whole("backup.compressionLevel")
                .and_then(|level| u8::try_from(level).ok()),
            check_source: settings.bool("backup.checkSource"),
            strict: settings.bool("backup.strict"),
            force_read: settings.bool("backup.forceRead"),
            lock_timeout: None,
            undo_retention_days: None,
            retention_days: settings.retention_days(),
            max_backups: settings.whole("backup.maxBackups"),
            keep: rules(settings, "backup.keep"),
            zone: settings.zone(),
            retention_doubt: settings.doubt_of_retention(),
        }
    }

    /// Returns the limits that the settings have for the second store, `backup.copyTo`.
    pub fn of_copies(settings: &Settings) -> Self {
        BackupConfig {
            retention_days: settings.whole("backup.copyRetentionDays"),
            max_backups: settings.whole("backup.copyMaxBackups"),
            keep: rules(settings, "backup.copyKeep"),
            zone: settings.zone(),
            retention_doubt: settings.doubt_of_copy_retention(),
            ..BackupConfig::default()
        }
    }

    /// Returns the options of this level, completed by those of `lower`.
    pub fn over(self, lower: BackupConfig) -> BackupConfig {
        // A compression level asks for compression, even if the settings turn it off.
        let is_compression_implied =
            self.compression_level.is_some() && lower.compression == Some(Compression::None);
        let lower_compression = lower.compression.filter(|_| !is_compression_implied);
        BackupConfig {
            backup_type: self.backup_type.or(lower.backup_type),
            full_backup_interval_days: self
                .full_backup_interval_days
                .or(lower.full_backup_interval_days),
            max_chain_length: self.max_chain_length.or(lower.max_chain_length),
            include_vectors: self.include_vectors.or(lower.include_vectors),
            include_plugin_data: self.include_plugin_data.or(lower.include_plugin_data),
            exclude_patterns: self.exclude_patterns.or(lower.exclude_patterns),
            compression: self.compression.or(lower_compression),
            compression_level: self.compression_level.or(lower.compression_level),
            check_source: self.check_source.or(lower.check_source),
            strict: self.strict.or(lower.strict),
            force_read: self.force_read.or(lower.force_read),
            lock_timeout: self.lock_timeout.or(lower.lock_timeout),
            undo_retention_days: self.undo_retention_days.or(lower.undo_retention_days),
            retention_days: self.retention_days.or(lower.retention_days),
            max_backups: self.max_backups.or(lower.max_backups),
            keep: self.keep.or(lower.keep),
            zone: self.zone.or(lower.zone),
            retention_doubt: self.retention_doubt.or(lower.retention_doubt),
        }
    }

    /// Returns a value for every option: the one that a level sets, else the default.
    pub fn resolve(self) -> BackupOptions {
        let default = BackupOptions::default();
        BackupOptions {
            kind: self.backup_type.unwrap_or(default.kind),
            max_chain_length: self.max_chain_length.unwrap_or(default.max_chain_length),
            include_vectors: self.include_vectors.unwrap_or(default.include_vectors),
            include_plugin_data: self
                .include_plugin_data
                .unwrap_or(default.include_plugin_data),
            compression: self.compression(),
            check_source: self.check_source.unwrap_or(default.check_source),
            lock_timeout: self.lock_timeout.unwrap_or(default.lock_timeout),
            retention: self.retention(),
            strict: self.strict.unwrap_or(default.strict),
            force_read: self.force_read.unwrap_or(default.force_read),
            undo_retention_days: self
                .undo_retention_days
                .unwrap_or(default.undo_retention_days),
            exclude_patterns: self.exclude_patterns.unwrap_or_default(),
            based_on: None,
            description: None,
            is_safety_backup: false,
        }
    }

    /// Returns the format with its level.
    pub fn compression(&self) -> Compression {
        let format = self.compression.unwrap_or(Compression::GZIP);
        self.compression_level
            .map_or(format, |level| format.at(level))
    }

    /// Returns the retention policy, which keeps everything while the intended limits are unknown.
    pub fn retention(&self) -> Policy {
        if self.retention_doubt.is_some() {
            return Policy::default();
        }
        Policy {
            retention_days: self.retention_days,
            max_backups: self.max_backups,
            keep: self.keep.unwrap_or_default(),
            zone: self.zone.clone().unwrap_or(TimeZone::UTC),
        }
    }

    /// Fails with `KG_CONFIG_INVALID` while the intended limits are unknown.
    pub fn assert_retention_known(&self) -> Result<()> {
        self.retention_doubt.clone().map_or(Ok(()), Err)
    }
}

/// Returns the rules below a key, if there are any.
fn rules(settings: &Settings, key: &str) -> Option<Keep> {
    let rule = |period: &str| settings.whole(&format!("{key}.{period}"));
    let keep = Keep {
        last: rule("last"),
        hourly: rule("hourly"),
        daily: rule("daily"),
        weekly: rule("weekly"),
        monthly: rule("monthly"),
        yearly: rule("yearly"),
    };
    Some(keep).filter(|keep| *keep != Keep::default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(backup: serde_json::Value) -> BackupConfig {
        BackupConfig::of(&Settings::of(&json!({ "backup": backup }), &mut |_| {}))
    }

    #[test]
    fn the_caller_takes_precedence_over_the_file_and_the_file_over_the_defaults() {
        let set = file(json!({ "includeVectors": false, "strict": true, "maxBackups": 3 }));
        let caller = BackupConfig {
            strict: Some(false),
            ..BackupConfig::default()
        };
        let options = caller.over(set).resolve();
        assert!(!options.strict && !options.include_vectors && options.include_plugin_data);
        assert_eq!(options.retention.max_backups, Some(3));
        assert_eq!(options.max_chain_length, 64);
    }

    #[test]
    fn a_compression_level_asks_for_compression_even_if_the_file_turns_it_off() {
        let off = || file(json!({ "compression": false }));
        let level = BackupConfig {
            compression_level: Some(9),
            ..BackupConfig::default()
        };
        assert_eq!(level.over(off()).compression(), Compression::Gzip(9));
        assert_eq!(
            BackupConfig::default().over(off()).compression(),
            Compression::None
        );
        let zstd = file(json!({ "compression": "zstd", "compressionLevel": 5 }));
        assert_eq!(zstd.compression(), Compression::Zstd(5));
    }

    #[test]
    fn nothing_is_removed_while_the_intended_limits_are_unknown() {
        let doubtful = file(json!({ "maxBackups": "five" }));
        let caller = BackupConfig {
            retention_days: Some(1),
            ..BackupConfig::default()
        };
        let config = caller.over(doubtful);
        assert!(config.assert_retention_known().is_err());
        assert!(config.resolve().retention.keeps_everything());
    }
}
