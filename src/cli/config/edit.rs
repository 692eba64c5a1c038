//! Sets or removes one key of `.kg/config.json` or `.kg/hooks.json`, and keeps the other bytes of
//! the file. Only the outermost member that contains the key is written again.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Serializer, Value, ser::PrettyFormatter, value::RawValue};

use crate::{
    config::{
        parse, read_text,
        schema::{ConfigFile, Key},
    },
    error::{Code, Error, Result},
    project::{Project, database_path::is_inside},
    service::hooks,
    util::{atomic_file, file_lock, operation::OperationContext, unsupported},
    worker::restore::lock_against_restores,
};

const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// The file that is locked during a change, so that two processes that set different keys do not
/// lose a change.
const LOCK_FILE: &str = "config.lock";
const DEFAULT_INDENT: &str = "  ";

/// Sets or removes `key`. Returns whether the file changed. Waits for a restore that is in
/// progress.
pub fn set(
    project: &Project,
    key: &Key,
    value: Option<Value>,
    context: &OperationContext,
) -> Result<bool> {
    set_at(project, key.home(), key.name, value, context)
}

/// Sets or removes a name as [`set`] does, even if the name is not a key.
pub fn set_at(
    project: &Project,
    home: ConfigFile,
    name: &str,
    value: Option<Value>,
    context: &OperationContext,
) -> Result<bool> {
    let _no_restore = lock_against_restores(&project.state_dir(), LOCK_TIMEOUT, &context.cancel)?;
    let _lock = lock(project, context)?;
    let path = path(project, home);
    let before = read(project, home)?;
    let text = before.as_deref().unwrap_or("{}\n");
    parse(text.as_bytes()).map_err(|what| invalid(home, &path, &format!("it {what}")))?;
    let after = edited(text, name, value).map_err(|what| invalid(home, &path, &what))?;
    if after == text {
        return Ok(false);
    }
    match home {
        ConfigFile::Config if before.is_some() => replace(project, &path, after.as_bytes())?,
        ConfigFile::Config => create(&path, after.as_bytes())?,
        // Only the owner may read and write this file, because its commands run as that user.
        ConfigFile::Hooks => atomic_file::write(&path, after.as_bytes())?,
    }
    Ok(true)
}

fn lock(project: &Project, context: &OperationContext) -> Result<File> {
    let path = project.state_dir().join(LOCK_FILE);
    let failed = |cause| Error::io("lock", &path, cause);
    let file = atomic_file::open_lock(&path)?;
    if file_lock::wait(&file, LOCK_TIMEOUT, context, failed)? {
        return Ok(file);
    }
    let message = format!(
        "The settings in {} are being changed by another process",
        project.state_dir().display()
    );
    Err(Error::new(
        Code::TargetLocked,
        message,
        "Wait until it ends",
    ))
}

/// Returns the whole file, or an empty object if there is none.
pub fn load(project: &Project, home: ConfigFile) -> Result<Value> {
    let path = path(project, home);
    let Some(text) = read(project, home)? else {
        return Ok(Value::Object(Map::new()));
    };
    match parse(text.as_bytes()) {
        Ok(config) if config.is_object() => Ok(config),
        Ok(_) => Err(invalid(home, &path, "it is not an object")),
        Err(what) => Err(invalid(home, &path, &format!("it {what}"))),
    }
}

fn path(project: &Project, home: ConfigFile) -> PathBuf {
    project.state_dir().join(home.file_name())
}

fn read(project: &Project, home: ConfigFile) -> Result<Option<String>> {
    if home == ConfigFile::Hooks {
        return hooks::file::read(project);
    }
    let path = path(project, home);
    let text = read_text(&path).map_err(|cause| Error::io("read", &path, cause))?;
    if text.is_none() && path.symlink_metadata().is_ok() {
        let message = format!("{} is a link that leads nowhere", path.display());
        return Err(Error::new(
            Code::ConfigInvalid,
            message,
            "Mount its target, or remove the link",
        ));
    }
    text.map(|text| String::from_utf8(text).map_err(|_| invalid(home, &path, "it is not UTF-8")))
        .transpose()
}

