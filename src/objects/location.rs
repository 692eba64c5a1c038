//! Where a store lies: a bucket of a service, and a prefix in it.

use std::fmt;

use crate::error::{Code, Error, Result};

/// A service that keeps objects. Azure calls a bucket a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    S3,
    GoogleCloud,
    Azure,
}

const SERVICES: [(&str, Service); 3] = [
    ("s3://", Service::S3),
    ("gs://", Service::GoogleCloud),
    ("az://", Service::Azure),
];

const FORMS: &str = "Write `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`";

/// The place of a store, such as `s3://bucket/prefix`. Its text never contains credentials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    service: Service,
    bucket: String,
    /// The parts, joined by `/`, without one at the end. Empty if the store is the whole bucket.
    prefix: String,
}

impl Location {
    /// Returns whether a text is meant as a URL and not as a path. A directory named `s3:` can be
    /// given as `./s3:`.
    pub fn is_url(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| {
            let mut letters = scheme.chars();
            letters
                .next()
                .is_some_and(|first| first.is_ascii_alphabetic())
                && letters.all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
        })
    }

    pub fn parse(url: &str) -> Result<Location> {
        let service = SERVICES
            .into_iter()
            .find_map(|(scheme, service)| Some((service, url.strip_prefix(scheme)?)));
        let Some((service, rest)) = service else {
            let scheme = url.split("://").next().unwrap_or_default();
            return Err(invalid(format!(
                "'{}' is not an object store that this release knows",
                printable(scheme)
            )));
        };
        // The URL may hold a password, so that messages do not repeat it until this is checked.
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.contains('@') {
            return Err(Error::new(
                Code::BackupDirInvalid,
                "The URL of the object store contains a user name or password",
                "Leave it out, and give the credentials in `storageOptions` or the environment",
            ));
        }
        if let Some(sign) = rest.chars().find(|sign| "?#".contains(*sign)) {
            return Err(invalid(format!(
                "The URL of the object store contains '{sign}', which begins a query or fragment"
            )));
        }
        if rest
            .chars()
            .any(|letter| letter.is_control() || letter == '\\')
        {
            return Err(invalid(format!(
                "'{}' contains a control character or a backslash",
                printable(url)
            )));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_bucket(url, bucket)?;
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_bad = |part: &str| ["", ".", ".."].contains(&part);
        if !prefix.is_empty() && prefix.split('/').any(is_bad) {
            return Err(invalid(format!(
                "The prefix in '{url}' has an empty part, or one that is '.' or '..'"
            )));
        }
        Ok(Location {
            service,
            bucket: bucket.to_string(),
            prefix: prefix.to_string(),
        })
    }

    pub fn service(&self) -> Service {
        self.service
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the place below this one that a name without `/` leads to.
    pub fn below(&self, name: &str) -> Location {
        Location {
            prefix: self.key(name),
            ..self.clone()
        }
    }

    /// Returns the key of an object in the bucket.
    pub(super) fn key(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_string(),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (scheme, service) in SERVICES {
            if service == self.service {
                write!(f, "{scheme}{}", self.bucket)?;
            }
        }
        match self.prefix.as_str() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

/// The rules that all three services share. The services refuse other names themselves, but the
/// name becomes part of a host name, which must not lead to another host.
fn check_bucket(url: &str, bucket: &str) -> Result<()> {
    if bucket.is_empty() {
        return Err(invalid(format!("'{url}' names no bucket")));
    }
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    if !bucket.chars().all(is_plain) || bucket.starts_with(['.', '-']) || bucket.contains("..") {
        return Err(invalid(format!(
            "'{bucket}' cannot be the name of a bucket"
        )));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(Code::BackupDirInvalid, message, FORMS)
}

/// Returns a text without what a terminal would act on.
fn printable(text: &str) -> String {
    text.chars().flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read_and_shown_as_written() {
        for (url, bucket, prefix) in [
            ("s3://backups", "backups", ""),
            ("s3://backups/", "backups", ""),
            ("gs://my.bucket/team/kg/", "my.bucket", "team/kg"),
            ("az://container/a b", "container", "a b"),
        ] {
            let location = Location::parse(url).unwrap();
            assert_eq!((location.bucket(), location.prefix()), (bucket, prefix));
            assert_eq!(location.to_string(), url.trim_end_matches('/'));
            assert!(Location::is_url(url));
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_reason() {
        for (url, reason) in [
            ("ftp://host/x", "'ftp' is not an object store"),
            ("s3:///x", "names no bucket"),
            ("s3://key:hunter2@bucket/x", "user name or password"),
            ("s3://bucket/x?versionId=1", "query"),
            ("s3://bucket/x#1", "fragment"),
            ("s3://bucket/a//b", "empty part"),
            ("s3://bucket/a/../b", "'..'"),
            ("s3://bucket/a\nb", "control character"),
            ("s3://bu cket/a", "name of a bucket"),
            ("s3://bucket:9000/a", "name of a bucket"),
        ] {
            let error = Location::parse(url).unwrap_err();
            assert_eq!(error.code, Code::BackupDirInvalid);
            assert!(error.message.contains(reason), "{}", error.message);
            assert!(!error.to_string().contains("hunter2"));
        }
        assert!(!Location::is_url("/var/backups"));
        assert!(!Location::is_url("./s3://x"));
    }
}
