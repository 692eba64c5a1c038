//! The protocol between the worker and its client.
//!
//! A frame is a kind (one byte), a length (four bytes, little endian) and that many bytes. The
//! bytes are JSON for a message, raw bytes for data, or a hash and raw bytes for a block of a
//! database.
//!
//! The server greets first, so that a client never sends a request to another release. Then the
//! client sends one request. The server answers until it sends `Saved`, `Applied`, `Undone`,
//! `Recovered`, `Checked`, `Repaired`, `Settings`, `Key`, `Called` or `Failed`. The client keeps the standard
//! input of the server open; when it closes, the server knows that the client has gone.

use std::{
    fmt,
    io::{self, Read, Write},
    path::PathBuf,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    archive::{
        file_list::FileListSummary,
        file_record::{Blocks, FileRecord, Owner},
        manifest::Contents,
    },
    config::{SettingChange, Settings},
    error::{Error, Result, Warning},
    integrity::{
        Report, Scope,
        repair::{Action, Done},
        target::CheckTarget,
    },
    project::{Component, discover::Selection},
    sqlite::check::Integrity,
    util::{content_hash::ContentHash, digest::Sha256Digest, operation::Progress},
};

/// The file name of the [`crate::sqlite::page_hashes::PageFile`] that a backup leaves in the
/// scratch directory of its request.
pub const PAGE_HASHES_FILE: &str = "page-hashes";
/// The file name of the [`super::known_files`] that a backup leaves there.
pub const KNOWN_FILES_FILE: &str = "known-files";
/// Incremented with every incompatible change of the frames or messages.
pub const PROTOCOL: u32 = 5;
/// The release of this crate. The addon and the worker come from one build.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The argument that makes `kg` a worker.
pub const WORKER_ARGUMENT: &str = "__reader";
/// The maximum size of a data chunk of a file, which bounds the memory of both sides. Databases are
/// sent in blocks instead.
pub const DATA_CHUNK_BYTES: usize = 256 * 1024;
/// The maximum length of a frame. A longer frame does not belong to this protocol.
const MAX_FRAME_BYTES: u32 = 16 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    pub protocol: u32,
    pub release: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase")]
pub enum Request {
    Save(SaveRequest),
    Apply(ApplyRequest),
    Undo(UndoRequest),
    Recover(RecoverRequest),
    Check(CheckRequest),
    Repair(RepairRequest),
    Settings(SettingsRequest),
    Key(KeyRequest),
    Call(CallRequest),
}

/// Asks the worker to stream the contents of a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SaveRequest {
    pub root: PathBuf,
    pub selection: Selection,
    /// Check every snapshot for the problems that `quick_check` finds.
    pub check_source: bool,
    /// Scrub deleted content from pages, see [`crate::sqlite::scrub`]. A backup that skips
    /// unchanged pages of a base always does this.
    pub erase: bool,
    /// A directory with room for a copy of a database that is not in WAL mode. The worker leaves
    /// the hashes of all pages there, in [`PAGE_HASHES_FILE`], and the list of all files, in
    /// [`KNOWN_FILES_FILE`].
    pub scratch: PathBuf,
    /// The file of the [`super::baseline::BaselineFile`] that describes an earlier backup.
    pub known: Option<PathBuf>,
    /// The uncompressed size of the largest block of the archive, in bytes.
    pub block_bytes: usize,
    /// The earlier archive is available for reuse. The worker sends [`Message::Same`] instead of
    /// the content for database blocks that the archive already has.
    pub takes_over: bool,
    /// Read every file, also those that look unchanged since the base.
    pub force_read: bool,
    pub lock_timeout_ms: u64,
}

/// Asks the worker to apply an unpacked backup to a project.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The root of the target.
    pub target: PathBuf,
    /// Holds `manifest.json`, `files.jsonl` and the file of each record of that list, named by the
    /// number of the record. If `dry_run` is set, it holds at most the file of the configuration.
    pub staging: PathBuf,
    /// The components to restore; `None` selects everything.
    pub only: Option<Vec<Component>>,
    /// The path patterns to restore, see [`crate::archive::filter`]; `None` selects everything.
    pub paths: Option<Vec<String>>,
    pub overwrite: bool,
    /// Replace a database as a file even if another process has it open.
    pub force: bool,
    /// Keep the backup settings of the project, whatever the restored configuration has.
    #[serde(default)]
    pub keep_settings: bool,
    /// Only report what would happen.
    pub dry_run: bool,
    /// Limits each wait: for another restore, and for a lock that another process holds on a
    /// database.
    pub lock_timeout_ms: u64,
}

