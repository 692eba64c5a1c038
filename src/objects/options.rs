//! The guide's `storageOptions`: how to reach an object store, and how it keeps what is uploaded.
//!
//! The options hold secrets. Neither `Debug` nor any error shows a value of them.

use std::{collections::BTreeMap, env, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de, de::DeserializeOwned};
use serde_json::Value;

use crate::error::{Error, Result};

const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
/// Slower than this, a part of 8 MiB takes more than two hours.
const LEAST_BYTES_PER_SECOND: u64 = 1_024;
const MOST_TAGS: usize = 10;
const MOST_LOCK_DAYS: u32 = 36_500;

/// The storage classes from which an object cannot be read before it was thawed for hours.
const FROZEN_CLASSES: [&str; 4] = ["GLACIER", "DEEP_ARCHIVE", "ARCHIVE_ACCESS", "ARCHIVE"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LockMode {
    /// Users with a special permission can still delete the object.
    Governance,
    /// No one can delete the object before its time.
    Compliance,
}

impl LockMode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        }
    }
}

/// How long the store refuses to delete what was uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectLock {
    pub mode: LockMode,
    pub days: u32,
}

macro_rules! options {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $key:literal, $form:literal;)+) => {
        /// Each option may be absent or `null`.
        #[derive(Clone, Default, PartialEq, Eq)]
        pub struct StorageOptions { $($(#[doc = $doc])+ pub $field: Option<$type>,)+ }

        const KEYS: &[&str] = &[$($key),+];

        impl StorageOptions {
            fn set(&mut self, key: &str, value: Value) -> Result<()> {
                match key {
                    $($key => self.$field = read(key, $form, value)?,)+
                    _ => return Err(unknown(key)),
                }
                Ok(())
            }

            fn given(&self) -> Vec<&'static str> {
                let mut keys = Vec::new();
                $(if self.$field.is_some() { keys.push($key); })+
                keys
            }
        }
    };
}

options! {
    /// S3: the key, together with `secret_access_key`. Without it, the usual chain is asked.
    access_key_id: String = "accessKeyId", "a text";
    /// S3: the secret.
    secret_access_key: String = "secretAccessKey", "a text";
    /// S3: the token of temporary credentials.
    session_token: String = "sessionToken", "a text";
    /// S3: the region of the bucket.
    region: String = "region", "a text";
    /// The URL of a compatible service.
    endpoint: String = "endpoint", "a URL such as `https://s3.example.com`";
    /// Whether `endpoint` may be `http://`.
    allow_http: bool = "allowHttp", "`true` or `false`";
    /// S3: whether the name of the bucket is part of the host and not of the path.
    virtual_hosted_style: bool = "virtualHostedStyle", "`true` or `false`";
    /// S3: the profile of the AWS configuration files.
    profile: String = "profile", "a text";
    /// S3: `AES256` or `aws:kms`.
    server_side_encryption: String = "serverSideEncryption", "`AES256` or `aws:kms`";
    /// S3: the key for `aws:kms`.
    kms_key_id: String = "kmsKeyId", "a text";
    /// The storage class of what [`Bucket::upload`](super::Bucket::upload) writes.
    storage_class: String = "storageClass", "the name of a storage class";
    /// S3 and Azure: tags of all objects.
    tags: BTreeMap<String, String> = "tags", "an object whose values are texts";
    /// S3: locks what [`Bucket::upload`](super::Bucket::upload) writes.
    object_lock: ObjectLock = "objectLock", "`{ mode: \"GOVERNANCE\" | \"COMPLIANCE\", days }`";
    /// The URL of a proxy. Without it, `HTTPS_PROXY` and its like are used.
    proxy: String = "proxy", "a URL such as `http://proxy.example.com:3128`";
    /// A PEM file with certificates to trust in addition.
    ca_file: PathBuf = "caFile", "the path of a PEM file";
    /// How long, in milliseconds, a request may make no progress.
    timeout_ms: u64 = "timeout", "a number of milliseconds";
    /// The most bytes a second, in each direction.
    bandwidth_bytes_per_second: u64 = "bandwidthLimit", "a number of bytes a second";
    /// Azure: the storage account.
    account: String = "account", "a text";
    /// Azure: the key of the account.
    access_key: String = "accessKey", "a text";
}

impl StorageOptions {
    /// Reads and checks options. The errors name a key and never its value.
    pub fn from_json(value: &Value) -> Result<StorageOptions> {
        let all = match value {
            Value::Null => return Ok(StorageOptions::default()),
            Value::Object(all) => all,
            _ => {
                return Err(Error::invalid(
                    "`storageOptions` is not an object",
                    "Give an object, such as `{ region: \"eu-central-1\" }`",
                ));
            }
        };
        let mut options = StorageOptions::default();
        for (key, value) in all {
            options.set(key, value.clone())?;
        }
        options.check()?;
        Ok(options)
    }

    /// Checks what the types do not say.
    pub fn check(&self) -> Result<()> {
        self.check_texts()?;
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return Err(wrong(
                "accessKeyId` and `secretAccessKey",
                "belong together, and only one of them is given",
            ));
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return Err(wrong("sessionToken", "is given without `accessKeyId`"));
        }
        if self.access_key_id.is_some() && self.profile.is_some() {
            return Err(wrong("profile", "and `accessKeyId` exclude each other"));
        }
        self.check_urls()?;
        let encryption = self.server_side_encryption.as_deref();
        if encryption.is_some_and(|one| !["AES256", "aws:kms"].contains(&one)) {
            return Err(wrong(
                "serverSideEncryption",
                "is not `AES256` or `aws:kms`",
            ));
        }
        if self.kms_key_id.is_some() && encryption != Some("aws:kms") {
            let reason = "is given, but `serverSideEncryption` is not `aws:kms`";
            return Err(wrong("kmsKeyId", reason));
        }
        self.check_numbers()
    }

    /// Returns whether the storage class delays reading by hours, so that no backup can build on
    /// what is uploaded.
    pub fn freezes_uploads(&self) -> bool {
        let class = self.storage_class.as_deref().unwrap_or_default();
        FROZEN_CLASSES
            .iter()
            .any(|one| class.eq_ignore_ascii_case(one))
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS))
    }

    pub(super) fn allows_http(&self) -> bool {
        let of_environment = || env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true");
        self.allow_http.unwrap_or_else(of_environment)
    }

    /// Returns the first option that is given and not among `known`.
    pub(super) fn given_except(&self, known: &[&str]) -> Option<&'static str> {
        self.given().into_iter().find(|key| !known.contains(key))
    }

    /// Most texts become part of a header. One with a line break could add another header.
    fn check_texts(&self) -> Result<()> {
        let texts = [
            ("accessKeyId", &self.access_key_id),
            ("secretAccessKey", &self.secret_access_key),
            ("sessionToken", &self.session_token),
            ("region", &self.region),
            ("profile", &self.profile),
            ("kmsKeyId", &self.kms_key_id),
            ("storageClass", &self.storage_class),
            ("account", &self.account),
            ("accessKey", &self.access_key),
        ];
        for (key, text) in texts {
            let Some(text) = text else { continue };
            if text.is_empty() || !text.chars().all(|letter| letter.is_ascii_graphic()) {
                return Err(wrong(
                    key,
                    "is empty, or holds a space or a control character",
                ));
            }
        }
        // A region is part of a host name.
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        let region = self.region.as_deref().unwrap_or_default();
        if !region.chars().all(is_plain) {
            return Err(wrong("region", "is not a name such as `eu-central-1`"));
        }
        Ok(())
    }

    fn check_urls(&self) -> Result<()> {
        for (key, url) in [("endpoint", &self.endpoint), ("proxy", &self.proxy)] {
            let Some(url) = url else { continue };
            let parsed = reqwest::Url::parse(url).ok();
            let parsed = parsed.filter(|parsed| parsed.has_host());
            let scheme = parsed.as_ref().map(reqwest::Url::scheme);
            let is_proxy = key == "proxy";
            match scheme {
                Some("https" | "http") => {}
                _ => return Err(wrong(key, "is not a URL that begins with `https://`")),
            }
            if let (false, Some(parsed)) = (is_proxy, &parsed) {
                let is_name = parsed.domain().is_some();
                if self.virtual_hosted_style == Some(true) && !is_name {
                    let reason = "needs an endpoint whose host is a name and not an address";
                    return Err(wrong("virtualHostedStyle", reason));
                }
                check_endpoint(parsed, self.allows_http())?;
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        if self
            .timeout_ms
            .is_some_and(|one| !TIMEOUT_MS.contains(&one))
        {
            return Err(wrong("timeout", "is not between 100 ms and one hour"));
        }
        let limit = self.bandwidth_bytes_per_second;
        if limit.is_some_and(|one| one < LEAST_BYTES_PER_SECOND) {
            return Err(wrong("bandwidthLimit", "is less than 1,024 bytes a second"));
        }
        let days = self.object_lock.map_or(1, |lock| lock.days);
        if !(1..=MOST_LOCK_DAYS).contains(&days) {
            return Err(wrong(
                "objectLock",
                "needs a number of days from 1 to 36,500",
            ));
        }
        let tags = self.tags.iter().flatten();
        let is_bad = |text: &str, most: usize| {
            text.chars().count() > most || text.chars().any(char::is_control)
        };
        if tags.clone().count() > MOST_TAGS
            || tags
                .clone()
                .any(|(key, value)| key.is_empty() || is_bad(key, 128) || is_bad(value, 256))
        {
            let reason = "are more than 10, or one is empty, too long or holds a control character";
            return Err(wrong("tags", reason));
        }
        Ok(())
    }
}

fn check_endpoint(url: &reqwest::Url, allows_http: bool) -> Result<()> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("endpoint", "contains a user name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("endpoint", "contains a query or fragment"));
    }
    if url.scheme() == "http" && !allows_http {
        return Err(Error::invalid(
            "`endpoint` in `storageOptions` begins with `http://`: everyone on the way could read \
             and change the backups",
            "Use `https://`, or set `allowHttp` for a service on this machine",
        ));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for StorageOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The derived errors would show values.
        let value = Value::deserialize(deserializer)?;
        StorageOptions::from_json(&value).map_err(|error| de::Error::custom(error.message))
    }
}

