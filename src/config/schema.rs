//! Every key that `kg config` sets, and its allowed values.

use serde_json::Value;
use ureq::http::Uri;

use super::{listen::Listen, unknown_keys::nearest};
use crate::{
    archive::encryption::{is_shown, parse_recipient},
    error::{Error, Result},
    project::{CONFIG_FILE, HOOKS_FILE, exclude::Exclusion},
    schedule::cron::{Cadence, time_zone},
};

/// The file in `.kg/` that contains a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigFile {
    /// `config.json`, which a restore brings back.
    Config,
    /// `hooks.json`, which no backup contains: an archive must not decide what is called or run on
    /// this machine.
    Hooks,
}

impl ConfigFile {
    pub fn file_name(self) -> &'static str {
        match self {
            ConfigFile::Config => CONFIG_FILE,
            ConfigFile::Hooks => HOOKS_FILE,
        }
    }
}

/// A configuration key.
#[derive(Debug)]
pub struct Key {
    /// The path of the key in the file.
    pub name: &'static str,
    rule: Rule,
    /// The description for users.
    pub meaning: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    Bool,
    Compression,
    Whole(u64, u64),
    Choice(&'static [&'static str]),
    Schedule,
    Zone,
    Text,
    Patterns,
    Recipients,
    Listen,
    Command,
    Url,
}

/// The prefix of all keys in [`ConfigFile::Hooks`].
const HOOKS_PREFIX: &str = "backup.hooks.";
const MOST: u64 = u32::MAX as u64;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

const fn key(name: &'static str, rule: Rule, meaning: &'static str) -> Key {
    Key {
        name,
        rule,
        meaning,
    }
}