/// Replaces a configuration. A link stays a link, and its target is replaced.
///
/// Fails with `KG_UNSAFE_FILE` if the target is outside the project. Other programs may use that
/// file. Besides, a user who can write to `.kg` could otherwise have any file overwritten.
fn replace(project: &Project, link: &Path, content: &[u8]) -> Result<()> {
    let path = link
        .canonicalize()
        .map_err(|cause| Error::io("find", link, cause))?;
    let root = project
        .root()
        .canonicalize()
        .map_err(|cause| Error::io("find", project.root(), cause))?;
    if !is_inside(&root, &path) {
        let message = format!(
            "{} is a link to {}, which is outside of the project",
            link.display(),
            path.display()
        );
        return Err(Error::new(
            Code::UnsafeFile,
            message,
            "Nothing was changed; edit that file directly",
        ));
    }
    let failed = |cause| Error::io("write", &path, cause);
    let mut file = atomic_file::TempFile::new(path.parent().unwrap_or(&path))?;
    file.write_all(content).map_err(failed)?;
    let old = fs::metadata(&path).map_err(failed)?;
    file.set_mode(old.mode() & 0o7777)?;
    let new = file.file().metadata().map_err(failed)?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        let given = fchown(file.file(), Some(old.uid()), Some(old.gid()));
        unsupported::attributes(given, &path).map_err(failed)?;
    }
    file.persist(&path)
}

fn create(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |cause| Error::io("write", path, cause);
    let mut file = atomic_file::TempFile::new(path.parent().unwrap_or(path))?;
    file.write_all(content).map_err(failed)?;
    file.set_mode(0o644)?;
    file.persist(path)
}

fn invalid(home: ConfigFile, path: &Path, what: &str) -> Error {
    let (code, remedy) = match home {
        ConfigFile::Config => (
            Code::ConfigInvalid,
            "restore it with `kg diag restore --file latest --config-only`",
        ),
        ConfigFile::Hooks => (Code::HooksInvalid, "remove it and set the hooks again"),
    };
    let message = format!("{} is not a configuration: {what}", path.display());
    Error::new(
        code,
        message,
        format!("Nothing was changed; fix it, or {remedy}"),
    )
}

/// The members of the outermost object, each with the text of its value.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Members<'de>, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Returns `text` with the key set to `value`, or without the key.
fn edited(text: &str, name: &str, value: Option<Value>) -> std::result::Result<String, String> {
    let Members(members) = serde_json::from_str(text).map_err(|cause| cause.to_string())?;
    let mut path = name.split('.');
    let outer = path.next().unwrap_or_default();
    let path: Vec<&str> = path.collect();
    let member = members.iter().find(|(name, _)| name == outer);
    let mut object = match member {
        Some((_, raw)) => {
            serde_json::from_str::<Value>(raw.get()).map_err(|cause| cause.to_string())?
        }
        None => Value::Object(Map::new()),
    };
    let before = object.clone();
    let is_set = value.is_some();
    place(&mut object, &path, value).map_err(|part| format!("`{outer}{part}` is not an object"))?;
    if object == before && (is_set || member.is_some() || object == Value::Object(Map::new())) {
        return Ok(text.to_string());
    }
    let style = Style::of(text);
    let written = style.write(&object)?;
    Ok(match (member, members.last()) {
        (Some((_, raw)), _) => splice(text, range_of(text, raw), &written),
        (None, Some((_, last))) => {
            let (_, end) = range_of(text, last);
            splice(
                text,
                (end, end),
                &format!(
                    ",{}{}:{}{written}",
                    style.newline(),
                    Value::from(outer),
                    style.space()
                ),
            )
        }
        (None, None) => {
            let open = text.find('{').map_or(0, |open| open + 1);
            let close = text.rfind('}').unwrap_or(text.len());
            let end = if style.indent.is_some() { "\n" } else { "" };
            let member = format!(
                "{}{}:{}{written}{end}",
                style.newline(),
                Value::from(outer),
                style.space()
            );
            splice(text, (open, close), &member)
        }
    })
}

/// Sets the member of `object` that `path` names, or removes it together with objects that become
/// empty.
fn place(
    object: &mut Value,
    path: &[&str],
    value: Option<Value>,
) -> std::result::Result<(), String> {
    let Some(map) = object.as_object_mut() else {
        return Err(String::new());
    };
    match (path, value) {
        ([name], Some(value)) => {
            // `retention` and `retentionDays` are two names for one setting. Only one of them may
            // remain.
            match *name {
                "retention" => drop(map.shift_remove("retentionDays")),
                "retentionDays" => drop(map.shift_remove("retention")),
                _ => {}
            }
            map.insert((*name).to_string(), value);
        }
        ([name], None) => drop(map.shift_remove(*name)),
        ([name, rest @ ..], value) => {
            if value.is_none() && !map.contains_key(*name) {
                return Ok(());
            }
            let inner = map
                .entry(*name)
                .or_insert_with(|| Value::Object(Map::new()));
            place(inner, rest, value).map_err(|part| format!(".{name}{part}"))?;
            if inner.as_object().is_some_and(Map::is_empty) {
                map.shift_remove(*name);
            }
        }
        ([], _) => {}
    }
    Ok(())
}

