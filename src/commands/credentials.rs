//! The sources of the keys of encrypted backups: a passphrase, files, and the settings of the
//! project.
//!
//! The worker reads key files, when a key is first needed. It does so because a path that is named
//! as a passphrase file may be a live database of the host.

use std::{
    fs::{self, Metadata},
    path::{Path, PathBuf},
};

use age::{secrecy::SecretString, x25519};

use crate::{
    archive::encryption::{KeyFile, Keyring, Keys, parse_recipient},
    config::Settings,
    error::{Code, Error, Result},
    project::STATE_DIR,
    system::{
        paths::{self, OTHERS_WRITE},
        portable::MetadataExt,
        user,
    },
    util::operation::CancelToken,
    worker::client::{Worker, WorkerMode},
};

const OTHERS_READ: u32 = 0o044;

/// The named keys, which encrypt and open backups.
#[derive(Debug, Clone, Default)]
pub struct KeySource {
    pub passphrase: Option<SecretString>,
    /// Files that contain a passphrase, with or without a line end. Each passphrase is tried to
    /// open a backup. The first one encrypts new backups.
    pub passphrase_files: Vec<PathBuf>,
    /// Files in the format of `age-keygen`.
    pub identity_files: Vec<PathBuf>,
    /// Public keys of age (`age1…`).
    pub recipients: Vec<String>,
}

