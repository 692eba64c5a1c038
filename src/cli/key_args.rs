//! Keys of encrypted backups on the command line: the arguments that name them, and the prompt for
//! a passphrase.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use age::secrecy::{ExposeSecret, SecretString};
use clap::Args;

use super::args::of_environment;
use crate::{
    archive::{
        encryption::{
            Keyring, Keys,
            read::{Lock, lock_of},
        },
        reader::unreadable,
    },
    commands::{
        configured::CallerEncryption,
        credentials::{KeySource, assert_passphrase},
    },
    config::Settings,
    error::{Code, Error, Result},
    place::Archive,
    store::Store,
    worker::client::WorkerMode,
};

const PASSPHRASE_FILE: &str = "KG_PASSPHRASE_FILE";
const IDENTITY_FILE: &str = "KG_IDENTITY_FILE";

/// The arguments that name keys. Backups are opened with the keys given here, else with those of
/// the environment, else with those of the settings.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// A file whose only line is the passphrase of encrypted backups; may be repeated, to open
    /// backups of several passphrases [default: $KG_PASSPHRASE_FILE, or `backup.passphraseFile` of
    /// the settings]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Vec<PathBuf>,
    /// An age identity file that opens encrypted backups; may be repeated [default:
    /// $KG_IDENTITY_FILE, or `backup.identityFile` of the settings]
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
    /// Refuse a backup that is not encrypted
    #[arg(long)]
    require_encryption: bool,
}

impl KeyArgs {
    pub fn are_given(&self) -> bool {
        !self.passphrase_file.is_empty() || !self.identity.is_empty()
    }

    /// Returns what the call says about the encryption of a new backup for `recipients`. A key that
    /// only opens backups does not determine who can read new ones.
    pub fn said(&self, recipients: &[String], encrypt: bool, no_encrypt: bool) -> CallerEncryption {
        match (no_encrypt, encrypt || self.are_given()) {
            (true, _) => CallerEncryption::Plain,
            _ if !recipients.is_empty() || !self.passphrase_file.is_empty() => {
                CallerEncryption::EncryptedTo
            }
            (false, true) => CallerEncryption::Encrypted,
            (false, false) => CallerEncryption::Nothing,
        }
    }

    /// Returns the store with the named keys: those that open backups, and those that encrypt new
    /// ones.
    pub fn on(
        &self,
        store: Store,
        recipients: &[String],
        settings: &Settings,
        root: &Path,
    ) -> Store {
        let set = KeySource::of_settings(settings, root);
        let opening = self.opening(&set);
        let new = self
            .sealing(recipients, set)
            .keys(root, &WorkerMode::InProcess);
        let keys = opening.keys(root, &WorkerMode::InProcess).sealing_as(&new);
        let is_given = self.are_given()
            || of_environment(PASSPHRASE_FILE)
                .or(of_environment(IDENTITY_FILE))
                .is_some();
        let keys = if is_given { keys.given() } else { keys };
        store.with_keys(keys.requiring_encryption(self.require_encryption))
    }

    /// Returns the keys that open backups: those of the call, else of the environment, else of the
    /// settings.
    fn opening(&self, set: &KeySource) -> KeySource {
        let (passphrase_file, identity_file) = (
            of_environment(PASSPHRASE_FILE),
            of_environment(IDENTITY_FILE),
        );
        let (passphrase_files, identity_files) = if self.are_given() {
            (self.passphrase_file.clone(), self.identity.clone())
        } else if passphrase_file.is_some() || identity_file.is_some() {
            (
                passphrase_file.into_iter().collect(),
                identity_file.into_iter().collect(),
            )
        } else {
            (set.passphrase_files.clone(), set.identity_files.clone())
        };
        KeySource {
            passphrase_files,
            identity_files,
            ..KeySource::default()
        }
    }

    /// Returns the keys that encrypt new backups. The order is: recipients or passphrase of the
    /// call, recipients of the settings, passphrase of the environment, other keys of the settings.
    /// An identity of the call or of the environment only opens backups.
    fn sealing(&self, recipients: &[String], set: KeySource) -> KeySource {
        let by_passphrase = |files: Vec<PathBuf>| KeySource {
            passphrase_files: files,
            ..KeySource::default()
        };
        if !recipients.is_empty() {
            return KeySource {
                recipients: recipients.to_vec(),
                ..KeySource::default()
            };
        }
        if !self.passphrase_file.is_empty() {
            return by_passphrase(self.passphrase_file.clone());
        }
        match of_environment(PASSPHRASE_FILE) {
            Some(file) if set.recipients.is_empty() => by_passphrase(vec![file]),
            _ => set,
        }
    }

    /// Returns the store with keys that open `archive`. On a terminal, the user is asked for a
    /// passphrase if no key is named. With `ask`, keys of the settings do not prevent the question.
    pub fn unlock(&self, store: Store, archive: &Archive, ask: bool) -> Result<Store> {
        let lock = archive
            .open()
            .and_then(lock_of)
            .map_err(|cause| unreadable(archive, cause))?;
        let is_given = self.are_given() || of_environment(PASSPHRASE_FILE).is_some();
        // The file that the settings name may be missing. The user can then still type the
        // passphrase.
        let is_named = || (is_given || !ask) && store.keys().fit(Lock::Passphrase).unwrap_or(false);
        if lock != Some(Lock::Passphrase) || !may_ask() || is_named() {
            return Ok(store);
        }
        let typed = Keys::of(Keyring::of_passphrase(typed(&format!(
            "Passphrase of {archive}: "
        ))?));
        // The typed passphrase opens this backup. It encrypts new ones only if no other key does.
        let has_readers = !store
            .keys()
            .assert_encrypting()
            .is_err_and(|error| error.code == Code::KeyNeeded);
        let keys = if has_readers {
            typed.sealing_as(store.keys())
        } else {
            typed
        };
        Ok(store.with_keys(keys))
    }
}

/// Returns the store with a key for a new backup if that is to be encrypted. If no key is named,
/// the user is asked for a passphrase on a terminal. Fails with `KG_KEY_INVALID` if the passphrase
/// is unsuitable or the two inputs differ.
pub fn lockable(store: Store) -> Result<Store> {
    if !store.encrypts() {
        return Ok(store);
    }
    match store.keys().assert_encrypting() {
        Err(error) if error.code == Code::KeyNeeded && may_ask() => {}
        known => return known.map(|()| store),
    }
    let passphrase = typed("Passphrase for the backup: ")?;
    assert_passphrase(passphrase.expose_secret()).map_err(|what| {
        Error::new(
            Code::KeyInvalid,
            format!("The passphrase {what}"),
            "Choose a longer one",
        )
    })?;
    if typed("Repeat the passphrase: ")?.expose_secret() != passphrase.expose_secret() {
        return Err(Error::new(
            Code::KeyInvalid,
            "The two passphrases differ",
            "Nothing was done; try again",
        ));
    }
    Ok(store.with_keys(Keys::of(Keyring::of_passphrase(passphrase))))
}

fn may_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a passphrase without showing the input.
fn typed(question: &str) -> Result<SecretString> {
    let terminal = Path::new("the terminal");
    let typed =
        rpassword::prompt_password(question).map_err(|cause| Error::io("read", terminal, cause))?;
    Ok(SecretString::from(typed))
}
