//! The `backup` object of `.kg/config.json`, and `.kg/hooks.json`, which has the same form.
//!
//! [`schema`] defines every key, its allowed values and its meaning. [`listen`] is the only value
//! with a type of its own.
//!
//! An explicit argument takes precedence over the configuration of a manager, that over these
//! settings, and these over the built-in defaults. An unusable value causes a warning, and its
//! default applies. A default never applies if that would be dangerous. It never decides where
//! backups go, who can read them, what is removed or which port is opened, if the user wrote
//! something else. Code that decides such things uses [`Settings::assert_usable`] and
//! [`Settings::doubt_of_dir`].
//!
//! [`Settings::read`] opens a file of the live project, so only the worker (`src/worker`) and `kg`
//! itself may call it.

pub mod backup_config;
pub mod edit_text;
pub mod listen;
pub mod schema;
mod unknown_keys;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{
    listen::Listen,
    schema::{ConfigFile, Key},
};
pub use crate::project::{database_path::read_text, json::parse};
use crate::{
    archive::{block::Compression, manifest::BackupType},
    error::{Code, Error, Result, Warning, WarningCode, plain},
    objects::Location,
    project::{CONFIG_FILE, STATE_DIR},
    schedule::cron::time_zone,
};

/// The usable values by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    values: BTreeMap<String, Value>,
    /// Keys with unusable values, and why.
    refused: BTreeMap<String, String>,
    /// Keys that a misspelt name probably stands for, and the message about that name.
    misspelt: BTreeMap<String, String>,
    /// Why the settings as a whole are unusable.
    unusable: Option<Unusable>,
}

/// A setting that a restore changes. The values have no parts that may be secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettingChange {
    pub key: String,
    /// `None` if it was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
    /// Whether the value before is unusable; `before` does not have it then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before_unusable: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_unusable: bool,
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>, is_unusable| match value {
            Some(value) => value.to_string(),
            None if is_unusable => "an unusable value".into(),
            None => "not set".into(),
        };
        let before = shown(&self.before, self.before_unusable);
        let after = shown(&self.after, self.after_unusable);
        write!(f, "{} from {before} to {after}", self.key)
    }
}

/// Why none of the settings apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Unusable {
    /// The file exists, but this process cannot read it. Another user may be able to, or the disk
    /// may not be mounted.
    Unreadable(String),
    /// The file was read, but it is not a valid configuration.
    Invalid(String),
}

/// The keys that decide who can read new backups: the switch, and the keys that encrypt.
const ENCRYPTION: [&str; 4] = [
    "backup.encrypt",
    "backup.passphraseFile",
    "backup.recipients",
    "backup.identityFile",
];

/// The key that decides where backups go.
const DIR: &str = "backup.dir";

const MEND_IT: &str = "Correct it (`kg config show --all` lists the settings), or restore it with \
                       `kg diag restore --file latest --config-only` (from an encrypted backup, \
                       with its key: `encryption.passphraseFile` or `encryption.identityFile`)";
const READ_IT: &str =
    "Give this user the right to read it, mount what it leads to, or run as a user who can read it";

/// The keys that decide what retention removes.
const RETENTION: [&str; 3] = ["backup.retention", "backup.maxBackups", "backup.keep"];

/// The keys that decide what retention removes from the second store.
const COPY_RETENTION: [&str; 3] = [
    "backup.copyRetentionDays",
    "backup.copyMaxBackups",
    "backup.copyKeep",
];

impl Settings {
    /// Reads the settings of the project at `root`.
    pub fn read(root: &Path, warnings: &mut Vec<Warning>) -> Self {
        let mut warn = |message: String| {
            warnings.push(Warning::about(
                WarningCode::Config,
                format!("{STATE_DIR}/{CONFIG_FILE}"),
                message,
            ));
        };
        Settings::read_at(&root.join(STATE_DIR).join(CONFIG_FILE), &mut warn)
    }

