//! The operations on a store: list, find, read, create, replace and remove objects.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use object_store::{
    Attribute, Attributes, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, TagSet,
    path::Path,
};

use super::{
    call::Call,
    connect,
    credentials::METADATA_HOSTS,
    failure::Failure,
    location::{Location, Service},
    object::{Head, Object, Version},
    options::StorageOptions,
    reader::ObjectReader,
    runtime::{self, Task},
    transport::Transport,
    upload::Upload,
};
use crate::{
    error::{Code, Error, Result},
    util::{hex::hex, operation::CancelToken},
};

/// How many objects are deleted at the same time.
const PARALLEL_DELETIONS: usize = 8;
/// How often a name is tried that vanishes whenever it is looked at.
const CREATE_ATTEMPTS: u32 = 3;

/// A store that can be used from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Bucket(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub location: Location,
    pub options: StorageOptions,
    pub store: Arc<dyn ObjectStore>,
    pub transport: Transport,
    pub bucket_url: Option<String>,
    /// Headers of everything that is written.
    pub encryption: HeaderMap,
    pub refused_copies: RefusedCopies,
}

/// Which copies the service could not make, or not prove. They are not tried again.
#[derive(Default)]
pub(super) struct RefusedCopies {
    pub whole: AtomicBool,
    pub in_parts: AtomicBool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    New(Version),
    /// An object of that name exists and was not touched.
    Exists,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replaced {
    Done(Version),
    /// The object is no longer the known one, or is gone. It was not touched.
    Changed,
}

/// Which conditions on requests a service respects. Without them, two writers of one name do not
/// notice each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// [`Bucket::create`] creates and never replaces.
    pub create: bool,
    /// [`Bucket::replace`] replaces only what it knows.
    pub replace: bool,
}

impl Bucket {
    /// Sends no request.
    pub fn open(location: &Location, options: &StorageOptions) -> Result<Bucket> {
        let connection = connect::connect(location, options)?;
        Ok(Bucket(Arc::new(Inner {
            location: location.clone(),
            options: options.clone(),
            store: connection.store,
            transport: connection.transport,
            bucket_url: connection.bucket_url,
            encryption: connect::encryption_headers(options),
            refused_copies: RefusedCopies::default(),
        })))
    }

    pub fn location(&self) -> &Location {
        &self.0.location
    }

    /// Returns the objects directly below the prefix, from all pages of the list.
    pub fn list(&self) -> Result<Vec<Object>> {
        let prefix = self.0.path_of_prefix()?;
        let listed = self.run(|bucket| async move {
            let list = bucket.store.list_with_delimiter(prefix.as_ref());
            Call::default().make(list).await
        })?;
        let listed = listed.map_err(|failure| self.not_listed(&failure))?;
        let prefix = self.0.location.key("");
        let objects = listed.objects.iter().filter_map(|meta| {
            let name = meta.location.as_ref().strip_prefix(&prefix)?;
            // Consoles keep an object with the name of the prefix itself.
            (!name.is_empty() && !name.contains('/')).then(|| Object::new(name, meta))
        });
        Ok(objects.collect())
    }

    /// Returns what the store says about an object. If the bucket does not exist, neither does the
    /// object: the answer of S3 does not tell these apart.
    pub fn find(&self, name: &str) -> Result<Option<Object>> {
        let path = self.0.path(name)?;
        let nonce = name.to_string();
        let head = self.run(|bucket| async move { bucket.head(&path, &nonce).await })?;
        let head = head.map_err(|failure| self.failed("look at", name, &failure))?;
        Ok(head.map(|head| head.object))
    }

    /// Reads a small object. A larger one than `max_bytes` is an error.
    pub fn read(&self, name: &str, max_bytes: u64) -> Result<Option<(Vec<u8>, Object)>> {
        let path = self.0.path(name)?;
        let read = self.run(|bucket| async move {
            Call::limited_to(max_bytes)
                .make(async {
                    let answer = bucket.store.get_opts(&path, GetOptions::default()).await?;
                    let meta = answer.meta.clone();
                    Ok((answer.bytes().await?, meta))
                })
                .await
        })?;
        match read {
            Ok((bytes, meta)) => Ok(Some((bytes.into(), Object::new(name, &meta)))),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(self.failed("read", name, &failure)),
        }
    }

    /// Opens an object for reading. The object must not change until then.
    #[cfg(not(without_internals))]
    pub fn reader(&self, name: &str) -> Result<Option<ObjectReader>> {
        let object = self.find(name)?;
        object.map(|object| self.reader_of(object)).transpose()
    }

    /// Opens an object that is known from a list. An error of the first read tells if it has changed
    /// since.
    pub fn reader_of(&self, object: Object) -> Result<ObjectReader> {
        ObjectReader::new(self.clone(), object)
    }

