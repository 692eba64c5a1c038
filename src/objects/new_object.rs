//! An object that is being created: the mark by which its writer recognises it, and what the store
//! says about it at the end.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use object_store::{Attributes, PutMode, TagSet, path::Path};

use super::{
    bucket::{self, Bucket, Inner, Target},
    failure::Failure,
    object::{Head, Object, Version},
    runtime::Task,
};
use crate::{
    error::{Code, Error, Result},
    util::operation::CancelToken,
};

pub(super) struct NewObject {
    bucket: Bucket,
    name: String,
    path: Path,
    nonce: String,
    cancel: CancelToken,
}

impl NewObject {
    pub fn new(bucket: Bucket, name: &str, cancel: CancelToken) -> Result<NewObject> {
        Ok(NewObject {
            path: bucket.0.path(name)?,
            name: name.to_string(),
            nonce: bucket::new_nonce()?,
            cancel,
            bucket,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    pub fn cancel(&self) -> &CancelToken {
        &self.cancel
    }

    pub fn tags(&self) -> TagSet {
        self.bucket.0.tags()
    }

    pub fn completion_condition(&self) -> Option<(HeaderName, HeaderValue)> {
        self.bucket.0.completion_condition()
    }

    /// Writes the whole object with one request. Returns `None` if the name is taken.
    pub fn put(
        &self,
        bytes: Bytes,
        headers: HeaderMap,
        attributes: Attributes,
    ) -> Result<Result<Option<Version>, Failure>> {
        let (path, name, nonce) = (self.path.clone(), self.name.clone(), self.nonce.clone());
        self.run(|bucket| async move {
            let target = Target {
                path: &path,
                name: &name,
                nonce: &nonce,
                attributes,
            };
            bucket.create(target, bytes, PutMode::Create, headers).await
        })
    }

    /// Judges the answer to the request that makes the object exist. Returns no version if only a
    /// look at the object tells that it does. `KG_STORE_CHANGED` if the name is taken.
    pub fn completed(
        &self,
        answer: Result<Version, Failure>,
    ) -> Result<Result<Option<Version>, Failure>> {
        match answer {
            Ok(version) => Ok(Ok(Some(version))),
            Err(failure)
                if failure.is_conflict() || failure.is_missing() || failure.is_unclear() =>
            {
                match self.head()? {
                    Some(head) if self.is_own(&head) => Ok(Ok(None)),
                    Some(_) => Err(self.taken()),
                    None => Ok(Err(failure)),
                }
            }
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Returns the object as the store sees it, after a comparison with what was written.
    pub fn verify(&self, size_bytes: u64, completed: Option<&Version>) -> Result<Object> {
        let object = self.created()?;
        if object.size_bytes != size_bytes {
            return Err(Error::new(
                Code::ChecksumMismatch,
                format!(
                    "The service keeps {} of the {size_bytes} bytes of {}",
                    object.size_bytes,
                    self.place()
                ),
                "Delete the object, and report this to the operator of the service",
            ));
        }
        let e_tag = completed.and_then(|version| version.e_tag.as_ref());
        if e_tag.is_some() && e_tag != object.version.e_tag.as_ref() {
            return Err(self.changed("was replaced right after it was written"));
        }
        Ok(object)
    }

    /// Returns the object as the store sees it. `KG_STORE_CHANGED` if it is not ours.
    pub fn created(&self) -> Result<Object> {
        let head = self
            .head()?
            .ok_or_else(|| self.changed("was deleted right after it was written"))?;
        if !self.is_own(&head) {
            return Err(self.changed("was replaced right after it was written"));
        }
        Ok(head.object)
    }

    pub fn head(&self) -> Result<Option<Head>> {
        let (path, name) = (self.path.clone(), self.name.clone());
        let head = self.run(|bucket| async move { bucket.head(&path, &name).await })?;
        head.map_err(|failure| self.could_not("look at", &failure))
    }

    fn is_own(&self, head: &Head) -> bool {
        head.nonce.as_deref() == Some(self.nonce.as_str())
    }

    pub fn settle<T: Send + 'static>(&self, task: Task<Result<T, Failure>>) -> Result<T> {
        task.wait(&self.cancel)?
            .map_err(|failure| self.failed(&failure))
    }

    pub fn run<T, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        Task::start(work(Arc::clone(&self.bucket.0)))?.wait(&self.cancel)
    }

    pub fn place(&self) -> String {
        format!("{}/{}", self.bucket.location(), self.name)
    }

    pub fn failed(&self, failure: &Failure) -> Error {
        self.could_not("write", failure)
    }

    pub fn could_not(&self, action: &str, failure: &Failure) -> Error {
        self.bucket.failed(action, &self.name, failure)
    }

    pub fn taken(&self) -> Error {
        Error::new(
            Code::StoreChanged,
            format!("{} exists already", self.place()),
            "Nothing was replaced; run it again",
        )
    }

    fn changed(&self, what: &str) -> Error {
        Error::new(
            Code::StoreChanged,
            format!("{} {what}", self.place()),
            "Find out what else writes there, and run it again",
        )
    }
}
