//! What the reader and its client say to each other.
//!
//! A frame is a kind (one byte), a length (four bytes, little endian) and that many bytes: JSON for a message, raw bytes
//! for data, a hash and raw bytes for a block of a database. The server greets first, so that a client never sends a request to another release. Then the client
//! sends one request, and the server answers until `Saved`, `Applied`, `Undone`, `Tidied`, `Checked`, `Repaired`, `Settings`, `Key` or `Failed`. The client keeps the server's
//! standard input open: its end means that the client is gone.

use std::{
    fmt,
    io::{self, Read, Write},
    path::PathBuf,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    archive::manifest::{Blocks, FileRecord, Owner},
    config::Settings,
    error::{Error, Result, Warning},
    integrity::{
        Report, Scope,
        repair::{Action, Done},
        target::CheckTarget,
    },
    project::{Component, discover::Selection},
    sqlite::check::Integrity,
    util::content_hash::ContentHash,
};

/// Where a reader that saves leaves a [`crate::sqlite::page_hashes::PageFile`], in its scratch directory.
pub const PAGE_HASHES_FILE: &str = "page-hashes";
/// Changes with every incompatible change of the frames or messages.
pub const PROTOCOL: u32 = 3;
/// The release of this crate; addon and reader come from one build.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The argument that makes `kg` a reader.
pub const READER_ARGUMENT: &str = "__reader";
/// Data of files comes in pieces of at most this size, which bounds the memory of both sides; that of databases by blocks.
pub const DATA_CHUNK_BYTES: usize = 256 * 1024;
/// A longer frame is not of this protocol.
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
    Tidy(RecoverRequest),
    Check(CheckRequest),
    Repair(RepairRequest),
    Settings(SettingsRequest),
    Key(KeyRequest),
}

/// Stream what a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SaveRequest {
    pub root: PathBuf,
    pub selection: Selection,
    /// Look for what `quick_check` finds in every snapshot.
    pub check_source: bool,
    /// Leave out what pages no longer hold, see [`crate::sqlite::scrub`]. A backup that leaves out pages of a base always does.
    pub erase: bool,
    /// A directory with room for a copy of a database that is not in WAL mode. The hashes of all pages are left in its
    /// `PAGE_HASHES_FILE`.
    pub scratch: PathBuf,
    /// What an earlier backup holds: a file of a [`super::baseline::BaselineFile`].
    pub known: Option<PathBuf>,
    /// What the largest block of the archive holds.
    pub block_bytes: usize,
    /// Blocks of databases that are as that backup has them are told of instead of sent ([`Message::Same`]): its archive is at hand.
    pub takes_over: bool,
    pub lock_timeout_ms: u64,
}

/// Put an unpacked backup into its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The target's root.
    pub target: PathBuf,
    /// Holds `manifest.json` and, unless `dry_run`, the file of each record of the manifest, named by its number.
    pub staging: PathBuf,
    /// `None` for everything.
    pub only: Option<Vec<Component>>,
    /// Patterns, see [`crate::archive::filter`]; `None` for everything.
    pub paths: Option<Vec<String>>,
    pub overwrite: bool,
    /// Replace a database as a file even while another process has it open.
    pub force: bool,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Bounds each wait: for another restore, for a lock that another process holds on a database.
    pub lock_timeout_ms: u64,
}

/// Put back what the newest restore replaced.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UndoRequest {
    /// The target's root.
    pub target: PathBuf,
    /// Undo no undo, but the newest restore that is not undone.
    pub earlier: bool,
    pub force: bool,
    pub dry_run: bool,
    pub lock_timeout_ms: u64,
}

/// Make whole what killed restores left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// The target's root.
    pub target: PathBuf,
    /// What restores replaced longer ago than this is removed.
    pub undo_retention_days: u32,
    pub lock_timeout_ms: u64,
}

/// Run the checks of [`crate::integrity`]. Nothing is changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckRequest {
    pub subject: CheckTarget,
    pub scope: Scope,
    /// A directory with room for copies of the databases.
    pub scratch: PathBuf,
    pub lock_timeout_ms: u64,
}

/// Carry out repairs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepairRequest {
    pub subject: CheckTarget,
    pub actions: Vec<Action>,
    /// Where the database is copied to before, where it is of no project that could be backed up.
    pub safety_copy: Option<PathBuf>,
    pub lock_timeout_ms: u64,
}

/// Tell what the configuration of a project says of backups.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SettingsRequest {
    pub root: PathBuf,
}

/// Read a file that holds a key of encrypted backups.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeyRequest {
    pub path: PathBuf,
}

/// A secret on its way: no message that is printed shows it.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeyText(pub String);

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(…)")
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "camelCase")]
pub enum Message {
    /// What `Save` is about to stream; files may still change.
    Planned {
        bytes_total: u64,
    },
    /// An entry of `record.entry_size()` bytes, which follow as data.
    Entry {
        record: FileRecord,
        owner: Owner,
    },
    /// A database that is stored whole. Until its size is reached its blocks follow, as they are or as `Same`, then `DatabaseEnd`.
    Database {
        record: FileRecord,
        owner: Owner,
    },
    /// The next blocks of the database, which the earlier archive has: the hashes of what they hold.
    Same {
        blocks: Vec<ContentHash>,
    },
    DatabaseEnd {
        /// Hexadecimal.
        sha256: String,
        blocks: Blocks,
    },
    /// A file that is as it is in the base: nothing follows.
    Unchanged {
        record: FileRecord,
    },
    Saved(Saved),
    Applied(Applied),
    Undone(Undone),
    Tidied {
        warnings: Vec<Warning>,
    },
    /// How far a `Check` is.
    Checking {
        bytes_done: u64,
        bytes_total: u64,
    },
    Checked(Report),
    /// One for each action.
    Repaired {
        done: Vec<Done>,
    },
    Settings {
        settings: Settings,
        warnings: Vec<Warning>,
    },
    Key {
        text: KeyText,
    },
    Failed {
        error: Error,
    },
}

/// The end of a `Save`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    pub integrity: Integrity,
    /// Rows of `nodes` and `edges` in the snapshot of the graph database; 0 where there is no such table.
    pub node_count: u64,
    pub edge_count: u64,
    /// Of the graph database; `None` if it could not be read.
    pub table_count: Option<u64>,
    /// The graph database is a file of 0 bytes.
    #[serde(default)]
    pub has_no_page: bool,
    pub warnings: Vec<Warning>,
}

/// The end of an `Apply`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub files_restored: u64,
    pub bytes_restored: u64,
    /// How many files were (or, in a dry run, would be) replaced.
    pub files_replaced: u64,
    /// Where what was replaced is kept.
    pub safety_copy: Option<PathBuf>,
    pub warnings: Vec<Warning>,
}

/// The end of an `Undo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// The backup whose restore was undone, and when that was.
    pub of: String,
    pub at: Timestamp,
    /// Files that the restore had added.
    pub files_removed: u64,
    pub applied: Applied,
}

/// Where answers go. A failure means that the client is gone.
pub trait ResponseSink {
    fn message(&mut self, message: Message) -> Result<()>;
    /// At most `DATA_CHUNK_BYTES` of the current entry.
    fn data(&mut self, data: Vec<u8>) -> Result<()>;
    /// A block of the current database, and the hash of it.
    fn block(&mut self, block: Vec<u8>, hash: ContentHash) -> Result<()>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Json(Vec<u8>),
    Data(Vec<u8>),
    /// With the hash of it.
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

/// The next frame; `UnexpectedEof` where the other side ended, `InvalidData` where it does not speak this protocol.
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
