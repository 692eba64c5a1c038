//! The clients of the three services. `object_store` knows what their requests look like.

use std::{fs, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use object_store::{
    ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    client::{ClientOptions, HttpClient, HttpConnector},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
};

use super::{
    credentials::Credentials,
    endpoint::{check_path, s3_bucket_url},
    location::{Location, Service},
    options::StorageOptions,
    signing::{self, AzureSigner, GoogleSigner, Signer, Signing},
    transport::Transport,
};
use crate::error::{Code, Error, Result};

const GOOGLE_URL: &str = "https://storage.googleapis.com";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const COMMON_KEYS: [&str; 7] = [
    "endpoint",
    "allowHttp",
    "storageClass",
    "proxy",
    "caFile",
    "timeout",
    "bandwidthLimit",
];

const S3_KEYS: [&str; 10] = [
    "accessKeyId",
    "secretAccessKey",
    "sessionToken",
    "region",
    "virtualHostedStyle",
    "profile",
    "serverSideEncryption",
    "kmsKeyId",
    "tags",
    "objectLock",
];

/// A connected service.
pub struct Connection {
    pub store: Arc<dyn ObjectStore>,
    pub transport: Transport,
    /// The URL of the bucket, for requests that `object_store` does not know. Absent for Azure.
    pub bucket_url: Option<String>,
}

pub fn connect(location: &Location, options: &StorageOptions) -> Result<Connection> {
    options.check()?;
    let client = client(options)?;
    match location.service() {
        Service::S3 => s3(location, options, client),
        Service::GoogleCloud => google_cloud(location, options, client),
        Service::Azure => azure(location, options, client),
    }
}

fn s3(
    location: &Location,
    options: &StorageOptions,
    client: reqwest::Client,
) -> Result<Connection> {
    refuse(options, "S3", &[&COMMON_KEYS[..], &S3_KEYS].concat())?;
    let bucket_url = s3_bucket_url(location, options)?;
    let credentials = Credentials::new(options, &client);
    let signer = Arc::new(Signer::new(options, credentials));
    let transport = transport(client, Signing::S3(signer), options);
    let store = AmazonS3Builder::new()
        .with_bucket_name(location.bucket())
        .with_region(signing::region(options))
        // With this style the endpoint is the URL of the bucket, whatever it looks like.
        .with_virtual_hosted_style_request(true)
        .with_endpoint(&bucket_url)
        .with_allow_http(options.allows_http())
        .with_skip_signature(true)
        // Not every service has the request that deletes many objects.
        .with_disable_bulk_delete(true)
        .with_retry(no_retries())
        .with_http_connector(Connector(transport.clone()))
        .build()
        .map_err(|error| unusable(location, error))?;
    Ok(Connection {
        store: Arc::new(store),
        transport,
        bucket_url: Some(bucket_url),
    })
}

fn google_cloud(
    location: &Location,
    options: &StorageOptions,
    client: reqwest::Client,
) -> Result<Connection> {
    refuse(options, "Google Cloud Storage", &COMMON_KEYS)?;
    let signer = Arc::new(GoogleSigner::default());
    let transport = transport(client, Signing::Google(Arc::clone(&signer)), options);
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(location.bucket())
        .with_retry(no_retries())
        .with_http_connector(Connector(transport.clone()));
    if let Some(endpoint) = &options.endpoint {
        check_path(location.bucket(), endpoint)?;
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let base = builder.get_config_value(&GoogleConfigKey::BaseUrl);
    let base = base.unwrap_or_else(|| GOOGLE_URL.to_string());
    let store = builder.build().map_err(|error| unusable(location, error))?;
    let service = base.parse().map_err(|_| {
        Error::invalid(
            format!("{base} is not the URL of a service"),
            "Correct `endpoint` in `storageOptions` or GOOGLE_BASE_URL",
        )
    })?;
    // It was not set before.
    let _ = signer
        .credentials
        .set((service, Arc::clone(store.credentials())));
    Ok(Connection {
        store: Arc::new(store),
        transport,
        bucket_url: Some(format!("{base}/{}", location.bucket())),
    })
}

fn azure(
    location: &Location,
    options: &StorageOptions,
    client: reqwest::Client,
) -> Result<Connection> {
    let known = [&COMMON_KEYS[..], &["account", "accessKey", "tags"]].concat();
    refuse(options, "Azure", &known)?;
    let signer = Arc::new(AzureSigner::default());
    let transport = transport(client, Signing::Azure(Arc::clone(&signer)), options);
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(location.bucket())
        .with_allow_http(options.allows_http())
        .with_retry(no_retries())
        .with_http_connector(Connector(transport.clone()));
    if let Some(account) = &options.account {
        builder = builder.with_account(account);
    }
    if let Some(key) = &options.access_key {
        builder = builder.with_access_key(key);
    }
    if let Some(endpoint) = &options.endpoint {
        // The emulator has the account in the path, and a container may have its name.
        if options.account.as_deref() != Some(location.bucket()) {
            check_path(location.bucket(), endpoint)?;
        }
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
    }
    let account = builder.get_config_value(&AzureConfigKey::AccountName);
    let emulator = builder.get_config_value(&AzureConfigKey::UseEmulator);
    if account.is_none() && emulator.as_deref() != Some("true") {
        return Err(Error::invalid(
            format!("The storage account of {location} is missing"),
            "Give `account` in `storageOptions`, or set AZURE_STORAGE_ACCOUNT_NAME",
        ));
    }
    let store = builder.build().map_err(|error| unusable(location, error))?;
    if let Some(account) = account {
        // It was not set before.
        let _ = signer
            .account
            .set((account, Arc::clone(store.credentials())));
    }
    Ok(Connection {
        store: Arc::new(store),
        transport,
        bucket_url: None,
    })
}

/// Returns the headers of S3 that apply to everything that is written.
pub fn encryption_headers(options: &StorageOptions) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let names = [
        (
            "x-amz-server-side-encryption",
            &options.server_side_encryption,
        ),
        (
            "x-amz-server-side-encryption-aws-kms-key-id",
            &options.kms_key_id,
        ),
    ];
    for (name, value) in names {
        let value = value.as_deref().map(HeaderValue::from_str);
        if let Some(Ok(value)) = value {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

/// Returns the headers of S3 that lock an object from now on.
pub fn lock_headers(options: &StorageOptions) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let Some(lock) = options.object_lock else {
        return Ok(headers);
    };
    let hours = i64::from(lock.days).saturating_mul(24);
    let until = Timestamp::now().checked_add(SignedDuration::from_hours(hours));
    let until = until.ok().and_then(|until| {
        let seconds = until.round(jiff::Unit::Second).ok()?;
        HeaderValue::from_str(&seconds.to_string()).ok()
    });
    let until = until.ok_or_else(|| {
        Error::invalid(
            "`objectLock` in `storageOptions` ends too late",
            "Give fewer days",
        )
    })?;
    let mode = HeaderValue::from_static(lock.mode.as_str());
    headers.insert(HeaderName::from_static("x-amz-object-lock-mode"), mode);
    let name = HeaderName::from_static("x-amz-object-lock-retain-until-date");
    headers.insert(name, until);
    Ok(headers)
}

fn client(options: &StorageOptions) -> Result<reqwest::Client> {
    // Fails if another part of this process did it already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Slim containers have no list of authorities.
    let authorities = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    let authorities = authorities.filter_map(|der| reqwest::Certificate::from_der(der).ok());
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("knowledge-graph-agent/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT.min(options.timeout()))
        .tls_certs_merge(authorities.chain(own_authorities(options)?));
    if let Some(proxy) = &options.proxy {
        let proxy = reqwest::Proxy::all(proxy).map_err(|_| {
            Error::invalid("`proxy` in `storageOptions` cannot be used", "Correct it")
        })?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|error| {
        let remedy = "Check `proxy` and `caFile` in `storageOptions`";
        let message = "Could not set up TLS for the object store";
        Error::new(Code::StoreUnreachable, message, remedy).with_cause(error.without_url())
    })
}

fn own_authorities(options: &StorageOptions) -> Result<Vec<reqwest::Certificate>> {
    let Some(path) = &options.ca_file else {
        return Ok(Vec::new());
    };
    let pem = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if certificates.is_empty() {
        return Err(Error::invalid(
            format!("{} holds no certificate in PEM form", path.display()),
            "Name a file with `-----BEGIN CERTIFICATE-----` in `caFile`",
        ));
    }
    Ok(certificates)
}

fn transport(client: reqwest::Client, signing: Signing, options: &StorageOptions) -> Transport {
    let limit = options.bandwidth_bytes_per_second;
    Transport::new(client, signing, options.timeout(), limit)
}

/// The transport repeats requests itself.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// Refuses an option that the service would ignore.
fn refuse(options: &StorageOptions, service: &str, known: &[&str]) -> Result<()> {
    match options.given_except(known) {
        None => Ok(()),
        Some(key) => Err(Error::new(
            Code::Unsupported,
            format!("`{key}` in `storageOptions` does not apply to {service}"),
            "Leave it out",
        )),
    }
}

fn unusable(location: &Location, error: object_store::Error) -> Error {
    let message = format!("Could not use {location} with these `storageOptions`");
    let remedy = "Check `endpoint` and the credentials in `storageOptions` and the environment";
    Error::new(Code::InvalidOption, message, remedy).with_cause(error)
}

#[derive(Debug)]
struct Connector(Transport);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(url: &str, options: &Value) -> Error {
        let location = Location::parse(url).unwrap();
        let options = StorageOptions::from_json(options).unwrap();
        connect(&location, &options).err().unwrap()
    }

    #[test]
    fn an_option_that_a_service_would_ignore_is_refused() {
        for (url, options, key) in [
            (
                "gs://kg",
                json!({ "objectLock": { "mode": "GOVERNANCE", "days": 1 } }),
                "objectLock",
            ),
            ("gs://kg", json!({ "tags": { "a": "b" } }), "tags"),
            (
                "az://kg",
                json!({ "serverSideEncryption": "AES256" }),
                "serverSideEncryption",
            ),
            ("s3://kg", json!({ "account": "a" }), "account"),
        ] {
            let error = refused(url, &options);
            assert_eq!(error.code, Code::Unsupported);
            assert!(error.message.contains(key), "{}", error.message);
        }
    }

    #[test]
    fn a_missing_account_of_azure_is_named() {
        let error = refused("az://kg", &json!({}));
        assert_eq!(error.code, Code::InvalidOption);
        for name in ["`account`", "AZURE_STORAGE_ACCOUNT_NAME"] {
            assert!(error.remedy.contains(name), "{error}");
        }
        assert!(error.message.contains("account of az://kg"), "{error}");
    }
}