    /// Reads the configuration at `path`.
    pub fn read_at(path: &Path, warn: &mut impl FnMut(String)) -> Self {
        match read_text(path) {
            // A dangling link does not mean a project without settings: the disk with them may not
            // be mounted.
            Ok(None) if path.symlink_metadata().is_ok() => Settings::unusable(
                Unusable::Unreadable("it is a link that leads nowhere".into()),
                warn,
            ),
            Ok(None) => Settings::default(),
            Ok(Some(text)) => match parse(&text) {
                Ok(config) => Settings::of(&config, warn),
                Err(what) => Settings::unusable(Unusable::Invalid(format!("it {what}")), warn),
            },
            Err(cause) => {
                let why = format!("it could not be read ({})", plain(&cause));
                // A file that is too long, a pipe or a directory is accessible but is not a
                // configuration.
                let is_other = matches!(
                    cause.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
                );
                Settings::unusable(
                    if is_other {
                        Unusable::Invalid(why)
                    } else {
                        Unusable::Unreadable(why)
                    },
                    warn,
                )
            }
        }
    }

    fn unusable(why: Unusable, warn: &mut impl FnMut(String)) -> Self {
        let (Unusable::Unreadable(what) | Unusable::Invalid(what)) = &why;
        warn(format!(
            "The configuration cannot be used: {what}. Its backup settings are ignored"
        ));
        Settings {
            unusable: Some(why),
            ..Settings::default()
        }
    }

    /// Builds the settings from `config`, the whole configuration.
    pub fn of(config: &Value, warn: &mut impl FnMut(String)) -> Self {
        let section = config.get("backup");
        if !config.is_object() {
            return Settings::unusable(
                Unusable::Invalid(format!("it is {}, not an object", kind_of(config))),
                warn,
            );
        }
        if let Some(section) = section.filter(|section| !section.is_object()) {
            let what = format!("`backup` is {}, not an object", kind_of(section));
            return Settings::unusable(Unusable::Invalid(what), warn);
        }
        if config.pointer("/backup/hooks").is_some() {
            warn(
                "`backup.hooks` is ignored here because a restore replaces this file: set it with \
                 `kg config set`"
                    .into(),
            );
        }
        Settings::in_home(ConfigFile::Config, config, warn)
    }

    /// Builds the settings from `config`, the whole content of the file `home`.
    pub fn in_home(home: ConfigFile, config: &Value, warn: &mut impl FnMut(String)) -> Self {
        let mut settings = Settings::default();
        let mut said = Vec::new();
        for unknown in unknown_keys::unknown(home, config) {
            let message = format!("`{}` {}", unknown.name, unknown.what);
            let doubted = if unknown.is_known {
                &mut settings.refused
            } else {
                &mut settings.misspelt
            };
            doubted.extend(
                unknown
                    .meant
                    .iter()
                    .map(|name| (name.to_string(), message.clone())),
            );
            said.push((message, "", unknown.meant));
        }
        for key in schema::ALL.iter().filter(|key| key.home() == home) {
            let Some(value) = key.find(config) else {
                continue;
            };
            match key.check(value) {
                Ok(()) => {
                    settings.values.insert(key.name.to_string(), value.clone());
                }
                Err(error) => {
                    settings
                        .refused
                        .insert(key.name.to_string(), error.message.clone());
                    said.push((error.message, "; it was ignored", vec![key.name]));
                }
            }
        }
        // The consequence of one value depends on all of them.
        for (message, ignored, keys) in said {
            match (settings.refusal(&keys), consequence(&keys)) {
                (Some(refusal), _) => warn(format!("{message}; {refusal}")),
                (None, consequence) => warn(format!("{message}{ignored}{consequence}")),
            }
        }
        settings
    }

    /// Returns whether the key is set to an unusable value.
    pub fn is_refused(&self, name: &str) -> bool {
        self.refused.contains_key(name)
    }

    /// Returns whether the key has no value because its value is unusable, or its name misspelt.
    fn is_unclear(&self, name: &str) -> bool {
        self.get(name).is_none() && (self.is_refused(name) || self.misspelt.contains_key(name))
    }

    /// Returns whether the settings as a whole are unusable.
    pub fn are_unusable(&self) -> bool {
        self.unusable.is_some()
    }

    /// Returns whether settings exist that this process cannot read.
    pub fn are_hidden(&self) -> bool {
        matches!(self.unusable, Some(Unusable::Unreadable(_)))
    }

    /// Fails with `KG_CONFIG_INVALID` if the settings as a whole are unusable.
    pub fn assert_usable(&self) -> Result<()> {
        match &self.unusable {
            Some(Unusable::Unreadable(why)) => Err(unusable(why, READ_IT)),
            Some(Unusable::Invalid(why)) => Err(unusable(why, MEND_IT)),
            None => Ok(()),
        }
    }

