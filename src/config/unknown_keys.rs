//! Unknown names in a configuration, and the known name that each may stand for.

use serde_json::Value;

use super::schema::{self, ConfigFile};

/// The object of `config.json` that configures backups. Everything else in the file belongs to the
/// host.
const SECTION: &str = "backup";
/// Names that differ by at most this many edits may be the same, if the known name is long enough.
const ALWAYS_ALIKE: usize = 2;

/// Two names are alike if one begins with the other and both have this many letters: `encryption`,
/// `encrypt`.
const LEAST_BEGINNING: usize = 5;

/// Names that other tools, and the API, use for a setting in [`SECTION`].
const OTHER_NAMES: [(&str, &str); 10] = [
    ("backupdir", "backup.dir"),
    ("directory", "backup.dir"),
    ("destination", "backup.dir"),
    ("location", "backup.dir"),
    ("output", "backup.dir"),
    ("path", "backup.dir"),
    ("password", "backup.passphraseFile"),
    ("passwordfile", "backup.passphraseFile"),
    ("keyfile", "backup.identityFile"),
    ("cron", "backup.schedule"),
];

/// A name that is not a setting, or a name of an object whose value is not an object.
#[derive(Debug, PartialEq)]
pub struct Unknown {
    /// The path in the file.
    pub name: String,
    /// The end of the sentence that begins with the name.
    pub what: String,
    /// The settings that the name may stand for.
    pub meant: Vec<&'static str>,
    /// Whether the name is known but its value is not an object.
    pub is_known: bool,
}

/// Returns all unknown names in `config`, the whole content of the file `home`.
pub fn unknown(home: ConfigFile, config: &Value) -> Vec<Unknown> {
    let mut found = Vec::new();
    match home {
        ConfigFile::Hooks => walk(home, config, "", &mut found),
        ConfigFile::Config => {
            for (name, value) in config.as_object().into_iter().flatten() {
                if name == SECTION {
                    walk(home, value, SECTION, &mut found);
                } else if let Some(known) = nearest_beside(name) {
                    let what = format!("is not a setting: {}", suggestion(name, known));
                    let meant = if known == SECTION {
                        meant_by_members(value)
                    } else {
                        keys_at(home, known)
                    };
                    found.push(Unknown {
                        name: name.clone(),
                        what,
                        meant,
                        is_known: false,
                    });
                }
            }
        }
    }
    found
}

/// Collects the unknown names in `value`. Its path is `name`: empty, or that of an object of keys.
fn walk(home: ConfigFile, value: &Value, name: &str, found: &mut Vec<Unknown>) {
    let Some(map) = value.as_object() else {
        let (what, meant) = ("is not an object".to_string(), below(home, name));
        return found.push(Unknown {
            name: name.to_string(),
            what,
            meant,
            is_known: true,
        });
    };
    for (part, value) in map {
        let full = if name.is_empty() {
            part.clone()
        } else {
            format!("{name}.{part}")
        };
        // A name with a dot in it is one name, not a path.
        let is_path = !part.contains('.');
        if is_path && keys_of(home).any(|key| key == full) {
            continue;
        }
        if is_path && !below(home, &full).is_empty() {
            walk(home, value, &full, found);
            continue;
        }
        // These keys have a warning of their own, because they are in the wrong file.
        if home == ConfigFile::Config && full == "backup.hooks" {
            continue;
        }
        let nearest = nearest(home, &full);
        let what = match (home, nearest) {
            (ConfigFile::Config, Some(known)) => {
                format!("is not a setting: {}", suggestion(part, known))
            }
            (ConfigFile::Config, None) => {
                "is not a setting: see `kg config show --all`".to_string()
            }
            (ConfigFile::Hooks, Some(known)) => {
                format!(
                    "in .kg/hooks.json is not a hook setting: {}",
                    suggestion(part, known)
                )
            }
            (ConfigFile::Hooks, None) => {
                "in .kg/hooks.json is not a hook setting: see `kg config show --all`".to_string()
            }
        };
        let meant = nearest.map(|known| keys_at(home, known));
        found.push(Unknown {
            name: full,
            what,
            meant: meant.unwrap_or_default(),
            is_known: false,
        });
    }
}

