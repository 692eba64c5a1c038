//! How a bucket of S3 treats what is written and deleted: its versions, and the default of its
//! object lock. And the versions of objects, which no list of objects shows.

use http::Method;
use percent_encoding::utf8_percent_encode;

use super::{
    bucket::Bucket,
    call::Call,
    failure::{Failure, element, elements, unescaped},
    unfinished::{UNRESERVED, UNRESERVED_AND_SLASH},
};
use crate::error::{Code, Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    Off,
    Enabled,
    /// Versions from before are kept, and new ones are not.
    Suspended,
}

/// The lock that each new object gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultLock {
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub mode: String,
    /// For example `30 days`.
    pub period: String,
}

/// A version of an object, or a mark that hides all of its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectVersion {
    /// The name below the prefix.
    pub name: String,
    pub id: String,
}

impl Bucket {
    /// Asks whether the bucket keeps what is replaced or deleted. An error means that it is not
    /// known.
    pub fn versioning(&self) -> Result<Versioning> {
        let answer = self.setting("versioning")?;
        let answer = answer.map_err(|failure| self.not_told("the versioning", &failure))?;
        read_versioning(&answer).ok_or_else(|| self.not_understood("the versioning"))
    }

    /// Asks which lock each new object gets. An error means that it is not known.
    pub fn default_lock(&self) -> Result<Option<DefaultLock>> {
        match self.setting("object-lock")? {
            Ok(answer) => read_lock(&answer).ok_or_else(|| self.not_understood("the object lock")),
            Err(failure)
                if failure
                    .code()
                    .starts_with("ObjectLockConfigurationNotFound") =>
            {
                Ok(None)
            }
            Err(failure) => Err(self.not_told("the object lock", &failure)),
        }
    }

    /// Returns the first versions below the prefix, also those of deleted objects. One page is
    /// enough for the few objects of a check.
    pub fn versions(&self) -> Result<Vec<ObjectVersion>> {
        let prefix = self.location().key("");
        let query = format!(
            "prefix={}&versions=",
            utf8_percent_encode(&prefix, UNRESERVED)
        );
        let page = self.request(Method::GET, format!("?{query}"))?;
        let page = page.map_err(|failure| self.failed("list the versions of", "", &failure))?;
        Ok(read_versions(&String::from_utf8_lossy(&page), &prefix))
    }

    /// Deletes a version for good.
    pub fn remove_version(&self, version: &ObjectVersion) -> Result<()> {
        let key = self.location().key(&version.name);
        let path = utf8_percent_encode(&key, UNRESERVED_AND_SLASH);
        let id = utf8_percent_encode(&version.id, UNRESERVED);
        match self.request(Method::DELETE, format!("/{path}?versionId={id}"))? {
            Err(failure) if !failure.is_missing() => {
                Err(self.failed("delete a version of", &version.name, &failure))
            }
            _ => Ok(()),
        }
    }

    fn setting(&self, name: &str) -> Result<Result<bytes::Bytes, Failure>> {
        self.request(Method::GET, format!("?{name}="))
    }

    fn request(&self, method: Method, rest: String) -> Result<Result<bytes::Bytes, Failure>> {
        let url = self.0.bucket_url.clone().ok_or_else(|| {
            Error::new(
                Code::Unsupported,
                format!(
                    "kg asks only services of S3 for it, and not {}",
                    self.location()
                ),
                "Look it up in the console of the service",
            )
        })?;
        let url = format!("{url}{rest}");
        self.run(|bucket| async move {
            let request = bucket.transport.request(method, &url, Call::default());
            request.await
        })
    }

    fn not_told(&self, what: &str, failure: &Failure) -> Error {
        self.failed(&format!("look up {what} of"), "", failure)
    }

    fn not_understood(&self, what: &str) -> Error {
        Error::new(
            Code::Unsupported,
            format!(
                "The service of {} does not tell {what} of buckets",
                self.location()
            ),
            "Look it up in the console of the service",
        )
    }
}

