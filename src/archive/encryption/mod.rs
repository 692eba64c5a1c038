//! Encrypted archives: [age](https://age-encryption.org/v1) files whose content is an archive like any other.
//!
//! ```text
//! backup    archive, with its seal ─▶ age ([write]) ─▶ hashed ─▶ file
//! reading   file ─▶ hashed ─▶ age ([read]) ─▶ archive, its seal checked
//! ```
//! So `age -d` gives back what `tar` opens. A passphrase opens it, or the identity of one of the recipients that it was made for.
//! What stands beside an encrypted archive names nothing of what is in it: [`super::manifest::Manifest::public_sidecar`].

pub mod read;
pub mod write;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use age::{
    DecryptError, Decryptor, Encryptor, Identity, Recipient, scrypt, secrecy::SecretString, x25519,
};
use age_core::format::{FileKey, Stanza};

use crate::error::{Code, Error, Result};

/// Before the ending of the name of an encrypted archive.
pub const NAME_MARK: &str = ".enc";
/// What every age file begins with.
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// 2 to this many rounds of scrypt, as the `age` command writes: half a second and 256 MiB of memory.
const WORK_FACTOR: u8 = 18;
/// Other tools may write more. This is 1 GiB: a header that asks for more than that is forged, or as good as.
const MOST_WORK_FACTOR: u8 = 20;
/// Their header can still be read, see [`read`].
const MOST_RECIPIENTS: usize = 128;

/// Secrets that open archives, and to whom new ones are encrypted.
#[derive(Clone, Default)]
pub struct Keyring {
    /// Each is tried; new archives get the first.
    pub passphrases: Vec<SecretString>,
    pub identities: Vec<x25519::Identity>,
    pub recipients: Vec<x25519::Recipient>,
    /// Why nothing is to be encrypted with it.
    pub refusal: Option<Error>,
    /// The files that it was read from.
    pub files: Vec<KeyFile>,
}

/// A file that a key was read from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyFile {
    pub path: PathBuf,
    /// Why others than its owner have the key, if they do.
    pub exposed: Option<String>,
}

/// Who can open a new archive.
enum Readers<'a> {
    Passphrase(&'a SecretString),
    Recipients(Vec<x25519::Recipient>),
}

impl Keyring {
    pub fn of_passphrase(passphrase: SecretString) -> Self {
        Keyring {
            passphrases: vec![passphrase],
            ..Keyring::default()
        }
    }

    /// Recipients where there are any: then passphrases and identities only open. Else whoever has the passphrase, else the identities.
    fn readers(&self) -> Result<Readers<'_>> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let recipients = match (self.recipients.is_empty(), self.passphrases.first()) {
            (false, _) => self.recipients.clone(),
            (true, Some(passphrase)) => return Ok(Readers::Passphrase(passphrase)),
            (true, None) => self
                .identities
                .iter()
                .map(x25519::Identity::to_public)
                .collect(),
        };
        match recipients.len() {
            0 => Err(Error::new(
                Code::KeyNeeded,
                "The backup is to be encrypted, and no key was given",
                "Give a passphrase (`--passphrase-file`) or recipients (`--recipient`), or set `backup.passphraseFile` or \
                 `backup.recipients` (`encryption` in the API)",
            )),
            1..=MOST_RECIPIENTS => Ok(Readers::Recipients(recipients)),
            many => {
                let message = format!("The backup is to be encrypted to {many} recipients");
                Err(Error::invalid(
                    message,
                    format!("Give {MOST_RECIPIENTS} at most"),
                ))
            }
        }
    }

    /// For one new archive. With a passphrase this takes half a second.
    fn encryptor(&self) -> Result<Encryptor> {
        let encryptor = match self.readers()? {
            Readers::Passphrase(passphrase) => {
                let mut reader = scrypt::Recipient::new(passphrase.clone());
                reader.set_work_factor(WORK_FACTOR);
                Encryptor::with_recipients(std::iter::once(&reader as &dyn Recipient))
            }
            Readers::Recipients(readers) => {
                Encryptor::with_recipients(readers.iter().map(|reader| reader as &dyn Recipient))
            }
        };
        encryptor.map_err(|cause| {
            Error::invalid(
                "The archive cannot be encrypted to these recipients",
                "Check them",
            )
            .with_cause(cause)
        })
    }

    /// The content of an age file of which `decryptor` has read the header.
    fn decrypt<R: std::io::Read>(
        &self,
        decryptor: Decryptor<R>,
    ) -> Result<age::stream::StreamReader<R>, DecryptError> {
        let passphrases = Passphrases(&self.passphrases);
        let identities = self
            .identities
            .iter()
            .map(|identity| identity as &dyn Identity);
        decryptor.decrypt(identities.chain(std::iter::once(&passphrases as &dyn Identity)))
    }
}

/// Tries one after the other.
struct Passphrases<'a>(&'a [SecretString]);

impl Identity for Passphrases<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        let mut last = None;
        for passphrase in self.0 {
            let mut identity = scrypt::Identity::new(passphrase.clone());
            identity.set_max_work_factor(MOST_WORK_FACTOR);
            last = identity.unwrap_stanza(stanza);
            if matches!(last, Some(Ok(_))) {
                break;
            }
        }
        last
    }
}

