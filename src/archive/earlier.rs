//! The blocks of an earlier archive, for a new one to take over instead of compressing the same again.
//!
//! Large files begin a block of their own, so what did not change since makes the same blocks. An archive that takes them over
//! is as whole and as independent as any: it holds the bytes.
//!
//! It is safe because nothing is taken on trust. The earlier archive is read to its end first, and used only when its SHA-256
//! is the one that was recorded when it was written and its seal is right. Each block is then found by the hash of
//! what it holds, and what is copied is compared with what was read the first time. An archive that is damaged, gone or of
//! another kind makes a backup slower and nothing else.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{
    block::{self, BlockHash, HEAD_BYTES, Head},
    decoder::append,
    manifest::hex,
    seal::SealedFile,
};
use crate::task::Cancel;

/// An archive whose blocks may be taken over. It is read when the first one is asked for.
pub struct Earlier {
    archive: PathBuf,
    /// Hexadecimal, as it was when the archive was written.
    sha256: String,
    cancel: Cancel,
    blocks: OnceLock<Option<Blocks>>,
}

impl Earlier {
    pub fn new(archive: PathBuf, sha256: String, cancel: Cancel) -> Self {
        Earlier { archive, sha256, cancel, blocks: OnceLock::new() }
    }

    /// The block that holds what has this hash.
    pub fn block(&self, hash: &BlockHash) -> Option<Taken> {
        let read = || Blocks::read(&self.archive, &self.sha256, &self.cancel).ok().flatten();
        self.blocks.get_or_init(read).as_ref()?.get(hash)
    }
}

/// A block of an earlier archive, and where it is.
pub struct Taken {
    pub block: Vec<u8>,
    pub file: Arc<File>,
    pub offset: u64,
}

struct Blocks {
    file: Arc<File>,
    places: HashMap<BlockHash, Place>,
}

struct Place {
    offset: u64,
    size: usize,
    /// Of the block itself.
    hash: BlockHash,
}

impl Blocks {
    /// `None` where the archive is not what was written.
    fn read(archive: &Path, sha256: &str, cancel: &Cancel) -> io::Result<Option<Self>> {
        let file = File::open(archive)?;
        let mut sealed = SealedFile::new(file.try_clone()?)?;
        let container = sealed.container();
        let mut places = HashMap::new();
        let (mut offset, mut block) = (0, Vec::new());
        loop {
            cancel.check().map_err(io::Error::other)?;
            block.clear();
            append(&mut block, &mut sealed, HEAD_BYTES)?;
            let Ok(Some(head)) = Head::parse(&block, container) else { break };
            append(&mut block, &mut sealed, head.size - HEAD_BYTES)?;
            if let Some(hash) = head.hash(&block) {
                places.insert(hash, Place { offset, size: head.size, hash: block::hash(&block) });
            }
            offset += head.size as u64;
        }
        let facts = sealed.finish(|| cancel.is_cancelled())?;
        let is_as_written = facts.sealed && hex(&facts.sha256) == sha256;
        Ok(is_as_written.then_some(Blocks { file: Arc::new(file), places }))
    }

    fn get(&self, hash: &BlockHash) -> Option<Taken> {
        let place = self.places.get(hash)?;
        let mut block = vec![0; place.size];
        self.file.read_exact_at(&mut block, place.offset).ok()?;
        let is_as_read = block::hash(&block) == place.hash;
        is_as_read.then(|| Taken { block, file: self.file.clone(), offset: place.offset })
    }
}
