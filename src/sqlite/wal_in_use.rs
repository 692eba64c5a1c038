//! Detects whether the users of a database write to the WAL next to it.
//!
//! SQLite finds the WAL by the name of the database, but its locks by the inode. So a process can
//! have the same database open and commit to another WAL. There are three causes:
//!
//! - The WAL was deleted while the process had it open.
//! - The process opened another name of the file: a hard link, or a bind mount of the file alone.
//! - The file was replaced by another one.
//!
//! The commits of such a process are not in the files at this path, and writing to these files
//! damages its database.
//!
//! While a connection in WAL mode is open, it holds two shared locks: one on the database and one
//! on a byte of its `-shm` (<https://sqlite.org/walformat.html#wal_locks>). A process that holds
//! the first lock and does not have this `-shm` open uses another one. `/proc` shows which files a
//! process has open, and which of them were deleted.
//!
//! Call this module before this process opens a connection to the database, because closing a plain
//! descriptor drops the connection's locks.
//!
//! Not guaranteed: a process that opens the database only from time to time holds no lock in
//! between. The open files of a process of another user or container are not visible. Such a
//! process is detected only by its locks.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    database_lock::{
        ForeignLock, {self},
    },
    files::{COMPANIONS, LOCK_BYTE, companion},
};
use crate::{
    error::{Code, Error},
    sqlite::format::{
        header::Header,
        wal::{WAL_HEADER_BYTES, WalHeader, frame_offset},
    },
    system::{
        file_id::{FileId, Identity},
        holders,
        portable::{FileExt, OsStrExt},
    },
    util::regular_file,
};

/// The range (offset, length) of the shared locks on a database. `DEAD_MAN_SWITCH` is the range of
/// the lock that every user of a `-shm` holds on it.
const SHARED: (u64, i64) = (LOCK_BYTE + 2, 510);
const DEAD_MAN_SWITCH: (u64, i64) = (128, 1);
/// The number of looks in which a suspicion must be confirmed. A connection that opens or closes
/// holds only one of its locks for a moment.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
/// The suffix that the kernel adds to the path of an open file whose name was removed.
const DELETED: &[u8] = b" (deleted)";
/// The size of the header of a WAL index. A copy of the header follows it
/// (<https://sqlite.org/walformat.html#the_wal_index_header>).
const INDEX_HEADER_BYTES: usize = 48;

/// A process whose commits are not in the files at the path of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elsewhere {
    /// 0 if the system does not name the process.
    process: i32,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The process has the same file open, with another WAL.
    OtherWal,
    /// The process has a WAL open that was deleted or replaced.
    WalGone,
    /// The process has a file open that was deleted or replaced.
    Replaced,
}

impl Elsewhere {
    /// Returns a sentence about the database, which is called `shown` there, without a full stop.
    pub fn says(&self, shown: &str) -> String {
        let process = holders::name(self.process);
        match self.how {
            How::OtherWal => format!(
                "{shown} is open in {process} with a WAL other than {shown}-wal, because that was \
                 deleted or the process opened another name of the file: its commits are not in \
                 the files here"
            ),
            How::WalGone => format!(
                "{shown}-wal is not the WAL that {process} writes to, which was deleted or \
                 replaced: its commits are not in the files here"
            ),
            How::Replaced => format!(
                "{shown} was deleted or replaced while {process} had it open: that process still \
                 uses the old file and its WAL, and its commits are not in the files here"
            ),
        }
    }

    /// Returns `KG_DATABASE_IN_USE`, with the reason why the database at `path` is not written.
    pub fn refusal(&self, path: &Path) -> Error {
        refused(&format!(
            "{}; a change here would damage its database or not reach it",
            self.says(&path.display().to_string())
        ))
    }
}