/// Returns the range of a value in `text`. The value must have been parsed from `text`.
fn range_of(text: &str, raw: &RawValue) -> (usize, usize) {
    let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
    (start, start + raw.get().len())
}

fn splice(text: &str, (start, end): (usize, usize), with: &str) -> String {
    format!("{}{with}{}", &text[..start], &text[end..])
}

/// The layout of the file.
struct Style {
    /// The indentation of one level; `None` if the whole file is one line.
    indent: Option<String>,
}

impl Style {
    fn of(text: &str) -> Self {
        let inside = text.trim();
        if inside.len() > 2 && !inside.contains('\n') {
            return Style { indent: None };
        }
        let first = text.lines().find(|line| line.trim_start().starts_with('"'));
        let indent = first.map(|line| &line[..line.len() - line.trim_start().len()]);
        Style {
            indent: Some(
                indent
                    .filter(|indent| !indent.is_empty())
                    .unwrap_or(DEFAULT_INDENT)
                    .to_string(),
            ),
        }
    }

    fn newline(&self) -> String {
        self.indent
            .as_ref()
            .map(|indent| format!("\n{indent}"))
            .unwrap_or_default()
    }

    fn space(&self) -> &'static str {
        if self.indent.is_some() { " " } else { "" }
    }

    /// Formats the value as a member of the outermost object.
    fn write(&self, value: &Value) -> std::result::Result<String, String> {
        use serde::Serialize;
        let Some(indent) = &self.indent else {
            return Ok(value.to_string());
        };
        let mut out = Vec::new();
        let mut serializer =
            Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(indent.as_bytes()));
        value
            .serialize(&mut serializer)
            .map_err(|cause| cause.to_string())?;
        let text = String::from_utf8(out).map_err(|cause| cause.to_string())?;
        Ok(text.replace('\n', &format!("\n{indent}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(text: &str, name: &str, value: Value) -> String {
        edited(text, name, Some(value)).unwrap()
    }

    #[test]
    fn every_other_byte_of_the_file_stays() {
        let text = "{\n    \"zeta\": 1.50e3,\n    \"backup\": {\n        \"mine\": [1, 2]\n    },\n    \"a\":   {\"b\":null}\n}";
        let after = set(text, "backup.retention", json!(30));
        let expected = "{\n    \"zeta\": 1.50e3,\n    \"backup\": {\n        \"mine\": [\n            1,\n            2\n        ],\n        \
                        \"retention\": 30\n    },\n    \"a\":   {\"b\":null}\n}";
        assert_eq!(after, expected);
    }

    #[test]
    fn a_file_keeps_its_indentation_tabs_and_single_line() {
        assert_eq!(
            set("{\n\t\"a\": 1\n}\n", "backup.enabled", json!(true)),
            "{\n\t\"a\": 1,\n\t\"backup\": {\n\t\t\"enabled\": true\n\t}\n}\n"
        );
        assert_eq!(
            set("{\"a\":1}\n", "backup.enabled", json!(true)),
            "{\"a\":1,\"backup\":{\"enabled\":true}}\n"
        );
        assert_eq!(
            set("{}\n", "backup.enabled", json!(true)),
            "{\n  \"backup\": {\n    \"enabled\": true\n  }\n}\n"
        );
        assert_eq!(
            set("{\n}\n", "backup.enabled", json!(true)),
            "{\n  \"backup\": {\n    \"enabled\": true\n  }\n}\n"
        );
    }

    #[test]
    fn what_is_set_already_changes_nothing_and_what_is_taken_out_is_gone() {
        let text = "{\"backup\": { \"keep\": {\"daily\":7}, \"enabled\":true }}";
        assert_eq!(set(text, "backup.enabled", json!(true)), text);
        assert_eq!(edited(text, "backup.dir", None).unwrap(), text);
        assert_eq!(edited("{}", "backup.keep.daily", None).unwrap(), "{}");
        assert_eq!(
            edited(text, "backup.keep.daily", None).unwrap(),
            "{\"backup\": {\"enabled\":true}}"
        );
    }

    #[test]
    fn the_two_names_of_the_retention_do_not_stand_beside_each_other() {
        let text = "{\"backup\":{\"retention\":30}}";
        assert_eq!(
            set(text, "backup.retentionDays", json!(7)),
            "{\"backup\":{\"retentionDays\":7}}"
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in [
            "",
            "not json",
            "[]",
            "{\"backup\": 7}",
            "{\"a\": 1,}",
            "{\"backup\":{\"keep\":1}}",
        ] {
            assert!(
                edited(text, "backup.keep.daily", Some(json!(1))).is_err(),
                "{text}"
            );
        }
    }
}
