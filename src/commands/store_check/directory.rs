//! The check of a directory.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::{
    CHECK_PREFIX,
    report::{Finding, Need, Report, StoreCheck, Trial, Tried},
};
use crate::{
    error::{Code, Error, Result},
    store::Store,
    system::{
        mounts,
        portable::{self, try_lock},
        refusal,
    },
    util::{
        atomic_file, file_lock,
        temp_dir::{PrivateDir, free_bytes},
    },
};

const CONTENT: &[u8] = b"a check of kg, which deletes this";
const OTHER: &[u8] = b"another content";

const fn trial(name: &'static str, needed_for: Need, title: &'static str) -> Trial {
    Trial {
        name,
        title,
        needed_for,
        permission: "",
    }
}

const TRIALS: &[Trial] = &[
    trial("directory", Need::Backups, "find the directory"),
    trial("list", Need::Backups, "list the directory"),
    trial("create", Need::Backups, "create a directory and a file"),
    trial("read", Need::Backups, "read a file"),
    trial("lock", Need::Backups, "lock a file against a second writer"),
    trial(
        "rename",
        Need::Backups,
        "rename a file and replace no other one",
    ),
    trial("delete", Need::Retention, "delete a file"),
    trial(
        "sync",
        Need::Advice,
        "sync a file and its directory to the disk",
    ),
    trial("space", Need::Advice, "free space"),
];

pub fn check(store: &Store) -> Result<StoreCheck> {
    if let Some(project) = store.home() {
        store.assert_outside(project)?;
    }
    let dir = store.dir();
    let mut report = Report::new(TRIALS);
    let mut remaining = Vec::new();
    let nearest = nearest(dir);
    if let Some(parent) = find(store, &mut report, nearest.as_deref()) {
        if let Some(path) = try_files(parent, &mut report) {
            remaining.push(path.display().to_string());
        }
        report.note("space", space(parent));
    }
    let tried = Tried {
        service: "directory",
        file_system: nearest.as_deref().map(mounts::file_system),
        free_bytes: nearest.as_deref().and_then(free_bytes),
        ..Tried::default()
    };
    Ok(report.finish(dir.display().to_string(), tried, remaining))
}

/// Returns the directory, or the nearest one above it that exists.
fn nearest(dir: &Path) -> Option<PathBuf> {
    let mut above = dir.ancestors();
    above.find(|dir| dir.exists()).map(Path::to_path_buf)
}

/// Finds the directory in which files can be tried.
fn find<'a>(store: &Store, report: &mut Report, nearest: Option<&'a Path>) -> Option<&'a Path> {
    let dir = store.dir();
    let exists = match store.exists() {
        Ok(exists) => exists,
        Err(error) => {
            report.note("directory", Finding::fails(error));
            report.stop("directory");
            return None;
        }
    };
    let is_dangling = dir
        .ancestors()
        .take_while(|above| !above.exists())
        .any(Path::is_symlink);
    let usable = nearest.filter(|parent| parent.is_dir() && !is_dangling);
    let Some(parent) = usable else {
        let what = match is_dangling {
            true => "is a link that leads nowhere, or lies below one",
            false => "lies below a file",
        };
        let error = Error::new(
            Code::BackupDirInvalid,
            format!("The backup directory {} {what}", dir.display()),
            "Name a directory, or remove that file",
        );
        report.note("directory", Finding::fails(error));
        report.stop("directory");
        return None;
    };
    report.note(
        "directory",
        match exists {
            true => Finding::works(),
            false => Finding::works_with(format!(
                "it does not exist, and the first backup creates it; {} was tried instead",
                parent.display()
            )),
        },
    );
    let listed = fs::read_dir(parent).map(Iterator::count);
    let listed = listed.map_err(|cause| Error::io("list", parent, cause));
    report.note(
        "list",
        match listed {
            Ok(count) => Finding::works_with(format!("{count} entries")),
            Err(error) => Finding::fails(error),
        },
    );
    if let Some(error) = store.refusal_to_lock() {
        report.note("lock", Finding::fails(error));
    }
    Some(parent)
}

