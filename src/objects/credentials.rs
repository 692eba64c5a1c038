//! Where the keys of S3 come from: the options, or the chain that all AWS tools share. The chain
//! ends with the metadata service of EC2, which no other machine can reach, so that it gets little
//! time.

use std::{fs, process::Command, time::Duration};

use bytes::Bytes;
use reqsign_aws_core::{Credential, DefaultCredentialProvider, DefaultCredentialProviderBuilder};
use reqsign_core::{
    CommandExecute, CommandOutput, Context, Error as ChainError, FileRead, HttpSend, OsEnv,
    ProvideCredential, Result as ChainResult, SigningCredential,
};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{failure::Failure, options::StorageOptions};

/// The metadata service answers in milliseconds where it exists.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
pub const METADATA_HOSTS: [&str; 5] = [
    "169.254.169.254",
    "fd00:ec2::254",
    "[fd00:ec2::254]",
    "metadata",
    "metadata.google.internal",
];
const METADATA_ATTEMPTS: u32 = 2;
/// The sources of the chain, in its order.
const SOURCES: [&str; 7] = [
    "AWS_ACCESS_KEY_ID of the environment",
    "the profile in ~/.aws/credentials or ~/.aws/config",
    "single sign-on",
    "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE",
    "`credential_process` of the profile",
    "the container",
    "the metadata service of EC2",
];
const MOST_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub enum Credentials {
    Given(Credential),
    Chain(Box<Chain>),
}

#[derive(Debug)]
pub struct Chain {
    provider: DefaultCredentialProvider,
    context: Context,
    profile: Option<String>,
    cached: Mutex<Option<Credential>>,
}

impl Credentials {
    pub fn new(options: &StorageOptions, client: &reqwest::Client) -> Credentials {
        if let (Some(key), Some(secret)) = (&options.access_key_id, &options.secret_access_key) {
            return Credentials::given(key, secret, options.session_token.clone());
        }
        let mut builder = DefaultCredentialProvider::builder();
        if let Some(profile) = &options.profile {
            // The environment comes first in the chain, but who names a profile means it.
            builder = builder.no_env().with_profile(profile);
        }
        let context = Context::new()
            .with_env(OsEnv)
            .with_file_read(Files)
            .with_command_execute(Commands)
            .with_http_send(Http(client.clone()));
        Credentials::Chain(Box::new(Chain {
            provider: builder.build(),
            context,
            profile: options.profile.clone(),
            cached: Mutex::new(None),
        }))
    }

    pub fn given(key: &str, secret: &str, session_token: Option<String>) -> Credentials {
        Credentials::Given(Credential {
            access_key_id: key.to_string(),
            secret_access_key: secret.to_string(),
            session_token,
            expires_in: None,
        })
    }

    /// Returns credentials that are valid for at least two more minutes.
    pub async fn get(&self) -> Result<Credential, Failure> {
        match self {
            Credentials::Given(credential) => Ok(credential.clone()),
            Credentials::Chain(chain) => chain.get().await,
        }
    }

    /// Returns the name of the first source that has credentials.
    pub async fn source(&self) -> Option<&'static str> {
        match self {
            Credentials::Given(_) => Some("`accessKeyId` of `storageOptions`"),
            Credentials::Chain(chain) => chain.source().await,
        }
    }

    /// Forgets cached credentials. Returns whether there can be others.
    pub async fn forget(&self) -> bool {
        match self {
            Credentials::Given(_) => false,
            Credentials::Chain(chain) => {
                *chain.cached.lock().await = None;
                true
            }
        }
    }
}

impl Chain {
    async fn get(&self) -> Result<Credential, Failure> {
        // Held while the chain is asked, so that parallel requests ask it once.
        let mut cached = self.cached.lock().await;
        if let Some(credential) = cached.as_ref().filter(|one| one.is_valid()) {
            return Ok(credential.clone());
        }
        let found = self.provider.provide_credential(&self.context).await;
        match found.ok().flatten().filter(is_usable) {
            Some(credential) => {
                *cached = Some(credential.clone());
                Ok(credential)
            }
            None => Err(Failure::NoCredentials(self.places())),
        }
    }