    /// Returns why it is unknown where backups go, if it is.
    pub fn doubt_of_dir(&self) -> Option<Error> {
        let refused = || {
            self.is_refused(DIR)
                .then_some("`backup.dir` is not the name of a directory")
        };
        let misspelt = || {
            self.misspelt
                .get(DIR)
                .filter(|_| self.get(DIR).is_none())
                .map(String::as_str)
        };
        self.assert_usable()
            .err()
            .or_else(|| Some(unusable(refused().or_else(misspelt)?, MEND_IT)))
    }

    /// Returns why it is unknown who can read new backups, if it is. `is_asked_for` says whether
    /// the call requests encryption.
    pub fn doubt_of_encryption(&self, is_asked_for: bool) -> Option<String> {
        if let Some(why) = ENCRYPTION.into_iter().find_map(|key| self.refused.get(key)) {
            return Some(format!(
                "An invalid setting makes it unclear who can read new backups: {why}"
            ));
        }
        let [switch, keys @ ..] = ENCRYPTION;
        let is_known = match self.bool(switch) {
            Some(false) if !is_asked_for => true,
            None if !is_asked_for => false,
            _ => keys.into_iter().any(|key| self.get(key).is_some()),
        };
        let why = ENCRYPTION
            .into_iter()
            .filter(|_| !is_known)
            .find_map(|key| self.misspelt.get(key))?;
        Some(format!(
            "A misspelt setting makes it unclear who can read new backups: {why}"
        ))
    }

    /// Returns whether the settings name who could read an encrypted backup.
    pub fn name_readers(&self) -> bool {
        ["backup.passphraseFile", "backup.recipients"]
            .into_iter()
            .any(|key| self.get(key).is_some())
    }

    /// Returns why a backup is refused if the call specifies neither a directory nor who can read
    /// it.
    pub fn refuses_backups(&self) -> Option<String> {
        self.doubt_of_dir()
            .map(|error| error.message)
            .or_else(|| self.doubt_of_encryption(false))
    }

    /// Returns why nothing may be removed: an unusable setting could have kept it.
    pub fn doubt_of_retention(&self) -> Option<Error> {
        self.doubt_of_limits(&RETENTION)
    }

    /// Returns why nothing may be removed from the second store.
    pub fn doubt_of_copy_retention(&self) -> Option<Error> {
        self.doubt_of_limits(&COPY_RETENTION)
    }

    fn doubt_of_limits(&self, limits: &[&str]) -> Option<Error> {
        let key = self
            .refused
            .keys()
            .chain(self.misspelt.keys())
            .find(|key| is_among(limits, key));
        let wrong = key.map(|key| {
            unusable(
                &format!("the intended value of `{key}` is not known, so nothing is removed"),
                MEND_IT,
            )
        });
        self.assert_usable().err().or(wrong)
    }