/// Returns `None` for another answer: a service that does not know the question may list objects.
fn read_versioning(answer: &[u8]) -> Option<Versioning> {
    let text = std::str::from_utf8(answer).ok()?;
    text.contains("<VersioningConfiguration").then_some(())?;
    match element(answer, "Status").as_deref() {
        Some("Enabled") => Some(Versioning::Enabled),
        Some("Suspended") => Some(Versioning::Suspended),
        Some(_) => None,
        None => Some(Versioning::Off),
    }
}

fn read_lock(answer: &[u8]) -> Option<Option<DefaultLock>> {
    let text = std::str::from_utf8(answer).ok()?;
    text.contains("<ObjectLockConfiguration").then_some(())?;
    let Some(mode) = element(answer, "Mode") else {
        return Some(None);
    };
    let known = ["GOVERNANCE", "COMPLIANCE"].into_iter();
    let mode = known.into_iter().find(|known| *known == mode)?;
    let number = |name| element(answer, name)?.parse::<u32>().ok();
    let period = match (number("Days"), number("Years")) {
        (Some(days), _) => format!("{days} days"),
        (None, Some(years)) => format!("{years} years"),
        (None, None) => return None,
    };
    Some(Some(DefaultLock {
        mode: mode.to_string(),
        period,
    }))
}

fn read_versions(page: &str, prefix: &str) -> Vec<ObjectVersion> {
    let all = ["Version", "DeleteMarker"];
    let all = all.into_iter().flat_map(|name| elements(page, name));
    let read = all.filter_map(|version| {
        let text = |name| elements(version, name).next().map(unescaped);
        Some(ObjectVersion {
            name: text("Key")?.strip_prefix(prefix)?.to_string(),
            id: text("VersionId")?,
        })
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_about_versions_tells_that_there_are_none() {
        let of = |inner: &str| {
            format!(
                "<?xml version=\"1.0\"?><VersioningConfiguration xmlns=\"x\">{inner}</VersioningConfiguration>"
            )
        };
        for (answer, versioning) in [
            (of(""), Some(Versioning::Off)),
            ("<VersioningConfiguration/>".into(), Some(Versioning::Off)),
            (of("<Status>Enabled</Status>"), Some(Versioning::Enabled)),
            (
                of("<Status>Suspended</Status>"),
                Some(Versioning::Suspended),
            ),
            (of("<Status>Odd</Status>"), None),
            ("<ListBucketResult></ListBucketResult>".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(read_versioning(answer.as_bytes()), versioning, "{answer}");
        }
    }

    #[test]
    fn the_default_of_an_object_lock_is_read() {
        let of = |inner: &str| {
            format!(
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>{inner}</ObjectLockConfiguration>"
            )
        };
        let rule = |inner: &str| {
            of(&format!(
                "<Rule><DefaultRetention>{inner}</DefaultRetention></Rule>"
            ))
        };
        let lock = |mode: &str, period: &str| {
            Some(Some(DefaultLock {
                mode: mode.into(),
                period: period.into(),
            }))
        };
        for (answer, expected) in [
            (of(""), Some(None)),
            (
                rule("<Mode>GOVERNANCE</Mode><Days>30</Days>"),
                lock("GOVERNANCE", "30 days"),
            ),
            (
                rule("<Mode>COMPLIANCE</Mode><Years>1</Years>"),
                lock("COMPLIANCE", "1 years"),
            ),
            (rule("<Mode>ODD</Mode><Days>30</Days>"), None),
            (rule("<Mode>GOVERNANCE</Mode>"), None),
            ("<ListBucketResult/>".into(), None),
        ] {
            assert_eq!(read_lock(answer.as_bytes()), expected, "{answer}");
        }
    }

    #[test]
    fn versions_and_marks_of_deletion_are_read() {
        let page = "<R><Version><Key>a/x</Key><VersionId>1</VersionId></Version>\
            <DeleteMarker><Key>a/x</Key><VersionId>2</VersionId></DeleteMarker>\
            <Version><Key>b/x</Key><VersionId>3</VersionId></Version></R>";
        let ids: Vec<_> = read_versions(page, "a/")
            .into_iter()
            .map(|one| one.name + &one.id)
            .collect();
        assert_eq!(ids, ["x1", "x2"]);
    }
}
