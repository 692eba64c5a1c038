//! Parses `config.json` and `hooks.json`.

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// The objects in these files that this tool reads. Everything else belongs to the host.
const OURS: [&str; 2] = ["backup", "database"];

/// Parses a file. An error text completes a sentence that begins with "it".
///
/// If an object contains a name twice, RFC 8259, section 4, does not define which value counts. A
/// duplicate name in an object that this tool reads is therefore an error. Otherwise one of the
/// values would be lost silently.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let invalid = |cause: serde_json::Error| format!("is not valid JSON ({cause})");
    let names: Names = serde_json::from_slice(text).map_err(invalid)?;
    let twice = OURS.iter().find_map(|ours| names.twice(ours));
    match twice {
        Some(name) => Err(format!("has `{name}` twice")),
        None => serde_json::from_slice(text).map_err(invalid),
    }
}

/// The names in an object, each with the names in its value. Other values have no names.
struct Names(Vec<(String, Names)>);

impl Names {
    /// Returns the path of a duplicate: `name` itself, or a name inside its value.
    fn twice(&self, name: &str) -> Option<String> {
        let mut values = self.0.iter().filter(|(other, _)| other == name);
        let (_, inner) = values.next()?;
        if values.next().is_some() {
            return Some(name.to_string());
        }
        let found = inner.0.iter().find_map(|(inside, _)| inner.twice(inside))?;
        Some(format!("{name}.{found}"))
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Collect)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = Names;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Names, M::Error> {
        let mut names = Vec::new();
        while let Some(member) = map.next_entry()? {
            names.push(member);
        }
        Ok(Names(names))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Names, S::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Names(Vec::new()))
    }

    fn visit_unit<E: Error>(self) -> Result<Names, E> {
        Ok(Names(Vec::new()))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Names, E> {
        self.visit_unit()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Names, E> {
        self.visit_unit()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Names, E> {
        self.visit_unit()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Names, E> {
        self.visit_unit()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Names, E> {
        self.visit_unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_ours_that_stands_twice_is_an_error_with_its_path() {
        let cases = [
            (
                r#"{"backup": {"encrypt": true}, "backup": {}}"#,
                "has `backup` twice",
            ),
            (
                r#"{"backup": {"dir": "a", "type": "full", "dir": "b"}}"#,
                "has `backup.dir` twice",
            ),
            (
                r#"{"backup": {"keep": {"daily": 7, "daily": 1}}}"#,
                "has `backup.keep.daily` twice",
            ),
            (
                r#"{"database": {"path": "a", "path": "b"}}"#,
                "has `database.path` twice",
            ),
        ];
        for (text, what) in cases {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), what, "{text}");
        }
    }

    #[test]
    fn other_values_are_read_as_they_are() {
        let values = [
            r#"{"theme": 1, "theme": 2, "backup": {"recipients": ["a", {}], "n": [-1, 2, 0.5, null, true, "x"]}}"#,
            "[]",
            "null",
            "-1",
            "\"text\"",
        ];
        for text in values {
            assert_eq!(
                parse(text.as_bytes()).unwrap(),
                serde_json::from_str::<Value>(text).unwrap()
            );
        }
        assert!(parse(b"{").unwrap_err().starts_with("is not valid JSON ("));
    }
}
