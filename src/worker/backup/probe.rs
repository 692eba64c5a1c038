//! Reads some of the files that look unchanged since the base, to find out whether their times can
//! be trusted.
//!
//! A program that writes through a memory map, or a file system that does not keep times, can change
//! a file while size, inode and times stay. If one such file is found, every file is read.

use std::{fs, path::Path};

use super::{Saving, file::Opened};
use crate::{
    error::{Result, Warning, WarningCode},
    project::{file_state::FoundFile, names},
    util::digest::Sha256Digest,
    worker::known_files::is_as_found,
};

/// The most bytes that are read.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

impl Saving<'_> {
    pub(super) fn probe(&mut self) -> Result<()> {
        let Some(known) = self.trusted else {
            return Ok(());
        };
        let mut left = MAX_BYTES;
        for file in known.sample() {
            self.cancel.check()?;
            let (record, _) = file;
            let path = names::decode(&record.path).map(|path| self.root.join(path));
            let Some(path) = path.filter(|_| record.size <= left) else {
                continue;
            };
            let looks_unchanged = fs::symlink_metadata(&path)
                .is_ok_and(|now| is_as_found(file, &FoundFile::new(&now)));
            if !looks_unchanged {
                continue;
            }
            left -= record.size;
            if let Some((digest, found)) = read(&path)
                && is_as_found(file, &found)
                && record.sha256 != Some(digest)
            {
                let message = format!(
                    "{} has other content than in the base, but the same size and times: every \
                     file was read",
                    record.path
                );
                let warning = Warning::about(WarningCode::Timestamps, &record.path, message);
                self.warnings.push(warning);
                self.trusted = None;
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Returns the digest of a file, and what the system says about it. `None` if it cannot be read or
/// changes meanwhile: whoever saves it sees that too.
fn read(path: &Path) -> Option<(Sha256Digest, FoundFile)> {
    let (content, before, after) = Opened::new(path).ok()?.read().ok()?;
    let (before, after) = (FoundFile::new(&before), FoundFile::new(&after));
    (before == after).then(|| (Sha256Digest::of(&content), before))
}
