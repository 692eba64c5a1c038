//! The list of everything in a backup: one [`FileRecord`] a line, as JSON, in the order of
//! [`FileRecord::order`].
//!
//! A full backup lists everything. An incremental backup lists only what differs from its base.
//! [`FileList::after`] applies such differences, so the list of the newest member of a chain costs
//! no more than what changed. The manifest has the [`FileListSummary`] of the whole list in either
//! case.

use std::{
    cmp::Ordering,
    collections::HashSet,
    io::{self, BufRead, BufReader, Read, Write},
};

use memchr::memchr;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::file_record::{FileRecord, Storage};
use crate::{project::Component, util::digest::Sha256Digest};

/// Name of the entry that holds the list, directly before the manifest.
pub const FILE_LIST_ENTRY: &str = "files.jsonl";
/// Maximum number of records. Together with `MAX_LINE_BYTES` it bounds the memory that a forged
/// archive can take.
pub const MAX_RECORDS: usize = 1 << 20;
/// Maximum total length of the names and link targets of all entries in an archive.
pub const MAX_NAMES_BYTES: usize = 96 * 1024 * 1024;
/// Maximum length of a line. Path, entry and target have at most 4,096 bytes each, and JSON writes
/// a byte in up to 6 characters.
const MAX_LINE_BYTES: usize = 128 * 1024;

const COMPONENTS: [Component; 5] = [
    Component::Database,
    Component::Config,
    Component::Vectors,
    Component::Plugins,
    Component::Files,
];

/// Identifies a whole list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileListSummary {
    pub records: u64,
    /// Digest of the lines, without how an archive stores the content.
    pub sha256: Sha256Digest,
}

/// Writes a list line by line.
pub struct ListWriter<W> {
    out: W,
    line: Vec<u8>,
    hasher: Sha256,
    records: u64,
}

impl<W: Write> ListWriter<W> {
    pub fn new(out: W) -> Self {
        ListWriter {
            out,
            line: Vec::new(),
            hasher: Sha256::new(),
            records: 0,
        }
    }

    pub fn push(&mut self, record: &FileRecord) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, record)?;
        self.line.push(b'\n');
        self.hasher.update(&self.line);
        self.records += 1;
        self.out.write_all(&self.line)
    }

    pub fn records(&self) -> u64 {
        self.records
    }

    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Identifies the lines so far.
    pub fn summary(&self) -> FileListSummary {
        FileListSummary {
            records: self.records,
            sha256: self.hasher.clone().finalize().into(),
        }
    }
}

/// A list in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileList {
    records: Vec<FileRecord>,
}

impl FileList {
    /// Wraps records that need not be in order: archives of the first format may list the WAL of a
    /// damaged database elsewhere.
    pub fn unsorted(records: Vec<FileRecord>) -> Self {
        FileList { records }
    }

    /// Wraps records and puts them in order.
    pub fn sorted(mut records: Vec<FileRecord>) -> Self {
        records.sort_by(FileRecord::order);
        FileList { records }
    }

    pub fn records(&self) -> &[FileRecord] {
        &self.records
    }

    pub fn records_mut(&mut self) -> impl Iterator<Item = &mut FileRecord> {
        self.records.iter_mut()
    }

    pub fn into_records(self) -> Vec<FileRecord> {
        self.records
    }

    /// Returns the paths of all databases.
    pub fn databases(&self) -> HashSet<&str> {
        let databases = self.records.iter().filter(|record| record.database);
        databases.map(|record| record.path.as_str()).collect()
    }

    /// Returns the record of the graph database.
    pub fn graph_database(&self) -> Option<&FileRecord> {
        let is_graph =
            |record: &&FileRecord| record.component == Component::Database && record.database;
        self.records.iter().find(is_graph)
    }

    /// Returns the index of the record with that path. The list must be in order.
    pub fn find(&self, path: &str) -> Option<usize> {
        COMPONENTS.iter().find_map(|component| {
            let place = |record: &FileRecord| record.compare(*component, path);
            self.records.binary_search_by(place).ok()
        })
    }

