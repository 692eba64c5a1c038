//! What a store says about an object.

use jiff::Timestamp;
use object_store::{GetResult, ObjectMeta, PutResult, UpdateVersion};
use serde::{Deserialize, Serialize};

/// An object as a store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The name below the prefix of the [`Location`](super::Location).
    pub name: String,
    pub size_bytes: u64,
    pub modified: Timestamp,
    pub version: Version,
}

impl Object {
    pub(super) fn new(name: &str, meta: &ObjectMeta) -> Object {
        let modified = &meta.last_modified;
        // Nanoseconds below a second always fit.
        let nanoseconds = i32::try_from(modified.timestamp_subsec_nanos()).unwrap_or_default();
        Object {
            name: name.to_string(),
            size_bytes: meta.size,
            modified: Timestamp::new(modified.timestamp(), nanoseconds).unwrap_or_default(),
            version: Version::new(meta.e_tag.as_deref(), meta.version.as_deref()),
        }
    }
}

/// An object, and the nonce that its writer left in its metadata.
#[derive(Debug)]
pub(super) struct Head {
    pub object: Object,
    pub nonce: Option<String>,
}

impl Head {
    pub fn new(name: &str, nonce_key: &str, answer: &GetResult) -> Head {
        let nonce = answer.attributes.iter().find_map(|(attribute, value)| {
            let object_store::Attribute::Metadata(key) = attribute else {
                return None;
            };
            // Services change the case of these keys.
            let is_nonce = key.eq_ignore_ascii_case(nonce_key);
            is_nonce.then(|| value.as_ref().to_string())
        });
        Head {
            object: Object::new(name, &answer.meta),
            nonce,
        }
    }
}

/// Tells two states of an object apart. Google Cloud Storage compares the version, the others the
/// ETag, so both are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Version {
    /// Without quotes: some services give them only in some of their answers.
    pub e_tag: Option<String>,
    pub version: Option<String>,
}

impl Version {
    pub(super) fn new(e_tag: Option<&str>, version: Option<&str>) -> Version {
        let unquoted = |text: &str| {
            let inner = text
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            inner.unwrap_or(text).to_string()
        };
        Version {
            e_tag: e_tag.map(unquoted).filter(|text| !text.is_empty()),
            version: version.map(str::to_string),
        }
    }

    /// Returns the ETag as a condition of a request writes it.
    pub(super) fn quoted(&self) -> Option<String> {
        let e_tag = self.e_tag.as_deref()?;
        Some(match e_tag.starts_with("W/") {
            true => e_tag.to_string(),
            false => format!("\"{e_tag}\""),
        })
    }

    /// Returns a version that no object has, to try a condition that does not hold. It has the parts
    /// that this one has.
    pub fn outdated(&self) -> Version {
        Version {
            e_tag: Some("00000000000000000000000000000000".into()),
            version: self.version.as_ref().map(|_| "1".into()),
        }
    }

    /// Returns whether both are the same state. A list lacks the version of a versioned bucket, so
    /// only what both have is compared.
    pub fn is_same(&self, other: &Version) -> bool {
        let same = |one: &Option<String>, other: &Option<String>| match (one, other) {
            (Some(one), Some(other)) => Some(one == other),
            _ => None,
        };
        match (
            same(&self.e_tag, &other.e_tag),
            same(&self.version, &other.version),
        ) {
            (None, None) => false,
            (e_tag, version) => e_tag.unwrap_or(true) && version.unwrap_or(true),
        }
    }
}

impl From<PutResult> for Version {
    fn from(answer: PutResult) -> Self {
        Version::new(answer.e_tag.as_deref(), answer.version.as_deref())
    }
}

impl From<&Version> for UpdateVersion {
    fn from(version: &Version) -> Self {
        UpdateVersion {
            e_tag: version.quoted(),
            version: version.version.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_of_an_etag_make_no_difference() {
        let quoted = Version::new(Some("\"0x8D\""), None);
        let plain = Version::new(Some("0x8D"), Some("7"));
        assert!(quoted.is_same(&plain));
        assert_eq!(plain.quoted().unwrap(), "\"0x8D\"");
        assert!(!quoted.is_same(&Version::new(Some("0x8E"), None)));
        assert!(!plain.is_same(&Version::new(Some("0x8D"), Some("8"))));
        assert!(!Version::default().is_same(&Version::default()));
    }
}
