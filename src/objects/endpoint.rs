//! The URL of a service of S3, and that of a bucket in it.

use std::env;

use super::{location::Location, options::StorageOptions, signing};
use crate::error::{Error, Result};

const VARIABLES: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
const OPTION: &str = "`endpoint` in `storageOptions`";
const VARIABLE: &str = "AWS_ENDPOINT_URL in the environment";

/// Services whose hosts have a region or an account first, and not `s3`.
const VENDORS: [&str; 3] = [
    ".digitaloceanspaces.com",
    ".linodeobjects.com",
    ".r2.cloudflarestorage.com",
];

/// Returns the URL of the bucket. Names with dots do not match the certificates of AWS, so that they
/// go into the path.
pub fn s3_bucket_url(location: &Location, options: &StorageOptions) -> Result<String> {
    let bucket = location.bucket();
    let (endpoint, source) = match (&options.endpoint, of_environment()) {
        (Some(endpoint), _) => (endpoint.clone(), OPTION),
        (None, Some(endpoint)) => (endpoint, VARIABLE),
        (None, None) => return Ok(aws_bucket_url(bucket, options)),
    };
    let checked = match source {
        // The options were checked; the environment was not.
        VARIABLE => StorageOptions {
            endpoint: Some(endpoint.clone()),
            allow_http: options.allow_http,
            ..StorageOptions::default()
        }
        .check(),
        _ => Ok(()),
    };
    checked
        .and_then(|()| check_without_bucket(bucket, &endpoint, options))
        .map_err(|error| Error {
            message: error.message.replace(OPTION, source),
            remedy: match source {
                VARIABLE => error.remedy.replace("`allowHttp`", "AWS_ALLOW_HTTP=true"),
                _ => error.remedy,
            },
            ..error
        })?;
    let endpoint = endpoint.trim_end_matches('/');
    if !options.virtual_hosted_style.unwrap_or_default() {
        return Ok(format!("{endpoint}/{bucket}"));
    }
    match endpoint.split_once("://") {
        Some((scheme, host)) if !host.starts_with(&format!("{bucket}.")) => {
            Ok(format!("{scheme}://{bucket}.{host}"))
        }
        _ => Ok(endpoint.to_string()),
    }
}

/// Returns the URL of the service of a bucket, in a form that can be compared.
pub fn service_url(bucket_url: &str, bucket: &str) -> Option<String> {
    let without_bucket = match bucket_url.strip_suffix(&format!("/{bucket}")) {
        Some(service) => service.to_string(),
        None => {
            let (scheme, rest) = bucket_url.split_once("://")?;
            format!(
                "{scheme}://{}",
                rest.strip_prefix(bucket)?.strip_prefix('.')?
            )
        }
    };
    let url = reqwest::Url::parse(&without_bucket).ok()?;
    Some(url.as_str().trim_end_matches('/').to_string())
}

fn of_environment() -> Option<String> {
    let mut names = VARIABLES.iter();
    names.find_map(|name| env::var(name).ok().filter(|url| !url.is_empty()))
}

fn aws_bucket_url(bucket: &str, options: &StorageOptions) -> String {
    let host = format!("s3.{}.amazonaws.com", signing::region(options));
    let in_host = options
        .virtual_hosted_style
        .unwrap_or(!bucket.contains('.'));
    match in_host {
        true => format!("https://{bucket}.{host}"),
        false => format!("https://{host}/{bucket}"),
    }
}

/// Refuses an endpoint that contains the bucket, which would be asked for an object instead. The
/// bucket is added to the endpoint here.
fn check_without_bucket(bucket: &str, endpoint: &str, options: &StorageOptions) -> Result<()> {
    let url = reqwest::Url::parse(endpoint).ok();
    let host = url.as_ref().and_then(|url| url.host_str());
    check_path(bucket, endpoint)?;
    let service = host.and_then(|host| host.strip_prefix(bucket)?.strip_prefix('.'));
    if options.virtual_hosted_style.is_none() && service.is_some_and(is_host_of_service) {
        return Err(Error::invalid(
            format!("The host of {OPTION} begins with the bucket '{bucket}', and it must not"),
            "Leave the bucket out of the endpoint; if the service itself has this name, set \
             `virtualHostedStyle` to `false` in `storageOptions`",
        ));
    }
    Ok(())
}

/// Refuses an endpoint whose path contains the bucket. Other paths have a meaning: a gateway may lie
/// behind one, and the emulator of Azure has the account in it.
pub fn check_path(bucket: &str, endpoint: &str) -> Result<()> {
    let url = reqwest::Url::parse(endpoint).ok();
    let path = url.as_ref().map(|url| url.path()).unwrap_or_default();
    if !path.split('/').any(|part| part == bucket) {
        return Ok(());
    }
    Err(Error::invalid(
        format!("{OPTION} contains '{bucket}' in its path, and it must not"),
        "Give the URL of the service alone, such as `https://s3.example.com`; the bucket and the \
         prefix belong in `s3://bucket/prefix`",
    ))
}

