//! The log of the service, one line per event. It goes to standard output or to `.kg/logs/`, which
//! keeps at most [`MOST_FILES`] files of [`MOST_BYTES`].

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{
    error::{Error, Result},
    project::Project,
    util::atomic_file,
};

/// The directory below `.kg/`. Backups exclude it.
pub const DIR: &str = "logs";
pub const FILE: &str = "backup-service.log";
const MOST_BYTES: u64 = 1024 * 1024;
const MOST_FILES: u32 = 5;

pub enum Log {
    Output,
    File { path: PathBuf, file: RefCell<File> },
}

impl Log {
    pub fn of(project: &Project) -> Result<Self> {
        let dir = project.state_dir().join(DIR);
        atomic_file::create_unversioned_dirs(&dir)
            .map_err(|cause| Error::io("create", &dir, cause))?;
        let path = dir.join(FILE);
        let file = open(&path)?;
        Ok(Log::File {
            path,
            file: RefCell::new(file),
        })
    }

    /// Writes a line. Errors are ignored, because a log that cannot be written must not prevent a
    /// backup.
    pub fn line(&self, text: &str) {
        let text: String = text
            .chars()
            .map(|one| if one.is_control() { ' ' } else { one })
            .collect();
        let line = format!("{:.0} {text}\n", Timestamp::now());
        let _ = match self {
            Log::Output => io::stdout().write_all(line.as_bytes()),
            Log::File { path, file } => self.append(path, &mut file.borrow_mut(), line.as_bytes()),
        };
    }

    fn append(&self, path: &Path, file: &mut File, line: &[u8]) -> io::Result<()> {
        if file.metadata()?.len() + line.len() as u64 > MOST_BYTES {
            for number in (1..MOST_FILES).rev() {
                let from = if number == 1 {
                    path.to_path_buf()
                } else {
                    numbered(path, number - 1)
                };
                if from.exists() {
                    atomic_file::rename(
                        &from,
                        numbered(path, number).file_name().unwrap_or_default(),
                    )?;
                }
            }
            *file = open(path).map_err(io::Error::other)?;
        }
        file.write_all(line)
    }
}

fn open(path: &Path) -> Result<File> {
    atomic_file::open_log(path)
}

/// Returns the path of a rotated log, such as `backup-service.log.2`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn no_more_files_are_kept_than_the_limit_and_none_is_larger_than_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".kg")).unwrap();
        let project = Project::open(dir.path()).unwrap();
        let log = Log::of(&project).unwrap();
        let text = "a line of the log ".repeat(5000);
        for number in 0..100 {
            log.line(&format!("{number} {text}"));
        }
        let files: Vec<_> = fs::read_dir(project.state_dir().join(DIR))
            .unwrap()
            .flatten()
            .filter(|file| file.file_name() != atomic_file::GITIGNORE)
            .collect();
        assert_eq!(files.len(), MOST_FILES as usize);
        assert!(
            files
                .iter()
                .all(|file| file.metadata().unwrap().len() <= MOST_BYTES)
        );
        let newest = fs::read_to_string(project.state_dir().join(DIR).join(FILE)).unwrap();
        assert!(newest.lines().last().unwrap().contains(" 99 a line"));
    }
}
