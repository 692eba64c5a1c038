//! Changes the text of a configuration and keeps its other bytes. Only the outermost member that
//! changes is written again.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Serializer, Value, ser::PrettyFormatter, value::RawValue};

const DEFAULT_INDENT: &str = "  ";

/// The members of the outermost object, each with the text of its value.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> Result<Members<'de>, M::Error> {
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

impl<'a> Members<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|cause| cause.to_string())
    }

    fn find(&self, name: &str) -> Option<&'a RawValue> {
        let member = self.0.iter().find(|(member, _)| member == name);
        member.map(|(_, raw)| *raw)
    }
}

/// Returns `text` with the member `name` that `other` has. If `other` has none, the member becomes
/// an empty object.
pub fn with_member_of(text: &str, other: &str, name: &str) -> Result<String, String> {
    let members = Members::of(text)?;
    let theirs = Members::of(other)?.find(name).map(RawValue::get);
    Ok(match (theirs, members.find(name)) {
        (None, None) => text.to_string(),
        (theirs, _) => put(text, &members, name, theirs.unwrap_or("{}")),
    })
}

/// Returns `text` with the key set to `value`, or without the key.
pub fn edited(text: &str, name: &str, value: Option<Value>) -> Result<String, String> {
    let members = Members::of(text)?;
    let mut path = name.split('.');
    let outer = path.next().unwrap_or_default();
    let path: Vec<&str> = path.collect();
    let member = members.find(outer);
    let mut object = match member {
        Some(raw) => serde_json::from_str::<Value>(raw.get()).map_err(|cause| cause.to_string())?,
        None => Value::Object(Map::new()),
    };
    let before = object.clone();
    let is_set = value.is_some();
    place(&mut object, &path, value).map_err(|part| format!("`{outer}{part}` is not an object"))?;
    if object == before && (is_set || member.is_some() || object == Value::Object(Map::new())) {
        return Ok(text.to_string());
    }
    let written = Style::of(text).write(&object)?;
    Ok(put(text, &members, outer, &written))
}

/// Returns `text` with the member `name`, whose value is written as `written`. `members` are those
/// of `text`.
fn put(text: &str, members: &Members<'_>, name: &str, written: &str) -> String {
    let style = Style::of(text);
    let member = || {
        format!(
            "{}{}:{}{written}",
            style.newline(),
            Value::from(name),
            style.space()
        )
    };
    match (members.find(name), members.0.last()) {
        (Some(raw), _) => splice(text, range_of(text, raw), written),
        (None, Some((_, last))) => {
            let (_, end) = range_of(text, last);
            splice(text, (end, end), &format!(",{}", member()))
        }
        (None, None) => {
            let open = text.find('{').map_or(0, |open| open + 1);
            let close = text.rfind('}').unwrap_or(text.len());
            let end = if style.indent.is_some() { "\n" } else { "" };
            splice(text, (open, close), &format!("{}{end}", member()))
        }
    }
}

/// Sets the member of `object` that `path` names, or removes it together with objects that become
/// empty.
fn place(object: &mut Value, path: &[&str], value: Option<Value>) -> Result<(), String> {
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
    fn write(&self, value: &Value) -> Result<String, String> {
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
    fn a_member_of_another_text_takes_the_place_of_the_own_one_and_the_rest_stays() {
        let own = "{\n  \"a\": 1.50e3,\n  \"backup\": { \"old\": 1 },\n  \"z\": []\n}\n";
        let other = "{\"backup\":{\"new\": 2.0}, \"a\": 5}";
        let merged = with_member_of(own, other, "backup").unwrap();
        assert_eq!(merged, own.replace("{ \"old\": 1 }", "{\"new\": 2.0}"));
        let without = with_member_of(own, "{}", "backup").unwrap();
        assert_eq!(without, own.replace("{ \"old\": 1 }", "{}"));
        for (text, merged) in [
            ("{\"a\":1}", "{\"a\":1,\"backup\":{\"new\": 2.0}}"),
            ("{}", "{\n  \"backup\": {\"new\": 2.0}\n}"),
        ] {
            assert_eq!(with_member_of(text, other, "backup").unwrap(), merged);
        }
        assert_eq!(
            with_member_of("{\"a\":1}", "{}", "backup").unwrap(),
            "{\"a\":1}"
        );
        assert!(with_member_of("[]", other, "backup").is_err());
        assert!(with_member_of(own, "7", "backup").is_err());
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