    /// Identifies the list, without how an archive stores the content.
    pub fn summary(&self) -> FileListSummary {
        let mut writer = ListWriter::new(io::sink());
        for record in &self.records {
            // A sink takes everything.
            let _ = writer.push(&record.state());
        }
        writer.summary()
    }

    /// Returns the list that `changes` make of this one; both must be in order. The error completes
    /// the sentence "The list of files …".
    pub fn after(self, changes: FileList) -> Result<FileList, String> {
        let mut records = Vec::with_capacity(self.records.len() + changes.records.len());
        let mut base = self.records.into_iter().peekable();
        for change in changes.records {
            while let Some(unchanged) =
                base.next_if(|record| record.order(&change) == Ordering::Less)
            {
                records.push(unchanged);
            }
            let before = base.next_if(|record| record.order(&change) == Ordering::Equal);
            match (change.stored, before) {
                (Storage::Deleted, Some(_)) => {}
                (Storage::Unchanged | Storage::Delta | Storage::Deleted, None) => {
                    return Err(format!("changes {}, which the base lacks", change.path));
                }
                (Storage::Unchanged, Some(before)) if !change.has_content_of(&before) => {
                    return Err(format!("keeps {}, which differs in the base", change.path));
                }
                _ => records.push(change.into_state()),
            }
        }
        records.extend(base);
        Ok(FileList { records })
    }
}

/// Reads lines to their end, in any order, and passes on each record and its index. A problem with
/// the list is returned as an error that completes the sentence "The list of files …".
pub fn read_records<E>(
    from: impl Read,
    mut each: impl FnMut(usize, FileRecord) -> Result<(), E>,
) -> io::Result<Result<Result<(), String>, E>> {
    let (mut parser, mut from) = (RecordParser::default(), BufReader::new(from));
    parser.takes_any_order = true;
    let (mut index, mut failed) = (0, None);
    loop {
        let bytes = from.fill_buf()?;
        let length = bytes.len();
        if length == 0 {
            return Ok(Ok(parser.finish().map(|_| ())));
        }
        parser.push(bytes, |record| {
            if failed.is_none() {
                failed = each(index, record).err();
                index += 1;
            }
        });
        if let Some(failed) = failed.take() {
            return Ok(Err(failed));
        }
        from.consume(length);
    }
}

/// Parses lines into a list as they are read.
#[derive(Debug, Default)]
pub struct ListParser {
    parser: RecordParser,
    records: Vec<FileRecord>,
}

impl ListParser {
    pub fn push(&mut self, bytes: &[u8]) {
        let records = &mut self.records;
        self.parser.push(bytes, |record| records.push(record));
    }

    /// Returns the list. The error completes the sentence "The list of files …".
    pub fn finish(self) -> Result<FileList, String> {
        self.parser.finish()?;
        let records = self.records;
        Ok(FileList { records })
    }
}

/// Parses lines as they are read, and passes on each record. It holds only the last path and the
/// beginning of the next line.
#[derive(Debug, Default)]
pub struct RecordParser {
    count: usize,
    last: Option<(Component, String)>,
    /// The beginning of the next line.
    rest: Vec<u8>,
    takes_any_order: bool,
    problem: Option<String>,
}