impl KeySource {
    /// Returns the keys that the settings name. Relative paths start at the root of the project.
    pub fn of_settings(settings: &Settings, root: &Path) -> Self {
        let file = |name: &str| settings.text(name).map(|path| root.join(path));
        KeySource {
            passphrase: None,
            passphrase_files: file("backup.passphraseFile").into_iter().collect(),
            identity_files: file("backup.identityFile").into_iter().collect(),
            recipients: settings.list("backup.recipients").unwrap_or_default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.passphrase.is_none()
            && self.passphrase_files.is_empty()
            && self.identity_files.is_empty()
            && self.recipients.is_empty()
    }

    /// Returns keys for the backups of the project at `root`, loaded when first needed.
    pub fn keys(self, root: &Path, worker_mode: &WorkerMode) -> Keys {
        let (root, worker_mode, cancel) = (
            root.to_path_buf(),
            worker_mode.clone(),
            CancelToken::current(),
        );
        Keys::asked_for(move || self.load(&root, &worker_mode, &cancel))
    }

    /// Returns the keys that the settings of the project at `root` name, loaded when first needed.
    pub fn keys_of_project(root: &Path, worker_mode: &WorkerMode) -> Keys {
        let (root, worker_mode, cancel) = (
            root.to_path_buf(),
            worker_mode.clone(),
            CancelToken::current(),
        );
        Keys::asked_for(move || {
            let (settings, _) = Worker::settings(&worker_mode, &root)?;
            KeySource::of_settings(&settings, &root).load(&root, &worker_mode, &cancel)
        })
    }

    fn load(&self, root: &Path, worker_mode: &WorkerMode, cancel: &CancelToken) -> Result<Keyring> {
        let recipients = self
            .recipients
            .iter()
            .map(|recipient| parse_recipient(recipient));
        let mut ring = Keyring {
            passphrases: self.passphrase.iter().cloned().collect(),
            recipients: recipients.collect::<Result<_>>()?,
            ..Keyring::default()
        };
        let mut openers = Vec::new();
        for path in &self.passphrase_files {
            let text = Worker::key(worker_mode, path, cancel)?;
            ring.passphrases
                .push(passphrase(path, without_mark(&text))?);
            // Earlier releases treated the byte order mark as part of the passphrase.
            if without_mark(&text) != text {
                openers.push(passphrase(path, &text)?);
            }
            ring.files.push(key_file(path));
        }
        ring.passphrases.append(&mut openers);
        for path in &self.identity_files {
            ring.identities.extend(identities(
                path,
                without_mark(&Worker::key(worker_mode, path, cancel)?),
            )?);
            ring.files.push(key_file(path));
        }
        ring.refusal = self.inside(root);
        Ok(ring)
    }

    /// Returns the reason not to encrypt: a key file in the directory that is backed up.
    fn inside(&self, root: &Path) -> Option<Error> {
        let state = dunce::canonicalize(root.join(STATE_DIR)).ok()?;
        let mut files = self.passphrase_files.iter().chain(&self.identity_files);
        let file = files
            .find(|file| dunce::canonicalize(file).is_ok_and(|file| file.starts_with(&state)))?;
        let message = format!(
            "{} is in the directory that is backed up: if the project is lost, so is the key",
            file.display()
        );
        Some(Error::new(
            Code::KeyInvalid,
            message,
            format!("Keep it outside of {STATE_DIR}/, and keep a copy elsewhere"),
        ))
    }
}

/// Removes the byte order mark that some editors write at the start of a file.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Returns the path with the way in which other users can read or replace the file. Reads only
/// metadata, so that a host process may call it.
fn key_file(path: &Path) -> KeyFile {
    let exposed = fs::metadata(path)
        .ok()
        .filter(Metadata::is_file)
        .and_then(|found| {
            let (owner, me) = (found.uid(), user::current());
            if found.mode() & OTHERS_READ != 0 {
                Some(format!(
                    "users other than its owner can read it (chmod go= '{}')",
                    path.display()
                ))
            } else if found.mode() & OTHERS_WRITE != 0 {
                Some(format!(
                    "users other than its owner can replace it (chmod go= '{}')",
                    path.display()
                ))
            } else if owner != me && owner != 0 {
                Some(format!(
                    "it belongs to another user, {owner}, who can read it"
                ))
            } else {
                paths::replaceable(path)
            }
        });
    KeyFile {
        path: path.to_path_buf(),
        exposed,
    }
}

/// Returns whether the character is white space or invisible.
fn is_blank(character: char) -> bool {
    character.is_whitespace()
        || character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// Fails, with the reason, unless the passphrase is one line that is not blank.
pub fn assert_passphrase(passphrase: &str) -> Result<(), &'static str> {
    match passphrase {
        "" => Err("is empty"),
        _ if passphrase.contains(['\n', '\r']) => Err("has more than one line"),
        _ if passphrase.chars().all(is_blank) => Err("consists of blanks"),
        _ => Ok(()),
    }
}

fn passphrase(path: &Path, text: &str) -> Result<SecretString> {
    let line = text
        .strip_suffix('\n')
        .map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    assert_passphrase(line).map_err(|what| {
        let remedy = "Put the passphrase into it as its only line: `openssl rand -base64 32 > FILE` \
                      makes a good one";
        Error::new(
            Code::KeyInvalid,
            format!("The passphrase file {} {what}", path.display()),
            remedy,
        )
    })?;
    Ok(SecretString::from(line.to_string()))
}

/// Parses an identity file: each line that is neither empty nor a comment is an identity. An error
/// never quotes a line, because it may be a secret.
fn identities(path: &Path, text: &str) -> Result<Vec<x25519::Identity>> {
    let invalid = |what: &str| {
        let remedy = "Give a file that `age-keygen` wrote; identities of ssh and of plugins are \
                      not supported";
        Error::new(
            Code::KeyInvalid,
            format!("The identity file {} {what}", path.display()),
            remedy,
        )
    };
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let found = lines.map(|line| {
        line.parse()
            .map_err(|_| invalid("has a line that is not an identity"))
    });
    let found: Vec<x25519::Identity> = found.collect::<Result<_>>()?;
    if found.is_empty() {
        Err(invalid("contains no identity"))
    } else {
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_passphrase_file_has_one_line_with_or_without_its_end() {
        let read = |text: &str| {
            passphrase(Path::new("key"), without_mark(text))
                .map(|read| read.expose_secret().to_string())
        };
        for text in ["a secret", "a secret\n", "a secret\r\n"] {
            assert_eq!(read(text).unwrap(), "a secret");
        }
        assert_eq!(read(" spaces count \n").unwrap(), " spaces count ");
        assert_eq!(read("\u{feff}a secret\r\n").unwrap(), "a secret");
        for text in [
            "",
            "\n",
            "one\ntwo\n",
            "one\n\n",
            "   \n",
            "\t",
            "\u{a0}\u{2003}\n",
            "\u{feff}",
            "\u{200b}\n",
        ] {
            assert_eq!(read(text).unwrap_err().code, Code::KeyInvalid, "{text:?}");
        }
    }

    #[test]
    fn an_identity_file_is_what_age_keygen_writes_and_an_error_never_quotes_it() {
        let (one, two) = (x25519::Identity::generate(), x25519::Identity::generate());
        let text = |identity: &x25519::Identity| identity.to_string().expose_secret().to_string();
        let file = format!(
            "# created: now\n# public key: {}\n{}\n\n{}\n",
            one.to_public(),
            text(&one),
            text(&two)
        );
        let read = identities(Path::new("key"), &file).unwrap();
        let public: Vec<String> = read
            .iter()
            .map(|identity| identity.to_public().to_string())
            .collect();
        assert_eq!(
            public,
            [one.to_public().to_string(), two.to_public().to_string()]
        );
        for wrong in [
            "# nothing\n".to_string(),
            format!("{}\nhunter2\n", text(&one)),
        ] {
            let error = identities(Path::new("key"), &wrong)
                .map(|found| found.len())
                .unwrap_err();
            assert_eq!(error.code, Code::KeyInvalid);
            assert!(
                !format!("{error:?}").contains("hunter2")
                    && !format!("{error:?}").contains("SECRET")
            );
        }
    }
}
