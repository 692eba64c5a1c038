//! What `.kg/config.json` says of backups: its `backup` object. And what `.kg/hooks.json` says of hooks, in the same form.
//!
//! [`keys`] has every key, what it may be, and what that means; [`listen`] is the one value with a type of its own.
//!
//! An explicit argument comes before the configuration of a manager, that before these settings, and they before what is built in. A
//! value that cannot be used is a warning, and means that nothing was set: it must not keep anyone from a backup.
//!
//! [`Settings::read`] opens a file of the live project: only the reader (`src/reader`) and `kg` itself may call it.

pub mod keys;
pub mod listen;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::tz::TimeZone;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{keys::Home, listen::Listen};
use crate::{
    archive::{block::Compression, manifest::BackupType},
    cron::time_zone,
    error::{Warning, WarningCode},
    project::{CONFIG_FILE, STATE_DIR},
    retention::{Keep, Policy},
};

/// A longer one is no configuration.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The values that can be used, by their keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    values: BTreeMap<String, Value>,
    /// Keys whose values cannot be used.
    refused: BTreeSet<String>,
    /// Nothing is known of what is set.
    unreadable: bool,
}

impl Settings {
    /// Of the project at `root`.
    pub fn read(root: &Path, warnings: &mut Vec<Warning>) -> Self {
        let mut warn = |message: String| {
            warnings.push(Warning::about(WarningCode::Config, format!("{STATE_DIR}/{CONFIG_FILE}"), message));
        };
        match read_text(&root.join(STATE_DIR).join(CONFIG_FILE)) {
            Ok(None) => Settings::default(),
            Ok(Some(text)) => match serde_json::from_slice::<Value>(&text) {
                Ok(config) => Settings::of(&config, &mut warn),
                Err(cause) => {
                    warn(format!(
                        "The configuration is not valid JSON ({cause}); its settings of backups do not count"
                    ));
                    Settings { unreadable: true, ..Settings::default() }
                }
            },
            Err(cause) => {
                warn(format!("The configuration could not be read ({cause}); its settings of backups do not count"));
                Settings { unreadable: true, ..Settings::default() }
            }
        }
    }

    /// `config` is the whole configuration.
    pub fn of(config: &Value, warn: &mut impl FnMut(String)) -> Self {
        if config.pointer("/backup/hooks").is_some() {
            warn(
                "`backup.hooks` does not count here, as a restore brings this file back: set it with `kg config set`"
                    .into(),
            );
        }
        Settings::in_home(Home::Config, config, warn)
    }

    /// `config` is the whole file that is the home of the keys.
    pub fn in_home(home: Home, config: &Value, warn: &mut impl FnMut(String)) -> Self {
        let (mut values, mut refused) = (BTreeMap::new(), BTreeSet::new());
        for key in keys::ALL.iter().filter(|key| key.home() == home) {
            let Some(value) = key.find(config) else { continue };
            match key.check(value) {
                Ok(()) => {
                    values.insert(key.name.to_string(), value.clone());
                }
                Err(error) => {
                    refused.insert(key.name.to_string());
                    warn(format!("{}; it was ignored", error.message));
                }
            }
        }
        Settings { values, refused, unreadable: false }
    }

    /// Whether the key is set to what cannot be used.
    pub fn is_refused(&self, name: &str) -> bool {
        self.refused.contains(name)
    }

    pub fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    pub fn bool(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    pub fn whole(&self, name: &str) -> Option<u32> {
        self.get(name)?.as_u64().and_then(|value| u32::try_from(value).ok())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let list = self.get(name)?.as_array()?;
        Some(list.iter().filter_map(|one| one.as_str().map(str::to_string)).collect())
    }

    /// `backup.dir`, from the root of the project.
    pub fn dir(&self, root: &Path) -> Option<PathBuf> {
        self.text("backup.dir").map(|dir| root.join(dir))
    }

    pub fn kind(&self) -> Option<BackupType> {
        serde_json::from_value(self.get("backup.type")?.clone()).ok()
    }

    pub fn listen(&self) -> Listen {
        self.get("backup.listen").and_then(|value| Listen::of(value).ok()).unwrap_or_default()
    }

    pub fn retention_days(&self) -> Option<u32> {
        // One of them is enough; of two, the one that removes less.
        self.whole("backup.retention").max(self.whole("backup.retentionDays"))
    }

    /// `backup.timezone`, if it is set.
    pub fn zone(&self) -> Option<TimeZone> {
        time_zone(Some(self.text("backup.timezone")?)).ok()
    }

    pub fn policy(&self) -> Policy {
        let keep = |period: &str| self.whole(&format!("backup.keep.{period}"));
        Policy {
            retention_days: self.retention_days(),
            max_backups: self.whole("backup.maxBackups"),
            keep: Keep {
                last: keep("last"),
                hourly: keep("hourly"),
                daily: keep("daily"),
                weekly: keep("weekly"),
                monthly: keep("monthly"),
                yearly: keep("yearly"),
            },
            zone: self.zone().unwrap_or(TimeZone::UTC),
        }
    }
}

/// What a value of `compression` means: true, false, or the name of a format.
pub fn compression(value: &Value) -> Option<Compression> {
    match value {
        Value::Bool(true) => Some(Compression::GZIP),
        Value::Bool(false) => Some(Compression::None),
        Value::String(name) if name == "gzip" => Some(Compression::GZIP),
        Value::String(name) if name == "zstd" => Some(Compression::ZSTD),
        _ => None,
    }
}

/// The bytes of a configuration; `None` where there is none. A pipe or device is not waited for.
pub fn read_text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let found = file.metadata()?;
    if !found.is_file() || found.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file that could be a configuration"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_that_cannot_be_used_are_warnings_and_the_others_count() {
        let config = json!({ "backup": { "enabled": true, "maxBackups": "five", "keep": { "daily": 7 }, "mine": {} } });
        let mut said = Vec::new();
        let settings = Settings::of(&config, &mut |message| said.push(message));
        assert_eq!(settings.bool("backup.enabled"), Some(true));
        assert_eq!(settings.policy().keep.daily, Some(7));
        assert_eq!(settings.policy().max_backups, None);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("backup.maxBackups") && said[0].contains("\"five\""), "{}", said[0]);
    }

    #[test]
    fn retention_and_retention_days_are_one_thing_and_the_one_that_removes_less_counts() {
        let of = |config| Settings::of(&config, &mut |_| panic!("no warning")).policy().retention_days;
        assert_eq!(of(json!({ "backup": { "retention": 30 } })), Some(30));
        assert_eq!(of(json!({ "backup": { "retentionDays": 7 } })), Some(7));
        assert_eq!(of(json!({ "backup": { "retention": 30, "retentionDays": 7 } })), Some(30));
        assert_eq!(of(json!({})), None);
    }

    #[test]
    fn a_configuration_that_is_a_pipe_a_directory_or_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(STATE_DIR)).unwrap();
        let path = dir.path().join(STATE_DIR).join(CONFIG_FILE);
        let settings = || Settings::read(dir.path(), &mut Vec::new());
        let unreadable = Settings { unreadable: true, ..Settings::default() };
        assert_eq!(settings(), Settings::default());
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(settings(), unreadable);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(settings(), unreadable);
    }
}
