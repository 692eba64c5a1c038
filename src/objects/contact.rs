//! The first request to a store whose state is unknown: who answers, and with which credentials it
//! was asked.

use std::env;

use jiff::Timestamp;

use super::{bucket::Bucket, call::Call, location::Service, object::Object, runtime};
use crate::error::Result;

/// The variables that give the other services credentials, by their precedence.
const GOOGLE_VARIABLES: [&str; 4] = [
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
];
const AZURE_VARIABLES: [&str; 6] = [
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
];

/// A service that answered.
#[derive(Debug)]
pub struct Contact {
    /// The number of objects directly below the prefix, or why the service does not list them to
    /// this user.
    pub listed: Result<usize>,
    /// The time here and the time of the service, to the second, if it told that.
    pub times: Option<(Timestamp, Timestamp)>,
}

impl Bucket {
    /// Lists the store. Fails if the service cannot be reached, does not know the credentials, or has
    /// no such bucket.
    pub fn contact(&self) -> Result<Contact> {
        let prefix = self.0.path_of_prefix()?;
        let (listed, theirs, ours) = self.run(|bucket| async move {
            let list = bucket.store.list_with_delimiter(prefix.as_ref());
            let (listed, theirs) = Call::default().make_timed(list).await;
            (listed, theirs, Timestamp::now())
        })?;
        let listed = match listed {
            Ok(listed) => Ok(listed.objects.len()),
            Err(failure) if failure.is_forbidden() && !self.asked_metadata_service() => {
                Err(self.not_listed(&failure))
            }
            Err(failure) => return Err(self.not_listed(&failure)),
        };
        Ok(Contact {
            listed,
            times: theirs.map(|theirs| (ours, theirs)),
        })
    }

    /// Returns the host that was asked last.
    pub fn last_host(&self) -> Option<String> {
        self.0.transport.last_host()
    }

    /// Returns the region in use, which the service may have corrected. Only S3 has one.
    pub fn region(&self) -> Option<String> {
        self.0.transport.region()
    }

    /// Returns where the credentials come from, never what they are. `None` if that is not known.
    pub fn credential_source(&self) -> Result<Option<String>> {
        let of_environment = |names: &[&str]| {
            let is_set = |name: &&&str| env::var_os(name).is_some_and(|value| !value.is_empty());
            let name = names.iter().find(is_set);
            name.map(|name| format!("{name} of the environment"))
        };
        match self.location().service() {
            Service::S3 => {
                let bucket = self.0.clone();
                let source =
                    runtime::run(async move { bucket.transport.credential_source().await })?;
                Ok(source.map(str::to_string))
            }
            Service::GoogleCloud => Ok(of_environment(&GOOGLE_VARIABLES)),
            Service::Azure if self.0.options.access_key.is_some() => {
                Ok(Some("`accessKey` of `storageOptions`".into()))
            }
            Service::Azure => Ok(of_environment(&AZURE_VARIABLES)),
        }
    }

    /// Returns what the service says about an object, and whether it kept the metadata that its
    /// writer gave it.
    pub fn find_with_metadata(&self, name: &str) -> Result<Option<(Object, bool)>> {
        let (path, object_name) = (self.0.path(name)?, name.to_string());
        let head = self.run(|bucket| async move { bucket.head(&path, &object_name).await })?;
        let head = head.map_err(|failure| self.failed("look at", name, &failure))?;
        Ok(head.map(|head| (head.object, head.nonce.is_some())))
    }

    /// Returns whether the service refused a condition on the completion of an upload, which is then
    /// left out.
    pub fn completes_without_condition(&self) -> bool {
        self.0.transport.completes_without_condition()
    }
}
