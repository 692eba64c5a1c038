//! Encrypts an archive while it is written.

use std::io::{self, Write};

use age::stream::StreamWriter;
use sha2::{Digest, Sha256};

use super::Keys;
use crate::{
    archive::block_writer::{FileDigest, Sink},
    error::{Error, Result},
};

/// Encrypts the bytes written to it and hashes the encrypted bytes.
pub struct Encrypting<S> {
    /// `None` after the end has been written.
    stream: Option<StreamWriter<Hashed<S>>>,
}

struct Hashed<S> {
    sink: S,
    hasher: Sha256,
    size_bytes: u64,
}

impl<S: Sink> Encrypting<S> {
    /// Writes the header. Fails with `KG_KEY_NEEDED` if `keys` cannot encrypt.
    pub fn new(sink: S, keys: &Keys) -> Result<Self> {
        let hashed = Hashed {
            sink,
            hasher: Sha256::new(),
            size_bytes: 0,
        };
        let stream = keys.sealing_ring()?.encryptor()?.wrap_output(hashed);
        let stream = stream.map_err(|cause| Error::io("write", "the archive".as_ref(), cause))?;
        Ok(Encrypting {
            stream: Some(stream),
        })
    }

    fn stream(&mut self) -> io::Result<&mut StreamWriter<Hashed<S>>> {
        self.stream
            .as_mut()
            .ok_or_else(|| io::Error::other("the archive has ended"))
    }
}

impl<S: Sink> Sink for Encrypting<S> {
    fn finish(&mut self) -> io::Result<Option<FileDigest>> {
        self.stream()?;
        let Some(stream) = self.stream.take() else {
            return Ok(None);
        };
        let mut hashed = stream.finish()?;
        hashed.sink.finish()?;
        Ok(Some(FileDigest {
            size_bytes: hashed.size_bytes,
            sha256: hashed.hasher.finalize().into(),
        }))
    }
}

impl<S: Sink> Write for Encrypting<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream()?.flush()
    }
}

impl<S: Sink> Write for Hashed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
