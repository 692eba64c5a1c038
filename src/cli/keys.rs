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
        encryption::{Keyring, Keys, read::is_encrypted},
        read::unreadable,
    },
    error::{Code, Error, Result},
    keys::{KeySource, assert_passphrase},
    reader::client::Launch,
    store::Store,
};

const PASSPHRASE_FILE: &str = "KG_PASSPHRASE_FILE";
const IDENTITY_FILE: &str = "KG_IDENTITY_FILE";

/// Where nothing of this is given, the environment counts; where that says nothing, the settings.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The file whose only line is the passphrase of encrypted backups [default: $KG_PASSPHRASE_FILE, or `backup.passphraseFile` of the settings]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// An age identity file that opens encrypted backups; may be repeated [default: $KG_IDENTITY_FILE, or `backup.identityFile` of the settings]
    #[arg(long, value_name = "FILE")]
    identity: Vec<PathBuf>,
}

impl KeyArgs {
    pub fn are_given(&self) -> bool {
        self.passphrase_file.is_some() || !self.identity.is_empty()
    }

    /// The store of the project at `root` with the keys that were named. `store` has those of the settings.
    pub fn on(&self, store: Store, recipients: &[String], root: &Path) -> Store {
        let recipients = recipients.to_vec();
        let file = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let source = if self.are_given() || !recipients.is_empty() {
            let (passphrase_file, identity_files) = (self.passphrase_file.clone(), self.identity.clone());
            KeySource { passphrase_file, identity_files, recipients, ..KeySource::default() }
        } else {
            let (passphrase_file, identity_files) = (file(PASSPHRASE_FILE), file(IDENTITY_FILE).into_iter().collect());
            KeySource { passphrase_file, identity_files, ..KeySource::default() }
        };
        if source.is_empty() { store } else { store.with_keys(source.keys(root, &Launch::Thread)) }
    }

    /// The same for a store that is to open the backup that `reference` means. Somebody at a terminal is asked where no key is named.
    pub fn unlock(&self, store: Store, reference: &str, root: &Path) -> Result<Store> {
        let store = self.on(store, &[], root);
        let archive = store.locate(reference)?;
        let is_encrypted = File::open(&archive).and_then(|file| is_encrypted(&file));
        if !is_encrypted.map_err(|cause| unreadable(&archive, cause))? || store.keys().open_something()? || !may_ask() {
            return Ok(store);
        }
        let passphrase = ask(&format!("Passphrase of {}: ", archive.display()))?;
        Ok(store.with_keys(Keys::of(Keyring::of_passphrase(passphrase))))
    }
}

/// The store with a key for a new backup. Somebody at a terminal is asked where none is named.
pub fn lockable(store: Store) -> Result<Store> {
    match store.keys().assert_encrypting() {
        Err(error) if error.code == Code::KeyNeeded && may_ask() => {}
        known => return known.map(|()| store),
    }
    let passphrase = ask("Passphrase for the backup: ")?;
    assert_passphrase(passphrase.expose_secret())
        .map_err(|what| Error::new(Code::KeyInvalid, format!("The passphrase {what}"), "Choose a longer one"))?;
    if ask("The same again: ")?.expose_secret() != passphrase.expose_secret() {
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
fn ask(question: &str) -> Result<SecretString> {
    let terminal = Path::new("the terminal");
    let typed = rpassword::prompt_password(question).map_err(|cause| Error::io("read", terminal, cause))?;
    Ok(SecretString::from(typed))
}