/// Returns `KG_DATABASE_IN_USE` for a database that is not changed because of such a process.
pub fn refused(message: &str) -> Error {
    Error::new(
        Code::DatabaseInUse,
        message,
        "Nothing was changed; if the commits of that process matter, save them with `VACUUM INTO` \
         on its own connection. Then stop it and run this again",
    )
}

/// Returns a process whose commits to this database are not in the files at its path.
pub fn find(database: &Path) -> Option<Elsewhere> {
    find_all(&[database]).pop().map(|(_, found)| found)
}

/// Returns the databases whose users commit to other files, by their position in `databases`, with
/// one process for each.
pub fn find_all(databases: &[&Path]) -> Vec<(usize, Elsewhere)> {
    let mut suspected = look(databases, 0..databases.len(), &[]);
    for _ in 1..LOOKS {
        if suspected.is_empty() {
            break;
        }
        thread::sleep(PAUSE);
        let numbers: BTreeSet<usize> = suspected.iter().map(|(number, _)| *number).collect();
        let processes: Vec<i32> = suspected.iter().map(|(_, found)| found.process).collect();
        let again = look(databases, numbers.into_iter(), &processes);
        suspected.retain(|seen| again.contains(seen));
    }
    suspected.sort_by_key(|(number, found)| (*number, found.process));
    suspected.dedup_by_key(|(number, _)| *number);
    suspected
}

/// Returns whether another process has the WAL open that is next to this name of a database.
pub fn is_index_in_use(name: &Path) -> bool {
    regular_file::open_linked(&companion(name, COMPANIONS[1]))
        .is_ok_and(|index| holder(&index, DEAD_MAN_SWITCH).is_some())
}

/// Collects both kinds of evidence: locks and open files. One kind alone may come from a connection
/// that is just opening.
fn look(
    databases: &[&Path],
    numbers: impl Iterator<Item = usize>,
    suspected: &[i32],
) -> Vec<(usize, Elsewhere)> {
    let numbered: Vec<(usize, &Path)> = numbers
        .filter_map(|number| Some((number, *databases.get(number)?)))
        .collect();
    let by_locks = numbered.iter().flat_map(|(number, database)| {
        by_locks(database, suspected)
            .into_iter()
            .map(|found| (*number, found))
            .collect::<Vec<_>>()
    });
    by_locks.chain(by_open_files(&numbered)).collect()
}

/// Returns the evidence from the locks on the files at the path. Each process is judged separately,
/// because a process with correct locks says nothing about the others.
fn by_locks(database: &Path, suspected: &[i32]) -> Vec<Elsewhere> {
    let at_index = companion(database, COMPANIONS[1]);
    let (Some(main), Some(index)) = (open_if_there(database), open_if_there(&at_index)) else {
        return Vec::new();
    };
    let found = judge_locks(database, main.as_ref(), index.as_ref(), suspected);
    // Processes that close a database and open it again delete the index and create a new one
    // meanwhile.
    if is_still_at(database, main.as_ref()) && is_still_at(&at_index, index.as_ref()) {
        found
    } else {
        Vec::new()
    }
}

fn is_still_at(path: &Path, file: Option<&File>) -> bool {
    let identity = |found: FileId| found.identity;
    let now = FileId::at(path).ok().map(identity);
    now == file.and_then(|file| FileId::of(file).ok()).map(identity)
}