/// All keys, in the order in which `kg config show` prints them.
pub const ALL: &[Key] = &[
    key(
        "backup.enabled",
        Rule::Bool,
        "make backups with `kg serve` on the schedule [default: false]",
    ),
    key("backup.schedule", Rule::Schedule, "when to make backups"),
    key(
        "backup.timezone",
        Rule::Zone,
        "time zone of the schedule and of backup.keep [default: the system's; UTC for backup.keep]",
    ),
    key(
        "backup.type",
        Rule::Choice(&["full", "incremental", "snapshot"]),
        "type of scheduled backups [default: full]",
    ),
    key(
        "backup.fullBackupInterval",
        Rule::Whole(1, MOST),
        "days after which a scheduled incremental backup is a full one",
    ),
    key(
        "backup.dir",
        Rule::Text,
        "directory of the backups, relative to the project, or URL such as s3://bucket/prefix [default: \
         .kg/backups]",
    ),
    key(
        "backup.mode",
        Rule::Choice(&["0600", "0640"]),
        "permissions of new archives: 0600 for the owner, 0640 also for the group [default: 0640 in a \
         directory that its group shares (chmod 2770), otherwise 0600]",
    ),
    key(
        "backup.retention",
        Rule::Whole(1, MOST),
        "remove backups that are older than this many days",
    ),
    key(
        "backup.retentionDays",
        Rule::Whole(1, MOST),
        "the same as backup.retention",
    ),
    key(
        "backup.maxBackups",
        Rule::Whole(1, MOST),
        "keep at most this many backups",
    ),
    key(
        "backup.keep.last",
        Rule::Whole(1, MOST),
        "keep this many of the newest good backups, regardless of the limits",
    ),
    key(
        "backup.keep.hourly",
        Rule::Whole(1, MOST),
        "keep the newest backup of each of this many hours",
    ),
    key(
        "backup.keep.daily",
        Rule::Whole(1, MOST),
        "keep the newest backup of each of this many days",
    ),
    key(
        "backup.keep.weekly",
        Rule::Whole(1, MOST),
        "keep the newest backup of each of this many weeks",
    ),
    key(
        "backup.keep.monthly",
        Rule::Whole(1, MOST),
        "keep the newest backup of each of this many months",
    ),
    key(
        "backup.keep.yearly",
        Rule::Whole(1, MOST),
        "keep the newest backup of each of this many years",
    ),
    key(
        "backup.copyTo",
        Rule::Text,
        "second store, to which each scheduled backup is copied: a directory, relative to the project, or \
         URL such as s3://bucket/prefix [default: none]",
    ),
    key(
        "backup.copyRetentionDays",
        Rule::Whole(1, MOST),
        "remove copies that are older than this many days",
    ),
    key(
        "backup.copyMaxBackups",
        Rule::Whole(1, MOST),
        "keep at most this many copies",
    ),
    key(
        "backup.copyKeep.last",
        Rule::Whole(1, MOST),
        "keep this many of the newest good copies, regardless of the limits",
    ),
    key(
        "backup.copyKeep.hourly",
        Rule::Whole(1, MOST),
        "keep the newest copy of each of this many hours",
    ),
    key(
        "backup.copyKeep.daily",
        Rule::Whole(1, MOST),
        "keep the newest copy of each of this many days",
    ),
    key(
        "backup.copyKeep.weekly",
        Rule::Whole(1, MOST),
        "keep the newest copy of each of this many weeks",
    ),
    key(
        "backup.copyKeep.monthly",
        Rule::Whole(1, MOST),
        "keep the newest copy of each of this many months",
    ),
    key(
        "backup.copyKeep.yearly",
        Rule::Whole(1, MOST),
        "keep the newest copy of each of this many years",
    ),
    key(
        "backup.maxChainLength",
        Rule::Whole(1, MOST),
        "the most members of a chain; the next backup is a full one [default: 64]",
    ),
    key(
        "backup.includeVectors",
        Rule::Bool,
        "save vector embeddings [default: true]",
    ),
    key(
        "backup.includePluginData",
        Rule::Bool,
        "save plugin data [default: true]",
    ),
    key(
        "backup.excludePatterns",
        Rule::Patterns,
        "exclude files that match, as in .gitignore [default: none]",
    ),
    key(
        "backup.compression",
        Rule::Compression,
        "compression format of new archives [default: gzip]",
    ),
    key(
        "backup.compressionLevel",
        Rule::Whole(1, 9),
        "compression level, 1 is fast and 9 is small [default: 6 for gzip, 3 for zstd]",
    ),
    key(
        "backup.checkSource",
        Rule::Bool,
        "check the databases that are saved [default: true]",
    ),
    key(
        "backup.strict",
        Rule::Bool,
        "fail if a backup would be incomplete [default: false]",
    ),
    key(
        "backup.forceRead",
        Rule::Bool,
        "read every file for an incremental backup, also those that look unchanged [default: false]",
    ),
    key(
        "backup.encrypt",
        Rule::Bool,
        "encrypt new backups [default: false]",
    ),
    key(
        "backup.passphraseFile",
        Rule::Text,
        "file with the passphrase of encrypted backups, relative to the project",
    ),
    key(
        "backup.recipients",
        Rule::Recipients,
        "age public keys (age1…) that new backups are encrypted to",
    ),
    key(
        "backup.identityFile",
        Rule::Text,
        "age identity file that opens encrypted backups, relative to the project",
    ),
    key(
        "backup.catchUp",
        Rule::Bool,
        "make one backup for scheduled times that were missed [default: true]",
    ),
    key(
        "backup.jitter",
        Rule::Whole(0, DAY_MS),
        "start up to this many milliseconds later, at random [default: 0]",
    ),
    key(
        "backup.retries",
        Rule::Whole(0, 100),
        "number of retries of a failed backup [default: 3]",
    ),
    key(
        "backup.retryDelay",
        Rule::Whole(1, DAY_MS),
        "milliseconds before the first retry; the delay grows with each retry [default: 60000]",
    ),
    key(
        "backup.listen",
        Rule::Listen,
        "address where `kg serve` answers /healthz, /readyz and /metrics [default: 127.0.0.1:9821]",
    ),
    key(
        "backup.hooks.onSuccess.command",
        Rule::Command,
        "command to run after a successful backup",
    ),
    key(
        "backup.hooks.onSuccess.url",
        Rule::Url,
        "URL that receives a POST after a successful backup",
    ),
    key(
        "backup.hooks.onFailure.command",
        Rule::Command,
        "command to run after a failed backup",
    ),
    key(
        "backup.hooks.onFailure.url",
        Rule::Url,
        "URL that receives a POST after a failed backup",
    ),
    key(
        "backup.hooks.heartbeat",
        Rule::Url,
        "URL that receives a GET after a successful backup",
    ),
    key(
        "backup.hooks.heartbeatStart",
        Rule::Url,
        "URL that receives a GET when a backup starts",
    ),
    key(
        "backup.hooks.heartbeatFailure",
        Rule::Url,
        "URL that receives a GET after a failed backup",
    ),
    key(
        "backup.hooks.secretFile",
        Rule::Text,
        "file with the key that signs each POST, relative to the project",
    ),
    key(
        "backup.hooks.timeout",
        Rule::Whole(1, 300),
        "seconds that a hook may take, including retries [default: 10]",
    ),
    key(
        "backup.hooks.retries",
        Rule::Whole(0, 10),
        "number of retries of a call to a URL [default: 3]",
    ),
];

