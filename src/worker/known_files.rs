//! The list of files of an earlier backup, as a file that the client hands to the worker: the lines
//! of [`crate::archive::file_list`], compressed, each with what identifies the state of the file on
//! this computer.
//!
//! The manifest of that backup has the digest of the list. A list that does not match it is not
//! used.

use std::{
    cmp::Ordering,
    fs::{File, Metadata},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use crate::archive::{
    file_list::{FileList, FileListSummary, ListWriter},
    file_record::FileRecord,
};

const LEVEL: i32 = 1;
/// The line of a database contains this text. No other line does, because JSON escapes quotes.
const DATABASE_MARK: &[u8] = br#""database":true"#;
/// A file that changed more recently may change again within one step of the clock.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// What changes whenever a file changes, together with its size and the time of its last
/// modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    inode: u64,
    /// Time of the last change of the file or its attributes, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl FileState {
    /// Returns the state of a file whose content was read at `read_at` or later. `None` if the file
    /// changed so shortly before that another change may leave the same time.
    pub fn of(found: &Metadata, read_at: SystemTime) -> Option<Self> {
        let state = FileState {
            inode: found.ino(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        let newest = read_at.checked_sub(CLOCK_STEP)?.duration_since(UNIX_EPOCH);
        let newest = newest.ok()?;
        let newest = (newest.as_secs() as i64, i64::from(newest.subsec_nanos()));
        (state.changed < newest).then_some(state)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut numbers = std::str::from_utf8(text).ok()?.split(' ');
        let state = FileState {
            inode: numbers.next()?.parse().ok()?,
            changed: (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?),
        };
        numbers.next().is_none().then_some(state)
    }
}

/// Writes such a list. The records must come in order.
pub struct KnownFilesWriter<W: Write> {
    list: ListWriter<Line>,
    out: zstd::Encoder<'static, W>,
}

/// The line that is being written.
#[derive(Default)]
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> KnownFilesWriter<W> {
    pub fn new(out: W) -> io::Result<Self> {
        Ok(KnownFilesWriter {
            list: ListWriter::new(Line::default()),
            out: zstd::Encoder::new(out, LEVEL)?,
        })
    }

    pub fn push(&mut self, record: &FileRecord, state: Option<FileState>) -> io::Result<()> {
        self.list.push(record)?;
        let Line(line) = self.list.out();
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

/// A list in memory.
#[derive(Debug, Default)]
pub struct KnownFiles {
    pub files: FileList,
    /// The states of the files, in the order of the list.
    pub states: Vec<Option<FileState>>,
}

impl KnownFiles {
    /// Writes a list whose files are in no known state.
    pub fn write(files: &FileList, out: impl Write) -> io::Result<()> {
        let mut writer = KnownFilesWriter::new(out)?;
        for record in files.records() {
            writer.push(record, None)?;
        }
        writer.finish().map(drop)
    }

    /// Reads a list. `None` if it is damaged or not the expected one.
    pub fn read(from: File, expected: FileListSummary) -> Option<Self> {
        let (mut records, mut states) = (Vec::new(), Vec::new());
        let found = read_lines(from, |json, state| {
            states.push(FileState::parse(state));
            match serde_json::from_slice::<FileRecord>(json) {
                Ok(record) => records.push(record),
                // The digest of the list differs too.
                Err(_) => states.clear(),
            }
        })?;
        let is_ordered = records
            .windows(2)
            .all(|pair| pair[0].order(&pair[1]) == Ordering::Less);
        let is_it = found == expected && is_ordered && states.len() == records.len();
        is_it.then(|| KnownFiles {
            files: FileList::unsorted(records),
            states,
        })
    }

    /// Copies a list. `None` if it is damaged; the caller must discard the copy then.
    pub fn copy(from: File, out: impl Write) -> Option<FileListSummary> {
        read_lines(Tee { from, out }, |_, _| {})
    }

    /// Returns the records of the databases. `None` if the list is damaged or not the expected one.
    pub fn databases(from: File, expected: FileListSummary) -> Option<Vec<FileRecord>> {
        let mut databases = Vec::new();
        let found = read_lines(from, |json, _| {
            if memchr::memmem::find(json, DATABASE_MARK).is_some() {
                databases.extend(serde_json::from_slice::<FileRecord>(json));
            }
        })?;
        (found == expected).then_some(databases)
    }
}

/// Passes the JSON and the state of each line to `take`. Returns `None` if the file cannot be read
/// or decompressed.
fn read_lines(from: impl Read, mut take: impl FnMut(&[u8], &[u8])) -> Option<FileListSummary> {
    let mut lines = BufReader::with_capacity(1 << 18, zstd::Decoder::new(from).ok()?);
    let (mut hasher, mut records, mut line) = (Sha256::new(), 0, Vec::new());
    while lines.read_until(b'\n', &mut line).ok()? > 0 {
        let end = line.strip_suffix(b"\n")?;
        let (json, state) = match memchr::memchr(b'\t', end) {
            Some(tab) => (&end[..tab], &end[tab + 1..]),
            None => (end, &[][..]),
        };
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
