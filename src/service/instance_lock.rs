//! Ensures one service per project, with an operating system lock on `.kg/backup-service.lock`. The
//! file names its holder.

use std::{
    fs::{File, TryLockError},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::process::{Process, another_program};
use crate::{
    error::{Code, Error, Result},
    project::Project,
    system::{file_id::FileId, holders, portable},
    util::{
        atomic_file,
        file_lock::{self, host_name},
        regular_file,
    },
};

/// The name of the lock file below `.kg/`. Backups exclude it.
pub const LOCK_FILE: &str = "backup-service.lock";
/// The maximum size of the lock file. A larger file does not name a process.
const MAX_BYTES: u64 = 4096;
const POLL: Duration = Duration::from_millis(20);

/// The process that runs a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    pub pid: i32,
    pub host: String,
    /// In milliseconds since the epoch.
    pub since: i64,
}

/// The lock of a service, held until this value is dropped.
#[derive(Debug)]
pub struct InstanceLock {
    file: File,
    holder: Holder,
}

impl Holder {
    /// Finds the process that runs the service of `project`; `None` if no service runs. Returns
    /// `KG_SERVICE` if another program holds the lock.
    pub fn find(project: &Project) -> Result<Option<Holder>> {
        let path = path(project);
        let failed = |cause| Error::io("lock", &path, cause);
        let Some(file) = open_lock(project)? else {
            return Ok(None);
        };
        match portable::try_lock_shared(&file) {
            Ok(()) => Ok(None),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
            Err(TryLockError::WouldBlock) => {
                if let Some(process) = another_program(&file) {
                    let message = format!(
                        "{} is locked by {process}, which is not a service",
                        path.display()
                    );
                    return Err(Error::new(
                        Code::Service,
                        message,
                        "Stop that process: no service can run until it has ended",
                    ));
                }
                let text = regular_file::read(&file, MAX_BYTES).map_err(failed)?;
                // The process has only just taken the lock and has not written its details yet.
                let unknown = Holder {
                    pid: 0,
                    host: String::new(),
                    since: 0,
                };
                Ok(Some(serde_json::from_slice(&text).unwrap_or(unknown)))
            }
        }
    }

    /// Ends the service and waits until it has ended. After `patience` it kills the service, and
    /// the next run cleans up. Returns `Ok(true)` if it had to kill the service.
    pub fn stop(&self, project: &Project, patience: Duration) -> Result<bool> {
        let Some(lock) = open_lock(project)? else {
            return Ok(false);
        };
        let process = match Process::holding(&lock) {
            // The service may have ended by itself just now.
            Err(why) if Holder::find(project)?.as_ref() == Some(self) => {
                return Err(self.out_of_reach(&why));
            }
            Err(_) => return Ok(false),
            Ok(process) => process,
        };
        process
            .ask_to_end()
            .map_err(|why| self.out_of_reach(&why))?;
        if self.wait_for_end(project, patience)? {
            return Ok(false);
        }
        process.kill().map_err(|why| self.out_of_reach(&why))?;
        if self.wait_for_end(project, patience)? {
            Ok(true)
        } else {
            Err(self.out_of_reach("it does not end"))
        }
    }

    /// Returns the name of the process for messages, with its process id in this container. The
    /// process may know itself by another number.
    pub fn shown(&self, project: &Project) -> String {
        let lock = open_lock(project)
            .ok()
            .flatten()
            .and_then(|lock| FileId::of(&lock).ok());
        holders::with_own_name(
            lock,
            self.pid,
            &format!("process {} on {}", self.pid, self.host.escape_default()),
        )
    }

    fn wait_for_end(&self, project: &Project, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        while Holder::find(project)?.as_ref() == Some(self) {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
        Ok(true)
    }

    fn out_of_reach(&self, what: &str) -> Error {
        Error::new(
            Code::Service,
            format!("The service of this project could not be stopped: {what}"),
            "Stop it on the machine where it was started, as the user who started it",
        )
    }
}

fn path(project: &Project) -> PathBuf {
    project.state_dir().join(LOCK_FILE)
}

/// Opens the lock file to inspect it; `None` if there is no lock file.
fn open_lock(project: &Project) -> Result<Option<File>> {
    let path = path(project);
    let file = match regular_file::open_linked(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|cause| Error::io("lock", &path, cause))?,
    };
    // A copy of the project made with hard links shares the lock file of the original.
    regular_file::assert_one_name(&file, &path)?;
    Ok(Some(file))
}

impl InstanceLock {
    /// Takes the lock, or returns the current holder as the inner `Err`.
    pub fn take(project: &Project) -> Result<std::result::Result<InstanceLock, Holder>> {
        let path = path(project);
        let failed = |cause| Error::io("lock", &path, cause);
        let mut file = atomic_file::open_lock(&path)?;
        match portable::try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::Error(cause)) => return Err(file_lock::refused(&path, cause)),
            Err(TryLockError::WouldBlock) => {
                return match Holder::find(project)? {
                    Some(holder) => Ok(Err(holder)),
                    None => InstanceLock::take(project),
                };
            }
        }
        let holder = Holder {
            pid: std::process::id() as i32,
            host: host_name(),
            since: Timestamp::now().as_millisecond(),
        };
        let text = serde_json::to_string(&holder).unwrap_or_default();
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{text}"))
            .map_err(failed)?;
        Ok(Ok(InstanceLock { file, holder }))
    }

    /// Returns the holder of the lock, which is this process.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Returns whether the locked file is still the lock file of the project. If the project was
    /// removed, it needs no service.
    pub fn is_in(&self, state_dir: &Path) -> bool {
        let (Ok(here), Ok(there)) = (
            FileId::of(&self.file),
            FileId::at(&state_dir.join(LOCK_FILE)),
        ) else {
            return false;
        };
        here.identity == there.identity
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_second_service_is_told_who_is_the_first_and_the_next_one_may_follow_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".kg")).unwrap();
        let project = Project::open(dir.path()).unwrap();
        assert_eq!(Holder::find(&project).unwrap(), None);
        let first = InstanceLock::take(&project).unwrap().unwrap();
        let holder = InstanceLock::take(&project).unwrap().unwrap_err();
        assert_eq!(holder.pid, std::process::id() as i32);
        assert_eq!(Holder::find(&project).unwrap(), Some(holder));
        assert!(first.is_in(&project.state_dir()));
        fs::remove_dir_all(project.state_dir()).unwrap();
        assert!(!first.is_in(&project.state_dir()));
        fs::create_dir(project.state_dir()).unwrap();
        drop(first);
        InstanceLock::take(&project).unwrap().unwrap();
    }
}