fn judge_locks(
    database: &Path,
    main: Option<&File>,
    index: Option<&File>,
    suspected: &[i32],
) -> Vec<Elsewhere> {
    let is_wal = main
        .and_then(|main| Header::read_at(main, 0))
        .is_some_and(|header| header.is_wal);
    let indexed = index.map_or_else(Vec::new, |index| holders(index, DEAD_MAN_SWITCH, suspected));
    let mut found = Vec::new();
    for user in main
        .filter(|_| is_wal)
        .map_or_else(Vec::new, |main| holders(main, SHARED, suspected))
    {
        let uses_index = || match open_files(user.process) {
            // A process without any index has a connection that is just opening.
            Some(open) => !open.has_index || index.is_some_and(|index| open.contains(index)),
            None => !indexed.is_empty(),
        };
        if user.is_shared && !uses_index() {
            found.push(Elsewhere {
                process: user.process,
                how: How::OtherWal,
            });
        }
    }
    let Some(index) = index else { return found };
    for user in indexed {
        let has_main = |open: OpenFiles| main.is_some_and(|main| open.contains(main));
        if open_files(user.process).is_some_and(|open| !has_main(open)) {
            found.push(Elsewhere {
                process: user.process,
                how: How::Replaced,
            });
        } else if is_of_another_wal(index, &companion(database, COMPANIONS[0])) {
            found.push(Elsewhere {
                process: user.process,
                how: How::WalGone,
            });
        }
    }
    found
}

/// Returns `None` if the file exists but cannot be opened, because nothing can be determined then.
fn open_if_there(path: &Path) -> Option<Option<File>> {
    match regular_file::open_linked(path) {
        Ok(file) => Some(Some(file)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Some(None),
        Err(_) => None,
    }
}

/// Returns the first lock of another process in that range. A file system without locks has none.
fn holder(file: &File, range: (u64, i64)) -> Option<ForeignLock> {
    database_lock::holder(file, range).ok().flatten()
}

/// Returns locks of other processes in that range: the first one, further ones from the system's
/// lock table, and those of suspected processes.
fn holders(file: &File, range: (u64, i64), suspected: &[i32]) -> Vec<ForeignLock> {
    let mut found = Vec::from_iter(holder(file, range));
    let Ok(id) = FileId::of(file) else {
        return found;
    };
    for lock in holders::locks(id, suspected) {
        let is_it =
            || lock.is_on(id) || open_files(lock.process).is_some_and(|open| open.contains(file));
        let is_new = found.iter().all(|known| known.process != lock.process);
        if is_new && lock.process > 0 && lock.meets(range.0, range.1.unsigned_abs()) && is_it() {
            found.push(ForeignLock {
                process: lock.process,
                is_shared: lock.is_shared,
            });
        }
    }
    found
}

/// The files that a process has open.
#[derive(Default)]
struct OpenFiles {
    files: HashSet<Identity>,
    /// The process has the index of some WAL open, possibly a deleted one.
    has_index: bool,
}

impl OpenFiles {
    fn contains(&self, file: &File) -> bool {
        FileId::of(file).is_ok_and(|found| self.files.contains(&found.identity))
    }
}

/// Returns the files that a process has open, or `None` if this process may not see them.
fn open_files(process: i32) -> Option<OpenFiles> {
    let mut open = OpenFiles::default();
    for path in descriptors(process).filter(|_| process > 0)? {
        // Pipes and sockets have no path. A query about a file can block on some file systems.
        let Some(to) = fs::read_link(&path).ok().filter(|to| to.is_absolute()) else {
            continue;
        };
        let Ok(found) = FileId::at(&path) else {
            continue;
        };
        open.files.insert(found.identity);
        let name = to.as_os_str().as_bytes();
        let name = name.strip_suffix(DELETED).unwrap_or(name);
        open.has_index |= name.ends_with(COMPANIONS[1].as_bytes());
    }
    Some(open)
}

fn descriptors(process: i32) -> Option<Vec<PathBuf>> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    Some(entries.flatten().map(|entry| entry.path()).collect())
}