    /// Returns the warning for these keys if they prevent backups.
    fn refusal(&self, keys: &[&str]) -> Option<&'static str> {
        let is_about = |key: &str| keys.contains(&key);
        if ENCRYPTION.into_iter().any(is_about) && self.doubt_of_encryption(false).is_some() {
            Some("no backup is made until it is corrected, unless the call says who can read it")
        } else if is_about(DIR) && self.doubt_of_dir().is_some() {
            Some("no backup is made until it is corrected, unless the call names a directory")
        } else {
            None
        }
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    pub fn bool(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    pub fn whole(&self, name: &str) -> Option<u32> {
        self.get(name)?
            .as_u64()
            .and_then(|value| u32::try_from(value).ok())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let list = self.get(name)?.as_array()?;
        Some(
            list.iter()
                .filter_map(|one| one.as_str().map(str::to_string))
                .collect(),
        )
    }

    /// Returns `backup.dir`, resolved against the project root unless it is a URL.
    pub fn dir(&self, root: &Path) -> Option<PathBuf> {
        self.place(DIR, root)
    }

    /// Returns `backup.copyTo`, resolved as [`Settings::dir`] is.
    pub fn copy_to(&self, root: &Path) -> Option<PathBuf> {
        self.place("backup.copyTo", root)
    }

    fn place(&self, key: &str, root: &Path) -> Option<PathBuf> {
        let dir = self.text(key)?;
        Some(if Location::is_url(dir) {
            dir.into()
        } else {
            root.join(dir)
        })
    }

    /// Returns the permissions of new archives.
    pub fn archive_mode(&self) -> Option<u32> {
        u32::from_str_radix(self.text("backup.mode")?, 8).ok()
    }

    pub fn kind(&self) -> Option<BackupType> {
        serde_json::from_value(self.get("backup.type")?.clone()).ok()
    }

    pub fn listen(&self) -> Listen {
        let name = "backup.listen";
        // A port that the user may have turned off stays closed.
        if self.are_unusable() || self.is_refused(name) || self.misspelt.contains_key(name) {
            return Listen::Off;
        }
        self.get(name)
            .and_then(|value| Listen::of(value).ok())
            .unwrap_or_default()
    }

    pub fn retention_days(&self) -> Option<u32> {
        // Either key is enough. If both are set, the one that removes less applies.
        self.whole("backup.retention")
            .max(self.whole("backup.retentionDays"))
    }

    /// Returns why no backups are made on a schedule, and the command to change that. Empty if they
    /// are made.
    pub fn without_schedule(&self) -> Vec<&'static str> {
        if self.are_unusable() {
            return vec!["whether there is a schedule is unknown: correct the configuration"];
        }
        let is_off = self.bool("backup.enabled") != Some(true);
        let is_unset = self.schedule().is_none();
        let off = is_off.then_some("no backups are made: `kg config set backup.enabled true`");
        let unset = is_unset
            .then_some("there is no schedule: `kg config set backup.schedule \"0 2 * * *\"`");
        off.into_iter().chain(unset).collect()
    }

    /// Returns whether new backups are encrypted, as far as the settings decide.
    pub fn encrypt(&self) -> bool {
        self.bool("backup.encrypt")
            .unwrap_or_else(|| self.name_readers())
    }

    /// Returns the differences to `after`.
    pub fn changes(&self, after: &Settings) -> Vec<SettingChange> {
        let shown =
            |settings: &Settings, key: &Key| settings.get(key.name).map(|value| key.shown(value));
        let state = |settings: &Settings, key: &Key| {
            (
                settings.get(key.name).cloned(),
                settings.is_unclear(key.name),
            )
        };
        let changed = schema::ALL
            .iter()
            .filter(|key| state(self, key) != state(after, key));
        changed
            .map(|key| SettingChange {
                key: key.name.to_string(),
                before: shown(self, key),
                after: shown(after, key),
                before_unusable: self.is_unclear(key.name),
                after_unusable: after.is_unclear(key.name),
            })
            .collect()
    }

    /// Returns `backup.schedule`, a cron expression.
    pub fn schedule(&self) -> Option<&str> {
        self.text("backup.schedule")
    }

    /// Returns the name in `backup.timezone`.
    pub fn timezone(&self) -> Option<&str> {
        self.text("backup.timezone")
    }

    /// Returns `backup.timezone`, if it is set.
    pub fn zone(&self) -> Option<TimeZone> {
        time_zone(Some(self.timezone()?)).ok()
    }
}

fn unusable(why: &str, remedy: &str) -> Error {
    let message = format!("{STATE_DIR}/{CONFIG_FILE} cannot be used: {why}");
    Error::new(Code::ConfigInvalid, message, remedy)
}

fn is_among(names: &[&str], key: &str) -> bool {
    names.iter().any(|name| key.starts_with(name))
}

/// Returns the consequence of a setting that does not apply, if there is one besides its default.
fn consequence(keys: &[&str]) -> &'static str {
    if keys.iter().any(|key| is_among(&RETENTION, key)) {
        ", and no backup is removed until it is corrected"
    } else if keys.iter().any(|key| is_among(&COPY_RETENTION, key)) {
        ", and no copy is removed until it is corrected"
    } else if keys.contains(&"backup.copyTo") {
        ", and no backup is copied until it is corrected"
    } else if keys.contains(&"backup.listen") {
        ", and no port is opened until it is corrected"
    } else {
        ""
    }
}

