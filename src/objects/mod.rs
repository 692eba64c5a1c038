//! A client for object stores: S3 and compatible services first, then Google Cloud Storage and
//! Azure. It knows objects and nothing of backups.
//!
//! ```text
//! Bucket ─▶ object_store: what a request looks like ─▶ Transport ─▶ the service
//!           (list, get, put, multipart; three services)  signs, sends, retries, limits, records
//! ```
//!
//! | module | content |
//! | --- | --- |
//! | [`location`], [`options`] | where a store lies; the guide's `storageOptions` |
//! | [`bucket`], [`reader`], [`upload`] | the operations |
//! | [`new_object`] | an object that is being created, by an upload or a copy |
//! | [`copy`] | copies that a service of S3 makes itself |
//! | [`object`] | what a store says about an object |
//! | [`contact`], [`bucket_settings`] | who answers, and how the bucket is set up, for a check |
//! | [`connect`], [`endpoint`] | the clients of the three services; the URL of a service of S3 |
//! | [`transport`] | sends a request until there is an answer or a reason to give up |
//! | [`call`], [`failure`] | what an operation asks of its requests; why one failed, as an error |
//! | [`retry`], [`throttle`] | waits between attempts; the bandwidth |
//! | [`signing`], [`credentials`] | signatures of S3; where its keys come from |
//! | [`runtime`] | runs asynchronous requests for ordinary threads |
//!
//! Callers are ordinary threads. An operation ends soon after the thread's
//! [`CancelToken`](crate::util::operation::CancelToken) is cancelled.
//!
//! What it does not guarantee:
//!
//! * A service that ignores conditions on requests lets two writers of one name both succeed.
//!   [`Bucket::probe`] tells such services apart.
//! * Google Cloud Storage takes no condition for an upload of parts. Two writers of one long object can
//!   both succeed there. Their caller holds a lock.
//! * A process that is killed leaves the parts of its upload. [`Bucket::unfinished_uploads`] finds
//!   them.

/// The variables with credentials of the services. Programs that this one starts for its user do not
/// get them.
pub const SECRET_VARIABLES: [&str; 11] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_SECRET",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
];

mod bucket;
mod bucket_settings;
mod call;
mod connect;
mod contact;
mod copy;
mod credentials;
mod endpoint;
mod failure;
mod location;
mod new_object;
mod object;
mod options;
mod reader;
mod retry;
mod runtime;
mod signing;
mod throttle;
mod transport;
mod unfinished;
mod upload;

#[cfg(not(without_internals))]
pub use self::options::{LockMode, ObjectLock};
pub use self::{
    bucket::{Bucket, Conditions, Created, Replaced},
    bucket_settings::Versioning,
    contact::Contact,
    copy::CopySource,
    location::{Location, Service},
    object::{Object, Version},
    options::StorageOptions,
    reader::ObjectReader,
    unfinished::UnfinishedUpload,
    upload::Upload,
};