/// Asks the worker to put back the files that the newest restore replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UndoRequest {
    /// The root of the target.
    pub target: PathBuf,
    /// Skip undos, and undo the newest restore that has not been undone.
    pub earlier: bool,
    pub force: bool,
    pub dry_run: bool,
    pub lock_timeout_ms: u64,
}

/// Asks the worker to recover killed restores.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// The root of the target.
    pub target: PathBuf,
    /// Files that restores replaced more than this number of days ago are removed.
    pub undo_retention_days: u32,
    pub lock_timeout_ms: u64,
}

/// Asks the worker to run the checks of [`crate::integrity`]. The checks change nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckRequest {
    pub subject: CheckTarget,
    pub scope: Scope,
    /// A directory with room for copies of the databases.
    pub scratch: PathBuf,
    pub lock_timeout_ms: u64,
}

/// Asks the worker to carry out repairs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepairRequest {
    pub subject: CheckTarget,
    pub actions: Vec<Action>,
    /// Where to copy the database before the repair, if it does not belong to a project that could
    /// be backed up.
    pub safety_copy: Option<PathBuf>,
    pub lock_timeout_ms: u64,
}

/// Asks the worker for the backup settings of a project.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SettingsRequest {
    pub root: PathBuf,
}

/// Asks the worker to read a file that holds a key of encrypted backups.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRequest {
    pub path: PathBuf,
}

/// Asks `kg` to carry out a call of the JavaScript API, which may contain secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallRequest {
    pub call: SecretText,
}

/// A secret in transit. Its `Debug` output does not reveal it.
#[derive(Clone, Serialize, Deserialize)]
pub struct SecretText(pub String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase")]
pub enum Message {
    /// The size of what `Save` is about to stream. Files may still change.
    Planned {
        bytes_total: u64,
    },
    /// An entry of `record.entry_size()` bytes, which follow as data. If the record of a file that
    /// is stored in full lacks its digest, `FileEnd` follows the data.
    Entry {
        record: FileRecord,
        owner: Owner,
    },
    FileEnd {
        sha256: Sha256Digest,
    },
    /// A database that is stored in full. Its blocks follow, as content or as `Same`, until its
    /// size is reached. `DatabaseEnd` comes last.
    Database {
        record: FileRecord,
        owner: Owner,
    },
    /// The content hashes of the next blocks of the database, which the earlier archive contains.
    Same {
        blocks: Vec<ContentHash>,
    },
    DatabaseEnd {
        sha256: Sha256Digest,
        blocks: Blocks,
    },
    /// A record without an entry: of a file whose content is as in the base, or that is deleted.
    Unstored {
        record: FileRecord,
    },
    /// Files of that many bytes are as in the base in every respect.
    Passed {
        bytes: u64,
    },
    Saved(Saved),
    Applied(Applied),
    Undone(Undone),
    Recovered {
        warnings: Vec<Warning>,
    },
    /// The progress of a `Check`.
    Checking {
        bytes_done: u64,
        bytes_total: u64,
    },
    Checked(Report),
    /// One result per action.
    Repaired {
        done: Vec<Done>,
    },
    Settings {
        settings: Settings,
        warnings: Vec<Warning>,
    },
    Key {
        text: SecretText,
    },
    /// The progress of a `Call`.
    Progress(Progress),
    /// The answer to a `Call`, as JSON.
    Called {
        answer: String,
    },
    Failed {
        error: Error,
    },
}

/// The result of a `Save`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    pub integrity: Integrity,
    /// Rows of `nodes` and `edges` in the snapshot of the graph database; 0 if a table does not
    /// exist.
    pub node_count: u64,
    pub edge_count: u64,
    /// The number of tables of the graph database; `None` if it could not be read.
    pub table_count: Option<u64>,
    /// The graph database is a file of 0 bytes.
    #[serde(default)]
    pub has_no_page: bool,
    pub listed: Listed,
    pub warnings: Vec<Warning>,
}

/// What a backup describes as a whole, in whatever archive it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    pub summary: FileListSummary,
    pub contents: Contents,
    /// Number and size in bytes of all files.
    pub total_files: u64,
    pub total_bytes: u64,
}

/// The result of an `Apply`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub files_restored: u64,
    pub bytes_restored: u64,
    /// The number of files that were replaced or, in a dry run, would be replaced.
    pub files_replaced: u64,
    /// The directory that keeps the replaced files.
    pub safety_copy: Option<PathBuf>,
    /// Whether an undo can take this back.
    #[serde(default)]
    pub can_undo: bool,
    /// The backup settings that changed or, in a dry run, would change.
    #[serde(default)]
    pub settings_changed: Vec<SettingChange>,
    pub warnings: Vec<Warning>,
}