    /// Creates an object, unless one of that name exists.
    pub fn create(&self, name: &str, bytes: Vec<u8>) -> Result<Created> {
        let path = self.0.path(name)?;
        let nonce = new_nonce()?;
        let object_name = name.to_string();
        let created = self.run(|bucket| async move {
            let bytes = Bytes::from(bytes);
            let headers = HeaderMap::new();
            let target = Target {
                path: &path,
                name: &object_name,
                nonce: &nonce,
                attributes: bucket.attributes(&nonce),
            };
            bucket.create(target, bytes, PutMode::Create, headers).await
        })?;
        match created {
            Ok(Some(head)) => Ok(Created::New(head)),
            Ok(None) => Ok(Created::Exists),
            Err(failure) => Err(self.failed("create", name, &failure)),
        }
    }

    /// Replaces an object, if it is still the known one.
    pub fn replace(&self, name: &str, bytes: Vec<u8>, known: &Version) -> Result<Replaced> {
        if *known == Version::default() {
            return Err(Error::internal(
                "An object without a version cannot be replaced",
            ));
        }
        let path = self.0.path(name)?;
        let nonce = new_nonce()?;
        let object_name = name.to_string();
        let mode = PutMode::Update(known.into());
        let replaced = self.run(|bucket| async move {
            let target = Target {
                path: &path,
                name: &object_name,
                nonce: &nonce,
                attributes: bucket.attributes(&nonce),
            };
            let bytes = Bytes::from(bytes);
            bucket.create(target, bytes, mode, HeaderMap::new()).await
        })?;
        match replaced {
            Ok(Some(version)) => Ok(Replaced::Done(version)),
            Ok(None) => Ok(Replaced::Changed),
            Err(failure) => Err(self.failed("replace", name, &failure)),
        }
    }

    /// Deletes objects. An absent object is deleted already. A service may report success for an
    /// object that it keeps, so that a list afterwards is the proof.
    pub fn remove(&self, names: &[String]) -> Vec<(String, Result<()>)> {
        let cancel = CancelToken::current();
        let mut results = Vec::with_capacity(names.len());
        let mut under_way: VecDeque<(&String, Result<Task<_>>)> = VecDeque::new();
        let mut names = names.iter();
        loop {
            while under_way.len() < PARALLEL_DELETIONS
                && let Some(name) = names.next()
            {
                under_way.push_back((name, self.start_removal(name)));
            }
            let Some((name, task)) = under_way.pop_front() else {
                return results;
            };
            let result = match task.and_then(|task| task.wait(&cancel)) {
                Ok(Ok(())) => Ok(()),
                Ok(Err(failure)) if failure.is_missing() => Ok(()),
                Ok(Err(failure)) => Err(self.failed("delete", name, &failure)),
                Err(error) => Err(error),
            };
            results.push((name.clone(), result));
        }
    }

    fn start_removal(&self, name: &str) -> Result<Task<Result<(), Failure>>> {
        let path = self.0.path(name)?;
        let bucket = Arc::clone(&self.0);
        Task::start(async move { Call::default().make(bucket.store.delete(&path)).await })
    }

    /// Begins an upload. `planned_bytes` is an estimate, from which the size of the parts follows.
    /// `KG_STORE_CHANGED` if the name is taken.
    pub fn upload(&self, name: &str, planned_bytes: u64, cancel: CancelToken) -> Result<Upload> {
        Upload::new(self.clone(), name, planned_bytes, cancel)
    }

    /// Returns whether the service is known to support no conditions on writes. Then each write looks
    /// before and reads back.
    pub fn is_unconditional(&self) -> bool {
        self.0.transport.is_unconditional()
    }

    /// Sends no conditions on writes any more, because the service does not support them.
    pub fn drop_conditions(&self) {
        self.0.transport.drop_conditions();
    }

    /// Returns whether the bucket is known to keep versions of what is replaced or deleted.
    pub fn keeps_versions(&self) -> bool {
        self.0.transport.keeps_versions()
    }

    /// Returns the time of the service, to the second. Leases use it, because clocks differ.
    pub fn server_time(&self) -> Result<Timestamp> {
        let path = self.0.path(".kg-time")?;
        let (answer, time) = self.run(|bucket| async move {
            let head = GetOptions::default().with_head(true);
            let request = bucket.store.get_opts(&path, head);
            Call::default().make_timed(request).await
        })?;
        match (answer, time) {
            (Err(failure), _) if !failure.is_missing() => {
                Err(self.failed("ask the time of", "", &failure))
            }
            (_, Some(time)) => Ok(time),
            (_, None) => Err(Error::new(
                Code::Unsupported,
                format!("The answers of {} have no date", self.0.location),
                "Use another service",
            )),
        }
    }