/// Returns the type of a JSON value for messages, because the content may be secret.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Parses a value of `compression`: true, false, or the name of a format.
pub fn compression(value: &Value) -> Option<Compression> {
    match value {
        Value::Bool(true) => Some(Compression::GZIP),
        Value::Bool(false) => Some(Compression::None),
        Value::String(name) if name == "gzip" => Some(Compression::GZIP),
        Value::String(name) if name == "zstd" => Some(Compression::ZSTD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{backup_config::BackupConfig, *};

    #[test]
    fn values_that_cannot_be_used_are_warnings_and_the_others_count() {
        let config = json!({ "backup": { "enabled": true, "maxBackups": "five", "keep": { "daily": 7 }, "mine": {} } });
        let mut said = Vec::new();
        let settings = Settings::of(&config, &mut |message| said.push(message));
        assert_eq!(settings.bool("backup.enabled"), Some(true));
        // The limit on removal that the user wrote is unusable, so nothing is removed.
        assert!(
            BackupConfig::of(&settings).retention().keeps_everything()
                && settings.doubt_of_retention().is_some()
        );
        assert_eq!(said.len(), 2);
        assert_eq!(
            said[0],
            "`backup.mine` is not a setting: see `kg config show --all`"
        );
        assert!(
            said[1].contains("backup.maxBackups") && said[1].contains("\"five\""),
            "{}",
            said[1]
        );
    }

    #[test]
    fn retention_and_retention_days_are_one_thing_and_the_one_that_removes_less_counts() {
        let of = |config| Settings::of(&config, &mut |_| panic!("no warning")).retention_days();
        assert_eq!(of(json!({ "backup": { "retention": 30 } })), Some(30));
        assert_eq!(of(json!({ "backup": { "retentionDays": 7 } })), Some(7));
        assert_eq!(
            of(json!({ "backup": { "retention": 30, "retentionDays": 7 } })),
            Some(30)
        );
        assert_eq!(of(json!({})), None);
    }

    #[test]
    fn a_configuration_that_is_a_pipe_a_directory_or_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(STATE_DIR)).unwrap();
        let path = dir.path().join(STATE_DIR).join(CONFIG_FILE);
        let is_unusable = || Settings::read(dir.path(), &mut Vec::new()).are_unusable();
        assert!(!is_unusable());
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(is_unusable());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(is_unusable());
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(is_unusable());
    }

    #[test]
    fn a_configuration_that_is_not_an_object_of_objects_is_unusable_and_not_an_empty_one() {
        for text in [
            "[]",
            "null",
            "7",
            "true",
            "\"text\"",
            r#"{"backup":[]}"#,
            r#"{"backup":null}"#,
            r#"{"backup":1}"#,
        ] {
            let mut said = Vec::new();
            let settings = Settings::of(&serde_json::from_str(text).unwrap(), &mut |message| {
                said.push(message)
            });
            assert_eq!(
                settings.assert_usable().unwrap_err().code,
                Code::ConfigInvalid,
                "{text}"
            );
            assert_eq!((said.len(), settings.listen()), (1, Listen::Off), "{text}");
        }
        assert!(
            Settings::of(&json!({}), &mut |_| panic!())
                .assert_usable()
                .is_ok()
        );
    }

    #[test]
    fn a_default_never_opens_a_port_removes_a_backup_or_chooses_a_directory_for_what_cannot_be_used()
     {
        let of = |backup| Settings::of(&json!({ "backup": backup }), &mut |_| {});
        for backup in [json!({ "listen": false }), json!({ "lisen": "off" })] {
            assert_eq!(of(backup).listen(), Listen::Off);
        }
        for backup in [
            json!({ "keep": 7 }),
            json!({ "keep": { "dayly": 7 } }),
            json!({ "retnetion": 30 }),
            json!({ "kep": {} }),
        ] {
            let mut whole = json!({ "maxBackups": 1 });
            whole
                .as_object_mut()
                .unwrap()
                .extend(backup.as_object().unwrap().clone());
            assert!(
                BackupConfig::of(&of(whole)).retention().keeps_everything(),
                "{backup}"
            );
        }
        for backup in [
            json!({ "dir": 5 }),
            json!({ "dri": "b" }),
            json!({ "backupDir": "b" }),
        ] {
            assert!(of(backup.clone()).doubt_of_dir().is_some(), "{backup}");
        }
        for backup in [
            json!({}),
            json!({ "dir": "b" }),
            json!({ "dir": "b", "dri": "b" }),
        ] {
            assert!(of(backup.clone()).doubt_of_dir().is_none(), "{backup}");
        }
    }
}