impl fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageOptions {{ given: {:?} }}", self.given())
    }
}

fn read<T: DeserializeOwned>(key: &str, form: &str, value: Value) -> Result<Option<T>> {
    serde_json::from_value(value).map_err(|_| wrong(key, &format!("is not {form}")))
}

fn wrong(key: &str, reason: &str) -> Error {
    let message = format!("`{key}` in `storageOptions` {reason}");
    Error::invalid(message, "Correct it, or leave it out")
}

fn unknown(key: &str) -> Error {
    let letters = |key: &str| key.to_ascii_lowercase().replace(['_', '-'], "");
    let distance = |known: &&&str| strsim::damerau_levenshtein(&letters(key), &letters(known));
    let nearest = KEYS.iter().min_by_key(distance);
    let remedy = match nearest.filter(|known| distance(known) <= 3) {
        Some(known) => format!("You may mean `{known}`"),
        None => format!("The known options are {}", KEYS.join(", ")),
    };
    // A secret in the place of a key is long or has unusual letters.
    let is_name = key.len() <= 32
        && key
            .chars()
            .all(|one| one.is_ascii_alphanumeric() || one == '_');
    let name = match is_name {
        true => format!("`{key}`"),
        false => "an option".to_string(),
    };
    Error::invalid(
        format!("`storageOptions` has {name}, which does not exist"),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(value: Value) -> String {
        StorageOptions::from_json(&value).unwrap_err().to_string()
    }

    #[test]
    fn every_option_may_be_absent_or_null() {
        let nothing = StorageOptions::default();
        assert_eq!(StorageOptions::from_json(&Value::Null).unwrap(), nothing);
        let nulls: serde_json::Map<_, _> = KEYS
            .iter()
            .map(|key| (key.to_string(), Value::Null))
            .collect();
        assert_eq!(StorageOptions::from_json(&nulls.into()).unwrap(), nothing);
    }

    #[test]
    fn options_are_shown_without_secrets() {
        let given = json!({
            "accessKeyId": "key", "secretAccessKey": "hunter2", "endpoint": "https://s3.example.com",
            "tags": { "team": "kg" }, "objectLock": { "mode": "GOVERNANCE", "days": 30 },
            "timeout": 5_000, "caFile": "/etc/ca.pem",
        });
        let options = StorageOptions::from_json(&given).unwrap();
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn errors_name_the_key_and_never_the_value() {
        for (given, reason) in [
            (
                json!({ "secretAccesKey": "hunter2" }),
                "You may mean `secretAccessKey`",
            ),
            (json!({ "hunter2 hunter2": 1 }), "which does not exist"),
            (
                json!({ "timeout": "hunter2" }),
                "`timeout` in `storageOptions` is not a number",
            ),
            (json!({ "accessKeyId": "hunter2" }), "belong together"),
            (
                json!({ "endpoint": "http://hunter2.example.com" }),
                "allowHttp",
            ),
            (
                json!({ "endpoint": "https://a:hunter2@example.com" }),
                "user name or password",
            ),
            (json!({ "endpoint": "hunter2" }), "is not a URL"),
            (json!({ "region": "hunter2\r\nx: y" }), "control character"),
            (json!({ "region": "hunter2.example.com/" }), "is not a name"),
            (
                json!({ "objectLock": { "mode": "hunter2", "days": 1 } }),
                "GOVERNANCE",
            ),
            (
                json!({ "objectLock": { "mode": "GOVERNANCE", "days": 0 } }),
                "number of days",
            ),
            (json!({ "kmsKeyId": "hunter2" }), "`aws:kms`"),
            (json!(["hunter2"]), "is not an object"),
        ] {
            let error = refused(given);
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