    /// Finds out which conditions the service respects, with an object that is deleted again. Some
    /// services ignore them and replace what exists.
    pub fn probe(&self) -> Result<Conditions> {
        let name = format!(".kg-probe-{}", new_nonce()?);
        let result = self.probe_with(&name);
        // Who may not delete leaves a small object.
        let _ = self.remove(std::slice::from_ref(&name));
        result
    }

    fn probe_with(&self, name: &str) -> Result<Conditions> {
        const NONE: Conditions = Conditions {
            create: false,
            replace: false,
        };
        let Created::New(known) = self.create(name, b"1".to_vec())? else {
            return Err(Error::internal("The name of a probe exists"));
        };
        if self.is_unconditional() {
            return Ok(NONE);
        }
        let create = matches!(self.create(name, b"2".to_vec())?, Created::Exists);
        let replace = self.replace(name, b"3".to_vec(), &known.outdated())? == Replaced::Changed;
        if self.is_unconditional() {
            return Ok(NONE);
        }
        Ok(Conditions { create, replace })
    }

    /// Runs work on behalf of the operation of this thread.
    pub(super) fn run<T, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        runtime::run(work(Arc::clone(&self.0)))
    }

    /// Describes a failure. An empty name stands for the whole store.
    pub(super) fn failed(&self, action: &str, name: &str, failure: &Failure) -> Error {
        let location = &self.0.location;
        let target = match name {
            "" => location.to_string(),
            name => format!("{location}/{name}"),
        };
        if failure.is_of_access() && self.asked_metadata_service() {
            let places = "the variables and files of the service, and its metadata service".into();
            return Failure::NoCredentials(places).error(&format!("{action} {target}"));
        }
        match self.0.transport.tried().filter(|_| failure.is_of_access()) {
            Some(tried) => failure.error(&format!("{action} {target} at {tried}")),
            None => failure.error(&format!("{action} {target}")),
        }
    }

    /// Returns whether the last request was one for credentials, which `object_store` sends for
    /// Google Cloud Storage and Azure if it has none.
    pub(super) fn asked_metadata_service(&self) -> bool {
        let host = self.0.transport.last_host().unwrap_or_default();
        METADATA_HOSTS.contains(&host.as_str())
    }

    /// Describes a failed list. A bucket that exists has one, even if it is empty.
    pub(super) fn not_listed(&self, failure: &Failure) -> Error {
        if !failure.is_missing() || self.0.location.service() != Service::S3 {
            return self.failed("list", "", failure);
        }
        let tried = self.0.transport.tried().unwrap_or_default();
        Error::invalid(
            format!(
                "Could not list {} at {tried}: there is no bucket at this address",
                self.0.location
            ),
            "Check `endpoint` in `storageOptions` or AWS_ENDPOINT_URL: it must be the URL of the \
             service, without the bucket",
        )
    }
}

/// What is written, and the mark by which its writer recognises it.
pub(super) struct Target<'a> {
    pub path: &'a Path,
    pub name: &'a str,
    pub nonce: &'a str,
    pub attributes: Attributes,
}

impl Inner {
    /// Writes an object under a condition. Returns `None` if the condition did not hold.
    pub async fn create(
        &self,
        target: Target<'_>,
        bytes: Bytes,
        mode: PutMode,
        headers: HeaderMap,
    ) -> Result<Option<Version>, Failure> {
        if !self.transport.is_unconditional() {
            let written = self.create_conditionally(&target, &bytes, &mode, &headers);
            match written.await {
                Err(failure) if failure.is_unsupported() => {}
                written => return written,
            }
        }
        let written = self
            .create_unconditionally(&target, bytes, &mode, headers)
            .await?;
        // The condition was the reason, and not another part of the request.
        self.transport.drop_conditions();
        Ok(written)
    }

    /// If the answer to a successful request is lost, its repetition finds the condition broken by
    /// the object itself. The nonce in its metadata tells.
    async fn create_conditionally(
        &self,
        target: &Target<'_>,
        bytes: &Bytes,
        mode: &PutMode,
        headers: &HeaderMap,
    ) -> Result<Option<Version>, Failure> {
        let mut attempt = 1;
        loop {
            let put = self.put(target, bytes.clone(), mode.clone(), headers.clone());
            let failure = match put.await {
                Ok(version) => return Ok(Some(version)),
                Err(failure) => failure,
            };
            let is_refused = failure.is_conflict() || failure.is_missing();
            if !is_refused && !failure.is_unclear() {
                return Err(failure);
            }
            match self.head(target.path, target.name).await? {
                Some(head) if head.nonce.as_deref() == Some(target.nonce) => {
                    return Ok(Some(head.object.version));
                }
                _ if !is_refused => return Err(failure),
                Some(_) => return Ok(None),
                None if *mode != PutMode::Create => return Ok(None),
                // It was there and is gone: the name is free again.
                None if attempt < CREATE_ATTEMPTS => attempt += 1,
                None => return Err(failure),
            }
        }
    }