/// Returns whether an index that is in use counts frames that the WAL at the path does not contain.
/// Returns `false` while the index is being written.
fn is_of_another_wal(index: &File, wal: &Path) -> bool {
    let mut bytes = [0; 2 * INDEX_HEADER_BYTES];
    if index.read_exact_at(&mut bytes, 0).is_err() {
        return false;
    }
    let (header, copy) = bytes.split_at(INDEX_HEADER_BYTES);
    let (page_bytes, frames) = (
        u16::from_ne_bytes([header[14], header[15]]),
        &header[16..20],
    );
    let page_bytes = if page_bytes == 1 {
        65_536
    } else {
        u32::from(page_bytes)
    };
    let frames = frames.try_into().map_or(0, u32::from_ne_bytes);
    if header != copy || frames == 0 {
        return false;
    }
    let needed = frame_offset(frames, page_bytes);
    let mut start = [0; WAL_HEADER_BYTES];
    let read = regular_file::open_linked(wal).and_then(|mut file| {
        file.read_exact(&mut start)?;
        file.metadata()
    });
    // The salts change each time the WAL is restarted. The index has a copy of them.
    read.map_or(true, |found| {
        found.len() < needed || WalHeader::parse(&start).salts != header[32..40]
    })
}

/// Returns the processes that have a deleted file of one of these databases open and use it with
/// SQLite.
fn by_open_files(databases: &[(usize, &Path)]) -> Vec<(usize, Elsewhere)> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = (std::process::id() as i32, mount_namespace("self"));
    let mut seen = Vec::new();
    for process in processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
    {
        // A path names the same file only in the same mount namespace.
        if process == own.0 || mount_namespace(&process.to_string()) != own.1 {
            continue;
        }
        let open: Vec<(PathBuf, OsString)> = descriptors(process)
            .into_iter()
            .flatten()
            .filter_map(|at| fs::read_link(&at).ok().map(|to| (at, to.into_os_string())))
            .collect();
        for (number, database) in databases {
            if let Some(how) = uses_deleted(database, &open) {
                seen.push((*number, Elsewhere { process, how }));
            }
        }
    }
    seen
}

fn mount_namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

/// Determines which deleted file of a database a process uses, from its descriptors and their
/// targets.
///
/// A child process inherits descriptors without the locks. SQLite itself deletes a WAL, so a
/// deleted WAL without a lock may be inherited. SQLite never deletes a database.
fn uses_deleted(database: &Path, open: &[(PathBuf, OsString)]) -> Option<How> {
    let named = |suffix: &str| {
        let name = companion(database, suffix).into_os_string();
        open.iter().filter_map(move |(at, to)| {
            let to = to.as_bytes();
            let is_deleted = to.ends_with(DELETED);
            let to = if is_deleted {
                &to[..to.len() - DELETED.len()]
            } else {
                to
            };
            (to == name.as_bytes()).then_some((at, is_deleted))
        })
    };
    if named("").any(|(at, is_deleted)| is_deleted && may_write(at)) {
        return Some(How::Replaced);
    }
    let [wal, index, _] = COMPANIONS;
    if !named(wal)
        .chain(named(index))
        .any(|(_, is_deleted)| is_deleted)
    {
        return None;
    }
    let has_lock = named("")
        .chain(named(index))
        .any(|(at, _)| info(at).contains("POSIX"));
    // Under an exclusive lock on the database, the last connection deletes the index before it
    // closes the index.
    let is_closing = named("").any(|(at, _)| info(at).contains("WRITE"));
    // The locks were read after the names, so the process may have closed and reopened the database
    // meanwhile.
    let is_still =
        |at: &Path| fs::read_link(at).is_ok_and(|to| to.as_os_str().as_bytes().ends_with(DELETED));
    let is_deleted = |suffix| named(suffix).any(|(at, is_deleted)| is_deleted && is_still(at));
    let is_gone = is_deleted(wal) || is_deleted(index) && !is_closing;
    (is_gone && has_lock).then_some(How::WalGone)
}

/// Returns the kernel's information about a descriptor: how it was opened, and the locks of its
/// process on the file.
fn info(descriptor: &Path) -> String {
    let path = descriptor.to_string_lossy().replacen("/fd/", "/fdinfo/", 1);
    fs::read_to_string(path).unwrap_or_default()
}

fn may_write(descriptor: &Path) -> bool {
    let info = info(descriptor);
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & 3 != 0)
}