fn keys_of(home: ConfigFile) -> impl Iterator<Item = &'static str> {
    schema::ALL
        .iter()
        .filter(move |key| key.home() == home)
        .map(|key| key.name)
}

/// Returns the settings in the object of that name.
fn below(home: ConfigFile, name: &str) -> Vec<&'static str> {
    keys_of(home)
        .filter(|key| {
            key.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'))
        })
        .collect()
}

/// Returns the setting of that name, or the settings in the object of that name.
fn keys_at(home: ConfigFile, name: &str) -> Vec<&'static str> {
    match below(home, name) {
        keys if keys.is_empty() => keys_of(home).filter(|key| *key == name).collect(),
        keys => keys,
    }
}

/// Returns the advice for a user who wrote `given` and probably means `known`.
fn suggestion(given: &str, known: &str) -> String {
    if !given.contains('.') {
        return format!("did you mean `{known}`?");
    }
    let nested = known.rsplit('.').fold("…".to_string(), |inner, part| {
        format!("{{\"{part}\": {inner}}}")
    });
    format!("a name with a dot must be nested, as in `{nested}`")
}

/// Returns the setting, or the object of settings, that `name` most likely stands for.
pub fn nearest(home: ConfigFile, name: &str) -> Option<&'static str> {
    let given = plain(without_section(name));
    if let Some((_, known)) = OTHER_NAMES
        .iter()
        .find(|(other, _)| home == ConfigFile::Config && *other == given)
    {
        return Some(known);
    }
    let objects = keys_of(home)
        .filter_map(|key| key.rsplit_once('.'))
        .map(|(object, _)| object);
    let candidates = keys_of(home).chain(objects.filter(|object| *object != SECTION));
    let measured = candidates.map(|known| (distance(name, known), known));
    let (distance, known) = measured.min_by_key(|(distance, _)| *distance)?;
    let length = without_section(known).chars().count();
    if distance > ALWAYS_ALIKE {
        let is_begun = |known: &str| {
            let known = plain(without_section(known));
            given.len().min(known.len()) >= LEAST_BEGINNING
                && (known.starts_with(&given) || given.starts_with(&known))
        };
        if let Some(begun) = keys_of(home).find(|known| is_begun(known)) {
            return Some(begun);
        }
    }
    // In a short name, less than half of the letters may differ.
    (distance <= ALWAYS_ALIKE.max(length / 4) && distance < length.div_ceil(2)).then_some(known)
}

/// Counts the letters that differ: in the whole name, or in its last part plus one if that part was
/// put elsewhere.
fn distance(given: &str, known: &str) -> usize {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_string();
    let (given, known) = (plain(without_section(given)), plain(without_section(known)));
    let whole = strsim::damerau_levenshtein(&given, &known);
    let misplaced = strsim::damerau_levenshtein(&last(&given), &last(&known)).saturating_add(1);
    whole.min(misplaced)
}

fn without_section(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = name
        .strip_prefix(SECTION)
        .and_then(|rest| rest.strip_prefix('.'))
    {
        name = rest;
    }
    name
}

/// Removes differences that users overlook: capitals, `-` and `_`.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['-', '_'], "")
}

/// Returns the name that a misplaced name next to `backup` probably stands for.
fn nearest_beside(name: &str) -> Option<&'static str> {
    let name = plain(name);
    match name.split_once('.') {
        Some((SECTION, _)) => nearest(ConfigFile::Config, &name),
        _ => (strsim::damerau_levenshtein(&name, SECTION) <= ALWAYS_ALIKE).then_some(SECTION),
    }
}