/// A public key of age, which archives can be encrypted to. What is none is not quoted unless it looks like one: it may be a secret.
pub fn parse_recipient(text: &str) -> Result<x25519::Recipient> {
    text.parse().map_err(|cause| {
        let remedy =
            "Give a public key of age, which begins with `age1`: `age-keygen -y FILE` tells it";
        let what = if is_shown(text) {
            format!("`{text}` is no recipient")
        } else {
            "What was given is no recipient".into()
        };
        Error::new(Code::KeyInvalid, what, remedy).with_cause(cause)
    })
}

/// Whether an archive of that name is said to be encrypted.
pub fn is_named(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(_, ending)| ending.starts_with(&format!("{}.tar", &NAME_MARK[1..])))
}

/// Whether what was given as a recipient may be told.
pub fn is_shown(text: &str) -> bool {
    text.starts_with("age1")
}

/// Nothing of a secret may get into a log.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

/// The keys of a store. They are asked for once, when the first archive is met that needs them: an archive that is not encrypted
/// can be read where the file of a passphrase is gone.
///
/// What opens backups and who can read new ones are two questions: a key that is given to open one must not decide the other.
#[derive(Clone, Default)]
pub struct Keys {
    opening: Option<Arc<Asked>>,
    sealing: Option<Arc<Asked>>,
    /// The caller gave keys, so an archive that needs none is not what is expected.
    are_given: bool,
    /// An archive that is not encrypted is refused.
    require_encryption: bool,
}

struct Asked {
    ask: Box<dyn Fn() -> Result<Keyring> + Send + Sync>,
    answer: OnceLock<Result<Keyring>>,
}

impl Keys {
    /// Both opens backups and says who reads new ones.
    pub fn asked_for(ask: impl Fn() -> Result<Keyring> + Send + Sync + 'static) -> Self {
        let asked = Some(Arc::new(Asked {
            ask: Box::new(ask),
            answer: OnceLock::new(),
        }));
        Keys {
            opening: asked.clone(),
            sealing: asked,
            ..Keys::default()
        }
    }

    /// Opens backups as before; new ones are for those whom `other` names.
    pub fn sealing_as(&self, other: &Keys) -> Self {
        Keys {
            sealing: other.sealing.clone(),
            ..self.clone()
        }
    }

    /// The same keys, which the caller gave.
    pub fn given(self) -> Self {
        Keys {
            are_given: true,
            ..self
        }
    }

    pub fn are_given(&self) -> bool {
        self.are_given
    }

    /// The same keys; with `is_required`, an archive that is not encrypted is refused.
    pub fn requiring_encryption(self, is_required: bool) -> Self {
        Keys {
            require_encryption: is_required,
            ..self
        }
    }

    /// `KG_NOT_ENCRYPTED` if archives must be encrypted.
    pub fn accept_plain(&self) -> Result<()> {
        if !self.require_encryption {
            return Ok(());
        }
        Err(Error::new(
            Code::NotEncrypted,
            "It is not encrypted, and only an encrypted backup was to be read",
            "Whoever can write there may have put it in the place of another one: use a backup that is encrypted. If it is \
             meant, leave out `--decrypt` and `--require-encryption` (`requireEncryption` in the API)",
        ))
    }

    pub fn of(keyring: Keyring) -> Self {
        Keys::asked_for(move || Ok(keyring.clone()))
    }

    /// What opens backups.
    fn ring(&self) -> Result<Keyring> {
        self.opening
            .as_ref()
            .map_or(Ok(Keyring::default()), |asked| asked.ring())
    }

    /// Who can read new backups.
    fn sealing_ring(&self) -> Result<Keyring> {
        self.sealing
            .as_ref()
            .map_or(Ok(Keyring::default()), |asked| asked.ring())
    }

    /// The files that keys were read from so far.
    pub fn files(&self) -> Vec<KeyFile> {
        let read = [&self.opening, &self.sealing]
            .into_iter()
            .flatten()
            .filter_map(|asked| asked.answer.get());
        let mut files: Vec<KeyFile> = read.flatten().flat_map(|ring| ring.files.clone()).collect();
        files.sort();
        files.dedup();
        files
    }

    /// Fails where nothing can be encrypted with them.
    pub fn assert_encrypting(&self) -> Result<()> {
        self.sealing_ring()?.readers().map(drop)
    }

    /// The public keys that new archives are encrypted to, sorted; none where they are encrypted by a passphrase.
    pub fn recipients(&self) -> Result<Vec<String>> {
        let ring = self.sealing_ring()?;
        let mut recipients: Vec<String> = match ring.readers()? {
            Readers::Passphrase(_) => Vec::new(),
            Readers::Recipients(readers) => {
                readers.iter().map(x25519::Recipient::to_string).collect()
            }
        };
        recipients.sort_unstable();
        recipients.dedup();
        Ok(recipients)
    }

    /// The key that new archives are encrypted with, where it is a passphrase, and no other.
    pub fn passphrase(&self) -> Result<Option<Keys>> {
        Ok(match self.sealing_ring()?.readers()? {
            Readers::Passphrase(passphrase) => {
                Some(Keys::of(Keyring::of_passphrase(passphrase.clone())))
            }
            Readers::Recipients(_) => None,
        })
    }

    /// Whether there is one that could open an archive that is locked like this.
    pub fn fit(&self, lock: read::Lock) -> Result<bool> {
        let ring = self.ring()?;
        Ok(match lock {
            read::Lock::Passphrase => !ring.passphrases.is_empty(),
            read::Lock::Identity => !ring.identities.is_empty(),
        })
    }
}

impl Asked {
    fn ring(&self) -> Result<Keyring> {
        self.answer.get_or_init(&self.ask).clone()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}