/// Returns whether a host is surely that of a service. A bucket named `backup` and the host
/// `backup.example.com` may have the same name by chance.
fn is_host_of_service(host: &str) -> bool {
    let first = host.split('.').next().unwrap_or_default();
    first == "s3" || first.starts_with("s3-") || VENDORS.iter().any(|one| host.ends_with(one))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Code;

    fn bucket_url(bucket: &str, options: &Value) -> Result<String> {
        let location = Location::parse(&format!("s3://{bucket}/x")).unwrap();
        s3_bucket_url(&location, &StorageOptions::from_json(options).unwrap())
    }

    #[test]
    fn a_bucket_is_in_the_host_or_in_the_path() {
        let region = json!({ "region": "eu-west-1" });
        let own = |virtual_hosted: bool| json!({ "endpoint": "https://s3.example.com/", "virtualHostedStyle": virtual_hosted });
        for (bucket, options, url) in [
            (
                "kg",
                region.clone(),
                "https://kg.s3.eu-west-1.amazonaws.com",
            ),
            ("k.g", region, "https://s3.eu-west-1.amazonaws.com/k.g"),
            ("kg", own(false), "https://s3.example.com/kg"),
            ("kg", own(true), "https://kg.s3.example.com"),
            (
                "kg",
                json!({ "endpoint": "https://example.com/storage/v1/s3" }),
                "https://example.com/storage/v1/s3/kg",
            ),
        ] {
            assert_eq!(bucket_url(bucket, &options).unwrap(), url);
        }
    }

    #[test]
    fn the_service_of_a_bucket_is_the_same_in_every_form() {
        for (url, service) in [
            ("https://s3.example.com/kg", "https://s3.example.com"),
            ("https://kg.s3.example.com", "https://s3.example.com"),
            ("https://S3.Example.com:443/kg", "https://s3.example.com"),
            ("http://s3.example.com:80/kg", "http://s3.example.com"),
            (
                "https://example.com/storage/kg",
                "https://example.com/storage",
            ),
        ] {
            assert_eq!(service_url(url, "kg").as_deref(), Some(service), "{url}");
        }
        assert_eq!(service_url("https://s3.example.com", "kg"), None);
    }

    #[test]
    fn an_endpoint_that_contains_the_bucket_is_refused() {
        for (endpoint, reason) in [
            ("https://s3.example.com/kg", "in its path"),
            ("https://s3.example.com/kg/team/", "in its path"),
            ("https://kg.s3.example.com", "begins with the bucket 'kg'"),
            ("https://kg.s3-eu-west-1.amazonaws.com", "begins with"),
            ("https://kg.nyc3.digitaloceanspaces.com", "begins with"),
            ("https://kg.account.r2.cloudflarestorage.com", "begins with"),
        ] {
            let error = bucket_url("kg", &json!({ "endpoint": endpoint })).unwrap_err();
            assert_eq!(error.code, Code::InvalidOption, "{endpoint}");
            assert!(error.message.contains(reason), "{}", error.message);
        }
        let styled = json!({ "endpoint": "https://kg.s3.example.com", "virtualHostedStyle": true });
        assert_eq!(
            bucket_url("kg", &styled).unwrap(),
            "https://kg.s3.example.com"
        );
    }

    #[test]
    fn an_endpoint_of_another_service_may_have_a_path() {
        assert!(check_path("kg", "http://127.0.0.1:10000/devstoreaccount1").is_ok());
        assert!(check_path("kg", "https://storage.example.com").is_ok());
        let error = check_path("kg", "https://account.example.com/kg/").unwrap_err();
        assert_eq!(error.code, Code::InvalidOption);
    }

    #[test]
    fn a_host_that_begins_like_the_bucket_by_chance_is_accepted() {
        let path_style = json!({ "endpoint": "https://kg.s3.test", "virtualHostedStyle": false });
        assert_eq!(
            bucket_url("kg", &path_style).unwrap(),
            "https://kg.s3.test/kg"
        );
        for endpoint in [
            "https://kg.example.com",
            "https://kg.r2.cloudflarestorage.com",
            "https://kg-s3.example.com",
            "https://s3.kg.example.com",
        ] {
            let url = bucket_url("kg", &json!({ "endpoint": endpoint })).unwrap();
            assert_eq!(url, format!("{endpoint}/kg"));
        }
    }
}
