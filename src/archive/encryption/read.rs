//! Reads the archive inside an age file and hashes the file at the same time.
//!
//! age authenticates each 64 KiB of the content, and its end. If authentication fails, the archive
//! ends there. The seal is then missing, and [`Decrypting::finish`] returns the offset.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use age::{DecryptError, Decryptor, stream::StreamReader};
use sha2::{Digest, Sha256};

use super::{Keys, MAGIC};
use crate::{
    error::{Code, Error},
    place::Bytes,
};

/// Maximum length of a header. A longer one is forged, because a header has about 100 bytes per
/// recipient. The age library takes time that grows with the square of the length.
const MAX_HEADER_BYTES: u64 = 16 * 1024;
/// Size of the pieces that age encrypts. Each has a tag (age-encryption.org/v1, "Payload").
const PIECE_BYTES: u64 = 64 * 1024;
const TAG_BYTES: u64 = 16;
const REST_PIECE_BYTES: usize = 256 * 1024;

/// The reason why an archive cannot be read.
pub enum Closed {
    /// The key is missing, cannot be read or is wrong. A header that was changed can look like a
    /// wrong key. An archive that must be encrypted and is not also ends here (`KG_NOT_ENCRYPTED`).
    Key(Error),
    /// The file does not begin as a valid age file does.
    Damaged(&'static str),
    Io(io::Error),
}

/// Reads the archive inside an age file.
pub struct Decrypting {
    content: StreamReader<Shared>,
    file: Shared,
    /// Size of the archive inside.
    content_bytes: u64,
    /// Offset in the file at which decryption failed.
    cut_at: Option<u64>,
}

/// The kind of key that opens an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Passphrase,
    Identity,
}

/// Returns the kind of key that opens the file, which must be at its beginning. Returns `None` if
/// the file is not encrypted or its age header is not valid.
pub fn lock_of(file: Box<dyn Bytes>) -> io::Result<Option<Lock>> {
    if !is_encrypted(&*file)? {
        return Ok(None);
    }
    let decryptor = Decryptor::new(Shared::new(file)).ok();
    Ok(decryptor.map(|decryptor| {
        if decryptor.is_scrypt() {
            Lock::Passphrase
        } else {
            Lock::Identity
        }
    }))
}

/// Returns whether the file is encrypted. The position of the file does not change.
pub fn is_encrypted(file: &dyn Bytes) -> io::Result<bool> {
    let mut start = [0; MAGIC.len()];
    match file.read_exact_at(&mut start, 0) {
        Ok(()) => Ok(start == MAGIC),
        Err(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(cause) => Err(cause),
    }
}

impl Decrypting {
    /// Opens an age file of `file_bytes` bytes. `file` must be at its beginning.
    pub fn new(file: Box<dyn Bytes>, file_bytes: u64, keys: &Keys) -> Result<Self, Closed> {
        let file = Shared::new(file);
        let decryptor = Decryptor::new(file.clone()).map_err(closed)?;
        let lock = if decryptor.is_scrypt() {
            Lock::Passphrase
        } else {
            Lock::Identity
        };
        if !keys.fit(lock).map_err(Closed::Key)? {
            return Err(Closed::Key(key_needed(lock)));
        }
        let content = keys
            .ring()
            .map_err(Closed::Key)?
            .decrypt(decryptor)
            .map_err(|cause| match cause {
                DecryptError::NoMatchingKeys
                | DecryptError::KeyDecryptionFailed
                | DecryptError::DecryptionFailed => Closed::Key(wrong_key(lock)),
                cause => closed(cause),
            })?;
        let left = {
            let mut raw = file.raw();
            raw.most_bytes = None;
            file_bytes.saturating_sub(raw.read_bytes)
        };
        let content_bytes = left.saturating_sub(left.div_ceil(PIECE_BYTES + TAG_BYTES) * TAG_BYTES);
        Ok(Decrypting {
            content,
            file,
            content_bytes,
            cut_at: None,
        })
    }

    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Reads the rest of the file, unless `stop` says that the result is no longer needed. Returns
    /// the offset at which age found a difference from what was written, and the SHA-256 of the
    /// file.
    pub fn finish(mut self, stop: impl Fn() -> bool) -> io::Result<(Option<u64>, [u8; 32])> {
        // Nothing may follow the archive, and age must authenticate that too.
        let mut rest = vec![0; REST_PIECE_BYTES];
        while self.read(&mut rest)? > 0 {}
        while self.file.read(&mut rest)? > 0 {
            if stop() {
                return Err(io::Error::other("the rest of the file is no longer needed"));
            }
        }
        let sha256 = self.file.raw().hasher.clone().finalize().into();
        Ok((self.cut_at, sha256))
    }
}

impl Read for Decrypting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cut_at.is_some() {
            return Ok(0);
        }
        let before = self.file.raw().read_bytes;
        match self.content.read(buffer) {
            Err(cause)
                if matches!(
                    cause.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                self.cut_at = Some(before);
                Ok(0)
            }
            read => read,
        }
    }
}

fn closed(cause: DecryptError) -> Closed {
    match cause {
        DecryptError::Io(cause) if cause.kind() != io::ErrorKind::UnexpectedEof => {
            Closed::Io(cause)
        }
        DecryptError::ExcessiveWork { .. } => {
            Closed::Damaged("asks for more work than any backup does")
        }
        DecryptError::InvalidMac => Closed::Damaged("has a header that was changed"),
        _ => Closed::Damaged("has a header that is not valid"),
    }
}

fn key_needed(lock: Lock) -> Error {
    let (message, remedy) = match lock {
        Lock::Passphrase => (
            "The backup is encrypted with a passphrase, but none was given",
            "Give the passphrase with `encryption.passphraseFile` or `backup.passphraseFile`",
        ),
        Lock::Identity => (
            "The backup is encrypted to recipients, but no identity was given",
            "Give the identity file of one recipient with `encryption.identityFile` or \
             `backup.identityFile`",
        ),
    };
    Error::new(Code::KeyNeeded, message, remedy)
}

fn wrong_key(lock: Lock) -> Error {
    let (message, remedy) = match lock {
        Lock::Passphrase => (
            "The passphrase does not open this backup",
            "Give the passphrase that the backup was made with",
        ),
        Lock::Identity => (
            "None of the given identities opens this backup",
            "Give the identity file of one of its recipients",
        ),
    };
    Error::new(Code::KeyWrong, message, remedy)
}

/// The file, shared by age and the code that needs its digest.
#[derive(Clone)]
struct Shared(Arc<Mutex<Raw>>);

struct Raw {
    file: Box<dyn Bytes>,
    hasher: Sha256,
    read_bytes: u64,
    /// Limit for the bytes read, set while the header is read.
    most_bytes: Option<u64>,
}

impl Shared {
    fn new(file: Box<dyn Bytes>) -> Self {
        let raw = Raw {
            file,
            hasher: Sha256::new(),
            read_bytes: 0,
            most_bytes: Some(MAX_HEADER_BYTES),
        };
        Shared(Arc::new(Mutex::new(raw)))
    }

    fn raw(&self) -> MutexGuard<'_, Raw> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut raw = self.raw();
        let most = raw
            .most_bytes
            .map_or(u64::MAX, |most| most.saturating_sub(raw.read_bytes));
        let most = usize::try_from(most)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = raw.file.read(&mut buffer[..most])?;
        raw.hasher.update(&buffer[..read]);
        raw.read_bytes += read as u64;
        Ok(read)
    }
}