/// Returns the settings in `value`, whose name probably stands for `backup`.
fn meant_by_members(value: &Value) -> Vec<&'static str> {
    let is_in = |key: &&str| {
        without_section(key)
            .split('.')
            .try_fold(value, |object, part| object.get(part))
            .is_some()
    };
    keys_of(ConfigFile::Config).filter(is_in).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(config: Value) -> Vec<String> {
        unknown(ConfigFile::Config, &config)
            .into_iter()
            .map(|one| format!("{} {}", one.name, one.what))
            .collect()
    }

    #[test]
    fn a_misspelt_name_is_told_with_the_nearest_known_one() {
        let cases = [
            (
                json!({ "backup": { "encrpyt": true } }),
                "backup.encrpyt",
                "backup.encrypt",
            ),
            (
                json!({ "backup": { "Encrypt": true } }),
                "backup.Encrypt",
                "backup.encrypt",
            ),
            (
                json!({ "backup": { "encryption": true } }),
                "backup.encryption",
                "backup.encrypt",
            ),
            (
                json!({ "backup": { "passphrasefile": "k" } }),
                "backup.passphrasefile",
                "backup.passphraseFile",
            ),
            (
                json!({ "backup": { "passphrase_file": "k" } }),
                "backup.passphrase_file",
                "backup.passphraseFile",
            ),
            (
                json!({ "backup": { "recipient": [] } }),
                "backup.recipient",
                "backup.recipients",
            ),
            (
                json!({ "backup": { "kep": { "daily": 7 } } }),
                "backup.kep",
                "backup.keep",
            ),
            (
                json!({ "backup": { "keep": { "dayly": 7 } } }),
                "backup.keep.dayly",
                "backup.keep.daily",
            ),
            (
                json!({ "backup": { "daily": 7 } }),
                "backup.daily",
                "backup.keep.daily",
            ),
            (
                json!({ "backup": { "dri": "b" } }),
                "backup.dri",
                "backup.dir",
            ),
            (
                json!({ "backup": { "backupDir": "b" } }),
                "backup.backupDir",
                "backup.dir",
            ),
            (
                json!({ "backup": { "password_file": "k" } }),
                "backup.password_file",
                "backup.passphraseFile",
            ),
            (
                json!({ "backups": { "encrypt": true } }),
                "backups",
                "backup",
            ),
            (json!({ "bakcup": { "encrypt": true } }), "bakcup", "backup"),
            (json!({ "BACKUP": {} }), "BACKUP", "backup"),
        ];
        for (config, name, meant) in cases {
            assert_eq!(
                told(config),
                [format!("{name} is not a setting: did you mean `{meant}`?")]
            );
        }
    }

    #[test]
    fn a_name_with_a_dot_is_told_as_it_is_to_be_nested() {
        let (encrypt, daily) = (
            r#"{"backup": {"encrypt": …}}"#,
            r#"{"backup": {"keep": {"daily": …}}}"#,
        );
        let cases = [
            (
                json!({ "backup.encrypt": true }),
                "backup.encrypt",
                encrypt,
                "backup.encrypt",
            ),
            (
                json!({ "Backup.Encrpyt": true }),
                "Backup.Encrpyt",
                encrypt,
                "backup.encrypt",
            ),
            (
                json!({ "backup": { "keep.daily": 7 } }),
                "backup.keep.daily",
                daily,
                "backup.keep.daily",
            ),
        ];
        for (config, name, nested, meant) in cases {
            let what = format!(
                "{name} is not a setting: a name with a dot must be nested, as in `{nested}`"
            );
            assert_eq!(told(config.clone()), [what]);
            assert_eq!(unknown(ConfigFile::Config, &config)[0].meant, [meant]);
        }
        assert_eq!(
            told(json!({ "backup.mine": 1, "database.path": "x" })),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_looks_like_nothing_is_told_and_the_keys_of_the_host_are_not() {
        assert_eq!(
            told(json!({ "backup": { "mine": {} } })),
            ["backup.mine is not a setting: see `kg config show --all`"]
        );
        assert_eq!(
            told(json!({ "backup": { "keep": 7 } })),
            ["backup.keep is not an object"]
        );
        let host = json!({ "database": {}, "theme": "dark", "background": 1, "lookup": 1, "encrypt": true, "backup": {} });
        assert_eq!(told(host), Vec::<String>::new());
    }
}
