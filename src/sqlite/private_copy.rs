//! A copy of a database that no other process uses. Checks may keep it for as long as they take,
//! and SQLite may write to it.
//!
//! Making the copy reads the original once. Nothing else is done with the original.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    confirmed,
    files::companion,
    raw_copy,
    snapshot::{self, Capture, Conditions, Snapshot},
};
use crate::{
    error::{Code, Error, Result},
    system::portable::{MetadataExt, set_mode},
    util::{
        atomic_file,
        operation::CancelToken,
        temp_dir::{PrivateDir, Scratch, free_bytes, safe_parent},
        unsupported,
    },
};

/// The file format versions in the header, which select WAL mode or rollback mode
/// (<https://sqlite.org/fileformat2.html#file_format_version_numbers>).
const VERSIONS: std::ops::Range<usize> = 18..20;
const ROLLBACK_VERSION: u8 = 1;
/// The prefix of temporary directories for copies that are kept.
const KEPT_PREFIX: &str = ".kg-kept-";

/// A private copy. Dropping it removes the copy.
pub struct PrivateCopy {
    _dir: PrivateDir,
    database: PathBuf,
    /// The reason why SQLite refused the original. If it is set, the copy contains the original's
    /// bytes, with its WAL or journal.
    pub refused: Option<Error>,
}

impl PrivateCopy {
    pub fn database(&self) -> &Path {
        &self.database
    }
}

/// Copies one commit of the database at `path` into a directory below `scratch`. Calls `copied`
/// with the number of bytes of each part.
pub fn copy(
    path: &Path,
    scratch: &Path,
    lock_timeout: Duration,
    cancel: &CancelToken,
    copied: &dyn Fn(u64),
) -> Result<PrivateCopy> {
    assert_room(path, scratch)?;
    let conditions = Conditions {
        scratch,
        lock_timeout,
        with_twin: false,
    };
    let attempt = || -> Result<PrivateCopy> {
        let dir = raw_copy::scratch_dir(scratch)?;
        match snapshot::take(path, conditions, cancel)? {
            Capture::Snapshot(snapshot) => {
                let database = snapshot.write_to(&dir.path().join("database"), cancel, copied)?;
                Ok(PrivateCopy {
                    _dir: dir,
                    database,
                    refused: None,
                })
            }
            Capture::Damaged(copy, error) => Ok(refused(copy, error)),
        }
    };
    match confirmed(attempt) {
        Err(error) if error.code == Code::DatabaseDamaged => {
            Ok(refused(raw_copy::copy(path, scratch)?, error))
        }
        copied => copied,
    }
}

/// Keeps a copy of the database at `path` as the new file `to` in the same directory. The copy is a
/// complete database without a WAL.
///
/// Returns `KG_DATABASE_DAMAGED` or another code if SQLite refuses the original, and `KG_NO_SPACE`
/// if the disk is too full. The file `to` is not created then.
pub fn keep(path: &Path, to: &Path, lock_timeout: Duration) -> Result<()> {
    let failed = |cause| Error::io("write", to, cause);
    let dir = to.parent().unwrap_or(to);
    let scratch = Scratch::new(&safe_parent(dir), KEPT_PREFIX)?;
    let copy = copy(
        path,
        scratch.path(),
        lock_timeout,
        &CancelToken::default(),
        &|_| {},
    )
    .map_err(no_room)?;
    if let Some(error) = copy.refused {
        return Err(error);
    }
    let file = File::open(copy.database()).map_err(failed)?;
    let mode = fs::metadata(path).map_err(failed)?.mode();
    unsupported::attributes(set_mode(&file, mode), to)
        .and_then(|()| unsupported::sync(&file, to))
        .map_err(failed)?;
    atomic_file::persist_noclobber(copy.database(), to)
}

fn refused(copy: raw_copy::RawCopy, error: Error) -> PrivateCopy {
    let database = copy.database();
    PrivateCopy {
        database,
        _dir: copy.into_dir(),
        refused: Some(error),
    }
}

/// Replaces the advice for checks, which is to choose another directory: it does not help here.
fn no_room(error: Error) -> Error {
    error.with_remedy_for(
        Code::NoSpace,
        "Nothing was changed; free that much space there, and run it again",
    )
}

/// Returns `KG_NO_SPACE` if the copy does not fit, so that the disk is not filled.
fn assert_room(path: &Path, scratch: &Path) -> Result<()> {
    let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    let needed = size(path) + size(&companion(path, "-wal"));
    let Some(free) = free_bytes(scratch) else {
        return Ok(());
    };
    if needed <= free {
        return Ok(());
    }
    Err(Error::new(
        Code::NoSpace,
        format!(
            "A check of {} needs a copy of {needed} bytes, but {} has only {free} free",
            path.display(),
            scratch.display()
        ),
        "Set TMPDIR to a directory with that much space, and run it again",
    ))
}

impl Snapshot {
    /// Writes the pages to `to`, in rollback-journal mode even if the original uses another mode.
    fn write_to(self, to: &Path, cancel: &CancelToken, copied: &dyn Fn(u64)) -> Result<PathBuf> {
        let failed = |cause| Error::io("write", to, cause);
        if let Some(file) = self.copied_file()? {
            copied(self.size_bytes());
            // Close the connection first, so that SQLite does not create a journal for the old
            // name.
            let (held, connection) = self.into_connection();
            drop(connection);
            fs::rename(&file, to).map_err(failed)?;
            drop(held);
            return Ok(to.to_path_buf());
        }
        let mut file = BufWriter::with_capacity(1 << 20, File::create_new(to).map_err(failed)?);
        let mut is_first = true;
        self.pages(cancel, |page| {
            copied(page.len() as u64);
            if !std::mem::take(&mut is_first) {
                return file.write_all(page).map_err(failed);
            }
            let mut page = page.to_vec();
            page[VERSIONS].fill(ROLLBACK_VERSION);
            file.write_all(&page).map_err(failed)
        })?;
        file.flush().map_err(failed)?;
        Ok(to.to_path_buf())
    }
}
