//! The list of files of an earlier backup, as a file that the client hands to the worker: the lines
//! of [`crate::archive::file_list`], compressed, each with what identifies the state of the file on
//! this computer.
//!
//! The manifest of that backup has the digest of the list. A list that does not match it is not
//! used.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    archive::{
        file_list::{FileList, FileListSummary, ListWriter},
        file_record::FileRecord,
    },
    project::file_state::{FileState, FoundFile},
};

const LEVEL: i32 = 1;
const BUFFER_BYTES: usize = 256 * 1024;
/// One file in so many is in the sample.
const SAMPLED: u64 = 64;
/// The line of a database contains this text. No other line does, because JSON escapes quotes.
const DATABASE_MARK: &[u8] = br#""database":true"#;

/// Reads the state after a line. `None` if there is none.
fn parse_state(text: &[u8]) -> Option<FileState> {
    let mut numbers = std::str::from_utf8(text).ok()?.split(' ');
    let state = FileState {
        inode: numbers.next()?.parse().ok()?,
        changed: (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?),
    };
    numbers.next().is_none().then_some(state)
}

/// Writes such a list. The records must come in order.
pub struct KnownFilesWriter<W: Write> {
    /// The line that is being written.
    list: ListWriter<Vec<u8>>,
    out: zstd::Encoder<'static, W>,
}

impl<W: Write> KnownFilesWriter<W> {
    pub fn new(out: W) -> io::Result<Self> {
        Ok(KnownFilesWriter {
            list: ListWriter::new(Vec::new()),
            out: zstd::Encoder::new(out, LEVEL)?,
        })
    }

    pub fn push(&mut self, record: &FileRecord, state: Option<FileState>) -> io::Result<()> {
        self.list.push(record)?;
        let line = self.list.out();
        if let Some(FileState { inode, changed }) = state {
            line.pop();
            let (seconds, nanoseconds) = changed;
            writeln!(line, "\t{inode} {seconds} {nanoseconds}")?;
        }
        let written = self.out.write_all(line);
        line.clear();
        written
    }

    pub fn finish(self) -> io::Result<FileListSummary> {
        let summary = self.list.summary();
        self.out.finish()?.flush()?;
        Ok(summary)
    }
}

/// A record of the list, and the state in which its file was read.
pub type KnownFile = (FileRecord, Option<FileState>);

/// A list in a file. It may be too long for memory, so it is read from beginning to end.
#[derive(Debug)]
pub struct KnownFiles {
    path: PathBuf,
    hasher: RandomState,
    /// The hashes of the plain files, sorted.
    plain: Vec<u64>,
    /// Files at random.
    sample: Vec<KnownFile>,
}

impl KnownFiles {
    /// Writes a list whose files are in no known state.
    pub fn write(files: &FileList, out: impl Write) -> io::Result<FileListSummary> {
        let mut writer = KnownFilesWriter::new(out)?;
        for record in files.records() {
            writer.push(record, None)?;
        }
        writer.finish()
    }

    /// Opens the list at `path`. `None` if it is damaged or not the expected one.
    pub fn open(path: &Path, expected: FileListSummary) -> Option<Self> {
        #[derive(Deserialize)]
        struct Looks {
            #[serde(default)]
            database: bool,
            size: u64,
            mtime: Timestamp,
        }
        let hasher = RandomState::new();
        let mut chance = Chance(hasher.hash_one(0) | 1);
        let (mut plain, mut sample) = (Vec::new(), Vec::new());
        let found = read_lines(File::open(path).ok()?, |json, state| {
            let Some(state) = parse_state(state) else {
                return;
            };
            match serde_json::from_slice::<Looks>(json) {
                Ok(looks) if !looks.database => {
                    plain.push(hasher.hash_one((looks.size, looks.mtime, state)));
                }
                // The digest of the list differs if this is no record.
                _ => return,
            }
            if chance.hits() {
                let record = serde_json::from_slice(json).ok();
                sample.extend(record.map(|record| (record, Some(state))));
            }
        })?;
        plain.sort_unstable();
        (found == expected).then(|| KnownFiles {
            path: path.to_path_buf(),
            hasher,
            plain,
            sample,
        })
    }

