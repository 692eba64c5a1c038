//! The list of files of an earlier backup, as a file that the client hands to the worker: the lines
//! of [`crate::archive::file_list`], compressed, each with what identifies the state of the file on
//! this computer.
//!
//! The manifest of that backup has the digest of the list. A list that does not match it is not
//! used.

use std::{
    cell::Cell,
    cmp::Ordering,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
};

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        file_list::{FileList, FileListSummary, ListWriter},
        file_record::FileRecord,
    },
    project::{
        Component,
        file_state::{FileState, FoundFile},
    },
};

const LEVEL: i32 = 1;
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
    /// The index after the file that was looked up last, because a walk asks for one after another.
    next: Cell<usize>,
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
            states.push(parse_state(state));
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
            next: Cell::default(),
        })
    }

    /// Returns the file at that place if it is as found: it need not be read again.
    pub fn unchanged(
        &self,
        component: Component,
        path: &str,
        found: &FoundFile,
    ) -> Option<&FileRecord> {
        let records = self.files.records();
        let is_it = |record: &FileRecord| record.compare(component, path).is_eq();
        let next = self.next.get();
        let index = if records.get(next).is_some_and(is_it) {
            next
        } else {
            records
                .binary_search_by(|record| record.compare(component, path))
                .ok()?
        };
        self.next.set(index + 1);
        let record = records.get(index)?;
        is_as_found(record, *self.states.get(index)?, found).then_some(record)
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

/// Returns whether a plain file of the list is as found.
pub fn is_as_found(record: &FileRecord, state: Option<FileState>, found: &FoundFile) -> bool {
    record.kind.is_file()
        && !record.database
        && (record.size, record.mtime) == (found.size, found.modified)
        && state == Some(found.state)
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
