//! Reads some of the files that look unchanged since the base, to find out whether their times can
//! be trusted.
//!
//! A program that writes through a memory map, or a file system that does not keep times, can change
//! a file while size, inode and times stay. If one such file is found, every file is read.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::{Saving, file::Opened, plan::PlannedSource};
use crate::{
    error::{Result, Warning, WarningCode},
    project::{
        discover::{Source, SourceKind},
        file_state::FoundFile,
    },
    util::digest::Sha256Digest,
};

/// One file in so many is read.
const SHARE: u64 = 64;
/// The most bytes that are read.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

impl Saving<'_> {
    pub(super) fn probe(&mut self, sources: &[PlannedSource]) -> Result<()> {
        let Some(known) = self.trusted else {
            return Ok(());
        };
        let mut chance = Chance::new();
        let mut left = MAX_BYTES;
        for PlannedSource { source, .. } in sources {
            let Some(found) = source
                .found
                .filter(|found| source.kind == SourceKind::File && found.size <= left)
            else {
                continue;
            };
            if !chance.hits() {
                continue;
            }
            let looks = known.unchanged(source.component, &source.path, &found);
            let Some(record) = looks else { continue };
            self.cancel.check()?;
            left -= found.size;
            if let Some((digest, read)) = read(source)
                && read == found
                && record.sha256 != Some(digest)
            {
                let message = format!(
                    "{} has other content than in the base, but the same size and times: every \
                     file was read",
                    source.path
                );
                let warning = Warning::about(WarningCode::Timestamps, &source.path, message);
                self.warnings.push(warning);
                self.trusted = None;
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Returns the digest of a file, and the file as it was when it was opened. `None` if it cannot be
/// read or changes meanwhile: whoever saves it sees that too.
fn read(source: &Source) -> Option<(Sha256Digest, FoundFile)> {
    let opened = Opened::new(&source.absolute).ok()?;
    let (content, before, after) = opened.read().ok()?;
    let (before, after) = (FoundFile::new(&before), FoundFile::new(&after));
    (before == after).then(|| (Sha256Digest::of(&content), before))
}

/// Picks files at random, so that no file is left out for ever.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        Chance(RandomState::new().build_hasher().finish() | 1)
    }

    /// Returns `true` once in [`SHARE`] calls, on average.
    fn hits(&mut self) -> bool {
        // Xorshift (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_one_file_in_sixty_four_is_picked() {
        let mut chance = Chance::new();
        let hits = (0..64_000).filter(|_| chance.hits()).count();
        assert!((700..1300).contains(&hits), "{hits}");
    }
}
