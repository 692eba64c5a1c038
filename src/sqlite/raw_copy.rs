//! A private copy of a database with its WAL or journal.
//!
//! A copy is needed if SQLite cannot work in place. A hot journal of a killed writer needs
//! recovery, which writes. A directory or its `-shm` may not be writable. A damaged file is saved
//! unchanged.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Code, Error, Result},
    sqlite::files::{companion, names_super_journal},
    system::{
        file_id::FileId,
        portable::{FileExt, MetadataExt, OpenOptionsExt, os_string},
    },
    util::{dir_handle, temp_dir::PrivateDir},
};

/// Suffixes of the files that are copied with a database. Without them, committed transactions are
/// lost or half of one remains. The `-shm` is an index of the WAL that SQLite rebuilds.
const TRAVELLING: [&str; 2] = ["-wal", "-journal"];
/// The prefix of scratch directories, by which the next run finds those that a killed run left.
pub const SCRATCH_PREFIX: &str = ".kg-snapshot-";
/// The number of attempts to copy files that change during the copy.
const ATTEMPTS: u32 = 20;

/// Copies in a directory of their own. Dropping this value removes them.
pub struct RawCopy {
    dir: PrivateDir,
    /// The suffixes in [`TRAVELLING`] that exist.
    companions: Vec<&'static str>,
}

impl RawCopy {
    pub fn database(&self) -> PathBuf {
        self.dir.path().join("database")
    }

    /// Returns the suffix and the copy of each file that was copied with the database.
    pub fn companions(&self) -> impl Iterator<Item = (&'static str, PathBuf)> + '_ {
        self.companions
            .iter()
            .map(|suffix| (*suffix, companion(&self.database(), suffix)))
    }

    /// Prevents SQLite from following the name of a super-journal in the copied journal. SQLite
    /// would remove the file of that name, which belongs to the original.
    ///
    /// While that file exists, the transaction over several databases is not committed, and this
    /// part of it is rolled back. Without it, the journal has no meaning
    /// (<https://sqlite.org/atomiccommit.html#_multi_file_commit>).
    pub fn settle_super_journal(&self, original: &Path) -> Result<()> {
        let journal = companion(&self.database(), "-journal");
        let failed = |cause| Error::io("read a copy of", original, cause);
        let file = match File::options().read(true).write(true).open(&journal) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(failed)?,
        };
        let Some((name, length)) = super_journal(&file).map_err(failed)? else {
            return Ok(());
        };
        // In a container, the directory may have another path than the one under which the database
        // was written.
        let here = name.file_name().map(|name| original.with_file_name(name));
        let exists = name.exists() || here.is_some_and(|here| here.exists());
        if exists {
            file.set_len(length).map_err(failed)
        } else {
            fs::remove_file(&journal).map_err(failed)
        }
    }

    pub fn into_dir(self) -> PrivateDir {
        self.dir
    }
}

/// Creates a directory below `scratch` that only this user may enter.
pub fn scratch_dir(scratch: &Path) -> Result<PrivateDir> {
    PrivateDir::new(scratch, SCRATCH_PREFIX)
}

/// Copies the database with its WAL and journal, and starts again if any of them changed meanwhile.
/// Returns `KG_DATABASE_BUSY` if all attempts fail.
pub fn copy(path: &Path, scratch: &Path) -> Result<RawCopy> {
    let path = &dir_handle::resolve(path).map_err(|cause| Error::io("copy", path, cause))?;
    for _ in 0..ATTEMPTS {
        let before = fingerprints(path);
        let dir = scratch_dir(scratch)?;
        let database = dir.path().join("database");
        copy_file(path, &database)?;
        let mut companions = Vec::new();
        for suffix in TRAVELLING {
            if copy_companion(&companion(path, suffix), &companion(&database, suffix))? {
                companions.push(suffix);
            }
        }
        if fingerprints(path) == before {
            return Ok(RawCopy { dir, companions });
        }
    }
    Err(Error::new(
        Code::DatabaseBusy,
        format!(
            "{} changed during each of {ATTEMPTS} attempts to copy it",
            path.display()
        ),
        "Stop the processes that write it, then run it again",
    ))
}

/// Returns the super-journal that a journal names, and the length of the journal without that
/// record. The record is a page number, the name, its length, a checksum and the magic
/// (<https://sqlite.org/fileformat2.html#the_rollback_journal>).
fn super_journal(journal: &File) -> io::Result<Option<(PathBuf, u64)>> {
    const BEFORE_NAME: u64 = 4;
    const AFTER_NAME: u64 = 16;
    if !names_super_journal(journal)? {
        return Ok(None);
    }
    let size = journal.metadata()?.len();
    let mut length = [0; 4];
    let Some(at) = size.checked_sub(AFTER_NAME) else {
        return Ok(None);
    };
    journal.read_exact_at(&mut length, at)?;
    let length = u64::from(u32::from_be_bytes(length));
    let Some(begins) = at.checked_sub(length) else {
        return Ok(None);
    };
    let mut name = vec![0; length as usize];
    journal.read_exact_at(&mut name, begins)?;
    let name = os_string(name).map(PathBuf::from);
    Ok(name.map(|name| (name, begins.saturating_sub(BEFORE_NAME))))
}

