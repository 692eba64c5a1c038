//! Tells whether a file is as it was, without reading it.

use std::{
    fs::Metadata,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;

use crate::system::{file_id, portable::MetadataExt};

/// A file that changed more recently may change again within one step of a clock: FAT counts in
/// steps of two seconds.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// The identity of a file, and the time at which its content or its attributes last changed. No
/// program can set that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileState {
    pub inode: u64,
    /// Seconds and nanoseconds.
    pub changed: (i64, u32),
}

/// A state that never counts as settled.
const UNKNOWN: FileState = FileState {
    inode: 0,
    changed: (i64::MAX, 0),
};

/// What the system says about a file. If two of these are equal, so is the content, unless the file
/// changed through a memory map or the file system lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFile {
    pub size: u64,
    pub modified: Timestamp,
    pub state: FileState,
}

impl FoundFile {
    pub fn new(found: &Metadata) -> Self {
        FoundFile {
            size: found.len(),
            modified: modified(found),
            state: file_id::state_of(found)
                .map_or(UNKNOWN, |(inode, changed)| FileState { inode, changed }),
        }
    }

    /// Returns the state if a later change is sure to give the file another one. `read_at` is when
    /// reading its content began.
    pub fn settled(&self, read_at: SystemTime) -> Option<FileState> {
        let newest = read_at.checked_sub(CLOCK_STEP)?;
        let newest = newest.duration_since(UNIX_EPOCH).ok()?;
        let newest = (newest.as_secs() as i64, newest.subsec_nanos());
        let modified = (
            self.modified.as_second(),
            self.modified.subsec_nanosecond().unsigned_abs(),
        );
        (self.state.changed < newest && modified < newest).then_some(self.state)
    }
}

/// Returns the time of the last modification.
pub fn modified(found: &Metadata) -> Timestamp {
    Timestamp::new(found.mtime(), found.mtime_nsec() as i32).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_within_the_last_two_seconds_is_not_settled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = FoundFile::new(&file.as_file().metadata().unwrap());
        let now = SystemTime::now();
        assert_eq!(found.settled(now), None);
        assert_eq!(
            found.settled(now + Duration::from_secs(3)),
            Some(found.state)
        );
        let set_ahead = FoundFile {
            modified: "2100-01-01T00:00:00Z".parse().unwrap(),
            ..found
        };
        assert_eq!(set_ahead.settled(now + Duration::from_secs(3)), None);
    }
}
