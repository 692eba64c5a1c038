//! Writes files with holes, so that runs of zeros take no disk space in a restored file.

use std::{
    fs::{File, FileTimes},
    io::{self, Seek, SeekFrom, Write},
};

use jiff::Timestamp;

/// Size of the pieces in which content is examined. A piece that contains only zeros is not
/// written.
const PIECE_BYTES: u64 = 64 * 1024;

/// Writes the content of a new file whose size is known.
pub struct SparseFile {
    file: File,
    position: u64,
    /// The size of the file, until it is set.
    unset_size: Option<u64>,
}

impl SparseFile {
    /// Begins to write `file`, which must be empty.
    pub fn new(file: File, size_bytes: u64) -> io::Result<Self> {
        let mut sparse = SparseFile {
            file,
            position: 0,
            unset_size: Some(size_bytes),
        };
        // Most small files have no hole, so their size need not be set.
        if size_bytes > PIECE_BYTES {
            sparse.set_size()?;
        }
        Ok(sparse)
    }

    /// Sets the size, because the file may end with a hole.
    fn set_size(&mut self) -> io::Result<()> {
        self.unset_size
            .take()
            .map_or(Ok(()), |size_bytes| self.file.set_len(size_bytes))
    }

    /// Returns the length of the first run of pieces in `bytes` that are either all zero or all not
    /// zero, and whether they are zero.
    fn run(&self, bytes: &[u8]) -> (usize, bool) {
        let mut length = 0;
        let mut is_hole = None;
        while length < bytes.len() {
            let left = PIECE_BYTES - (self.position + length as u64) % PIECE_BYTES;
            let end = bytes
                .len()
                .min(length + usize::try_from(left).unwrap_or(usize::MAX));
            let is_zero = bytes[length..end].iter().all(|byte| *byte == 0);
            if *is_hole.get_or_insert(is_zero) != is_zero {
                break;
            }
            length = end;
        }
        (length, is_hole.unwrap_or(false))
    }
}

impl SparseFile {
    /// Sets the time of the last change, as far as the file system can.
    pub fn set_modified(&self, modified: Timestamp) {
        let times = FileTimes::new().set_modified(modified.into());
        let _ = self.file.set_times(times);
    }
}

impl Write for SparseFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (length, is_hole) = self.run(bytes);
        let done = if is_hole {
            self.set_size()?;
            self.file.seek(SeekFrom::Current(length as i64))?;
            length
        } else {
            self.file.write(&bytes[..length])?
        };
        self.position += done as u64;
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn content_comes_back_byte_for_byte_however_it_is_cut(
            runs in prop::collection::vec((any::<bool>(), 1..200_000_usize), 0..8),
            cut in 1..100_000_usize,
        ) {
            let content: Vec<u8> = runs.iter().flat_map(|(zero, length)| vec![u8::from(!zero); *length]).collect();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let mut file = SparseFile::new(File::create(&path).unwrap(), content.len() as u64).unwrap();
            content.chunks(cut).for_each(|piece| file.write_all(piece).unwrap());
            prop_assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn zeros_need_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content = [
            vec![1; 4096],
            vec![0; 8 << 20],
            vec![2; 4096],
            vec![0; 4 << 20],
        ]
        .concat();
        let mut file = SparseFile::new(File::create(&path).unwrap(), content.len() as u64).unwrap();
        content
            .chunks(10_000)
            .for_each(|piece| file.write_all(piece).unwrap());
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}