    /// Asks each source alone, in the order of the chain, because the chain does not tell.
    async fn source(&self) -> Option<&'static str> {
        for (at, name) in SOURCES.into_iter().enumerate() {
            if at == 0 && self.profile.is_some() {
                continue;
            }
            let alone = alone(at, self.profile.as_deref());
            let found = alone.provide_credential(&self.context).await;
            if found.ok().flatten().is_some_and(|one| is_usable(&one)) {
                return Some(name);
            }
        }
        None
    }

    fn places(&self) -> String {
        let profile = match &self.profile {
            Some(profile) => format!("`storageOptions`, the profile '{profile}'"),
            None => {
                "`storageOptions`, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile of \
                     AWS_PROFILE"
                    .to_string()
            }
        };
        format!(
            "{profile} in ~/.aws/credentials and ~/.aws/config, single sign-on, the web identity \
             of AWS_WEB_IDENTITY_TOKEN_FILE, `credential_process`, the container and the metadata \
             service of EC2"
        )
    }
}

/// Returns a chain of one source.
fn alone(source: usize, profile: Option<&str>) -> DefaultCredentialProvider {
    let mut builder = DefaultCredentialProvider::builder();
    if let Some(profile) = profile {
        builder = builder.with_profile(profile);
    }
    let others: [fn(DefaultCredentialProviderBuilder) -> DefaultCredentialProviderBuilder; 7] = [
        |one| one.no_env(),
        |one| one.no_profile(),
        |one| one.no_sso(),
        |one| one.no_web_identity(),
        |one| one.no_process(),
        |one| one.no_ecs(),
        |one| one.no_imds(),
    ];
    for (at, without) in others.into_iter().enumerate() {
        if at != source {
            builder = without(builder);
        }
    }
    builder.build()
}

/// What becomes part of a header must not break it.
fn is_usable(credential: &Credential) -> bool {
    let texts = [&credential.access_key_id, &credential.secret_access_key];
    let is_plain = |text: &str| text.chars().all(|letter| letter.is_ascii_graphic());
    let token = credential.session_token.as_deref().unwrap_or_default();
    texts
        .into_iter()
        .all(|text| !text.is_empty() && is_plain(text))
        && is_plain(token)
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> ChainResult<Vec<u8>> {
        let metadata = fs::metadata(path).map_err(unreadable)?;
        // Reading a pipe could wait without end.
        if !metadata.is_file() || metadata.len() > MOST_FILE_BYTES {
            return Err(ChainError::config_invalid("not a small regular file"));
        }
        fs::read(path).map_err(unreadable)
    }
}

fn unreadable(error: std::io::Error) -> ChainError {
    ChainError::config_invalid("the file cannot be read").with_source(error)
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute(&self, program: &str, args: &[&str]) -> ChainResult<CommandOutput> {
        let mut command = Command::new(program);
        command.args(args);
        let output = spawn_blocking(move || command.output()).await;
        let output = output.map_err(|_| ChainError::unexpected("the command did not run"))?;
        let output = output.map_err(|error| {
            ChainError::config_invalid("the command could not be started").with_source(error)
        })?;
        Ok(CommandOutput {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }
}

#[derive(Debug)]
struct Http(reqwest::Client);

impl HttpSend for Http {
    async fn http_send(&self, request: http::Request<Bytes>) -> ChainResult<http::Response<Bytes>> {
        let host = request.uri().host().unwrap_or_default();
        let is_metadata = METADATA_HOSTS.contains(&host);
        let attempts = if is_metadata { METADATA_ATTEMPTS } else { 1 };
        let timeout = match is_metadata {
            true => METADATA_TIMEOUT,
            false => METADATA_TIMEOUT * 10,
        };
        let mut attempt = 1;
        loop {
            match self.send_once(request.clone(), timeout).await {
                Err(_) if attempt < attempts => attempt += 1,
                result => return result,
            }
        }
    }
}

impl Http {
    async fn send_once(
        &self,
        request: http::Request<Bytes>,
        timeout: Duration,
    ) -> ChainResult<http::Response<Bytes>> {
        let failed = |error: reqwest::Error| {
            ChainError::unexpected("no answer").with_source(error.without_url())
        };
        let mut request = reqwest::Request::try_from(request).map_err(failed)?;
        *request.timeout_mut() = Some(timeout);
        let answer = self.0.execute(request).await.map_err(failed)?;
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let body = http_body_util::Limited::new(body, MOST_FILE_BYTES as usize);
        let body = http_body_util::BodyExt::collect(body).await;
        let body = body.map_err(|_| ChainError::unexpected("no complete answer"))?;
        Ok(http::Response::from_parts(parts, body.to_bytes()))
    }
}
