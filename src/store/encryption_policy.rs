//! Whether new archives are encrypted. A plain archive follows an encrypted one only if the user
//! says so.

use std::path::Path;

use super::{Backup, Listing, NAME_THE_READERS, Store, Unlisted, catalog};
use crate::{
    error::{Code, Error, Result, Warning, WarningCode},
    project::{BACKUPS_DIR, STATE_DIR},
};

/// Whether new archives are encrypted, as decided by the call and the settings together. See
/// `commands::configured::encrypts`.
///
/// A plain archive never follows an encrypted one unless the call itself asks for a plain archive.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum EncryptionPolicy {
    /// Neither the call nor the settings mention encryption.
    #[default]
    Unasked,
    /// The settings contain a key, which names the readers, but do not ask for encryption.
    KeyAlone,
    /// The settings turn encryption off. They may do so for one store while another one is
    /// encrypted.
    TurnedOff,
    /// The call asks for a plain archive.
    Never,
    Yes,
    /// The settings cannot be read, so the backup is refused with this error.
    Unread(Error),
    /// The settings cannot be read, but the backup before a repair is still made.
    UnreadInRecovery(Error),
    /// An encryption setting is present but invalid, so the backup is refused with this error.
    Undecided(Error),
}

impl Store {
    pub fn encrypts(&self) -> bool {
        self.encrypts == EncryptionPolicy::Yes
    }

    /// Returns whether a new archive is plain unless another rule forbids it.
    pub fn may_be_plain(&self) -> bool {
        use EncryptionPolicy::{KeyAlone, Never, TurnedOff, Unasked, UnreadInRecovery};
        matches!(
            self.encrypts,
            Unasked | KeyAlone | UnreadInRecovery(_) | TurnedOff | Never
        )
    }

    /// Fails if unintended readers could read a new archive, or if it could not be encrypted.
    /// `was_encrypted` is the project's record of its newest backup, which may be in another store.
    pub fn check_encryption_policy(&self, was_encrypted: bool) -> Result<()> {
        let follows_encrypted = |remembered: bool| -> Result<bool> {
            Ok((remembered && was_encrypted)
                || self.newest_own()?.is_some_and(|newest| newest.encrypted))
        };
        match &self.encrypts {
            EncryptionPolicy::Never => Ok(()),
            EncryptionPolicy::Yes => self.keys.assert_encrypting(),
            EncryptionPolicy::Undecided(error) => Err(error.clone()),
            EncryptionPolicy::Unread(error) | EncryptionPolicy::UnreadInRecovery(error)
                if follows_encrypted(true)? =>
            {
                Err(first_plain(Some(error)))
            }
            EncryptionPolicy::Unasked | EncryptionPolicy::KeyAlone if follows_encrypted(true)? => {
                Err(first_plain(None))
            }
            EncryptionPolicy::TurnedOff if follows_encrypted(false)? => Err(first_plain(None)),
            EncryptionPolicy::Unread(error) => Err(error.clone()),
            EncryptionPolicy::Unasked
            | EncryptionPolicy::KeyAlone
            | EncryptionPolicy::UnreadInRecovery(_)
            | EncryptionPolicy::TurnedOff => Ok(()),
        }
    }

    /// Warns that a plain backup is made although the settings name a key for it.
    pub fn key_without_encryption(&self) -> Option<Warning> {
        let message = "It is not encrypted: the settings name who could read it \
                       (`backup.passphraseFile`, `backup.recipients`), but they do not turn \
                       encryption on. Run `kg config set backup.encrypt true` to encrypt backups, \
                       or set `false` to confirm plain backups";
        (self.encrypts == EncryptionPolicy::KeyAlone)
            .then(|| Warning::new(WarningCode::NotEncrypted, message))
    }

    /// Returns the newest backup that the project made for itself. The backup before a repair
    /// counts only if there is no other.
    fn newest_own(&self) -> Result<Option<Backup>> {
        // A path that cannot become a directory is refused later, when the directory is created.
        if self.place.directory().is_some_and(|dir| !dir.is_dir()) {
            return Ok(None);
        }
        let Listing {
            backups: listed,
            unlisted,
        } = self.read()?;
        let mut own: Vec<Backup> = listed
            .iter()
            .filter(|backup| self.is_of_project(backup))
            .cloned()
            .collect();
        // Backups inside a project belong to it, even if the project was moved.
        if own.is_empty() && self.dir().ends_with(Path::new(STATE_DIR).join(BACKUPS_DIR)) {
            own = listed;
        }
        let regular = own
            .iter()
            .position(|backup| !backup.safety_backup)
            .unwrap_or(0);
        let newest = own.into_iter().nth(regular);
        // An encrypted archive is recognized by its name alone.
        let encrypted = unlisted
            .into_iter()
            .filter(Unlisted::is_encrypted)
            .collect::<Vec<_>>();
        catalog::assert_none_unread_after(&encrypted, newest.as_ref())?;
        Ok(newest)
    }
}

fn first_plain(cause: Option<&Error>) -> Error {
    let (why, remedy) = match cause {
        Some(cause) => (format!("{}. ", cause.message), cause.remedy.as_str()),
        None => (
            String::new(),
            "Correct `backup.encrypt` and the keys in the settings (`kg config show`)",
        ),
    };
    Error::new(
        Code::KeyInvalid,
        format!(
            "{why}The newest backup of this project is encrypted, but no setting or option says \
             how to encrypt the next one"
        ),
        format!("{remedy}; or {NAME_THE_READERS}"),
    )
}