/// Returns the key of that name.
pub fn find(name: &str) -> Result<&'static Key> {
    ALL.iter().find(|key| key.name == name).ok_or_else(|| {
        let homes = [ConfigFile::Config, ConfigFile::Hooks];
        let remedy = match homes.into_iter().find_map(|home| nearest(home, name)) {
            Some(known) if known == name => {
                "Name one of its keys; `kg config show --all` lists them".into()
            }
            Some(known) => format!("You may mean `{known}`"),
            None => "See the keys with `kg config show --all`".into(),
        };
        Error::invalid(format!("`{name}` is not a setting"), remedy)
    })
}

impl Key {
    pub fn home(&self) -> ConfigFile {
        if self.name.starts_with(HOOKS_PREFIX) {
            ConfigFile::Hooks
        } else {
            ConfigFile::Config
        }
    }

    /// Returns the value of the key in the whole configuration.
    pub fn find<'a>(&self, config: &'a Value) -> Option<&'a Value> {
        self.name
            .split('.')
            .try_fold(config, |object, part| object.get(part))
    }

    /// Parses and checks a value that a person typed.
    pub fn parse(&self, text: &str) -> Result<Value> {
        let value = match self.rule {
            Rule::Bool => text.parse::<bool>().ok().map(Value::from),
            Rule::Compression => text
                .parse::<bool>()
                .ok()
                .map(Value::from)
                .or_else(|| Some(Value::from(text))),
            Rule::Whole(..) => text.parse::<u64>().ok().map(Value::from),
            Rule::Choice(_)
            | Rule::Schedule
            | Rule::Zone
            | Rule::Text
            | Rule::Listen
            | Rule::Url => Some(Value::from(text)),
            Rule::Patterns | Rule::Recipients | Rule::Command if text.starts_with('[') => {
                serde_json::from_str(text).ok()
            }
            // No shell splits the command, so arguments must be given as a list.
            Rule::Command => (!text.contains(char::is_whitespace)).then(|| Value::from(vec![text])),
            Rule::Patterns | Rule::Recipients => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|one| !one.is_empty())
                    .collect(),
            ),
        };
        let value = value.ok_or_else(|| self.refuse(&Value::from(text)))?;
        self.check(&value).map(|()| value)
    }

    /// Checks that the value is allowed.
    pub fn check(&self, value: &Value) -> Result<()> {
        let fits = match self.rule {
            Rule::Bool => value.is_boolean(),
            Rule::Compression => super::compression(value).is_some(),
            Rule::Whole(least, most) => value
                .as_u64()
                .is_some_and(|value| (least..=most).contains(&value)),
            Rule::Choice(choices) => value.as_str().is_some_and(|value| choices.contains(&value)),
            Rule::Schedule | Rule::Zone => value.is_string(),
            Rule::Text => value.as_str().is_some_and(|value| !value.is_empty()),
            Rule::Patterns => value
                .as_array()
                .is_some_and(|list| list.iter().all(Value::is_string)),
            Rule::Recipients => value
                .as_array()
                .is_some_and(|list| list.iter().all(is_recipient)),
            Rule::Listen => Listen::of(value).is_ok(),
            Rule::Command => value.as_array().is_some_and(|list| is_command(list)),
            Rule::Url => value.as_str().is_some_and(is_url),
        };
        if !fits {
            return Err(self.refuse(value));
        }
        self.try_out(value).map_err(|error| Error {
            message: format!("`{}`: {}", self.name, error.message),
            ..error
        })
    }

    /// Checks the value with the code that will use it.
    fn try_out(&self, value: &Value) -> Result<()> {
        let text = value.as_str().unwrap_or_default();
        match self.rule {
            Rule::Schedule => Cadence::parse(text, Some("UTC")).map(|_| ()),
            Rule::Zone => time_zone(Some(text)).map(|_| ()),
            Rule::Patterns => {
                let patterns: Vec<String> = value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|one| one.as_str().map(Into::into))
                    .collect();
                Exclusion::new(std::path::Path::new("/"), &patterns).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Returns the value for display, without the parts of a URL or recipient that may be secret.
    pub fn shown(&self, value: &Value) -> Value {
        match (self.rule, value.as_str()) {
            (Rule::Url, Some(url)) => Value::from(masked(url)),
            // An object store is refused if its URL contains a password.
            (Rule::Text, Some(text)) if text.contains("://") && text.contains('@') => {
                Value::from(masked(text))
            }
            // The user may have entered the private key by mistake.
            (Rule::Recipients, _) => match value.as_array() {
                Some(list) => list.iter().map(shown_recipient).collect(),
                None => shown_recipient(value),
            },
            _ => value.clone(),
        }
    }

    fn refuse(&self, value: &Value) -> Error {
        let value = self.shown(value);
        Error::invalid(
            format!("`{}` is {value}, not {}", self.name, self.values()),
            "Give an allowed value",
        )
    }

    /// Describes the allowed values.
    pub fn values(&self) -> String {
        match self.rule {
            Rule::Bool => "true or false".into(),
            Rule::Compression => "gzip, zstd, true or false".into(),
            Rule::Whole(least, MOST) => format!("a whole number from {least}"),
            Rule::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Rule::Choice(choices) => format!("one of {}", choices.join(", ")),
            Rule::Schedule => "a cron expression".into(),
            Rule::Zone => "the name of a time zone".into(),
            Rule::Text => "a text".into(),
            Rule::Patterns => "a list of patterns".into(),
            Rule::Recipients => "a list of public keys of age, which begin with age1".into(),
            Rule::Listen => {
                "a port such as 9821, an address and port such as 0.0.0.0:9821, or off".into()
            }
            Rule::Command => {
                r#"a program, or a list such as ["mail", "-s", "Backup", "ops"]"#.into()
            }
            Rule::Url => "an http or https URL".into(),
        }
    }
}

fn shown_recipient(one: &Value) -> Value {
    if one.as_str().is_some_and(is_shown) {
        one.clone()
    } else {
        Value::from("…")
    }
}

fn is_recipient(one: &Value) -> bool {
    one.as_str()
        .is_some_and(|text| parse_recipient(text).is_ok())
}

fn is_command(list: &[Value]) -> bool {
    let is_argument = |one: &Value| one.as_str().is_some_and(|text| !text.contains('\0'));
    list.iter().all(is_argument)
        && list
            .first()
            .and_then(Value::as_str)
            .is_some_and(|program| !program.is_empty())
}

fn is_url(text: &str) -> bool {
    let parsed = text.parse::<Uri>().ok();
    parsed.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    })
}