/// Tries everything in a directory of its own. Returns its path if it could not be removed.
fn try_files(parent: &Path, report: &mut Report) -> Option<PathBuf> {
    let made = PrivateDir::new(parent, CHECK_PREFIX).and_then(|dir| {
        let path = dir.path().join("file");
        write(&path, CONTENT).map(|()| (dir, path))
    });
    let (dir, path) = match made {
        Ok(made) => made,
        Err(error) => {
            report.note("create", Finding::fails(error));
            report.stop("create");
            return None;
        }
    };
    report.note("create", Finding::works());
    note(report, "read", read(&path));
    if report.outcome("lock").is_none() {
        note(report, "lock", lock(&path));
    }
    note(report, "rename", rename(dir.path(), &path));
    let synced = sync(dir.path(), &path);
    report.note("sync", synced.unwrap_or_else(Finding::warns_of));
    let path = dir.path().to_path_buf();
    note(report, "delete", dir.remove());
    path.exists().then_some(path)
}

fn note(report: &mut Report, name: &str, tried: Result<()>) {
    let finding = tried.map(|()| Finding::works());
    report.note(name, finding.unwrap_or_else(Finding::fails));
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(content));
    written.map_err(|cause| Error::io("write", path, cause))
}

fn read(path: &Path) -> Result<()> {
    match fs::read(path) {
        Ok(content) if content == CONTENT => Ok(()),
        Ok(_) => Err(wrong(path, "returns other bytes than it was given")),
        Err(cause) => Err(Error::io("read", path, cause)),
    }
}

/// Locks a file, and tries to lock it again as another process would.
fn lock(path: &Path) -> Result<()> {
    let open = || {
        let file = File::options().read(true).write(true).open(path);
        file.map_err(|cause| Error::io("open", path, cause))
    };
    let (first, second) = (open()?, open()?);
    match try_lock(&first) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(wrong(path, "says that a new file is locked")),
        Err(TryLockError::Error(cause)) => return Err(file_lock::refused(path, cause)),
    }
    match try_lock(&second) {
        Err(TryLockError::WouldBlock) => Ok(()),
        Ok(()) => Err(wrong(path, "gives one lock to two writers")),
        Err(TryLockError::Error(cause)) => Err(file_lock::refused(path, cause)),
    }
}

/// Moves a file to a free name, and tries to move another one there.
fn rename(dir: &Path, file: &Path) -> Result<()> {
    let (to, other) = (dir.join("renamed"), dir.join("other"));
    atomic_file::persist_noclobber(file, &to)?;
    write(&other, OTHER)?;
    if atomic_file::persist_noclobber(&other, &to).is_ok() {
        return Err(wrong(&to, "replaces a file that should stay"));
    }
    read(&to)
}

fn sync(dir: &Path, file: &Path) -> Result<Finding> {
    for path in [dir, &dir.join("renamed"), file] {
        let synced = match portable::open_to_read(path, true) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.and_then(|file| portable::sync(&file)),
        };
        match synced {
            Ok(()) => {}
            Err(cause) if refusal::has_no_sync(&cause) => {
                return Ok(Finding::warning(
                    format!(
                        "The file system ({}) has no `fsync`, so that a loss of power can damage \
                         a new backup",
                        mounts::file_system(dir)
                    ),
                    "Use a directory on another file system if you can",
                ));
            }
            Err(cause) => return Err(Error::io("sync", path, cause)),
        }
    }
    Ok(Finding::works())
}

fn space(dir: &Path) -> Finding {
    match free_bytes(dir) {
        Some(0) => Finding::warning("No space is free", "Free some space there"),
        Some(bytes) => Finding::works_with(format!("{:.1} GB", bytes as f64 / 1e9)),
        None => Finding::cannot_tell(Error::new(
            Code::Io,
            format!("The free space of {} is not known", dir.display()),
            "Look it up with `df`",
        )),
    }
}

fn wrong(path: &Path, what: &str) -> Error {
    let parent = path.parent().unwrap_or(path);
    Error::new(
        Code::Unsupported,
        format!("The file system ({}) {what}", mounts::file_system(parent)),
        "Use a directory on another file system",
    )
}
