//! Encrypted archives: [age](https://age-encryption.org/v1) files whose content is an ordinary
//! archive.
//!
//! ```text
//! backup    archive, with its seal ─▶ age ([write]) ─▶ hashed ─▶ file
//! reading   file ─▶ hashed ─▶ age ([read]) ─▶ archive, its seal checked
//! ```
//!
//! So `age -d` returns an archive that `tar` can unpack. The file opens with a passphrase, or with
//! the identity of one of the recipients that it was encrypted to. The sidecar of an encrypted
//! archive does not name anything inside it: see [`super::manifest::Manifest::public_sidecar`].

pub mod read;
pub mod write;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use age::{
    DecryptError, Decryptor, Encryptor, Identity, Recipient, scrypt, secrecy::SecretString, x25519,
};
use age_core::format::{FileKey, Stanza};

use crate::error::{Code, Error, Result};

/// The part of the name of an encrypted archive that comes before its ending.
pub const NAME_MARK: &str = ".enc";
/// The first bytes of every age file.
pub const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// Base-2 logarithm of the number of scrypt rounds. It is the value of the `age` command: half a
/// second and 256 MiB of memory.
const WORK_FACTOR: u8 = 18;
/// The highest accepted work factor, because other tools may use more than [`WORK_FACTOR`]. It
/// needs 1 GiB of memory. A header that asks for more is treated as forged.
const MOST_WORK_FACTOR: u8 = 20;
/// Maximum number of recipients. A header with this many recipients can still be read, see
/// [`read`].
const MOST_RECIPIENTS: usize = 128;

/// Secrets that open archives, and the recipients of new ones.
#[derive(Clone, Default)]
pub struct Keyring {
    /// Each passphrase is tried when an archive is opened. A new archive is encrypted with the
    /// first.
    pub passphrases: Vec<SecretString>,
    pub identities: Vec<x25519::Identity>,
    pub recipients: Vec<x25519::Recipient>,
    /// If set, encryption with this keyring fails with this error.
    pub refusal: Option<Error>,
    /// The files that the keys were read from.
    pub files: Vec<KeyFile>,
}

/// A file that a key was read from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyFile {
    pub path: PathBuf,
    /// Explains why users other than the owner can get the key, if they can.
    pub exposed: Option<String>,
}

/// What can open a new archive.
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

    /// Returns what can open a new archive: the recipients, else the first passphrase, else the
    /// identities. If there are recipients, passphrases and identities are used only to open
    /// archives.
    ///
    /// Fails with [`Keyring::refusal`] if that is set, and with `KG_KEY_NEEDED` if there is no key.
    /// Fails with `KG_INVALID_OPTION` if there are too many recipients.
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
                "The backup cannot be encrypted because no key was given",
                "Give `encryption.passphraseFile` or `encryption.recipients`, or set \
                 `backup.passphraseFile` or `backup.recipients`",
            )),
            1..=MOST_RECIPIENTS => Ok(Readers::Recipients(recipients)),
            many => {
                let message = format!("The backup cannot be encrypted to {many} recipients");
                Err(Error::invalid(
                    message,
                    format!("Give at most {MOST_RECIPIENTS} recipients"),
                ))
            }
        }
    }

    /// Returns an encryptor for one new archive. With a passphrase this takes half a second.
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
                "Check the recipients",
            )
            .with_cause(cause)
        })
    }

    /// Returns the content of an age file whose header `decryptor` has read.
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

/// An identity that tries each passphrase in turn.
struct Passphrases<'a>(&'a [SecretString]);

impl Identity for Passphrases<'_> {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, DecryptError>> {
        // Several archives may be opened at once, but each derivation needs much memory.
        static DERIVING: Mutex<()> = Mutex::new(());
        let _only = DERIVING.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Parses a public key of age that archives can be encrypted to. Fails with `KG_KEY_INVALID`. The
/// message quotes an invalid key only if it looks like a public key, because it may be a secret.
pub fn parse_recipient(text: &str) -> Result<x25519::Recipient> {
    text.parse().map_err(|cause| {
        let remedy =
            "Give an age public key, which begins with `age1`: `age-keygen -y FILE` prints it";
        let what = if is_shown(text) {
            format!("`{text}` is not a recipient")
        } else {
            "The given value is not a recipient".into()
        };
        Error::new(Code::KeyInvalid, what, remedy).with_cause(cause)
    })
}

