//! Signatures, made anew for each attempt: they hold the time, and the credentials may have changed.

use std::{
    env,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use http::{HeaderValue, Uri, header::AUTHORIZATION};
use object_store::{
    aws::{AwsAuthorizer, AwsCredential},
    azure::{AzureAuthorizer, AzureCredentialProvider},
    client::HttpRequest,
    gcp::GcpCredentialProvider,
};

use super::{credentials::Credentials, failure::Failure, options::StorageOptions};

const DEFAULT_REGION: &str = "us-east-1";

/// How the requests of a service are signed.
#[derive(Debug, Clone)]
pub enum Signing {
    /// Here, with headers that `object_store` does not know.
    S3(Arc<Signer>),
    /// By `object_store`, and again here if it used the key of an account.
    Azure(Arc<AzureSigner>),
    /// By `object_store`, with a token that covers no header, and here if it does not know the
    /// request.
    Google(Arc<GoogleSigner>),
}

/// Adds the token to requests of Google Cloud Storage that lack it.
#[derive(Debug, Default)]
pub struct GoogleSigner {
    /// The URL of the service, and the credentials. Set once the client exists, which needs this
    /// signer.
    pub credentials: OnceLock<(Uri, GcpCredentialProvider)>,
}

impl GoogleSigner {
    pub async fn sign(&self, request: &mut HttpRequest) -> Result<(), Failure> {
        let is_signed = request.headers().contains_key(AUTHORIZATION);
        let Some((service, credentials)) = self.credentials.get().filter(|_| !is_signed) else {
            return Ok(());
        };
        // The provider sends its requests for a token through here, and waits for their answers.
        if request.uri().authority() != service.authority() {
            return Ok(());
        }
        let failed = |error| Failure::unexpected(&error);
        let credential = credentials.get_credential().await.map_err(failed)?;
        let token = HeaderValue::from_str(&format!("Bearer {}", credential.bearer));
        let token = token.map_err(|_| Failure::Unexpected("no valid token".into()))?;
        request.headers_mut().insert(AUTHORIZATION, token);
        Ok(())
    }
}

/// Signs requests of Azure again after headers were added to them.
#[derive(Debug, Default)]
pub struct AzureSigner {
    /// The account, and its credentials. Set once the client exists, which needs this signer.
    pub account: OnceLock<(String, AzureCredentialProvider)>,
}

impl AzureSigner {
    pub async fn sign(&self, request: &mut HttpRequest) -> Result<(), Failure> {
        let signature = request.headers().get(AUTHORIZATION);
        let is_of_key = signature.is_some_and(|value| value.as_bytes().starts_with(b"SharedKey"));
        let Some((account, credentials)) = self.account.get().filter(|_| is_of_key) else {
            return Ok(());
        };
        let failed = |error| Failure::unexpected(&error);
        let credential = credentials.get_credential().await.map_err(failed)?;
        request.headers_mut().remove(AUTHORIZATION);
        AzureAuthorizer::new(&credential, account)
            .try_authorize(request)
            .map_err(failed)
    }
}

#[derive(Debug)]
pub struct Signer {
    credentials: Credentials,
    first_region: String,
    /// The region in use. The service corrects a wrong one in its answers.
    region: Mutex<String>,
}

impl Signer {
    pub fn new(options: &StorageOptions, credentials: Credentials) -> Signer {
        let first_region = region(options);
        Signer {
            credentials,
            region: Mutex::new(first_region.clone()),
            first_region,
        }
    }

    pub fn region(&self) -> String {
        let region = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        region.clone()
    }

    /// Takes the region that the service named. Returns whether it is another one.
    pub fn correct_region(&self, region: &str) -> bool {
        let mut current = self.region.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *current != region;
        *current = region.to_string();
        is_new
    }

    /// Forgets credentials that the service calls expired. Returns whether there can be others.
    pub async fn renew(&self) -> bool {
        self.credentials.forget().await
    }

    pub async fn credential_source(&self) -> Option<&'static str> {
        self.credentials.source().await
    }

    /// Signs a request whose body has that digest. Hosts of AWS name the region, so that they change
    /// with it.
    pub async fn sign(&self, request: &mut HttpRequest, digest: &[u8]) -> Result<(), Failure> {
        let credential = self.credentials.get().await?;
        let region = self.region();
        if region != self.first_region
            && let Some(uri) = self.moved(request.uri(), &region)
        {
            *request.uri_mut() = uri;
        }
        let key = AwsCredential {
            key_id: credential.access_key_id,
            secret_key: credential.secret_access_key,
            token: credential.session_token,
        };
        AwsAuthorizer::new(&key, "s3", &region)
            .try_authorize(request, Some(digest))
            .map_err(|error| Failure::unexpected(&error))
    }

    fn moved(&self, uri: &Uri, region: &str) -> Option<Uri> {
        let old = format!("s3.{}.amazonaws.com", self.first_region);
        let authority = uri.authority()?.as_str();
        let rest = authority.strip_suffix(&old)?;
        let mut parts = uri.clone().into_parts();
        parts.authority = format!("{rest}s3.{region}.amazonaws.com").parse().ok();
        Uri::from_parts(parts).ok()
    }
}

/// Returns the region of the options or of the environment. A wrong guess costs one request.
pub fn region(options: &StorageOptions) -> String {
    let of_environment = || {
        let names = ["AWS_REGION", "AWS_DEFAULT_REGION"];
        let is_plain = |region: &String| {
            let mut letters = region.chars();
            !region.is_empty() && letters.all(|one| one.is_ascii_alphanumeric() || one == '-')
        };
        names
            .iter()
            .find_map(|name| env::var(name).ok().filter(is_plain))
    };
    let region = options.region.clone().or_else(of_environment);
    region.unwrap_or_else(|| DEFAULT_REGION.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corrected_region_moves_hosts_of_aws_alone() {
        let options = StorageOptions {
            region: Some("us-east-1".into()),
            access_key_id: Some("key".into()),
            secret_access_key: Some("secret".into()),
            ..StorageOptions::default()
        };
        let signer = Signer::new(&options, Credentials::given("key", "secret", None));
        assert!(signer.correct_region("eu-west-1"));
        assert!(!signer.correct_region("eu-west-1"));
        let moved = |uri: &str| signer.moved(&uri.parse().unwrap(), "eu-west-1");
        let there = moved("https://bucket.s3.us-east-1.amazonaws.com/a?b=c").unwrap();
        assert_eq!(there, "https://bucket.s3.eu-west-1.amazonaws.com/a?b=c");
        assert_eq!(moved("https://s3.us-east-1.example.com/a"), None);
    }
}