/// Masks a URL for logs and terminals. Names, passwords and tokens may be anywhere except in the
/// scheme, host and port.
pub fn masked(url: &str) -> String {
    let Ok(parsed) = url.parse::<Uri>() else {
        return "…".into();
    };
    let port = parsed
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!(
        "{}://{}{port}/…",
        parsed.scheme_str().unwrap_or_default(),
        parsed.host().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_taken_as_its_key_means_it_or_refused_with_what_is_allowed() {
        let parse = |name: &str, text: &str| find(name).and_then(|key| key.parse(text));
        assert_eq!(parse("backup.enabled", "true").unwrap(), Value::Bool(true));
        assert_eq!(parse("backup.retention", "30").unwrap(), Value::from(30));
        assert_eq!(
            parse("backup.excludePatterns", "*.tmp, a/").unwrap(),
            Value::from(vec!["*.tmp", "a/"])
        );
        assert_eq!(
            parse("backup.excludePatterns", r#"["a,b"]"#).unwrap(),
            Value::from(vec!["a,b"])
        );
        let cases = [
            (
                "backup.enabled",
                "yes",
                "`backup.enabled` is \"yes\", not true or false",
            ),
            (
                "backup.retention",
                "0",
                "`backup.retention` is 0, not a whole number from 1",
            ),
            (
                "backup.compressionLevel",
                "12",
                "not a whole number from 1 to 9",
            ),
            (
                "backup.type",
                "partial",
                "not one of full, incremental, snapshot",
            ),
            (
                "backup.schedule",
                "0 25 * * *",
                "`backup.schedule`: Field 2 of the schedule",
            ),
            ("backup.timezone", "Mars", "`Mars` is not a time zone"),
            (
                "backup.listen",
                "localhost",
                "`backup.listen` is \"localhost\", not a port such as 9821",
            ),
            ("backup.excludePatterns", "{a", "is not a pattern"),
            (
                "backup.retension",
                "30",
                "`backup.retension` is not a setting",
            ),
            (
                "backup.hooks.onFailure.command",
                "mail ops",
                "is \"mail ops\", not a program, or a list such as",
            ),
            (
                "backup.hooks.onFailure.command",
                "[]",
                "is [], not a program",
            ),
            (
                "backup.hooks.onFailure.command",
                "[\"a\", 1]",
                "not a program, or a list",
            ),
            (
                "backup.hooks.heartbeat",
                "ftp://user:secret@host/x",
                "is \"ftp://host/…\", not an http or https URL",
            ),
            (
                "backup.hooks.heartbeat",
                "not a url",
                "is \"…\", not an http or https URL",
            ),
            (
                "backup.hooks.heartbeat",
                "/path",
                "not an http or https URL",
            ),
            (
                "backup.recipients",
                "age1notone",
                "is [\"age1notone\"], not a list of public keys of age",
            ),
            (
                "backup.recipients",
                "AGE-SECRET-KEY-1",
                "is [\"…\"], not a list of public keys of age",
            ),
            (
                "backup.hooks.timeout",
                "0",
                "`backup.hooks.timeout` is 0, not a whole number from 1 to 300",
            ),
        ];
        for (name, text, said) in cases {
            let error = parse(name, text).unwrap_err();
            assert!(error.message.contains(said), "{}", error.message);
        }
        assert_eq!(
            parse("backup.hooks.onFailure.command", "/bin/tell").unwrap(),
            Value::from(vec!["/bin/tell"])
        );
        assert_eq!(
            parse("backup.hooks.onFailure.command", r#"["a b", ""]"#).unwrap(),
            Value::from(vec!["a b", ""])
        );
        assert!(
            find("maxbackups")
                .unwrap_err()
                .remedy
                .contains("backup.maxBackups")
        );
    }
}