/// Returns whether the name of an archive says that it is encrypted.
pub fn is_named(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(_, ending)| ending.starts_with(&format!("{}.tar", &NAME_MARK[1..])))
}

/// Returns whether a message may quote a value that was given as a recipient.
pub fn is_shown(text: &str) -> bool {
    text.starts_with("age1")
}

/// Prints no fields, because a secret must not get into a log.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

/// The keys of a store. They are read once, when they are first needed. An archive that is not
/// encrypted can thus be read even if a passphrase file is missing.
///
/// The keys that open backups are separate from those that encrypt new ones. A key that the user
/// gives to open a backup must not decide who can read new backups.
#[derive(Clone, Default)]
pub struct Keys {
    opening: Option<Arc<Asked>>,
    sealing: Option<Arc<Asked>>,
    /// The caller gave keys, so an archive that is not encrypted is unexpected.
    are_given: bool,
    /// Archives that are not encrypted are refused.
    require_encryption: bool,
}

struct Asked {
    ask: Box<dyn Fn() -> Result<Keyring> + Send + Sync>,
    answer: OnceLock<Result<Keyring>>,
}

impl Keys {
    /// Returns keys that both open backups and encrypt new ones. `ask` is called once, when the
    /// keys are first needed.
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

    /// Returns keys that open the same backups but encrypt new ones as `other` does.
    pub fn sealing_as(&self, other: &Keys) -> Self {
        Keys {
            sealing: other.sealing.clone(),
            ..self.clone()
        }
    }

    /// Marks the keys as given by the caller.
    pub fn given(self) -> Self {
        Keys {
            are_given: true,
            ..self
        }
    }

    pub fn are_given(&self) -> bool {
        self.are_given
    }

    /// Returns the same keys. If `is_required`, they refuse an archive that is not encrypted.
    pub fn requiring_encryption(self, is_required: bool) -> Self {
        Keys {
            require_encryption: is_required,
            ..self
        }
    }

    /// Fails with `KG_NOT_ENCRYPTED` if archives must be encrypted.
    pub fn accept_plain(&self) -> Result<()> {
        if !self.require_encryption {
            return Ok(());
        }
        Err(Error::new(
            Code::NotEncrypted,
            "The backup is not encrypted, but an encrypted backup is required",
            "Another user who can write there may have replaced an encrypted backup: use an \
             encrypted backup. If a plain backup is intended, leave out \
             `encryption.requireEncryption`",
        ))
    }

    pub fn of(keyring: Keyring) -> Self {
        Keys::asked_for(move || Ok(keyring.clone()))
    }

    /// Returns the keys that open backups.
    fn ring(&self) -> Result<Keyring> {
        self.opening
            .as_ref()
            .map_or(Ok(Keyring::default()), |asked| asked.ring())
    }

    /// Returns the keys that encrypt new backups.
    fn sealing_ring(&self) -> Result<Keyring> {
        self.sealing
            .as_ref()
            .map_or(Ok(Keyring::default()), |asked| asked.ring())
    }

    /// Returns the files that keys have been read from so far.
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

    /// Fails if these keys cannot encrypt an archive.
    pub fn assert_encrypting(&self) -> Result<()> {
        self.sealing_ring()?.readers().map(drop)
    }

    /// Returns the public keys that new archives are encrypted to, sorted. The list is empty if new
    /// archives are encrypted with a passphrase.
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

    /// Returns only the passphrase that new archives are encrypted with, or `None` if they are
    /// encrypted to recipients.
    pub fn passphrase(&self) -> Result<Option<Keys>> {
        Ok(match self.sealing_ring()?.readers()? {
            Readers::Passphrase(passphrase) => {
                Some(Keys::of(Keyring::of_passphrase(passphrase.clone())))
            }
            Readers::Recipients(_) => None,
        })
    }

    /// Returns whether there is a key of the kind that opens an archive with this lock.
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