impl Applied {
    /// Notes the backup settings that change, and the warning about them.
    pub fn settings(&mut self, (changed, warning): (Vec<SettingChange>, Option<Warning>)) {
        self.settings_changed = changed;
        self.warnings.extend(warning);
    }
}

/// The result of an `Undo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// The backup whose restore was undone. `at` is the time of that restore.
    pub of: String,
    pub at: Timestamp,
    /// The number of removed files, which the restore had added.
    pub files_removed: u64,
    pub applied: Applied,
}

/// The destination of answers. An error means that the client has gone.
pub trait ResponseSink {
    fn message(&mut self, message: Message) -> Result<()>;
    /// Sends at most [`DATA_CHUNK_BYTES`] of the current entry.
    fn data(&mut self, data: Vec<u8>) -> Result<()>;
    /// Sends a block of the current database, and its hash.
    fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<()>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Json(Vec<u8>),
    Data(Vec<u8>),
    /// A block of a database, and its hash.
    Block(Vec<u8>, ContentHash),
}

const JSON: u8 = b'J';
const DATA: u8 = b'D';
const BLOCK: u8 = b'B';

pub fn write_json(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    write_frame(out, JSON, &[], &serde_json::to_vec(message)?)
}

pub fn write_data(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    write_frame(out, DATA, &[], data)
}

pub fn write_block(out: &mut impl Write, block: &[u8], hash: &ContentHash) -> io::Result<()> {
    write_frame(out, BLOCK, hash, block)
}

fn write_frame(out: &mut impl Write, kind: u8, before: &[u8], payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(before.len() + payload.len())
        .ok()
        .filter(|length| *length <= MAX_FRAME_BYTES);
    let length = length
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the frame is too long"))?;
    out.write_all(&[&[kind], &length.to_le_bytes()[..], before].concat())?;
    out.write_all(payload)?;
    out.flush()
}

/// Reads the next frame. Returns `UnexpectedEof` if the other side ended, and `InvalidData` if it
/// does not speak this protocol.
pub fn read_frame(input: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0; 5];
    input.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length);
    let is_other = || io::Error::new(io::ErrorKind::InvalidData, "not a frame of this protocol");
    if length > MAX_FRAME_BYTES {
        return Err(is_other());
    }
    match kind {
        JSON => read_payload(input, length).map(Frame::Json),
        DATA => read_payload(input, length).map(Frame::Data),
        BLOCK => {
            let mut hash = ContentHash::default();
            let length = length.checked_sub(hash.len() as u32).ok_or_else(is_other)?;
            input.read_exact(&mut hash)?;
            Ok(Frame::Block(read_payload(input, length)?, hash))
        }
        _ => Err(is_other()),
    }
}

fn read_payload(input: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut payload = vec![0; length as usize];
    input.read_exact(&mut payload)?;
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let mut pipe = Vec::new();
        write_json(
            &mut pipe,
            &Greeting {
                protocol: 1,
                release: "1.2.3".into(),
            },
        )
        .unwrap();
        write_data(&mut pipe, b"").unwrap();
        write_data(&mut pipe, b"text").unwrap();
        write_block(&mut pipe, b"pages", &[7; 16]).unwrap();
        let mut input = pipe.as_slice();
        assert_eq!(
            read_frame(&mut input).unwrap(),
            Frame::Json(br#"{"protocol":1,"release":"1.2.3"}"#.to_vec())
        );
        assert_eq!(read_frame(&mut input).unwrap(), Frame::Data(vec![]));
        assert_eq!(
            read_frame(&mut input).unwrap(),
            Frame::Data(b"text".to_vec())
        );
        assert_eq!(
            read_frame(&mut input).unwrap(),
            Frame::Block(b"pages".to_vec(), [7; 16])
        );
        assert_eq!(
            read_frame(&mut input).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        let last = pipe.len() - 26;
        for end in last + 1..pipe.len() {
            assert_eq!(
                read_frame(&mut &pipe[last..end]).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "cut at {end}"
            );
        }
    }

    #[test]
    fn other_output_and_endless_frames_are_refused_before_memory_is_taken() {
        for input in [
            b"usage: kg [OPTIONS]".as_slice(),
            b"D\xff\xff\xff\xff",
            b"J\x00\x00\x00\x02",
            b"B\x0f\0\0\0",
        ] {
            assert_eq!(
                read_frame(&mut &*input).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }
}
