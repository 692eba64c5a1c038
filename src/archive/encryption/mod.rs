//! Encrypted archives: [age](https://age-encryption.org/v1) files whose content is an archive like any other.
//!
//! ```text
//! backup    archive, with its seal ─▶ age ([write]) ─▶ hashed ─▶ file
//! reading   file ─▶ hashed ─▶ age ([read]) ─▶ archive, its seal checked
//! ```
//! So `age -d` gives back what `tar` opens. A passphrase opens it, or the identity of one of the recipients that it was made for.
//! What stands beside an encrypted archive names nothing of what is in it: [`super::manifest::Manifest::outside`].

pub mod read;
pub mod write;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use age::{
    DecryptError, Decryptor, Encryptor, Identity, Recipient,
    secrecy::SecretString,
    {scrypt, x25519},
};

use crate::error::{Code, Error, Result};

/// What every age file begins with.
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// 2 to this many rounds of scrypt, as the `age` command writes: half a second and 256 MiB of memory.
const WORK_FACTOR: u8 = 18;
/// A header that asks for more is not worth the 16 times of that.
const MOST_WORK_FACTOR: u8 = 22;
/// Their header can still be read, see [`read`].
const MOST_RECIPIENTS: usize = 256;

/// Secrets that open archives, and to whom new ones are encrypted.
#[derive(Clone, Default)]
pub struct Keyring {
    pub passphrase: Option<SecretString>,
    pub identities: Vec<x25519::Identity>,
    pub recipients: Vec<x25519::Recipient>,
    /// Why nothing is to be encrypted with it.
    pub refusal: Option<Error>,
}

impl Keyring {
    pub fn of_passphrase(passphrase: SecretString) -> Self {
        Keyring { passphrase: Some(passphrase), ..Keyring::default() }
    }

    /// Whether it could open anything.
    fn opens(&self) -> bool {
        self.passphrase.is_some() || !self.identities.is_empty()
    }

    /// To whom a new archive is encrypted: recipients, the own identities among them; else whoever has the passphrase.
    fn readers(&self) -> Result<Vec<Box<dyn Recipient>>> {
        let own = self.identities.iter().map(x25519::Identity::to_public);
        let recipients = self.recipients.iter().cloned().chain(own);
        let readers: Vec<Box<dyn Recipient>> = recipients.map(|recipient| Box::new(recipient) as _).collect();
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        match &self.passphrase {
            Some(_) if !readers.is_empty() => {
                let message = "An archive is encrypted either by a passphrase or to recipients, and both were given";
                Err(Error::invalid(message, "Leave one of them out"))
            }
            Some(passphrase) => {
                let mut recipient = scrypt::Recipient::new(passphrase.clone());
                recipient.set_work_factor(WORK_FACTOR);
                Ok(vec![Box::new(recipient)])
            }
            None if readers.is_empty() => Err(Error::new(
                Code::KeyNeeded,
                "The backup is to be encrypted, and no key was given",
                "Give a passphrase (`--passphrase-file`), recipients (`--recipient`) or identities (`--identity`)",
            )),
            None if readers.len() > MOST_RECIPIENTS => Err(Error::invalid(
                format!("The backup is to be encrypted to {} recipients", readers.len()),
                format!("Give {MOST_RECIPIENTS} at most"),
            )),
            None => Ok(readers),
        }
    }

    /// For one new archive. With a passphrase this takes half a second.
    fn encryptor(&self) -> Result<Encryptor> {
        let readers = self.readers()?;
        Encryptor::with_recipients(readers.iter().map(|reader| reader.as_ref())).map_err(|cause| {
            Error::invalid("The archive cannot be encrypted to these recipients", "Check them").with_cause(cause)
        })
    }

    /// The content of an age file of which `decryptor` has read the header.
    fn decrypt<R: std::io::Read>(&self, decryptor: Decryptor<R>) -> Result<age::stream::StreamReader<R>, DecryptError> {
        let passphrase = self.passphrase.clone().map(|passphrase| {
            let mut identity = scrypt::Identity::new(passphrase);
            identity.set_max_work_factor(MOST_WORK_FACTOR);
            identity
        });
        let identities = self.identities.iter().map(|identity| identity as &dyn Identity);
        decryptor.decrypt(identities.chain(passphrase.iter().map(|identity| identity as &dyn Identity)))
    }
}

/// A public key of age, which archives can be encrypted to.
pub fn parse_recipient(text: &str) -> Result<x25519::Recipient> {
    text.parse().map_err(|cause| {
        let remedy = "Give a public key of age, which begins with `age1`: `age-keygen -y FILE` tells it";
        Error::new(Code::KeyInvalid, format!("`{text}` is no recipient"), remedy).with_cause(cause)
    })
}

/// Nothing of a secret may get into a log.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

/// The keys of a store. They are asked for once, when the first archive is met that needs them: an archive that is not encrypted
/// can be read where the file of a passphrase is gone.
#[derive(Clone, Default)]
pub struct Keys(Option<Arc<Asked>>);

struct Asked {
    ask: Box<dyn Fn() -> Result<Keyring> + Send + Sync>,
    answer: OnceLock<Result<Keyring>>,
}

impl Keys {
    pub fn asked_for(ask: impl Fn() -> Result<Keyring> + Send + Sync + 'static) -> Self {
        Keys(Some(Arc::new(Asked { ask: Box::new(ask), answer: OnceLock::new() })))
    }

    pub fn of(keyring: Keyring) -> Self {
        Keys::asked_for(move || Ok(keyring.clone()))
    }

    fn ring(&self) -> Result<Keyring> {
        self.0.as_ref().map_or(Ok(Keyring::default()), |asked| asked.answer.get_or_init(&asked.ask).clone())
    }

    /// Fails where nothing can be encrypted with them.
    pub fn assert_encrypting(&self) -> Result<()> {
        self.ring()?.readers().map(drop)
    }

    /// Whether there is one that could open anything.
    pub fn open_something(&self) -> Result<bool> {
        self.ring().map(|ring| ring.opens())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}