    /// Returns whether a file is as a plain file of the list was when it was read.
    pub fn is_plain(&self, found: &FoundFile) -> bool {
        let looks = (found.size, found.modified, found.state);
        let hash = self.hasher.hash_one(looks);
        self.plain.binary_search(&hash).is_ok()
    }

    /// Returns about one in [`SAMPLED`] of the files whose state is known.
    pub fn sample(&self) -> &[KnownFile] {
        &self.sample
    }

    /// Reads the records in order.
    pub fn records(&self) -> io::Result<Records> {
        Ok(Records {
            lines: BufReader::with_capacity(
                BUFFER_BYTES,
                zstd::Decoder::new(File::open(&self.path)?)?,
            ),
            line: Vec::new(),
        })
    }

    /// Copies a list, and returns the records of its databases. `None` if it is damaged; the caller
    /// must discard the copy then.
    pub fn copy(from: File, out: impl Write) -> Option<(FileListSummary, Vec<FileRecord>)> {
        let mut databases = Vec::new();
        let summary = read_lines(Tee { from, out }, |json, _| {
            if memchr::memmem::find(json, DATABASE_MARK).is_some() {
                databases.extend(serde_json::from_slice::<FileRecord>(json));
            }
        })?;
        Some((summary, databases))
    }
}

/// The records of a list, read one after another.
pub struct Records {
    lines: BufReader<zstd::Decoder<'static, BufReader<File>>>,
    line: Vec<u8>,
}

impl Iterator for Records {
    type Item = io::Result<KnownFile>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        match self.lines.read_until(b'\n', &mut self.line) {
            Ok(0) => None,
            Ok(_) => {
                let (json, state) = divided(&self.line);
                let record = serde_json::from_slice(json).map_err(io::Error::from);
                Some(record.map(|record| (record, parse_state(state))))
            }
            Err(cause) => Some(Err(cause)),
        }
    }
}

/// Returns the JSON and the state of a line.
fn divided(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.strip_suffix(b"\n").unwrap_or(line);
    match memchr::memchr(b'\t', end) {
        Some(tab) => (&end[..tab], &end[tab + 1..]),
        None => (end, &[]),
    }
}

/// Picks lines at random, so that no file is left out for ever.
struct Chance(u64);

impl Chance {
    /// Returns `true` once in [`SAMPLED`] calls, on average.
    fn hits(&mut self) -> bool {
        // Xorshift (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(SAMPLED)
    }
}

/// Returns whether a plain file of the list is as found.
pub fn is_as_found((record, state): &KnownFile, found: &FoundFile) -> bool {
    record.kind.is_file()
        && !record.database
        && (record.size, record.mtime) == (found.size, found.modified)
        && *state == Some(found.state)
}

/// Passes the JSON and the state of each line to `take`. Returns `None` if the file cannot be read
/// or decompressed.
fn read_lines(from: impl Read, mut take: impl FnMut(&[u8], &[u8])) -> Option<FileListSummary> {
    let mut lines = BufReader::with_capacity(BUFFER_BYTES, zstd::Decoder::new(from).ok()?);
    let (mut hasher, mut records, mut line) = (Sha256::new(), 0, Vec::new());
    while lines.read_until(b'\n', &mut line).ok()? > 0 {
        if line.last() != Some(&b'\n') {
            return None;
        }
        let (json, state) = divided(&line);
        hasher.update(json);
        hasher.update(b"\n");
        records += 1;
        take(json, state);
        line.clear();
    }
    Some(FileListSummary {
        records,
        sha256: hasher.finalize().into(),
    })
}

/// Copies what is read.
struct Tee<R, W> {
    from: R,
    out: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.out.write_all(&buffer[..read])?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_one_line_in_sixty_four_is_picked() {
        let mut chance = Chance(RandomState::new().hash_one(0) | 1);
        let hits = (0..64_000).filter(|_| chance.hits()).count();
        assert!((700..1300).contains(&hits), "{hits}");
    }
}
