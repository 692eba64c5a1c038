//! Every key that `kg config` sets, and what its value may be.

use serde_json::Value;

use super::listen::Listen;
use crate::{
    cron::{Cadence, time_zone},
    error::{Error, Result},
    project::exclude::Exclusion,
};

/// One key of `.kg/config.json`.
#[derive(Debug)]
pub struct Key {
    /// Its path in the file.
    pub name: &'static str,
    rule: Rule,
    /// What it means, for people.
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
    Listen,
}

const MOST: u64 = u32::MAX as u64;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

const fn key(name: &'static str, rule: Rule, meaning: &'static str) -> Key {
    Key { name, rule, meaning }
}

/// In the order in which `kg config show` tells them.
pub const ALL: &[Key] = &[
    key("backup.enabled", Rule::Bool, "whether `kg serve` makes backups on the schedule"),
    key("backup.schedule", Rule::Schedule, "when, as a cron expression"),
    key("backup.timezone", Rule::Zone, "in which time zone [default: the system's]"),
    key("backup.type", Rule::Choice(&["full", "incremental", "snapshot"]), "what a backup is [default: full]"),
    key("backup.fullBackupInterval", Rule::Whole(1, MOST), "days after which an incremental backup becomes a full one"),
    key("backup.dir", Rule::Text, "where backups are kept, from the project's root [default: .kg/backups]"),
    key("backup.retention", Rule::Whole(1, MOST), "remove backups that are older than so many days"),
    key("backup.retentionDays", Rule::Whole(1, MOST), "the same"),
    key("backup.maxBackups", Rule::Whole(1, MOST), "keep so many backups at most"),
    key("backup.keep.last", Rule::Whole(1, MOST), "keep so many good backups, whatever the limits say"),
    key("backup.keep.hourly", Rule::Whole(1, MOST), "keep the newest of each of so many hours"),
    key("backup.keep.daily", Rule::Whole(1, MOST), "of so many days"),
    key("backup.keep.weekly", Rule::Whole(1, MOST), "of so many weeks"),
    key("backup.keep.monthly", Rule::Whole(1, MOST), "of so many months"),
    key("backup.keep.yearly", Rule::Whole(1, MOST), "of so many years"),
    key(
        "backup.maxChainLength",
        Rule::Whole(1, MOST),
        "after so many, an incremental backup becomes a full one [default: 64]",
    ),
    key("backup.includeVectors", Rule::Bool, "save vector embeddings [default: true]"),
    key("backup.includePluginData", Rule::Bool, "save plugin data [default: true]"),
    key("backup.excludePatterns", Rule::Patterns, "leave out what matches, as in .gitignore"),
    key("backup.compression", Rule::Compression, "gzip, zstd or false [default: gzip]"),
    key("backup.compressionLevel", Rule::Whole(1, 9), "1 (fast) to 9 (small) [default: 6 for gzip, 3 for zstd]"),
    key("backup.checkSource", Rule::Bool, "check the databases that are saved [default: true]"),
    key("backup.strict", Rule::Bool, "fail where a backup would not be complete [default: false]"),
    key("backup.catchUp", Rule::Bool, "make up for times that were missed [default: true]"),
    key("backup.jitter", Rule::Whole(0, DAY_MS), "begin up to so many milliseconds later [default: 0]"),
    key("backup.retries", Rule::Whole(0, 100), "try a failed backup again so often [default: 3]"),
    key("backup.retryDelay", Rule::Whole(1, DAY_MS), "milliseconds before the first retry [default: 60000]"),
    key(
        "backup.listen",
        Rule::Listen,
        "where `kg serve` answers /healthz, /readyz and /metrics: a port of this machine, an address and port, or off \
         [default: 127.0.0.1:9821]",
    ),
];

/// The key of that name.
pub fn find(name: &str) -> Result<&'static Key> {
    ALL.iter().find(|key| key.name == name).ok_or_else(|| {
        let lower = name.to_lowercase();
        let alike = ALL.iter().find(|key| {
            let known = key.name.to_lowercase();
            known == lower || known.strip_prefix("backup.") == Some(&lower)
        });
        let remedy = match alike {
            Some(key) => format!("Did you mean `{}`?", key.name),
            None => "See the keys with `kg config show --all`".into(),
        };
        Error::invalid(format!("`{name}` is no setting"), remedy.trim_end_matches('?'))
    })
}