impl RecordParser {
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(FileRecord)) {
        let mut bytes = bytes;
        while let (None, Some(end)) = (&self.problem, memchr(b'\n', bytes)) {
            if self.rest.is_empty() {
                self.line(&bytes[..end], &mut each);
            } else {
                self.rest.extend_from_slice(&bytes[..end]);
                let line = std::mem::take(&mut self.rest);
                self.line(&line, &mut each);
            }
            bytes = &bytes[end + 1..];
        }
        if self.rest.len() + bytes.len() > MAX_LINE_BYTES {
            self.refuse("has a line of an impossible length".into());
        } else {
            self.rest.extend_from_slice(bytes);
        }
    }

    fn line(&mut self, line: &[u8], each: &mut impl FnMut(FileRecord)) {
        if line.len() > MAX_LINE_BYTES {
            return self.refuse("has a line of an impossible length".into());
        }
        if self.count == MAX_RECORDS {
            return self.refuse("has more lines than a backup can have".into());
        }
        let record: FileRecord = match serde_json::from_slice(line) {
            Ok(record) => record,
            Err(cause) => {
                let number = self.count + 1;
                return self.refuse(format!("cannot be read (line {number}: {cause})"));
            }
        };
        let last = self.last.as_ref();
        let is_next = last
            .is_none_or(|(component, path)| record.compare(*component, path) == Ordering::Greater);
        if !is_next && !self.takes_any_order {
            return self.refuse(format!("is not in order at {}", record.path));
        }
        self.count += 1;
        let (component, path) = self
            .last
            .get_or_insert_with(|| (record.component, String::new()));
        *component = record.component;
        path.clone_from(&record.path);
        each(record);
    }

    fn refuse(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
        self.rest = Vec::new();
    }

    /// Returns the number of records so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the number of records. The error completes the sentence "The list of files …".
    pub fn finish(mut self) -> Result<usize, String> {
        if !self.rest.is_empty() {
            self.refuse("ends in the middle of a line".into());
        }
        self.problem.map_or(Ok(self.count), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, more: &str) -> String {
        format!(
            r#"{{"path":"{path}","entry":"e","component":"files","size":0,"mode":0,"mtime":"2024-01-15T02:00:00Z"{more}}}"#
        ) + "\n"
    }

    fn parse(text: &str) -> Result<FileList, String> {
        let mut whole = ListParser::default();
        whole.push(text.as_bytes());
        let whole = whole.finish();
        // The pieces in which the text arrives do not matter.
        let mut pieces = ListParser::default();
        text.as_bytes()
            .chunks(7)
            .for_each(|piece| pieces.push(piece));
        assert_eq!(pieces.finish(), whole);
        whole
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let files = parse(&[line(".kg/a", ""), line(".kg/b/c", r#","type":"directory""#)].concat());
        let files = files.unwrap();
        let mut text = ListWriter::new(Vec::new());
        files
            .records()
            .iter()
            .for_each(|record| text.push(record).unwrap());
        assert_eq!(text.summary(), files.summary());
        assert_eq!(
            parse(std::str::from_utf8(text.out()).unwrap()).unwrap(),
            files
        );
    }

    #[test]
    fn text_that_is_no_list_is_refused() {
        let long = line(&"x".repeat(MAX_LINE_BYTES), "");
        for (text, what) in [
            ("{}\n", "cannot be read (line 1"),
            ("\n", "cannot be read"),
            (line(".kg/a", "").trim_end(), "ends in the middle"),
            (
                &[line(".kg/b", ""), line(".kg/a", "")].concat(),
                "not in order at .kg/a",
            ),
            (
                &[line(".kg/a", ""), line(".kg/a", "")].concat(),
                "not in order at .kg/a",
            ),
            (&long, "a line of an impossible length"),
        ] {
            let found = parse(text).unwrap_err();
            assert!(found.contains(what), "{found}");
        }
    }

    #[test]
    fn changes_that_do_not_fit_the_base_are_refused() {
        let base = || parse(&line(".kg/a", "")).unwrap();
        for stored in ["base", "pages", "deleted"] {
            let changes = line(".kg/b", &format!(r#","stored":"{stored}""#));
            let found = base().after(parse(&changes).unwrap()).unwrap_err();
            assert!(found.contains("which the base lacks"), "{found}");
        }
        let digest = Sha256Digest::of(b"");
        let kept = line(".kg/a", &format!(r#","stored":"base","sha256":"{digest}""#));
        let found = base().after(parse(&kept).unwrap()).unwrap_err();
        assert!(found.contains("differs in the base"), "{found}");
    }
}