    /// Looks whether the condition holds, writes, and reads back whose object is there. Of two
    /// writers at the same time, the last one wins, and the other one usually notices.
    async fn create_unconditionally(
        &self,
        target: &Target<'_>,
        bytes: Bytes,
        mode: &PutMode,
        headers: HeaderMap,
    ) -> Result<Option<Version>, Failure> {
        let is_own = |head: &Head| head.nonce.as_deref() == Some(target.nonce);
        let found = self.head(target.path, target.name).await?;
        let holds = match (mode, &found) {
            (PutMode::Create, found) => found.as_ref().is_none_or(is_own),
            (PutMode::Update(known), Some(head)) => {
                let known = Version::new(known.e_tag.as_deref(), known.version.as_deref());
                head.object.version.is_same(&known)
            }
            (PutMode::Update(_), None) => false,
            (PutMode::Overwrite, _) => true,
        };
        if !holds {
            return Ok(None);
        }
        self.put(target, bytes, PutMode::Overwrite, headers).await?;
        let written = self.head(target.path, target.name).await?;
        Ok(written.filter(is_own).map(|head| head.object.version))
    }

    async fn put(
        &self,
        target: &Target<'_>,
        bytes: Bytes,
        mode: PutMode,
        headers: HeaderMap,
    ) -> Result<Version, Failure> {
        let options = PutOptions {
            mode,
            tags: self.tags(),
            attributes: target.attributes.clone(),
            ..PutOptions::default()
        };
        let call = Call::default()
            .with_headers(self.encryption.clone())
            .with_headers(headers);
        let put = self.store.put_opts(target.path, bytes.into(), options);
        call.make(put).await.map(Version::from)
    }

    pub async fn head(&self, path: &Path, name: &str) -> Result<Option<Head>, Failure> {
        let options = GetOptions::default().with_head(true);
        let answer = Call::default()
            .make(self.store.get_opts(path, options))
            .await;
        match answer {
            Ok(answer) => Ok(Some(Head::new(name, self.nonce_key(), &answer))),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub fn path(&self, name: &str) -> Result<Path> {
        let is_plain = !name.is_empty() && !name.contains('/');
        let path = Path::parse(self.location.key(name))
            .ok()
            .filter(|_| is_plain);
        path.ok_or_else(|| {
            let name: String = name.chars().flat_map(char::escape_default).collect();
            Error::new(
                Code::BackupDirInvalid,
                format!(
                    "'{name}' cannot be the name of an object in {}",
                    self.location
                ),
                "Use another name",
            )
        })
    }

    pub fn path_of_prefix(&self) -> Result<Option<Path>> {
        if self.location.prefix().is_empty() {
            return Ok(None);
        }
        let path = Path::parse(self.location.prefix());
        path.map(Some).map_err(|_| {
            let message = format!("{} cannot be listed", self.location);
            Error::new(Code::BackupDirInvalid, message, "Use another prefix")
        })
    }

    /// Azure allows only letters, digits and underscores.
    fn nonce_key(&self) -> &'static str {
        match self.location.service() {
            Service::S3 | Service::GoogleCloud => "kg-nonce",
            Service::Azure => "kg_nonce",
        }
    }

    pub fn attributes(&self, nonce: &str) -> Attributes {
        let key = Attribute::Metadata(self.nonce_key().into());
        Attributes::from_iter([(key, nonce.to_string())])
    }

    pub fn tags(&self) -> TagSet {
        let mut tags = TagSet::default();
        for (key, value) in self.options.tags.iter().flatten() {
            tags.push(key, value);
        }
        tags
    }

    /// Returns the header by which the completion of an upload never replaces an object, if the service
    /// supports one. Google Cloud Storage refuses conditions in all requests of such an upload.
    pub fn completion_condition(&self) -> Option<(HeaderName, HeaderValue)> {
        match self.location.service() {
            _ if self.transport.is_unconditional() => None,
            Service::S3 | Service::Azure => {
                Some((http::header::IF_NONE_MATCH, HeaderValue::from_static("*")))
            }
            Service::GoogleCloud => None,
        }
    }
}

/// Returns a random mark.
pub(super) fn new_nonce() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|cause| {
        let remedy = "Check the system's source of random numbers";
        Error::new(Code::Io, "Could not get random numbers", remedy).with_cause(cause)
    })?;
    Ok(hex(&bytes))
}