impl Key {
    /// Its value in the whole configuration.
    pub fn find<'a>(&self, config: &'a Value) -> Option<&'a Value> {
        self.name.split('.').try_fold(config, |object, part| object.get(part))
    }

    /// The value that a person wrote.
    pub fn parse(&self, text: &str) -> Result<Value> {
        let value = match self.rule {
            Rule::Bool => text.parse::<bool>().ok().map(Value::from),
            Rule::Compression => text.parse::<bool>().ok().map(Value::from).or_else(|| Some(Value::from(text))),
            Rule::Whole(..) => text.parse::<u64>().ok().map(Value::from),
            Rule::Choice(_) | Rule::Schedule | Rule::Zone | Rule::Text | Rule::Listen => Some(Value::from(text)),
            Rule::Patterns if text.starts_with('[') => serde_json::from_str(text).ok(),
            Rule::Patterns => Some(text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect()),
        };
        let value = value.ok_or_else(|| self.refuse(&Value::from(text)))?;
        self.check(&value).map(|()| value)
    }

    /// Whether the value is one of those that are allowed.
    pub fn check(&self, value: &Value) -> Result<()> {
        let fits = match self.rule {
            Rule::Bool => value.is_boolean(),
            Rule::Compression => super::compression(value).is_some(),
            Rule::Whole(least, most) => value.as_u64().is_some_and(|value| (least..=most).contains(&value)),
            Rule::Choice(choices) => value.as_str().is_some_and(|value| choices.contains(&value)),
            Rule::Schedule | Rule::Zone => value.is_string(),
            Rule::Text => value.as_str().is_some_and(|value| !value.is_empty()),
            Rule::Patterns => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            Rule::Listen => Listen::of(value).is_ok(),
        };
        if !fits {
            return Err(self.refuse(value));
        }
        self.try_out(value).map_err(|error| Error { message: format!("`{}`: {}", self.name, error.message), ..error })
    }

    /// Asks whoever will use it.
    fn try_out(&self, value: &Value) -> Result<()> {
        let text = value.as_str().unwrap_or_default();
        match self.rule {
            Rule::Schedule => Cadence::parse(text, Some("UTC")).map(|_| ()),
            Rule::Zone => time_zone(Some(text)).map(|_| ()),
            Rule::Patterns => {
                let patterns: Vec<String> =
                    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(Into::into)).collect();
                Exclusion::new(std::path::Path::new("/"), &patterns).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    fn refuse(&self, value: &Value) -> Error {
        Error::invalid(format!("`{}` is {value}, not {}", self.name, self.allowed()), "Give one that is allowed")
    }

    fn allowed(&self) -> String {
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
            Rule::Listen => "a port such as 9821, an address and port such as 0.0.0.0:9821, or off".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_taken_as_its_key_means_it_or_refused_with_what_is_allowed() {
        let parse = |name: &str, text: &str| find(name).and_then(|key| key.parse(text));
        assert_eq!(parse("backup.enabled", "true").unwrap(), Value::Bool(true));
        assert_eq!(parse("backup.retention", "30").unwrap(), Value::from(30));
        assert_eq!(parse("backup.excludePatterns", "*.tmp, a/").unwrap(), Value::from(vec!["*.tmp", "a/"]));
        assert_eq!(parse("backup.excludePatterns", r#"["a,b"]"#).unwrap(), Value::from(vec!["a,b"]));
        let cases = [
            ("backup.enabled", "yes", "`backup.enabled` is \"yes\", not true or false"),
            ("backup.retention", "0", "`backup.retention` is 0, not a whole number from 1"),
            ("backup.compressionLevel", "12", "not a whole number from 1 to 9"),
            ("backup.type", "partial", "not one of full, incremental, snapshot"),
            ("backup.schedule", "0 25 * * *", "`backup.schedule`: Field 2 of the schedule"),
            ("backup.timezone", "Mars", "`Mars` is no time zone"),
            ("backup.listen", "localhost", "`backup.listen` is \"localhost\", not a port such as 9821"),
            ("backup.excludePatterns", "{a", "is not a pattern"),
            ("backup.retension", "30", "`backup.retension` is no setting"),
        ];
        for (name, text, said) in cases {
            let error = parse(name, text).unwrap_err();
            assert!(error.message.contains(said), "{}", error.message);
        }
        assert!(find("maxbackups").unwrap_err().remedy.contains("backup.maxBackups"));
    }
}
