//! Keys of encrypted backups on the command line: what names them, and when a person is asked for a passphrase.

use std::{
    env,
    fs::File,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use age::secrecy::{ExposeSecret, SecretString};
use clap::Args;

use crate::{
    archive::{
        encryption::{
            Keyring, Keys,
            read::{Lock, lock_of},
        },
        read::unreadable,
    },
    error::{Code, Error, Result},
    keys::{KeySource, assert_passphrase},
    reader::client::Launch,
    settings::Settings,
    store::Store,
};

const PASSPHRASE_FILE: &str = "KG_PASSPHRASE_FILE";
const IDENTITY_FILE: &str = "KG_IDENTITY_FILE";

/// What is given here opens backups; where nothing is, what the environment names; where that names nothing, the settings.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// A file whose only line is the passphrase of encrypted backups; may be repeated, to open what several made [default: $KG_PASSPHRASE_FILE, or
    /// `backup.passphraseFile` of the settings]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Vec<PathBuf>,
    /// An age identity file that opens encrypted backups; may be repeated [default: $KG_IDENTITY_FILE, or `backup.identityFile` of the settings]
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
}

impl KeyArgs {
    pub fn are_given(&self) -> bool {
        !self.passphrase_file.is_empty() || !self.identity.is_empty()
    }

    /// The store with the keys that are named. New backups are for `recipients`; where there are none, for those of the settings, unless a
    /// passphrase is given here.
    pub fn on(&self, store: Store, recipients: &[String], settings: &Settings, root: &Path) -> Store {
        let set = KeySource::of_settings(settings, root);
        let file = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (passphrase_file, identity_file) = (file(PASSPHRASE_FILE), file(IDENTITY_FILE));
        let (passphrase_files, identity_files) = if self.are_given() {
            (self.passphrase_file.clone(), self.identity.clone())
        } else if passphrase_file.is_some() || identity_file.is_some() {
            (passphrase_file.into_iter().collect(), identity_file.into_iter().collect())
        } else {
            (set.passphrase_files, set.identity_files)
        };
        let recipients = match (recipients, self.passphrase_file.is_empty()) {
            ([], true) => set.recipients,
            ([], false) => Vec::new(),
            (given, _) => given.to_vec(),
        };
        let source = KeySource { passphrase: None, passphrase_files, identity_files, recipients };
        store.with_keys(source.keys(root, &Launch::Thread))
    }

    /// The store with what opens the backup that `reference` means: somebody at a terminal is asked for a passphrase where none is named, or with
    /// `ask` where none is given here.
    pub fn unlock(&self, store: Store, reference: &str, ask: bool) -> Result<Store> {
        let archive = store.locate(reference)?;
        let lock = File::open(&archive).and_then(lock_of).map_err(|cause| unreadable(&archive, cause))?;
        // A file that the settings name may be gone: then the passphrase can still be typed.
        let is_named = || (self.are_given() || !ask) && store.keys().fit(Lock::Passphrase).unwrap_or(false);
        if lock != Some(Lock::Passphrase) || !may_ask() || is_named() {
            return Ok(store);
        }
        let passphrase = typed(&format!("Passphrase of {}: ", archive.display()))?;
        Ok(store.with_keys(Keys::of(Keyring::of_passphrase(passphrase))))
    }
}

/// The store with a key for a new backup, where that is encrypted. Somebody at a terminal is asked where none is named.
pub fn lockable(store: Store) -> Result<Store> {
    if !store.encrypts() {
        return Ok(store);
    }
    match store.keys().assert_encrypting() {
        Err(error) if error.code == Code::KeyNeeded && may_ask() => {}
        known => return known.map(|()| store),
    }
    let passphrase = typed("Passphrase for the backup: ")?;
    assert_passphrase(passphrase.expose_secret())
        .map_err(|what| Error::new(Code::KeyInvalid, format!("The passphrase {what}"), "Choose a longer one"))?;
    if typed("The same again: ")?.expose_secret() != passphrase.expose_secret() {
        return Err(Error::new(
            Code::KeyInvalid,
            "The two passphrases are not the same",
            "Nothing was done; try again",
        ));
    }
    Ok(store.with_keys(Keys::of(Keyring::of_passphrase(passphrase))))
}

fn may_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// What is typed is not shown.
fn typed(question: &str) -> Result<SecretString> {
    let terminal = Path::new("the terminal");
    let typed = rpassword::prompt_password(question).map_err(|cause| Error::io("read", terminal, cause))?;
    Ok(SecretString::from(typed))
}