/// Copies a WAL or journal, if there is one. The last process that has the database open deletes the
/// file when it closes, which can happen at any moment. Returns whether there was one.
fn copy_companion(from: &Path, to: &Path) -> Result<bool> {
    if !from.exists() {
        return Ok(false);
    }
    match dir_handle::open_file(from) {
        Ok(source) => copy_opened(source, from, to).map(|_| true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(Error::io("copy", from, cause)),
    }
}

/// Copies a file, which must not be a link, to a new file that only this user can read. Returns the
/// number of bytes.
pub fn copy_file(from: &Path, to: &Path) -> Result<u64> {
    let source = dir_handle::open_file(from).map_err(|cause| Error::io("copy", from, cause))?;
    copy_opened(source, from, to)
}

fn copy_opened(mut source: File, from: &Path, to: &Path) -> Result<u64> {
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to);
    let mut new = made.map_err(|cause| Error::io("write", to, cause))?;
    io::copy(&mut source, &mut new).map_err(|cause| Error::io("copy", from, cause))
}

type Fingerprint = io::Result<(u64, u64, i64, i64)>;

/// Returns the inode, size and modification time of the database, its WAL and its journal.
pub fn fingerprints(path: &Path) -> Vec<Option<(u64, u64, i64, i64)>> {
    let of = |path: &Path| -> Fingerprint {
        let found = fs::metadata(path)?;
        let (_, inode) = FileId::at(path)?.identity;
        Ok((inode, found.len(), found.mtime(), found.mtime_nsec()))
    };
    ["", TRAVELLING[0], TRAVELLING[1]]
        .iter()
        .map(|suffix| of(&companion(path, suffix)).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// Creates a database with a hot journal that names `super_journal` and contains the pages of
    /// the previous commit.
    fn with_super_journal(dir: &Path, super_journal: &Path) -> PathBuf {
        let path = dir.join("a.db");
        let host = Connection::open(&path).unwrap();
        host.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES ('old')")
            .unwrap();
        let (before, salt) = (fs::read(&path).unwrap(), 7_u32);
        host.execute_batch("UPDATE t SET x = 'new'").unwrap();
        drop(host);
        let mut journal = vec![0; 512];
        let header = [0xd9d5_05f9, 0x20a1_63d7, 2, salt, 2, 512, 4096_u32];
        header.iter().enumerate().for_each(|(at, word)| {
            journal[at * 4..at * 4 + 4].copy_from_slice(&word.to_be_bytes())
        });
        for (number, page) in (1_u32..).zip(before.chunks(4096)) {
            let sum = (1..=20)
                .map(|step| u32::from(page[4096 - 200 * step]))
                .sum::<u32>()
                + salt;
            journal.extend(number.to_be_bytes());
            journal.extend(page);
            journal.extend(sum.to_be_bytes());
        }
        let name = super_journal.as_os_str().as_encoded_bytes();
        let sum: u32 = name.iter().map(|byte| u32::from(*byte)).sum();
        journal.extend(262_145_u32.to_be_bytes());
        journal.extend(name);
        journal.extend((name.len() as u32).to_be_bytes());
        journal.extend(sum.to_be_bytes());
        journal.extend([0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]);
        fs::write(companion(&path, "-journal"), journal).unwrap();
        path
    }

    #[test]
    fn the_file_that_a_copied_journal_names_stays_and_decides_whether_it_is_rolled_back() {
        let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let elsewhere = scratch.path().join("a.db-mj1");
        let path = with_super_journal(dir.path(), &elsewhere);
        let read = || {
            let copy = copy(&path, scratch.path()).unwrap();
            copy.settle_super_journal(&path).unwrap();
            let connection = Connection::open(copy.database()).unwrap();
            connection
                .query_row("SELECT x FROM t", [], |row| row.get::<_, String>(0))
                .unwrap()
        };
        // Without the super-journal, the transaction over several databases was committed.
        assert_eq!(read(), "new");
        for present in [elsewhere, dir.path().join("a.db-mj1")] {
            fs::write(&present, "names no journal that exists").unwrap();
            assert_eq!(read(), "old");
            assert!(present.exists());
            fs::remove_file(present).unwrap();
        }
    }
}
